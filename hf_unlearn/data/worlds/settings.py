# SPDX-License-Identifier: Apache-2.0
"""Settings of a world: numbers, each with its bounds."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any


def within(default: float, low: float, high: float) -> Any:
    """A field of [`WorldSettings`] that must lie between `low` and `high`."""
    return dataclasses.field(default=default, metadata={"bounds": (low, high)})


@dataclass(frozen=True)
class WorldSettings:
    """What decides a world besides its seed: fields that are an `int` or a `float`."""

    def __post_init__(self):
        name, fields = type(self).__name__, dataclasses.fields(self)
        for field in fields:
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, (int, field.type)) or not math.isfinite(value):
                raise ValueError(f"{name}.{field.name} must be a finite {field.type.__name__}, got {value!r}.")
        for field in fields:
            low, high = field.metadata.get("bounds", (-math.inf, math.inf))
            if not low <= (value := getattr(self, field.name)) <= high:
                raise ValueError(f"{name}.{field.name} must lie between {low} and {high}, got {value!r}.")
        if self.learning_rate <= 0:
            raise ValueError(f"{name}.learning_rate must be above 0, got {self.learning_rate!r}.")
