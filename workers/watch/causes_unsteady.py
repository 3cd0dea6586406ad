"""Why a loss rings, is slow, or says something else in validation."""

from __future__ import annotations

import numpy as np

from workers.watch import layers
from workers.watch.causes_flat import SHORT_STEPS
from workers.watch.course import Course
from workers.watch.fact_rules import LABELS
from workers.watch.findings import Found
from workers.watch.rank_rules import noise_scale
from workers.watch.symptoms import Symptom, slow

RINGING_UPDATE = 1e-2


def rings_by_batch(course: Course, symptom: Symptom) -> Found | None:
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


def oscillating(course: Course, symptom: Symptom) -> Found | None:
    return Found("oscillating_loss", "warning", symptom.step, symptom.evidence)


def rate_low_for_slow(course: Course, symptom: Symptom) -> Found | None:
    updates = layers.recent_updates(course.record)
    if updates is None or not np.isfinite(updates).any() or not np.nanmedian(updates) < SHORT_STEPS:
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


def slow_convergence(course: Course, symptom: Symptom) -> Found | None:
    return Found("slow_convergence", "warning", symptom.step, symptom.evidence)


def fitted_only(course: Course, symptom: Symptom) -> Found | None:
    """Validation was never better than a constant answer: what the training data say of the targets holds nowhere else. Of few samples that may
    be so although their targets are right."""
    facts = course.record.facts
    if facts.steps_per_epoch and facts.batch_size and facts.steps_per_epoch * facts.batch_size < LABELS:
        return None
    losses = course.record.evaluations.metrics["loss"]
    floor = course.bound or 0.0
    if course.constant is None or not float(np.nanmin(losses)) - floor > 0.95 * (course.constant - floor):
        return None
    if symptom.kind == "walks_away" and not course.recent - floor < 0.7 * (course.constant - floor):
        return None
    return Found("label_error", "warning", symptom.step, {**symptom.evidence, "constant_loss": course.constant})


def overfitting(course: Course, symptom: Symptom) -> Found | None:
    return Found("overfitting", "warning", symptom.step, symptom.evidence)
