# SPDX-License-Identifier: Apache-2.0
"""Checks of settings, each with one clear error."""

import math
import re
from dataclasses import fields
from typing import Any


def check_choice(name: str, value: Any, allowed) -> None:
    """Raises `ValueError` unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r}; allowed: {', '.join(map(repr, allowed))}.")


def check_choices(name: str, values: Any, allowed) -> None:
    """Raises `ValueError` unless every one of `values` is one of `allowed`."""
    if unknown := [value for value in values if value not in allowed]:
        raise ValueError(f"{name}: {unknown[0]!r} is unknown; allowed: {', '.join(allowed)}.")


def check_number(name: str, value: Any, *, above: float | None = None, at_least: float | None = None) -> None:
    """Raises `ValueError` unless `value` is a finite number in range."""
    bound = f"above {above}" if above is not None else f"at least {at_least}"
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    in_range = is_number and (above is None or value > above) and (at_least is None or value >= at_least)
    if not in_range:
        raise ValueError(f"{name}={value!r}; give a finite number {bound}.")


def check_whole(name: str, value: Any, *, at_least: int) -> None:
    """Raises `ValueError` unless `value` is `None` or a whole number in range."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < at_least):
        raise ValueError(f"{name}={value!r}; give a whole number of at least {at_least}, or leave it out.")


def check_patterns(name: str, patterns: Any) -> None:
    """Raises `ValueError` unless every one of `patterns` is a regular expression."""
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ValueError(f"{name}: {pattern!r} is no regular expression ({error}).") from error


def check_left_out(args, names, why: str) -> None:
    """Raises `ValueError` if one of the dataclass's fields has another value than its default."""
    defaults = {field.name: field.default for field in fields(args)}
    given = [f"{name}={getattr(args, name)!r}" for name in names if getattr(args, name) != defaults[name]]
    if given:
        raise ValueError(f"{', '.join(given)}: {why} Leave {'it' if len(given) == 1 else 'them'} out.")
