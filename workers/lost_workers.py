"""Losses of workers in one attempt, as its controller counts them: who was to blame, from where the group went on, and how long that took."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

from workers.group_decisions import Recoveries
from workers.reports import Outcome, Recovery

KEPT = 100  # recoveries that are remembered
FRUITLESS = 3  # losses in a row without a step between them, at least, before the attempt is given up

Source = Literal["memory", "checkpoint", "start"]


class LostWorkers:
    """At most one loss is open: from when a group comes apart until the next one has done a step."""

    def __init__(self) -> None:
        self.recovered: list[Recovery] = []
        self._counted = Recoveries()
        self._open: dict[str, Any] | None = None  # at, causes by rank, step, source
        self._blamed = False  # the causes are deaths, not broken connections

    @property
    def is_open(self) -> bool:
        return self._open is not None

    def begin(self, step: int, broken: Mapping[int, str]) -> None:
        """The group came apart after ``step``. ``broken``: why, of the ranks whose connections did. One that is open already goes on."""
        causes = {str(rank): why for rank, why in broken.items()}
        at = self._open["at"] if self._open else time.time()
        self._open, self._blamed = {"at": at, "causes": causes, "step": step, "source": "start"}, False
        self.count(step)

    def begin_without_cause(self) -> None:
        """Nobody was lost, and yet the group has to be formed anew. Not counted."""
        self._open = self._open or {"at": time.time(), "causes": {}, "step": 0, "source": "start"}

    def count(self, step: int) -> None:
        """One more loss, with ``step`` steps done."""
        self._counted = self._counted.another(step)

    def blame(self, rank: int, why: str) -> None:
        """Who died is the cause, not the peers whose connections broke."""
        if self._open is not None:
            causes = self._open["causes"] if self._blamed else {}
            self._open["causes"], self._blamed = {**causes, str(rank): why}, True

    def goes_on_from(self, source: Source) -> None:
        """Where the next group takes its state from."""
        if self._open is not None:
            self._open["source"] = source

    def end(self, stepped_at: float | None) -> Recovery:
        """The one that is open is over. ``stepped_at``: seconds since the epoch of the next group's first step; None: it needed none."""
        assert self._open is not None
        loss, self._open = self._open, None
        causes = sorted((int(rank), cause) for rank, cause in loss["causes"].items())
        said = "; ".join(f"rank {rank}: {cause}" for rank, cause in causes)
        seconds = max(0.0, (stepped_at or time.time()) - loss["at"])
        recovery = Recovery(loss["at"], [rank for rank, _ in causes], said, loss["step"], loss["source"], seconds)
        self.recovered = [*self.recovered[-KEPT + 1 :], recovery]
        return recovery

    def exhausted(self, most_attempts: int) -> Outcome | None:
        """When going on has become pointless. ``most_attempts``: of the job's retry policy."""
        causes = self._open["causes"] if self._open else {}
        return self._counted.exhausted(max(FRUITLESS, most_attempts), causes)

    def document(self) -> dict[str, Any]:
        """JSON values, for ``restore``."""
        return {
            "recoveries": asdict(self._counted),
            "recovered": [asdict(recovery) for recovery in self.recovered],
            "loss": self._open,
        }

    def restore(self, document: Mapping[str, Any]) -> None:
        self._counted = Recoveries(**document["recoveries"])
        self.recovered = [Recovery(**known) for known in document["recovered"]]
        self._open = document["loss"]
