"""Why a loss rings, is slow, or says something else in validation."""

from __future__ import annotations

import numpy as np

from workers.watch import layers
from workers.watch.causes_flat import LARGE_UPDATE
from workers.watch.course import Course
from workers.watch.fact_rules import IMBALANCE, LABELS
from workers.watch.findings import Found
from workers.watch.rank_rules import noise_scale
from workers.watch.symptom import Symptom
from workers.watch.symptoms import slow

STEADILY = 0.85  # of the checks are better than the one before
ALONE = 2  # samples in a step
HEAVY = 0.99  # momentum
RINGING_UPDATE = 1e-2


def rings_by_batch(course: Course, symptom: Symptom) -> Found | None:
    facts = course.record.facts
    if facts.batch_size is not None and facts.batch_size <= ALONE:
        return Found("batch_size", "warning", symptom.step, {**symptom.evidence, "alone": facts.batch_size})
    scale = noise_scale(course.record)
    if scale is None or not scale.batch < 0.1 * scale.critical_batch:
        return None
    return Found(
        "batch_size",
        "warning",
        symptom.step,
        {**symptom.evidence, "batch": scale.batch, "critical_batch": scale.critical_batch},
    )


def rings_by_rate(course: Course, symptom: Symptom) -> Found | None:
    updates = layers.recent_updates(course.record)
    if updates is not None and np.isfinite(updates).any() and not np.nanmax(updates) > RINGING_UPDATE:
        return None
    evidence = dict(symptom.evidence)
    if updates is not None and np.isfinite(updates).any():
        evidence["update_ratio"] = float(np.nanmax(updates))
    return Found("lr_too_high" if "update_ratio" in evidence else "oscillating_loss", "warning", symptom.step, evidence)


def heavy(course: Course, symptom: Symptom) -> Found | None:
    """Momentum that goes on for hundreds of steps in a direction that was right for a few. Right: Adam's, which is divided by what it sums up."""
    facts = course.record.facts
    if (facts.optimizer or "").lower() not in ("sgd", "rmsprop") or not (facts.momentum or 0.0) >= HEAVY:
        return None
    return Found("oscillating_loss", "warning", symptom.step, {**symptom.evidence, "momentum": facts.momentum})


def oscillating(course: Course, symptom: Symptom) -> Found | None:
    return Found("oscillating_loss", "warning", symptom.step, symptom.evidence)


def rate_low_for_slow(course: Course, symptom: Symptom) -> Found | None:
    updates = layers.recent_updates(course.record)
    if updates is None or not np.isfinite(updates).any() or not np.nanmedian(updates) < layers.SHORT_STEPS:
        return None
    return Found(
        "lr_too_low", "warning", symptom.step, {**symptom.evidence, "update_ratio": float(np.nanmedian(updates))}
    )


def along_a_line(course: Course, symptom: Symptom) -> Found | None:
    """It does fall, if hardly, and with short steps."""
    line = slow(course)
    if line is None:
        return None
    if layers.recent_updates(course.record) is None:
        return slow_convergence(course, line)
    return rate_low_for_slow(course, line)


def creeps(course: Course, symptom: Symptom) -> Found | None:
    """What is lost in the noise of batches shows in validation: check by check it becomes a little better, with short steps."""
    losses, updates = course.checks("loss"), layers.recent_updates(course.record)
    if losses is None or updates is None or not np.isfinite(updates).any():
        return None
    short = float(np.nanmedian(updates)) < layers.SHORT_STEPS
    if not short or (np.diff(losses) < 0).mean() < STEADILY or not losses[-1] <= losses.min():
        return None
    evidence = {**symptom.evidence, "update_ratio": float(np.nanmedian(updates))}
    return Found("lr_too_low", "warning", symptom.step, evidence)


def slow_convergence(course: Course, symptom: Symptom) -> Found | None:
    return Found("slow_convergence", "warning", symptom.step, symptom.evidence)


def thrown_about(course: Course, symptom: Symptom) -> Found | None:
    """What seems to be fitted is what the last steps were about: each moves the weights by far more than training does."""
    updates = layers.recent_updates(course.record)
    if updates is None or not np.isfinite(updates).any() or not np.nanmax(updates) > LARGE_UPDATE:
        return None
    largest, layer, step = layers.largest_update(course.record)
    if not largest > LARGE_UPDATE:
        return None
    return Found("lr_too_high", "critical", step, {**symptom.evidence, "largest_update_ratio": largest}, layer)


def suddenly_easy(course: Course, symptom: Symptom) -> Found | None:
    """Samples are learnt by heart step by step; a loss that is gone from one block to the next was taken of other samples."""
    levels = course.levels
    floor = course.bound if course.bound is not None else 0.0
    if len(levels) < 8 or not np.isfinite(levels).all():
        return None
    before = np.array([levels[max(0, i - 3) : i].min() for i in range(1, len(levels) - 1)]) - floor
    after = np.maximum(levels[1:-1], levels[2:]) - floor
    gone = (after < 0.1 * before) & (before > 0.2 * course.scale)
    if not gone.any():
        return None
    row = 1 + int(np.argmax(gone))
    step = int(course.level_steps[row])
    evidence = {**symptom.evidence, "easy_since": f"At step {step}", "loss_before": float(before[row - 1]) + floor}
    return Found("label_error", "warning", step, evidence)


def rare(course: Course, symptom: Symptom) -> Found | None:
    """Answers that are hardly ever asked for: never to give them costs nearly nothing."""
    loss = course.record.facts.loss
    mean = loss.target.mean if loss.target is not None and (loss.function or "").startswith("binary") else None
    if "first_accuracy" not in symptom.evidence or mean is None or loss.weighted:
        return None
    asked = min(mean, 1 - mean)
    if not 0 < asked < 1 / (1 + IMBALANCE):
        return None
    evidence = {"ratio": (1 - asked) / asked, "smallest": asked, "largest": 1 - asked}
    return Found("class_imbalance", "warning", symptom.step, {**symptom.evidence, **evidence})


def asks_for_another(course: Course, symptom: Symptom) -> Found | None:
    """A loss of one's own, which falls, is not what the answers are judged by."""
    own = course.record.facts.loss.function is None and "first_accuracy" in symptom.evidence
    if not own and "best_accuracy" not in symptom.evidence:
        return None
    return Found("wrong_loss", "warning", symptom.step, symptom.evidence)


def fitted_only(course: Course, symptom: Symptom) -> Found | None:
    """Validation was never better than a constant answer: what the training data say of the targets holds nowhere else. Of few samples that may
    be so although their targets are right."""
    facts = course.record.facts
    if facts.steps_per_epoch and facts.batch_size and facts.steps_per_epoch * facts.batch_size < LABELS:
        return None
    losses = course.record.evaluations.metrics["loss"]
    floor = course.bound or 0.0
    if symptom.kind == "contradicts" and (course.constant is None or "first_accuracy" in symptom.evidence):
        return Found("label_error", "warning", symptom.step, symptom.evidence)
    if course.constant is None or not float(np.nanmin(losses)) - floor > 0.95 * (course.constant - floor):
        return None
    if symptom.kind == "walks_away" and not course.recent - floor < 0.7 * (course.constant - floor):
        return None
    return Found("label_error", "warning", symptom.step, {**symptom.evidence, "constant_loss": course.constant})


def overfitting(course: Course, symptom: Symptom) -> Found | None:
    return Found("overfitting", "warning", symptom.step, symptom.evidence)
