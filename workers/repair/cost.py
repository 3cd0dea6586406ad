"""What a sickness has cost and repairs have saved, in time of workers. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.watch.told import CLEARED, RAISED

FAILING = ("warning", "critical")


@dataclass(frozen=True)
class Cost:
    """``lost``: of steps that were made after something had gone wrong and before it had passed or was mended. ``saved``: of steps after a repair
    that was kept, which would have been lost like those before it."""

    lost_seconds: float = 0.0
    saved_seconds: float = 0.0
    lost_steps: int = 0
    trained_seconds: float = 0.0  # of all steps


def cost(
    steps: NDArray[np.int64],
    seconds: NDArray[np.float64],
    workers: int,
    changes: Sequence[tuple[str, Mapping[str, Any]]],
    repairs: Sequence[Mapping[str, Any]],
) -> Cost:
    """``steps``, ``seconds``: (S,) of the run, how long each took. ``changes``: (type, data) of events that raised or cleared a finding, oldest
    first. ``repairs``: as they were told last."""
    if not len(steps):
        return Cost()
    sick = np.zeros(len(steps), dtype=bool)
    since: dict[tuple[str, Any], int] = {}
    for type, data in changes:
        finding = data.get("finding", data)
        key = (finding["code"], finding.get("rank"))
        if type == RAISED and finding["severity"] in FAILING:
            since.setdefault(key, max(1, int(finding["first_bad_step"])))
        elif type == CLEARED and key in since:
            sick |= (steps >= since.pop(key)) & (steps <= int(data["step"]))
    for begun in since.values():
        sick |= steps >= begun
    kept = [int(each["act"]["step"]) for each in repairs if each["state"] == "kept" and each["act"]["code"] != "asked"]
    spared = ~sick & (steps > min(kept)) if kept else np.zeros(len(steps), dtype=bool)
    taken = np.nan_to_num(seconds) * workers
    return Cost(float(taken[sick].sum()), float(taken[spared].sum()), int(sick.sum()), float(taken.sum()))
