# SPDX-License-Identifier: Apache-2.0
"""How long a search may go on."""

import time
from dataclasses import dataclass, field


@dataclass
class Budget:
    """Limits of a search; it ends at the first that is reached.

    Args:
        seconds (`float`, *optional*):
            Of the clock.
        tokens (`int`, *optional*):
            That go through the model; those of a gradient count three times.
        evaluations (`int`, *optional*):
            Prefixes that are tried.
    """

    seconds: float | None = None
    tokens: int | None = None
    evaluations: int | None = None
    started: float = field(default_factory=time.monotonic, init=False)
    spent_tokens: int = field(default=0, init=False)
    spent_evaluations: int = field(default=0, init=False)

    def __post_init__(self):
        limits = {name: getattr(self, name) for name in ("seconds", "tokens", "evaluations")}
        if all(limit is None for limit in limits.values()):
            raise ValueError("A search needs a limit: give `seconds`, `tokens` or `evaluations`.")
        for name, limit in limits.items():
            if limit is not None and not limit > 0:
                raise ValueError(f"{name}={limit}: a search's limit must be above 0.")

    def start(self) -> None:
        """Sets the clock to 0: what came before the search is not counted."""
        self.started = time.monotonic()

    @property
    def spent_seconds(self) -> float:
        """On the clock."""
        return time.monotonic() - self.started

    @property
    def used(self) -> float:
        """Share of the limit that is nearest, 1 when it is reached."""
        pairs = ((self.spent_seconds, self.seconds), (self.spent_tokens, self.tokens))
        pairs = (*pairs, (self.spent_evaluations, self.evaluations))
        return min(1.0, max(spent / limit for spent, limit in pairs if limit is not None))

    def room(self, cost: int) -> int:
        """Prefixes that may still be tried if each takes `cost` tokens; the clock is only looked at."""
        if self.seconds is not None and self.spent_seconds >= self.seconds:
            return 0
        left = [2**31]
        if self.tokens is not None:
            left.append((self.tokens - self.spent_tokens) // cost)
        if self.evaluations is not None:
            left.append(self.evaluations - self.spent_evaluations)
        return max(0, min(left))

    def spend(self, tokens: int, evaluations: int = 0) -> None:
        """Notes what was used."""
        self.spent_tokens += tokens
        self.spent_evaluations += evaluations
