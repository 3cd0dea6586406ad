"""Is the job failing, by what validation says of what the training loss does not? As workers/watch/symptoms.py."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from workers.watch.course import CLEARLY, LATE_PATIENCE, MIN_STEPS, Course, finest
from workers.watch.symptom import Symptom

SETTLED, RUN_AWAY = 0.3, 1.3  # of the run; of H
BY_HEART, BY_HEART_SOON = 0.75, 0.6  # of H
MOST = 0.9  # of a loss is gone
NEARLY_ALL = 0.95  # of the answers; not those of rare classes, of which that many are right from the start
SHARES = ("accuracy", "recall", "precision", "f1", "auroc", "iou")  # names end so: shares of right answers


def walks_away(course: Course) -> Symptom | None:
    """Validation loss 1.3 x its minimum for three checks while the training loss fell, or near that of a constant answer while the training
    samples are known by heart. Traps: small noisy validation sets, and a model so
    sure of itself that its validation loss doubles from nearly nothing: a tenth of what there is to learn is asked for."""
    losses = course.record.evaluations.metrics.get("loss")
    steps = course.record.evaluations.steps
    if losses is None or len(losses) < 5 or course.adversarial or not math.isfinite(course.untrained):
        return None
    best = int(np.nanargmin(losses)) if np.isfinite(losses).any() else 0
    floor = course.bound if course.bound is not None else 0.0
    now = losses[-3:]
    minimum = float(losses[best])
    reference = (course.constant_at_most - floor) if course.constant_at_most is not None else course.scale
    least_rise = (
        0.1 * reference if minimum >= floor else 0.3 * course.scale
    )  # of a likelihood's no factor says anything
    high = bool((now - floor > 1.3 * (minimum - floor)).all() and (now - minimum > least_rise).all())
    # Of a few samples a step most are right and a few very wrong: their mean is not by heart.
    mean = course.mean(max(4 * MIN_STEPS, len(course.losses) // 4), 10 * reference) - floor
    known = max(course.recent - floor, 0.5 * mean) < 0.1 * reference
    soon = best <= len(losses) // 5  # what was learnt after that is of these samples alone
    by_heart = bool((now - floor > (BY_HEART_SOON if soon else BY_HEART) * reference).all()) and known
    if best > len(losses) - 4 or not (high or by_heart):
        return None
    if not course.past(SETTLED) and now.min() - floor < RUN_AWAY * reference:
        return None  # rates are at their highest, running means of batch norms lag behind
    jitter = 1.4826 * float(np.median(np.abs(np.diff(losses)))) if len(losses) > 6 else 0.0
    at = int(np.searchsorted(course.steps, steps[best]))
    then = float(np.median(course.losses[max(0, at - 10) : at + 10]))
    fell = (then - floor) * 0.6 >= course.recent - floor
    if minimum < floor:
        fell = then - course.recent > 0.1 * course.scale
    if not (fell or by_heart) or float(np.median(now)) - minimum < 2 * jitter:
        return None
    if _only_surer(course, best, float(np.median(now)) - minimum) or _comes_back(losses[best:]):
        return None
    rose = np.flatnonzero(
        (np.arange(len(losses)) > best) & (losses - floor > min(1.3 * (minimum - floor), now.min() - floor))
    )
    rose = rose if len(rose) else np.array([len(losses) - 1])
    return Symptom(
        "walks_away",
        int(steps[rose[0]]),
        {"validation_loss": float(np.median(now)), "best_validation_loss": minimum, "training_loss": course.recent},
    )


def _comes_back(since_best: NDArray[np.float64]) -> bool:
    """Check by check, and more than a third of what was lost is back: the rate was high for a while."""
    now, least = since_best[-3:], float(since_best[0])
    return bool(
        len(since_best) > 3 and (np.diff(now) < 0).all() and now[-1] - least < 0.65 * (since_best.max() - least)
    )


def contradicts(course: Course) -> Symptom | None:
    """The training samples are fitted, and validation has never been better than a constant answer or than at its first check. Traps: early on;
    models that only begin to learn what holds in general (their validation improves)."""
    losses = course.checks("loss")
    if losses is None or not course.past(0.4, 2 * MIN_STEPS) or course.measures_nothing or course.begins_trained:
        return None
    if (found := _answers_stay(course)) is not None:
        return found
    if course.constant_at_most is None:
        return _only_worse(course, losses)
    if _answers_right(course):
        return None
    floor = course.bound if course.bound is not None else 0.0
    reference = course.constant_at_most - floor
    window = max(MIN_STEPS, len(course.losses) // 4)
    level = max(course.level(window), course.mean(window, 10 * reference))
    fitted = reference - (level - floor) > max(0.13 * reference, 4 * course.noise / math.sqrt(window))
    best = float(losses.min()) - floor
    # Or they are on their way there, while validation has only become worse.
    fits = _has_risen(course, losses) and course.start - level > 0.2 * course.scale
    if not (fitted or fits) or not best > 0.95 * reference or not best > 0.9 * (float(losses[0]) - floor):
        return None
    return Symptom(
        "contradicts",
        int(course.steps[0]),
        {
            "validation_loss": float(np.median(losses[-3:])),
            "best_validation_loss": best + floor,
            "training_loss": level,
        },
    )


def _answers_right(course: Course) -> bool:
    """Far more validation samples are answered right than a constant answer has, and more than at first: some of it holds, and what does not may be
    of kinds that were not shown yet."""
    accuracy = course.checks("accuracy")
    counts = [count for count in course.record.facts.loss.class_counts if count >= 0]
    if accuracy is None or len(counts) < 2:
        return False
    late = float(np.median(accuracy[-3:]))
    return late > max(counts) / sum(counts) + 2 * CLEARLY and late > float(accuracy[0]) + CLEARLY


def _has_risen(course: Course, losses: NDArray[np.float64]) -> bool:
    """The validation loss, since its first checks."""
    return bool(losses.argmin() <= 1 and losses[-3:].min() - losses.min() > 0.04 * course.scale)


def _answers_stay(course: Course) -> Symptom | None:
    """Most of the loss is gone, and no more answers are right than at the first check: it measures something else. Right: most answers were right
    from the start."""
    accuracy = course.checks("accuracy")
    if accuracy is None or not course.past(LATE_PATIENCE):
        return None
    if (worse := _answers_get_worse(course, accuracy)) is not None:
        return worse
    gone = (course.start - course.recent) / course.scale
    more = min(0.5, accuracy[0] + (0.1 if gone > MOST else 0.05))
    never = gone > MOST and np.ptp(accuracy) < 1e-3 and accuracy[0] < NEARLY_ALL
    if not gone > 0.7 or not (accuracy.max() <= more or never):
        return None
    evidence = {"accuracy": float(accuracy.max()), "first_accuracy": float(accuracy[0]), "training_loss": course.recent}
    return Symptom("contradicts", int(course.steps[0]), {**evidence, "first_loss": course.start})


def _answers_get_worse(course: Course, accuracy: NDArray[np.float64]) -> Symptom | None:
    """A loss of one's own falls, in validation too, and from the first checks on ever fewer answers are right: it asks for something else. Traps:
    weights of rare classes (their recall rises), answers that were all the frequent class."""
    metrics, third = course.record.evaluations.metrics, len(accuracy) // 3
    losses = course.checks("loss")
    if course.record.facts.loss.output is not None or losses is None or len(accuracy) < 8:
        return None
    if not losses[-1] < losses[0] or not course.start - course.recent > 0.3 * course.scale:
        return None
    others = [np.asarray(values) for name, values in metrics.items() if name != "loss" and len(values) == len(accuracy)]
    for values in others:
        middle, last = float(np.median(values[third:-third])), float(np.median(values[-third:]))
        if values.argmax() > third // 2 or last > values.max() - 0.05 or last > middle:
            return None
    evidence = {"best_accuracy": float(accuracy.max()), "accuracy": float(accuracy[-1]), "training_loss": course.recent}
    return Symptom("contradicts", int(course.steps[0]), {**evidence, "first_loss": course.start})


def _only_worse(course: Course, losses: NDArray[np.float64]) -> Symptom | None:
    """As ``contradicts`` where nobody knows what a constant answer has. Trap: few samples, of which the first epoch tells the most."""
    epoch = course.record.facts.steps_per_epoch
    rise = float(losses[-3:].min() - losses.min())
    few = epoch is not None and rise < 0.1 * course.scale and course.record.evaluations.steps[0] < epoch
    if few or not _has_risen(course, losses) or not course.start - course.recent > 0.2 * course.scale:
        return None
    evidence = {
        "validation_loss": float(np.median(losses[-3:])),
        "best_validation_loss": float(losses.min()),
        "training_loss": course.recent,
    }
    return Symptom("contradicts", int(course.steps[0]), evidence)


def _only_surer(course: Course, best: int, rise: float) -> bool:
    """As many answers are right as where the validation loss was best, and most of what it had gained is there, or more are right by far: it is
    surer of its mistakes."""
    metrics = course.record.evaluations.metrics
    shares = [
        values for name, values in metrics.items() if name.endswith(SHARES) and len(values) == len(metrics["loss"])
    ]
    floor = course.bound if course.bound is not None else 0.0
    by_heart = course.recent - floor < 0.25 * course.scale
    if not by_heart and any(np.median(values[-3:]) > values[best] + 0.03 for values in shares):
        return True
    if any(np.median(values[-3:]) >= max(NEARLY_ALL, values[best]) for values in shares):
        return True
    accuracy = metrics.get("accuracy")
    if accuracy is None or course.constant is None or not math.isfinite(float(accuracy[best])):
        return False
    gained = course.constant - float(course.record.evaluations.metrics["loss"][best])
    now = float(np.median(accuracy[-3:]))
    slack = max(0.01, 1.01 * finest(accuracy))  # one answer of few samples is no share
    return bool(now >= accuracy[best] - slack and rise < (0.5 if now >= accuracy.max() - 0.01 else 0.3) * gained)
