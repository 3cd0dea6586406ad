"""What watching costs beside the steps that it watches, and when the next probe may be. Standard library only."""

from __future__ import annotations

import math
import time
from collections import deque
from types import TracebackType
from typing import Any

SURE_UP_TO = 1000  # steps 1, 2, 3, 5, 10, 20, 50, ... up to here are probed whatever it costs: runs go wrong early
SPARSEST = 100  # steps between two probes that the budget could pay for
PROBES_LEAST = (
    0.5  # of the budget: small steps cost less than what is recorded of them, and are to be probed all the same
)
AIMED_AT = 0.85  # of the budget: caches that a probe has emptied are filled again in steps that nobody calls probed
REMEMBERED = 5  # probes; the next is expected to cost as much as the dearest of these


def surely_probed(step: int) -> bool:
    """``step`` counts from 1. The same on all workers, without asking."""
    if step == 3:
        return True
    power = 10 ** int(math.log10(step) + 1e-9)
    return step <= SURE_UP_TO and step in (power, 2 * power, 5 * power)


class Spending:
    """``seconds``: of all steps that were timed, with what was probed in them; ``cost``: of the probes among these seconds; ``recording``: between
    steps, of keeping, reporting and judging what each measures, which is not to be had for less: probes get what it leaves, and at least half."""

    def __init__(self, budget: float) -> None:
        """``budget``: of watching, over the steps' own time; 0: no probes; 1: one at every step."""
        self.budget = budget
        self.cost = self.recording = self.seconds = 0.0
        self._latest: deque[float] = deque(maxlen=REMEMBERED)
        self._own_step: float | None = None  # seconds of a step without what was measured in it, lately
        self._cost_counted = 0.0
        self._probed = 0  # the last step that was probed
        self._unknown = 0  # probes whose cost is not known yet

    def probes(self, step: int) -> None:
        self._probed = step
        self._unknown += 1

    def step_took(self, seconds: float) -> None:
        self.seconds += seconds
        own = max(0.0, seconds - (self.cost - self._cost_counted))
        self._cost_counted = self.cost
        self._own_step = own if self._own_step is None else 0.9 * self._own_step + 0.1 * own

    def probe_took(self, seconds: float) -> None:
        """Of all probes that were begun since it was told last."""
        self.cost += seconds
        self._latest.append(seconds / max(1, self._unknown))
        self._unknown = 0

    def recording_took(self, seconds: float) -> None:
        """Between steps."""
        self.recording += seconds

    @property
    def share(self) -> float | None:
        """Cost of all watching over the steps' own time so far. None: nothing was timed yet."""
        own = self.seconds - self.cost
        return (self.cost + self.recording) / own if own > 0 else None

    def next_after(self, step: int) -> int:
        """The first step after ``step`` at which one more probe leaves the whole run within the budget; 0: none."""
        if self.budget <= 0:
            return 0
        if self.budget >= 1:
            return step + 1
        soonest = max(step + 1, self._probed + max(1, min(SPARSEST, step // 100)))
        if not self._latest or not self._own_step:
            return soonest
        expected = max(self._latest)
        own, aim = self.seconds - self.cost, AIMED_AT * self.budget
        left = max(PROBES_LEAST * aim * own, aim * own - self.recording)
        missing = (self.cost + expected * (1 + self._unknown) - left) / aim
        return max(soonest, step + math.ceil(missing / self._own_step))

    def document(self) -> dict[str, float]:
        return {"cost": self.cost, "recording": self.recording, "seconds": self.seconds}

    def restore(self, document: dict[str, Any]) -> None:
        self.cost = self._cost_counted = document["cost"]
        self.recording = document.get("recording", 0.0)  # not in those of earlier versions
        self.seconds = document["seconds"]


class Stopwatch:
    """Adds up what runs inside ``with``: time of the host, and on an accelerator time between events, which nobody waits for."""

    def __init__(self, *, events: bool) -> None:
        self._events = events
        self._host = 0.0
        self._started_at = 0.0
        self._pairs: list[tuple[Any, Any]] = []

    def __enter__(self) -> None:
        self._started_at = time.perf_counter()
        if self._events:
            self._pairs.append((self._event(), None))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> bool | None:
        if self._events:
            self._pairs[-1] = (self._pairs[-1][0], self._event())
        self._host += time.perf_counter() - self._started_at
        return None

    @staticmethod
    def _event() -> Any:
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def read(self) -> float | None:
        """Seconds since the last reading, of the host or of the device, whichever is more. None: the device is not there yet."""
        if any(end is None or not end.query() for _, end in self._pairs):
            return None
        device: float = sum(begin.elapsed_time(end) for begin, end in self._pairs) / 1000
        seconds = max(self._host, device)
        self._host, self._pairs = 0.0, []
        return seconds
