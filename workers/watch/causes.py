"""Why a job fails, by exclusion: for each symptom causes in an order that asks for the surest first. The first that matches is the cause, the
others are also seen. Only called with a symptom: none of these signals is a sickness by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from workers.watch import causes_away as away
from workers.watch import causes_flat as flat
from workers.watch import causes_unsteady as unsteady
from workers.watch import layers
from workers.watch.course import Course
from workers.watch.findings import Found
from workers.watch.symptom import Kind, Symptom
from workers.watch.symptoms import STUCK_PATIENCE

VANISHING_EARLY = 1e-6
FULL = 0.9  # of a layer's outputs are saturated

Rule = Callable[[Course, Symptom], Found | None]

RULES: dict[Kind, tuple[Rule, ...]] = {
    "not_a_number": (away.bad_rows, away.overflow, away.wrong_from_the_start, away.away_before, away.made_by_a_layer),
    "below_bound": (away.wrong_sign,),
    "spike": (away.rate_changed, unsteady.heavy, flat.unnormalised, away.jumped),
    "runaway": (unsteady.heavy, *away.RUNAWAY),
    "stuck": (
        flat.rate_zero,
        flat.rate_died,
        flat.underflow,
        flat.unmoved,
        flat.undone,
        flat.unnormalised,
        flat.over_regularised,
        flat.twin_rows,
        flat.scale_of_weights,
        flat.ran_away_first,
        flat.killed_by_rate,
        flat.dying,
        flat.saturated,
        flat.cut_within,
        flat.vanishing,
        flat.cannot_arrive,
        flat.rate_too_low,
        flat.rate_too_high,
        unsteady.along_a_line,
        unsteady.creeps,
        flat.faint_at_first,
        flat.thrown_far,
        flat.hardly_tried,
        flat.through_time,
        flat.labels,
        flat.plateau,
    ),
    "lost": (
        away.rate_changed,
        unsteady.heavy,
        flat.unnormalised,
        flat.rate_too_high,
        flat.dying,
        unsteady.rings_by_rate,
        unsteady.oscillating,
    ),
    "rings": (flat.unnormalised, unsteady.heavy, unsteady.rings_by_batch, unsteady.rings_by_rate),
    "slow": (
        flat.rounded,
        flat.rate_died,
        flat.unnormalised,
        flat.over_regularised,
        flat.scale_of_weights,
        flat.rate_too_high,
        unsteady.rate_low_for_slow,
        unsteady.slow_convergence,
    ),
    "far_above": (flat.unnormalised, flat.scale_of_weights, away.exploding, away.huge_first_forward),
    "contradicts": (unsteady.asks_for_another, unsteady.thrown_about, unsteady.rare, unsteady.fitted_only),
    "walks_away": (unsteady.thrown_about, unsteady.suddenly_easy, unsteady.fitted_only, unsteady.overfitting),
}


def causes(course: Course, symptom: Symptom) -> list[Found]:
    """Those that match, the likeliest first; empty when nothing that was measured explains it."""
    return [_with(symptom, found) for rule in RULES[symptom.kind] if (found := rule(course, symptom)) is not None]


def _with(symptom: Symptom, found: Found) -> Found:
    """What was seen of the job belongs to the evidence of its cause."""
    seen = {name: value for name, value in symptom.evidence.items() if name != "row"}
    return replace(found, evidence={**seen, **found.evidence})


def certain_early(course: Course, symptom: Symptom) -> Iterator[Found]:
    """Causes of a flat loss that are beyond doubt long before ``STUCK_PATIENCE`` has passed."""
    if course.past(STUCK_PATIENCE):
        return
    for found in _beyond_doubt(course, symptom):
        yield _with(symptom, found)


def _beyond_doubt(course: Course, symptom: Symptom) -> Iterator[Found]:
    for rule in (
        flat.rate_zero,
        flat.underflow,
        flat.undone,
        flat.far_from_normal,
        flat.weights_vanish,
        flat.ran_away_first,
    ):
        if found := rule(course, symptom):
            yield found
    killed = flat.killed_by_rate(course, symptom)
    if killed is not None and killed.evidence["dead_share"] >= 0.97:
        yield killed
    dead = layers.dead_units(course.record, every_probe=True)
    if dead is not None and dead.share >= 0.97 and len(course.record.probes.steps) >= 4:
        yield Found("dying_relu", "critical", dead.step, {"dead_share": dead.share, "layers": dead.count}, dead.layer)
    if cut := flat.cut_within(course, symptom):
        yield cut
    if full := flat.saturated(course, symptom, FULL):
        yield full
    lost = flat.vanishing(course, symptom, VANISHING_EARLY)
    if lost and (scale := flat.scale_of_weights(course, symptom)):
        yield scale
    if lost:
        yield lost
    others = (
        flat.scale_of_weights,
        flat.dying,
        flat.saturated,
        flat.vanishing,
        flat.twin_rows,
    )  # these make steps short
    if all(rule(course, symptom) is None for rule in others) and (short := flat.cannot_arrive(course, symptom)):
        yield short
