"""The verdict of a run that has only losses and norms: the rules of workers/watch on what every recorder keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.watch.diagnosis import diagnose
from workers.watch.findings import Judgement
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


def with_data(judged: Mapping[str, Any], data: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A judgement of the gradients, together with the findings on the data, both as documents. The worst severity is the verdict.

    Data comes first among equals: it is a cause, what gradients show is a consequence.
    """
    order = ("critical", "warning", "note")
    findings = sorted([*data, *judged["findings"]], key=lambda each: order.index(each["severity"]))
    verdict, sentence = judged["verdict"], judged.get("sentence", "")
    if findings and findings[0]["severity"] != "note" and verdict != "critical":
        worst = findings[0]
        if worst["severity"] != verdict:
            verdict, sentence = worst["severity"], " ".join(filter(None, [worst["explanation"], sentence]))
    return {"verdict": verdict, "sentence": sentence, "findings": findings}
