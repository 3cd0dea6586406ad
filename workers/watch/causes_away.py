"""Why a loss leaves: not a number, running away, a jump that does not come back, below its bound."""

from __future__ import annotations

import math

import numpy as np

from workers.watch import layers
from workers.watch.causes_flat import LARGE_UPDATE, scale_of_weights, unnormalised
from workers.watch.course import MIN_STEPS, Course
from workers.watch.findings import Found
from workers.watch.symptom import Symptom
from workers.watch.symptoms import rate_rose

SURE_OF_NOTHING = 2.5  # deviation of the first logits; 0.5 is usual, and 1 much
CLIMBED = 1.9  # times the rate at half the time
GROWTH = 100.0  # of the norm over its own early median, or over layers


def bad_rows(course: Course, symptom: Symptom) -> Found | None:
    counts = course.record.series.nonfinite_inputs
    if len(counts) and (counts > 0).any():
        row = int(np.argmax(counts > 0))
        if course.steps[row] <= symptom.step:
            return Found("nonfinite_data", "critical", int(course.steps[row]), {"nonfinite_inputs": float(counts[row])})
    facts = course.record.facts
    for name, tensor in (("inputs", facts.inputs), ("target", facts.loss.target)):
        if tensor is not None and tensor.nonfinite_rows:
            return Found(
                "nonfinite_data", "critical", symptom.step, {"tensor": name, "rows": list(tensor.nonfinite_rows)}
            )
    return None


def overflow(course: Course, symptom: Symptom) -> Found | None:
    facts = course.record.facts
    half = facts.precision == "fp16" or any(layer.dtype == "float16" for layer in facts.layers)
    if not half:
        return None
    return Found("precision_overflow", "critical", symptom.step, symptom.evidence, _first_not_finite(course, symptom))


def away_before(course: Course, symptom: Symptom) -> Found | None:
    """The loss or the norm had left before it became no number: what made it leave is the cause."""
    row = int(symptom.evidence["row"])
    losses, totals = course.losses[:row], course.totals[:row]
    if not row:
        return None
    floor = course.bound if course.bound is not None else 0.0
    high = losses - floor > 5 * max(course.untrained - floor, 1e-12)
    early = float(np.nanmedian(totals[: max(1, min(MIN_STEPS, row // 2))]))
    huge = totals > 1e3 * max(early, 1e-30)  # what is not a number itself did not lead to it
    largest, _, _ = layers.largest_update(course.record)
    if not high[-20:].any() and not huge[-20:].any() and not largest > 1.0:
        return None
    at = int(np.argmax(high | huge)) if (high | huge).any() else row
    before = Symptom("runaway", int(course.steps[at]), {k: v for k, v in symptom.evidence.items() if k != "row"})
    return next((each for rule in RUNAWAY if (each := rule(course, before)) is not None), None)


def wrong_from_the_start(course: Course, symptom: Symptom) -> Found | None:
    """Within the first steps: inputs or weights whose first forward pass was already out of range."""
    if int(symptom.evidence["row"]) > MIN_STEPS:
        return None
    rules = (unnormalised, scale_of_weights, huge_first_forward)
    return next((found for rule in rules if (found := rule(course, symptom)) is not None), None)


def made_by_a_layer(course: Course, symptom: Symptom) -> Found | None:
    row = int(symptom.evidence["row"])
    layer = _first_not_finite(course, symptom)
    bad = int((~np.isfinite(course.norms[row])).sum()) if course.norms.size else 0
    evidence = {k: v for k, v in symptom.evidence.items() if k != "row"} | {"layers": bad}
    return Found("nonfinite_gradient", "critical", symptom.step, evidence, layer)


def _first_not_finite(course: Course, symptom: Symptom) -> str | None:
    """The one nearest the output: there the backward pass met it first."""
    if not course.norms.size:
        return None
    bad = np.flatnonzero(~np.isfinite(course.norms[int(symptom.evidence["row"])]))
    return course.record.series.layers[int(bad[-1])] if len(bad) else None


def jumped_away(course: Course, symptom: Symptom) -> Found | None:
    """It had learnt for a while, and left within 2 % of the run."""
    row = int(np.searchsorted(course.steps, symptom.step))
    reach = max(3, round(0.02 * course.total))
    if row < MIN_STEPS + reach:
        return None
    floor = course.bound if course.bound is not None else min(0.0, course.start)
    before = float(np.median(course.losses[row - reach - 4 : row - reach + 1]))
    best = float(np.median(course.losses[row - reach - MIN_STEPS : row - reach]))
    # What climbs for longer than that did not jump: its gradients grew.
    if not (before - floor < 0.7 * (course.untrained - floor) and before < best + 0.3 * (course.untrained - best)):
        return None
    return jumped(course, Symptom("spike", symptom.step, {**symptom.evidence, "loss_before": before}))


def jumped(course: Course, symptom: Symptom) -> Found | None:
    norms = course.totals
    row = int(np.searchsorted(course.steps, symptom.step))
    near = norms[max(0, row - 5) : row + 5]
    evidence = dict(symptom.evidence)
    layer = None
    if len(near) and np.isfinite(near).any():
        usual = float(np.nanmedian(norms[max(0, row - 60) : max(1, row - 5)]))
        evidence["norm_over_usual"] = float(np.nanmax(near)) / max(usual, 1e-30)
        worst = max(0, row - 5) + int(np.nanargmax(near))
        layer = course.record.series.layers[int(np.nanargmax(course.norms[worst]))]
    return Found("loss_spike", "critical", symptom.step, evidence, layer)


def rate_changed(course: Course, symptom: Symptom) -> Found | None:
    if len(course.steps) < MIN_STEPS or symptom.step <= course.warmup:
        return None
    if not rate_rose(course, symptom.step) and not _climbs(course, symptom.step):
        return None
    return Found("lr_too_high", "critical", symptom.step, {**symptom.evidence, "rate_rose": True})


def _climbs(course: Course, step: int) -> bool:
    """The rate was never higher than now, twice what it was at half the time, and climbs on. Trap: warm-up, which is over."""
    rates = course.record.series.learning_rates
    row = min(int(np.searchsorted(course.steps, step)), len(rates) - 1)
    if row < 2 or not np.isfinite(rates[: row + 1]).all():
        return False
    return bool(
        rates[row] >= rates[: row + 1].max() and rates[row] > CLIMBED * rates[row // 2] and rates[row] > rates[row - 2]
    )


def exploding(course: Course, symptom: Symptom) -> Found | None:
    """The gradient grows from layer to layer, or grew by orders before the loss did."""
    totals = course.totals
    if len(totals) < 3 or not np.isfinite(totals[:2]).any():
        return None
    rows = int(np.searchsorted(course.steps, symptom.step))
    early = float(np.nanmedian(np.where(np.isfinite(totals), totals, np.nan)[: max(3, min(rows, len(totals) // 10))]))
    first = course.norms[: max(1, min(3, rows))]
    amplified = layers.amplification(first) if first.shape[1] >= 4 else math.nan
    grown = ~(totals <= GROWTH * max(early, 1e-30))
    ahead = grown[: rows + 1].any() and rows >= 5 and not _large_before(course, rows)
    if not amplified > GROWTH and not ahead:
        return None
    step_row = int(np.argmax(grown)) if grown.any() else 0
    norms = np.nan_to_num(course.norms[step_row], nan=np.inf)
    layer = course.record.series.layers[int(np.argmax(norms))]
    evidence = {
        **symptom.evidence, "norm": float(totals[step_row]), "early_median_norm": early, "amplification": amplified
    }  # fmt: skip
    return Found("exploding_gradient", "critical", int(course.steps[step_row]), evidence, layer)


def _large_before(course: Course, rows: int) -> bool:
    """Whether updates were large already before the loss ran away: then the rate is to blame, not the gradients."""
    probes = course.record.probes
    before = probes.steps < course.steps[rows] if len(probes.steps) else np.zeros(0, dtype=bool)
    if not before.any() or not len(probes.update_ratios):
        return False
    return bool(np.nanmax(probes.update_ratios[before]) > LARGE_UPDATE)


def grown(course: Course, symptom: Symptom) -> Found | None:
    """Without probes: the norm has grown by orders while the loss rose."""
    totals = course.totals
    early = float(np.median(totals[: max(5, len(totals) // 10)])) if len(totals) else math.nan
    more = ~(totals <= GROWTH * max(early, 1e-30))
    if not more.any() or len(course.record.probes.steps):
        return None
    row = int(np.argmax(more))
    layer = course.record.series.layers[int(np.argmax(np.nan_to_num(course.norms[row], nan=np.inf)))]
    evidence = {**symptom.evidence, "norm": float(totals[row]), "early_median_norm": early}
    return Found("exploding_gradient", "critical", int(course.steps[row]), evidence, layer)


def huge_first_forward(course: Course, symptom: Symptom) -> Found | None:
    """The first outputs were already out of range: not by what the unit of a squared error's targets is, and not for an answer that is hardly ever
    asked for."""
    loss = course.record.facts.loss
    if course.constant is None or course.bound is None:
        return None
    times = 5.0
    spread = loss.output.std if loss.output is not None else None
    if loss.function == "mse_loss":
        asked = loss.target.std if loss.target is not None else None
        if not spread or not asked or not spread > 3 * asked:
            return None
    elif spread is not None and spread < 1:
        return None
    elif spread is not None and spread > SURE_OF_NOTHING and symptom.kind == "far_above":
        times = 2.0
    if not course.start - course.bound > times * (course.constant - course.bound):
        return None
    return Found(
        "bad_init",
        "critical",
        0,
        {"first_loss": course.start, "constant_loss": course.constant},
        layers.largest_scale(course.record),
    )


def the_rate(course: Course, symptom: Symptom) -> Found | None:
    """What is left of a loss that ran away."""
    largest, layer, _ = layers.largest_update(course.record)
    evidence = {**symptom.evidence} | ({"largest_update_ratio": largest} if math.isfinite(largest) else {})
    return Found("lr_too_high", "critical", symptom.step, evidence, layer)


def wrong_sign(course: Course, symptom: Symptom) -> Found | None:
    return Found("wrong_loss", "critical", symptom.step, {**symptom.evidence, "below_its_bound": True})


RUNAWAY = (rate_changed, jumped_away, unnormalised, scale_of_weights, exploding, huge_first_forward, grown, the_rate)
