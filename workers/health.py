"""The verdict of a run that has only losses and norms: the rules of workers/watch on what every recorder keeps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workers.watch.course import MIN_STEPS as MIN_STEPS
from workers.watch.diagnosis import diagnose
from workers.watch.findings import Finding as Finding
from workers.watch.findings import Judgement as Judgement
from workers.watch.findings import Severity as Severity
from workers.watch.findings import Verdict as Verdict
from workers.watch.record import Facts, Record, Series


@dataclass(frozen=True)
class History:
    """What was recorded of each step; all arrays have one entry (or row) a step, from the first step on."""

    steps: NDArray[np.int64]  # (S,) 1-based
    losses: NDArray[np.float64]  # (S,)
    layers: tuple[str, ...]
    norms: NDArray[np.float64]  # (S, L), network order
    total_steps: int
    warmup_steps: int = 0


def judge(history: History) -> Judgement:
    """The verdict on the gradients so far. ``sentence`` is for people."""
    # A script may not say how many steps it will do.
    facts = Facts(total_steps=history.total_steps or None, warmup_steps=history.warmup_steps)
    return diagnose(Record(facts, Series.of(history.layers, history.steps, history.losses, history.norms)))
