"""Judging a run from what was recorded of it: pure functions, so that any finished run can be judged again.

Symptom first, cause second: only a job that fails (loss not finite, far above its start, or not moving) is asked why. A tiny gradient in a
job that learns is no finding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Verdict = Literal["unknown", "healthy", "warning", "critical"]
Severity = Literal["note", "warning", "critical"]  # a note leaves the verdict as it is

MIN_STEPS = 20  # fewer say nothing
STUCK_SHARE_OF_RUN = 0.3  # patience before a flat loss counts
STUCK_IMPROVEMENT = 0.07  # of the first loss
SETTLING_SHARE_OF_RUN = 0.05  # after which the loss must go on falling
SETTLING_IMPROVEMENT = 0.25  # of the first loss; whoever has gained more was not stuck
VANISHING_RATIO = 1e-3  # first layers' median norm over the last ones'
RUNAWAY_FACTOR = 1.5  # of the first loss
EXPLODING_GROWTH = 100.0  # of the norm over its own early median


@dataclass(frozen=True)
class History:
    """What was recorded of each step; all arrays have one entry (or row) a step, from the first step on."""

    steps: NDArray[np.int64]  # (S,) 1-based
    losses: NDArray[np.float64]  # (S,)
    layers: tuple[str, ...]
    norms: NDArray[np.float64]  # (S, L), network order
    total_steps: int
    warmup_steps: int = 0


@dataclass(frozen=True)
class Finding:
    code: str
    severity: Severity
    first_bad_step: int
    layer: str | None
    evidence: Mapping[str, Any]
    explanation: str
    suggestion: str


@dataclass(frozen=True)
class Judgement:
    verdict: Verdict
    sentence: str
    findings: Sequence[Finding] = field(default_factory=tuple)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def judge(history: History) -> Judgement:
    """The verdict on the gradients so far. ``sentence`` is for people."""
    if len(history.steps) == 0:
        return Judgement("unknown", "No step has been measured yet.")
    finding = _not_finite(history)
    if finding is None and len(history.steps) < MIN_STEPS:
        return Judgement(
            "unknown", f"Only {len(history.steps)} steps were measured; {MIN_STEPS} are needed for a verdict."
        )
    finding = finding or _exploding(history) or _vanishing(history)
    if finding is not None:
        return Judgement("critical", finding.explanation, (finding,))
    return Judgement("healthy", _healthy_sentence(history))


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


def _not_finite(history: History) -> Finding | None:
    bad_norms = ~np.isfinite(history.norms)
    bad = ~np.isfinite(history.losses) | bad_norms.any(axis=1)
    if not bad.any():
        return None
    first = int(np.argmax(bad))
    rows = np.flatnonzero(bad_norms[first])
    layer = history.layers[rows[-1]] if len(rows) else None  # nearest the output: where the backward pass met it first
    step = int(history.steps[first])
    where = f" The layer nearest the output that has it is {layer}." if layer else ""
    return Finding(
        "nonfinite_gradient",
        "critical",
        step,
        layer,
        {"loss": str(history.losses[first]), "layers": len(rows), "bad_steps": int(bad.sum())},
        f"At step {step} the loss or a gradient stopped being a finite number ({int(bad.sum())} steps so far).{where} "
        "From then on the chain rule multiplies NaN into every weight it reaches.",
        "Lower the learning rate, set training.clip_norm, and look at the samples of that step.",
    )


def _exploding(history: History) -> Finding | None:
    first_loss = float(np.median(history.losses[:3]))
    recent = float(np.median(history.losses[-10:]))
    if not recent > RUNAWAY_FACTOR * max(first_loss, 1e-12):
        return None
    total = np.sqrt(np.square(history.norms).sum(axis=1))
    early = float(np.median(total[: max(5, len(total) // 10)]))
    grown = total > EXPLODING_GROWTH * max(early, 1e-30)
    if not grown.any():
        return None
    first = int(np.argmax(grown))
    layer = history.layers[int(np.argmax(history.norms[first]))]
    step = int(history.steps[first])
    growth = float(total[first]) / max(early, 1e-30)
    return Finding(
        "exploding_gradient",
        "critical",
        step,
        layer,
        {"norm": float(total[first]), "early_median_norm": early, "loss": recent, "first_loss": first_loss},
        f"The loss rose from {first_loss:.3g} to {recent:.3g} while the gradient norm grew {growth:.0f}-fold, first at step {step}, "
        f"largest in {layer}: each layer backwards multiplies the error further up.",
        "Set training.clip_norm (1.0 is common), lower optimizer.learning_rate, or lengthen schedule.warmup_steps.",
    )


def _vanishing(history: History) -> Finding | None:
    if not _stuck(history) or len(history.layers) < 4:
        return None
    norms = np.median(history.norms[-MIN_STEPS:], axis=0)
    quarter = max(1, len(norms) // 4)
    first, last = float(np.median(norms[:quarter])), float(np.median(norms[-quarter:]))
    if not first <= VANISHING_RATIO * last:
        return None
    # Where the gradient falls most from one layer to the one before it.
    drops = np.log(np.maximum(norms[1:], 1e-300)) - np.log(np.maximum(norms[:-1], 1e-300))
    layer = history.layers[int(np.argmax(drops))]
    ratio = first / last if last > 0 else 0.0
    return Finding(
        "vanishing_gradient",
        "critical",
        int(history.steps[0]),
        layer,
        {"first_layers_norm": first, "last_layers_norm": last, "ratio": ratio},
        f"The loss has hardly moved while the gradient of the first layers is {ratio:.1e} of the last layers': on its way back through the "
        f"chain rule it shrinks layer by layer, most at {layer}, so the early weights do not learn.",
        "Use ReLU-like activations, normalization: batch, or an architecture with residual connections such as resnet.",
    )


def _stuck(history: History) -> bool:
    if history.steps[-1] < max(MIN_STEPS, history.warmup_steps, STUCK_SHARE_OF_RUN * history.total_steps):
        return False
    first, recent = float(np.median(history.losses[:3])), float(np.median(history.losses[-MIN_STEPS:]))
    if first - recent < STUCK_IMPROVEMENT * abs(first):
        return True
    # The last layer's bias alone learns how frequent the classes are, within the first steps: that is no sign of life of the others.
    start = int(np.searchsorted(history.steps, SETTLING_SHARE_OF_RUN * history.total_steps))
    if start + 2 * MIN_STEPS > len(history.losses):
        return False
    settled = float(np.median(history.losses[start : start + MIN_STEPS]))
    return first - recent < SETTLING_IMPROVEMENT * abs(first) and settled - recent < STUCK_IMPROVEMENT * abs(settled)


def _healthy_sentence(history: History) -> str:
    norms = np.median(history.norms[-MIN_STEPS:], axis=0)
    total = math.sqrt(float(np.square(norms).sum()))
    low, high = int(np.argmin(norms)), int(np.argmax(norms))
    return (
        f"Gradients reach every layer: over the last {min(MIN_STEPS, len(history.steps))} steps the global norm is {total:.3g}, the smallest layer's "
        f"{norms[low]:.3g} ({history.layers[low]}), the largest's {norms[high]:.3g} ({history.layers[high]}); all finite."
        if norms[low] > 0
        else f"The loss moves and all gradients are finite (global norm {total:.3g}), but {history.layers[low]} receives none."
    )
