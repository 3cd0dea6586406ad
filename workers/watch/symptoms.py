"""Is the job failing? Statements about the job, never about a gradient; each with its first bad step and its evidence.

A symptom without what it needs is silent. What each is not to be taken for stands with it as its traps.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from workers.watch import layers
from workers.watch.course import LATE_PATIENCE, MIN_STEPS, Course, finest
from workers.watch.symptom import Symptom
from workers.watch.symptoms_validation import contradicts, walks_away

BOTTOMLESS = 1000.0  # times its first value
RUNAWAY = 1.5  # of the untrained loss, for a while
RUNAWAY_AT_ONCE = 10.0
STILL_AWAY = 0.4  # of the peak: whoever has come back from it is not failing
STUCK_PATIENCE = 0.3  # of the run
STUCK_GAIN = 0.10  # of what there is to learn
STUCK_LEVEL = 0.93  # of H
EARLY_PATIENCE = 0.08  # where the cause is beyond doubt (causes.py: certain_early)
NEARLY_GONE = 0.1  # of what there is to learn is left
NO_NORM = 0.02  # of the gradients' norm in the first steps
THROWN = 10.0  # of the weights' first norm, in the median layer: steps that do not add up to that in runs that are well
SCALER_SKIPS = 10  # in a row; GradScaler tries so often by design
SCALER_SETTLES = 20  # first steps


def symptoms(course: Course) -> list[Symptom]:
    """The worst first. What is not a number hides everything else."""
    rules: tuple[Callable[[Course], Symptom | None], ...] = (
        below_bound, spike, runaway, stuck, rings, contradicts, slow, walks_away, far_above,
    )  # fmt: skip
    if (bad := not_a_number(course)) is not None:
        return [bad]
    return [found for rule in rules if (found := rule(course)) is not None]


# --- guard: from the first step on ------------------------------------------------------------------------------------


def not_a_number(course: Course) -> Symptom | None:
    """Trap: a loss scaler skips steps whose gradients overflowed; the loss stays finite and the steps are few in a row."""
    if (unseen := _only_in_validation(course)) is not None:
        return unseen
    bad = ~np.isfinite(course.losses)
    # NaN throughout is also what was never measured; a probe tells.
    if not np.isnan(course.norms).all() or (course.record.probes.nonfinite > 0).any():
        bad_norms = np.asarray(~np.isfinite(course.norms).all(axis=1))
        if course.record.facts.precision == "fp16":
            bad_norms &= _in_a_row(bad_norms) > np.where(course.steps <= SCALER_SETTLES, SCALER_SETTLES, SCALER_SKIPS)
        bad = bad | bad_norms
    if not bad.any():
        return None
    since = len(bad) - 1 - int(np.flatnonzero(bad)[-1])
    if since > max(MIN_STEPS, 0.05 * len(bad)):
        return None  # the step was skipped; it has passed
    first = int(np.argmax(bad))
    return Symptom(
        "not_a_number",
        int(course.steps[first]),
        {"loss": _readable(course.losses[first]), "bad_steps": int(bad.sum()), "row": first},
    )


def _only_in_validation(course: Course) -> Symptom | None:
    """The loss of validation samples is no number while that of training samples is one: what is computed of them is not safe."""
    losses = course.record.evaluations.metrics.get("loss")
    if losses is None or not len(losses) or np.isfinite(losses[-3:]).all() or not np.isfinite(course.losses).all():
        return None
    if not np.isfinite(losses).any():
        return None  # perhaps there are no such samples
    row = len(losses) - 1 - int(np.argmin(np.isfinite(losses[::-1])))
    return Symptom(
        "not_a_number",
        _evaluated(course, row),
        {"validation_loss": _readable(float(losses[row])), "row": len(course.losses) - 1},
    )


def _in_a_row(bad: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(S,) how many up to here without a gap."""
    count = np.cumsum(bad)
    return count - np.maximum.accumulate(np.where(bad, 0, count))


def below_bound(course: Course) -> Symptom | None:
    """Cross-entropy or a squared error below zero. Traps: likelihoods of densities, whose facts give no bound; adversaries, of which one
    climbs where the other descends."""
    if not len(course.losses) or course.adversarial:
        return None
    if course.bound is None:
        return _bottomless(course)
    below = course.losses < course.bound - 1e-4 * max(1.0, abs(course.start - course.bound))
    if not below.any():
        return None
    first = int(np.argmax(below))
    return Symptom(
        "below_bound", int(course.steps[first]), {"loss": float(course.losses[first]), "bound": course.bound}
    )


def _bottomless(course: Course) -> Symptom | None:
    """Nothing that is learnt has a loss a thousand times as far below zero as it began above, and falls ever faster: there is a term that grows for
    its own sake. Right: logarithms of densities, a few times their first value below zero."""
    levels = course.levels
    if len(levels) < 6 or not np.isfinite(levels).all() or not levels[-1] < -BOTTOMLESS * max(1.0, abs(course.start)):
        return None
    half = len(levels) // 2
    if not levels[half] - levels[-1] > 2 * abs(levels[0] - levels[half]):
        return None
    first = int(np.argmax(course.losses < -10 * max(1.0, abs(course.start))))
    return Symptom("below_bound", int(course.steps[first]), {"loss": course.recent, "first_loss": course.start})


def runaway(course: Course) -> Symptom | None:
    """Far above what an untrained model or a constant answer has, and not back. Traps: the first steps of a high but right rate (they come
    back), batches of two (the level is a median over more steps the nearer it is to the start), losses of adversaries."""
    if course.adversarial or len(course.losses) < 5 or not math.isfinite(course.untrained):
        return None
    kept = np.where(np.isfinite(course.losses), course.losses, np.inf)
    window = max(MIN_STEPS, round(0.02 * course.total))
    reference = course.untrained + 0.0
    if course.record.facts.begins_trained and course.constant is None:
        window, reference = 2 * window, max(reference, 2 * course.start)
    unknown = course.constant is None and course.bound is None
    ceiling = above(course, reference, 2 * RUNAWAY if unknown else RUNAWAY)  # of several parts one may well rise first
    at_once = above(course, reference, RUNAWAY_AT_ONCE)
    much = above(course, reference, 3.0)
    level = float(np.median(kept[-window:]))
    away = (
        (len(kept) >= window and level > ceiling)
        or (float(np.median(kept[-10:])) > much and len(kept) >= 13)
        or float(np.median(kept[-3:])) > at_once
    )  # fmt: skip
    if not away and (step := _forgotten(course, kept)) is not None:
        return Symptom(
            "runaway", step, {"loss": course.recent, "first_loss": course.start, "constant_loss": course.constant}
        )
    if not away:
        return None
    peak = float(course.levels.max()) if len(course.levels) else level
    recent = float(np.median(kept[-5:]))
    floor = course.bound if course.bound is not None else 0.0
    if math.isfinite(peak) and recent - floor < STILL_AWAY * (peak - floor) and recent <= much:
        return None
    if course.falls and level < at_once and not _climbs(kept):
        return None  # on its way back
    first = int(np.argmax(kept > ceiling))
    return Symptom(
        "runaway",
        int(course.steps[first]),
        {"loss": _readable(recent), "first_loss": course.start, "constant_loss": course.constant},
    )


def _forgotten(course: Course, losses: np.ndarray) -> int | None:
    """Since when what began trained answers as one that knows nothing; None: it does not."""
    if not course.begins_trained or course.constant is None or len(losses) < MIN_STEPS:
        return None
    floor = course.bound if course.bound is not None else 0.0
    nothing = max(0.9 * (course.constant - floor), 1.5 * (course.start - floor))
    if not float(np.median(losses[-MIN_STEPS:])) - floor > nothing:
        return None
    return int(course.steps[int(np.argmax(losses - floor > nothing))])


def above(course: Course, reference: float, factor: float) -> float:
    """``factor`` times as high over the bound; where there is none, over zero or over the spread of the first losses."""
    floor = course.bound if course.bound is not None else min(0.0, reference)
    height = max(reference - floor, 1e-12)
    if course.bound is None:
        early = course.losses[:MIN_STEPS]
        early = early[np.isfinite(early)]
        height = max(height, 3 * float(np.median(np.abs(np.diff(early)))) if len(early) > 1 else 0.0, course.scale)
    return floor + factor * height


def _climbs(losses: np.ndarray) -> bool:
    third = max(3, len(losses) // 6)
    return bool(np.median(losses[-third:]) > np.median(losses[-2 * third : -third]))


def spike(course: Course) -> Symptom | None:
    """A jump within 2 % of the run, after real progress, that has not come back after 3 %. Traps: one bad batch (it comes back), restarts of
    the schedule (the rate rose), an epoch of hard data (a smaller step up)."""
    levels = course.levels
    if course.measures_nothing or len(levels) < 8 or not math.isfinite(course.untrained):
        return None
    if (at_end := _at_the_very_end(course)) is not None:
        return at_end
    patience = max(2 * course.block, round(0.03 * len(course.losses)), 10) // course.block + 1
    if len(levels) < patience + 4:
        return None
    now = float(np.median(levels[-patience:]))
    best = np.minimum.accumulate(levels)
    progress = course.untrained - best  # up to that block
    gained = progress > 0.3 * course.scale
    span = max(1, round(0.02 * course.total) // course.block)
    before = np.array([np.median(levels[max(0, i - 3) : i]) if i else np.inf for i in range(len(levels))])
    after = np.array([levels[min(i + span, len(levels) - 1)] for i in range(len(levels))])
    rise = np.maximum(0.3 * progress, 8 * course.noise / math.sqrt(course.block))
    near = before < best + 0.3 * progress  # what climbs on from far above is no jump
    jumps = gained & near & (after > before + rise) & (np.arange(len(levels)) <= len(levels) - patience)
    jumps[0] = False
    if not jumps.any():
        return None
    last = int(np.flatnonzero(jumps)[-1])
    start = last
    while start > 0 and jumps[start - 1]:
        start -= 1
    level_before = float(before[start])
    gain = course.untrained - float(best[start])
    if (
        now < level_before + 0.3 * gain
        or float(levels[min(start + span, len(levels) - 1) :].min()) < level_before + 0.1 * gain
    ):
        return None  # it came back, if only for a while
    begins = int(course.level_steps[start])
    rows = np.flatnonzero((course.steps >= begins) & (course.losses > level_before + 0.3 * gain))
    step = int(course.steps[rows[0]]) if len(rows) else begins
    if rate_rose(course, step) and now < course.untrained and course.now - step < 0.1 * course.total:
        return None
    return Symptom("spike", step, {"loss_before": level_before, "loss": _readable(now), "first_loss": course.start})


def _at_the_very_end(course: Course) -> Symptom | None:
    """Nobody can wait whether it comes back: the last check and the last steps are far above all that was before."""
    losses = course.checks("loss")
    if course.record.facts.total_steps is None or course.now < course.total or losses is None:
        return None
    if course.now != course.record.evaluations.steps[-1]:
        return None
    floor = course.bound if course.bound is not None else min(0.0, float(losses.min()))
    before, now = float(np.median(losses[-4:-1])), float(losses[-1])
    usual, last = float(np.median(course.levels[-5:-1])), float(np.median(course.losses[-3:]))
    if not (now - floor > 2 * (before - floor) and now - before > 0.15 * course.scale):
        return None
    if not (last - floor > 1.5 * (usual - floor) and last - usual > 4 * course.noise):
        return None
    rows = np.flatnonzero(course.losses[-MIN_STEPS:] > (usual + last) / 2)
    step = int(course.steps[-MIN_STEPS:][rows[0]]) if len(rows) else course.now
    return Symptom("spike", step, {"loss_before": usual, "loss": last, "first_loss": course.start})


def rate_rose(course: Course, step: int) -> bool:
    rates = course.record.series.learning_rates
    near = (course.steps >= step - 0.04 * course.total) & (course.steps <= step + 0.02 * course.total)
    rates = rates[near] if len(rates) else rates
    rates = rates[np.isfinite(rates)]
    return bool(len(rates) > 1 and rates.max() > 1.5 * max(rates[0], 1e-30))


# --- with patience ----------------------------------------------------------------------------------------------------


def stuck(course: Course, patience: float = STUCK_PATIENCE) -> Symptom | None:
    """Hardly anything was learnt. Traps: warm-up, a start that was trained already, adversaries, a loss that still falls, regression with a
    noise floor (causes.py says nothing where it finds none), the loss of a model whose bias learns how frequent the classes are."""
    if not course.past(patience) or course.begins_trained or course.measures_nothing:
        return None
    recent = course.recent
    if not math.isfinite(recent) or course.falls or course.lost is not None:
        return None
    floor = course.bound if course.bound is not None else course.start - course.scale
    # What is no better than H may be, or better than it for sure: of an H from few samples there is much between the two.
    most, least = course.constant_at_most, course.constant_at_least
    at_constant = most is not None and recent - floor > STUCK_LEVEL * (most - floor)
    # What has gone well below the best constant answer has learnt something, however little that is of its first loss.
    learnt = least is not None and recent - floor <= STUCK_LEVEL * (least - floor)
    flat = course.start - recent < STUCK_GAIN * course.scale
    settled = _settled(course) if course.constant is None else False
    gone = recent - floor < NEARLY_GONE * course.scale  # answers by chance are no rarer than what they are asked for
    late = course.constant is None and course.past(LATE_PATIENCE) and not gone
    useless = (course.useless if late else {}) or _unchanged(course)
    if not useless and (left := _no_way_from_here(course)) is not None:
        return Symptom("stuck", course.now, {"loss": recent, "first_loss": course.start, "norm_left": left})
    if learnt or not (flat or at_constant or settled or useless):
        return None
    evidence = {"loss": recent, "first_loss": course.start, "constant_loss": course.constant}
    return Symptom("stuck", int(course.steps[0]), evidence | useless)


def _no_way_from_here(course: Course) -> float | None:
    """What is left of the gradients' norm where it is next to nothing while much of the loss is there and differs from batch to batch: no weight
    changes it any more. Right: what has converged, whose batches still pull to and fro."""
    totals = course.totals
    floor = course.bound if course.bound is not None else min(0.0, course.start)
    if len(totals) < 3 * MIN_STEPS or not np.isfinite(totals).all() or not course.recent - floor > 0.3 * course.scale:
        return None
    left = float(
        np.percentile(totals[-max(MIN_STEPS, len(totals) // 5) :], 90)
        / max(float(np.median(totals[:MIN_STEPS])), 1e-30)
    )
    return left if left < NO_NORM and course.noise > 0.01 * course.scale else None


def _settled(course: Course) -> bool:
    """H is not known, but the loss fell at once, as far as the output's bias brings it, and not since."""
    early = int(np.searchsorted(course.steps, 0.05 * course.total))
    if early + 2 * MIN_STEPS > len(course.losses):
        return False
    then = float(np.median(course.losses[early : early + MIN_STEPS]))
    return course.start - course.recent < 0.25 * course.scale and then - course.recent < 0.05 * course.scale


def _unchanged(course: Course) -> dict[str, int]:
    """Of a loss whose H nobody knows: nothing that is measured has become better since the first fifth of the run, and most of the loss is left."""
    metrics = course.record.evaluations.metrics
    if course.constant is not None or not metrics or "r2" in metrics or not course.past(LATE_PATIENCE):
        return {}  # an explained variance says by itself whether there is any
    losses, fifth = course.losses, len(course.losses) // 5
    floor = course.bound if course.bound is not None else min(0.0, course.start)
    then = float(np.median(losses[fifth : fifth + max(MIN_STEPS, fifth // 2)]))
    if not course.recent - floor > 0.4 * course.scale or abs(then - course.recent) > 0.03 * course.scale:
        return {}
    for name, values in metrics.items():
        since = len(values) // 5
        slack = 0.015 if name != "loss" else 0.015 * course.scale
        if (
            len(values) < 8
            or not np.isfinite(values).all()
            or abs(float(np.median(values[-3:])) - float(values[since])) > slack
        ):
            return {}
    return {"unchanged_for": round(0.8 * course.now)}


def rings(course: Course) -> Symptom | None:
    """It has learnt and lost it, or leaps about a level that does not fall. Traps: batches of two to four, drop-out, restarts: their medians
    fall all the same."""
    if not course.past(STUCK_PATIENCE, 3 * MIN_STEPS) or course.measures_nothing or course.begins_trained:
        return None
    accuracy = course.checks("accuracy")
    if accuracy is not None:
        lost = float(accuracy[:-3].max() - accuracy[-3:].max())
        if lost > max(0.1, 4 * _by_chance(accuracy)) and not _fitted_since(
            course, _evaluated(course, int(np.argmax(accuracy)))
        ):
            return Symptom(
                "lost",
                _evaluated(course, int(np.argmax(accuracy))),
                {"best": float(accuracy.max()), "recent": float(accuracy[-3:].max())},
            )
    if course.lost is not None:
        return Symptom("lost", course.lost, {"loss": course.recent, "best": course.best, "first_loss": course.start})
    losses = course.losses
    quarter = len(losses) // 4
    last, before = losses[-quarter:], losses[-2 * quarter : -quarter]
    floor = course.bound if course.bound is not None else 0.0
    level = float(np.median(last)) - floor
    if not math.isfinite(level) or level < 0.25 * course.scale or course.falls:
        return None
    spread = float(np.percentile(last, 90) - np.percentile(last, 10)) / max(level, 1e-12)
    flat = np.median(before) - np.median(last) < 0.05 * course.scale
    thrown = (layers.grown_weights(course.record) or 0.0) > THROWN
    if not flat or spread < (0.45 if thrown else 0.9) or _steady_elsewhere(course):
        return None
    return Symptom("rings", int(course.steps[-2 * quarter]), {"loss": level + floor, "spread": spread})


def _by_chance(accuracy: np.ndarray) -> float:
    """Standard error of a share of right answers."""
    share = float(np.median(accuracy[-6:]))
    return math.sqrt(max(0.0, share * (1 - share)) * finest(accuracy))


def _fitted_since(course: Course, step: int) -> bool:
    """Training went on as it should, so that what validation lost has another reason."""
    at = int(np.searchsorted(course.steps, step))
    then = float(np.median(course.losses[max(0, at - 10) : at + 10]))
    return then - course.recent > 0.1 * course.scale and course.recent < course.start


def _steady_elsewhere(course: Course) -> bool:
    """Validation, over many samples, stays near its best, and that is well above its first: batches differ, nothing rings."""
    losses, accuracy = course.checks("loss"), course.checks("accuracy")
    if accuracy is not None and accuracy[-4:].min() > accuracy.max() - 0.05 and accuracy.max() > accuracy[0] + 0.1:
        return True
    if losses is None:
        return False
    floor = course.bound if course.bound is not None else min(0.0, float(losses.min()))
    best, first = float(losses.min()) - floor, max(course.untrained, float(losses[0])) - floor
    return bool(
        best < 0.8 * first and np.sort(losses[-4:] - floor)[-2] < 1.25 * best and losses[-4:].max() - floor < 1.4 * best
    )


def slow(course: Course) -> Symptom | None:
    """It falls along a straight line, and would be far from its goal at the end. Traps: fine-tuning, warm-up, convergence (its line bends), a
    noise floor (it bends too), the way out of a plateau (it bends the other way)."""
    if not course.past(0.4, 2 * MIN_STEPS) or course.begins_trained or course.measures_nothing:
        return None
    after = course.losses[course.steps > course.warmup]
    if course.constant is None and not course.record.probes.update_ratios.size:
        return None  # neither its goal nor its steps are known
    losses = course.record.evaluations.metrics.get("loss")
    if (
        losses is not None
        and len(losses) >= 6
        and not float(losses[0]) - float(np.median(losses[-3:])) > 0.01 * course.scale
    ):
        return None  # that the fit is slow is the least of it: validation does not follow
    if losses is not None and len(losses) >= 6 and _ever_faster(losses[-4:]):
        return None
    updates, third = layers.recent_updates(course.record), len(after) // 3
    usual = updates is not None and not float(np.nanmedian(updates)) < layers.SHORT_STEPS
    if losses is not None and usual and _bends(losses):
        return None
    if third < MIN_STEPS or not np.isfinite(after).all():
        return None
    first, middle, last = (float(np.median(part)) for part in (after[:third], after[third : 2 * third], after[-third:]))
    earlier, later = first - middle, middle - last
    if earlier + later <= 6 * course.noise / math.sqrt(third) or not 0.75 * earlier <= later <= 3 * max(earlier, 0.0):
        return None
    end = last - later * (course.total - course.now) / third if course.record.facts.total_steps else last
    reference = course.untrained
    floor = course.bound if course.bound is not None else course.start - course.scale
    short = updates is not None and float(np.nanmedian(updates)) < layers.SHORT_STEPS
    useless = course.useless if short and course.past(LATE_PATIENCE) else {}
    if end - floor < (0.6 if useless else 0.75) * (reference - floor):
        return None
    evidence = {"loss": last, "first_loss": course.start, "expected_at_the_end": end}
    return Symptom("slow", int(course.steps[0]), evidence | useless)


def _bends(losses: np.ndarray) -> bool:
    """Over many samples, where noise hides nothing: the last third brought less than half of what the first did, and the middle one lies between."""
    third = len(losses) // 3
    if third < 3 or not np.isfinite(losses).all():
        return False
    first, middle, last = (
        float(part[0] - part[-1]) for part in (losses[: third + 1], losses[third:-third], losses[-third - 1 :])
    )
    return first > middle > last and last < 0.5 * first


def _ever_faster(losses: np.ndarray) -> bool:
    falls = -np.diff(losses)
    return bool((falls > 0).all() and falls[-1] > 1.5 * falls[:-1].max())


def far_above(course: Course) -> Symptom | None:
    """It began far above what a constant answer has, and is still there after a tenth of the run, or above it after the half of it: it has all of
    that to unlearn first. Traps: squared errors of targets that nobody scaled; a first pass that is too large and comes down at once."""
    if course.constant is None or not course.past(0.1) or course.begins_trained or course.adversarial:
        return None
    floor = course.bound if course.bound is not None else 0.0
    reference = course.constant - floor
    recent = course.level()
    high, still = (10, 3) if not course.past(0.5) else (2, 1.15)
    if not course.start - floor > high * reference or not recent - floor > still * reference:
        return None
    evidence = {"loss": _readable(recent), "first_loss": course.start, "constant_loss": course.constant}
    return Symptom("far_above", int(course.steps[0]), evidence)


def _evaluated(course: Course, row: int) -> int:
    return int(course.record.evaluations.steps[row])


def _readable(value: float) -> float | str:
    return float(value) if math.isfinite(value) else str(float(value))
