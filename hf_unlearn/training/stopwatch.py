# SPDX-License-Identifier: Apache-2.0
"""How long training took: over all parts of a run, and without what only looks on."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter


class Stopwatch:
    """Seconds of wall time while it goes.

    A checkpoint keeps what it shows, and a run that is resumed goes on from there. So the whole is the time of the
    steps that made the result: steps that a kill undid are not in it, and neither are audits and evaluations.
    """

    def __init__(self):
        self._before, self._since = 0.0, None

    @property
    def seconds(self) -> float:
        """What it shows now."""
        return self._before + (0.0 if self._since is None else perf_counter() - self._since)

    def start(self, before: float = 0.0) -> None:
        """Goes on from `before` seconds."""
        self._before, self._since = before, perf_counter()

    def stop(self) -> None:
        """Keeps what it shows."""
        self._before, self._since = self.seconds, None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, time does not count."""
        going = self._since is not None
        self.stop()
        try:
            yield
        finally:
            if going:
                self.start(self._before)
