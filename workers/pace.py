"""How fast a group moves, as far as its controller sees it."""

from __future__ import annotations

import statistics
import time
from collections import deque

LOOKS = 32


class Pace:
    def __init__(self) -> None:
        self._step = 0
        self._moved_at = time.monotonic()
        self._since: float | None = None  # the step was first seen, in the present generation
        self._found: deque[float] = deque(maxlen=LOOKS)

    def saw(self, step: int) -> None:
        now = time.monotonic()
        if step < self._step:  # steps that are done again, from an older checkpoint
            self._since = None
        if step != self._step:
            if self._since is not None:
                self._found.append((now - self._since) / (step - self._step))
            self._step, self._moved_at, self._since = step, now, now

    def restart(self) -> None:
        """A new group: what it takes to form one is no step."""
        self._moved_at, self._since = time.monotonic(), None

    @property
    def still_seconds(self) -> float:
        return time.monotonic() - self._moved_at

    @property
    def step_seconds(self) -> float | None:
        return statistics.median(self._found) if self._found else None
