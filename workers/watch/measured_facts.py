"""What is wrong beyond doubt although the job need not fail yet: measured, where workers/watch/fact_rules.py knows before.

Each rule says what it takes for right although it looks wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from workers.watch import layers
from workers.watch.causes_flat import DEAD, LARGE_UPDATE, VANISHING
from workers.watch.course import CHECKS, MIN_STEPS, Course
from workers.watch.findings import Found

ALIVE = 0.3  # of a layer's units gave nothing at first, at most
LEAPT = 1.1  # of the untrained loss
RARELY = 100  # updates in the whole run
FEW_BATCHES = 4  # in an epoch
FEWEST = 10  # steps that show a bend
HARDLY_BEGUN = 0.55  # of what there is to learn is left
SHRUNK = 0.3  # of the weights' first norm
LEFT, MOST_LEFT = 0.4, 0.7  # of H
SPARSE, TAKEN = 0.1, 0.6  # of a layer's units, at first and now
FLAT = 0.02  # of what there is to learn
EXPLAINED = 0.4  # of the targets' variance
RAW = 30.0  # a feature's mean or deviation
LEAPING = 0.05  # noise of a step's loss, over the loss
LEAPS = 0.2  # of H, from check to check


def findings(course: Course) -> list[Found]:
    return [found for rule in RULES if (found := rule(course)) is not None]


def gone_silent(course: Course) -> Found | None:
    """All units of a layer have fallen silent, and exactly nothing comes back to the layers before it, which had gradients. Right: layers that never
    had any (other codes), what has converged (then no layer has any), units that are silent while others carry the signal around them."""
    norms, probes = course.norms, course.record.probes
    window = max(MIN_STEPS, round(0.1 * course.total))
    if len(norms) < 2 * window or not probes.silent.size or len(probes.silent) < layers.RECENT:
        return None
    if course.adversarial or course.record.facts.precision == "fp16":
        return None
    idle = (norms[-window:] == 0).all(axis=0) & (norms[:10] > 0).any(axis=0)
    if not idle[0] or idle.all() or not (norms[-window:, ~idle] > 0).any():
        return None
    silent = np.flatnonzero((probes.silent[-layers.RECENT :] == 1).all(axis=0))
    if not len(silent):
        return None
    since = int(course.steps[len(norms) - int(np.argmax(norms[::-1, 0] > 0))])
    where = probes.activations[int(silent[0])]
    evidence = {"dead_share": 1.0, "layers_before": int(np.argmin(idle)), "loss": course.recent}
    return Found("dying_relu", "critical", since, evidence, where)


def killed_at_first(course: Course) -> Found | None:
    """Early steps that were too long have left few of the hidden layers' units alive; what is learnt since is learnt with these. Right: layers that
    are sparse from the start, wide ones of which a fifth is enough, pruning late in a run."""
    probes, early = course.record.probes, 0.2 * course.total
    if not course.past(0.2) or len(probes.steps) < 2 * layers.RECENT or not probes.silent.size:
        return None
    with np.errstate(invalid="ignore"):
        known = np.isfinite(probes.silent).all(axis=0)
        lost = known & (probes.silent[0] < ALIVE) & (np.median(probes.silent[-5:], axis=0) > DEAD)
    if not known.any() or lost.sum() < max(2, known.sum() / 2):
        return None
    largest, layer, step = layers.largest_update(course.record, through=round(early))
    leapt = course.levels[course.level_steps <= early] > LEAPT * course.untrained
    if not largest > LARGE_UPDATE or course.bound is None or not leapt.any():
        return None
    first = int(np.flatnonzero(lost)[0])
    evidence = {
        "largest_update_ratio": largest,
        "dead_share": float(np.median(probes.silent[-5:, first])),
        "dead_layer": probes.activations[first],
    }
    return Found("lr_too_high", "warning", step, evidence, layer)


def worse_as_the_rate_climbs(course: Course) -> Found | None:
    """The higher the rate, the more is lost of what had been learnt, for a quarter of the run, in validation too. Right: the top of a cycle, after
    which the rate falls again; restarts."""
    rates, levels, losses = course.record.series.learning_rates, course.levels, course.checks("loss")
    quarter = 0.25 * course.total
    if course.measures_nothing or not course.past(0.3) or len(levels) < 8 or not np.isfinite(levels).all():
        return None
    if len(rates) != len(course.steps) or not np.isfinite(rates).all() or not rates[-1] >= 0.95 * rates.max():
        return None
    best = int(np.argmin(levels))
    gained = course.untrained - float(levels[best])
    after = levels[course.level_steps > max(course.now - quarter, course.level_steps[best] + 1)]
    if course.now - course.level_steps[best] < quarter or not gained > 0.2 * course.scale or not len(after):
        return None
    lost = float(np.percentile(after, 20)) - float(levels[best])
    rate_then = float(rates[int(np.searchsorted(course.steps, course.level_steps[best]))])
    if not lost > max(0.12 * gained, 3 * course.noise / math.sqrt(course.block)) or not rates[-1] > 1.4 * rate_then:
        return None
    if losses is not None and not float(np.median(losses[-3:])) - float(losses.min()) > 0.1 * gained:
        return None
    first = int(course.level_steps[best + int(np.argmax(levels[best:] > levels[best] + 0.5 * lost))])
    evidence = {"loss": course.recent, "best": float(levels[best]), "rate": float(rates[-1]), "rate_then": rate_then}
    return Found("lr_too_high", "warning", first, evidence)


def alone(course: Course) -> Found | None:
    """A sample a step, and what each teaches upsets the others: validation, the same samples each time, leaps from check to check. Right: steps that
    are short enough for it."""
    facts, losses = course.record.facts, course.checks("loss")
    if facts.batch_size != 1 or losses is None or len(losses) < 2 * CHECKS or course.constant is None:
        return None
    if not course.past(0.4) or course.measures_nothing or facts.begins_trained:
        return None
    late = losses[-CHECKS:]
    leaps = np.abs(np.diff(late))
    floor = course.bound or 0.0
    if not np.sort(leaps)[-2] > LEAPS * (course.constant - floor) or late.argmin() == CHECKS - 1:
        return None
    evidence = {"leaps_alone": 1, "least": float(late.min()), "most": float(late.max())}
    return Found("batch_size", "warning", int(course.steps[0]), evidence)


def too_few_updates(course: Course) -> Found | None:
    """The run is over while it learns faster than ever: of so large batches there were few. Right: a job that is short on purpose and has come near
    its goal, a learning rate that is at its end."""
    facts, count = course.record.facts, len(course.losses)
    if facts.total_steps is None or facts.total_steps > RARELY or course.now < facts.total_steps or count < FEWEST:
        return None
    if facts.steps_per_epoch is None or facts.steps_per_epoch > FEW_BATCHES or not np.isfinite(course.losses).all():
        return None
    if count < 4 * facts.steps_per_epoch or course.begins_trained or course.measures_nothing:
        return None
    fifths = [float(np.median(part)) for part in np.array_split(course.losses, 5)]
    falls = -np.diff(fifths)
    floor = course.bound if course.bound is not None else course.start - course.scale
    left = (fifths[-1] - floor) / max(course.untrained - floor, 1e-12)
    if not falls[-1] > 1.2 * falls[:-1].max() or not left > HARDLY_BEGUN or not math.isfinite(left):
        return None
    evidence = {"updates": facts.total_steps, "batch": facts.batch_size, "loss": fifths[-1], "first_loss": course.start}
    return Found("batch_size", "warning", int(course.steps[0]), evidence)


def shrunk_and_stuck(course: Course) -> Found | None:
    """Weight decay has taken most of the weights, and the loss has stopped with much of it left. Right: decay that goes along with learning."""
    facts, shrunk = course.record.facts, layers.ratio_to_start(layers.of_weights(course.record))
    if not (facts.weight_decay or 0.0) > 0 or shrunk is None or not np.median(shrunk) < SHRUNK or not _stopped(course):
        return None
    evidence = {"weights_shrunk": True, "weights_left": float(np.median(shrunk)), "weight_decay": facts.weight_decay}
    return Found("over_regularised", "warning", int(course.steps[0]), {**evidence, **_course_of(course)})


def silenced_by_a_term(course: Course) -> Found | None:
    """The loss has parts besides the one that is known by name; most units of a layer have fallen silent since the start, and little of the targets
    is explained: another part takes them. Right: layers that are sparse from the start, answers that are good all the same."""
    loss, silent, explained = course.record.facts.loss, course.record.probes.silent, course.checks("r2")
    if loss.output is None or course.constant is not None or explained is None or not silent.size:
        return None
    if not course.past(0.45, 3 * MIN_STEPS) or len(silent) < 2 * layers.RECENT or course.measures_nothing:
        return None
    floor = course.bound if course.bound is not None else min(0.0, course.start)
    flat = abs(_late_change(course)) < FLAT * course.scale and course.recent - floor > LEFT * course.scale
    with np.errstate(invalid="ignore"):
        taken = np.flatnonzero((silent[0] < SPARSE) & (np.median(silent[-5:], axis=0) > TAKEN))
    if not flat or not len(taken) or not float(explained[-3:].max()) < EXPLAINED:
        return None
    where = course.record.probes.activations[int(taken[0])]
    share = float(np.median(silent[-5:, taken[0]]))
    evidence = {"taken_share": share, "r2": float(explained[-1]), **_course_of(course)}
    return Found("over_regularised", "warning", int(course.steps[0]), evidence, where)


def _late_change(course: Course) -> float:
    """Of the loss, from the middle of what was recorded to now."""
    half, window = len(course.losses) // 2, max(MIN_STEPS, len(course.losses) // 8)
    return float(np.median(course.losses[half : half + window]) - np.median(course.losses[-window:]))


def starved(course: Course) -> Found | None:
    """The last layers have learnt what they can by themselves, and next to nothing reaches the first ones. Right: what has converged, layers that are
    frozen or hardly asked (their norms are 0 or nobody's measure)."""
    flow = layers.flow(course.record)
    if flow is None or not 0 < flow.ratio < VANISHING or not course.past(0.45, 3 * MIN_STEPS) or course.falls:
        return None
    if course.begins_trained or course.measures_nothing or course.answers_improve:
        return None
    floor, reference = course.bound or 0.0, course.untrained if course.constant is None else course.constant
    if course.bound is None or not course.recent - floor > MOST_LEFT * (reference - floor):
        return None
    evidence = {"ratio": flow.ratio, "first_norm": flow.first, "last_norm": flow.last, **_course_of(course)}
    return Found("vanishing_gradient", "critical", int(course.steps[0]), evidence, flow.drop)


def raw_inputs(course: Course) -> Found | None:
    """Inputs tens of times too large for plain steps: it learns, and leaps about with much of the loss left. Right: Adam and its like, which scale
    each weight's step; a normalisation in front."""
    facts, scale = course.record.facts, layers.scale_of_inputs(course.record)
    if (facts.optimizer or "").lower() != "sgd" or scale is None or not scale > RAW or not _stopped(course):
        return None
    if not course.noise > LEAPING * course.recent:
        return None
    return Found("unnormalised_input", "warning", 0, {"slows": scale, **_course_of(course)})


def _stopped(course: Course) -> bool:
    """With much of the loss left, in training and in validation."""
    if (
        not course.past(0.45, 3 * MIN_STEPS)
        or course.begins_trained
        or course.measures_nothing
        or course.constant is None
    ):
        return False
    floor = course.bound or 0.0
    return course.recent - floor > LEFT * (course.constant - floor) and not course.falls


def _course_of(course: Course) -> dict[str, float]:
    return {"loss": course.recent, "first_loss": course.start}


RULES: tuple[Callable[[Course], Found | None], ...] = (
    gone_silent, killed_at_first, worse_as_the_rate_climbs, alone, too_few_updates, shrunk_and_stuck, silenced_by_a_term, starved,
    raw_inputs,
)  # fmt: skip
