"""Why a loss does not move: rate and decay, what flows through the layers, and what is left when nothing else explains it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from workers.watch import layers
from workers.watch.course import LATE_PATIENCE, MIN_STEPS, SQUARED, Course
from workers.watch.findings import Found
from workers.watch.symptom import Symptom
from workers.watch.symptoms import above

VANISHED = 1e-6  # where there are too few layers for a quarter of them
FAINT_FIRST = 2e-3
VANISHING = 1e-3  # first layers' median norm over the last ones'
DEAD = 0.85  # of a layer's units
SATURATED = 0.5
LEAST_UPDATE = 2e-5  # of the weights
LARGE_UPDATE = 0.05
DESTRUCTIVE = 0.5
ABOVE_CONSTANT = 1.1
STEADY_UPDATE = 0.008  # of the weights: whoever is above a constant answer with such steps is there for another reason
ROSE_BLOCKS = 3
HARDLY = 0.01  # of the weights
DROPPED = 0.85  # of a layer's units: what is left carries little
DECAY = 0.01  # learning rate times weight decay
FEW_LEFT = 0.1  # of the weights' first norm
COUPLED = ("sgd", "adam", "rmsprop", "adagrad", "nadam", "radam")  # their weight decay is not as in AdamW
GROWTH = 100.0  # of norms from the last layers to the first
POSITIONS = 30  # that a recurrent layer reads: tanh halves a gradient so often that less than a thousandth is left
LIVELY = 0.05  # norm now over its early median
UNSTIRRED = 1e-3  # of what there is to learn: a model that answers anything has another loss for each batch
MIN_PROBES = 5
SPACING = {"bfloat16": 2.0**-9, "float16": 2.0**-12}  # of weights, as a share of them
THROWN_FAR = 5.0  # times the weights' first norm, in the median layer
RESTED = 1e-4  # of the weights in a step: less may leave their length as it is
TRIED = 0.05  # of the weights, by all steps so far: less is no attempt at learning


def rate_zero(course: Course, symptom: Symptom) -> Found | None:
    rates = course.record.series.learning_rates
    known = rates[np.isfinite(rates)]
    if len(known) < 5 or known.max() > 0:
        return None
    return Found("lr_zero", "critical", int(course.steps[0]), {"learning_rate": 0.0})


def rate_died(course: Course, symptom: Symptom) -> Found | None:
    """The schedule has brought the rate to nearly nothing long before the end."""
    rates = course.record.series.learning_rates
    if not len(rates) or not np.isfinite(rates).all() or course.record.facts.total_steps is None:
        return None
    dead = rates < 1e-3 * rates.max()
    first = int(np.argmax(dead)) if dead.any() else 0
    if not dead[-MIN_STEPS:].all() or not first or course.steps[first] > 0.5 * course.total:
        return None
    return Found(
        "lr_zero",
        "critical",
        int(course.steps[first]),
        {"learning_rate": float(rates[-1]), "largest": float(rates.max())},
    )


def over_regularised(course: Course, symptom: Symptom) -> Found | None:
    facts = course.record.facts
    if facts.dropout >= DROPPED:
        return Found("over_regularised", "critical", 0, {"dropout": facts.dropout})
    decay = facts.weight_decay or 0.0
    norms = layers.of_weights(course.record)
    shrunk = layers.ratio_to_start(norms)
    if not decay:
        return _by_a_term(course, shrunk)
    if len(norms) >= 3 and shrunk is not None:
        if not np.median(shrunk) < 0.5:
            return None
    elif not (facts.learning_rate or 0.0) * decay > DECAY or (facts.optimizer or "sgd").lower() not in COUPLED:
        return None
    evidence = {"weight_decay": decay, "rate_times_decay": (facts.learning_rate or math.nan) * decay}
    if shrunk is not None:
        evidence["weights_left"] = float(np.median(shrunk))
    return Found("over_regularised", "critical", int(course.steps[0]), evidence)


def _by_a_term(course: Course, shrunk: NDArray[np.float64] | None) -> Found | None:
    """The loss has parts besides the one that is known by name, and the weights are nearly gone."""
    parts = course.constant is None and course.record.facts.loss.output is not None
    if not parts or shrunk is None or len(shrunk) < 2 or not np.median(shrunk) < FEW_LEFT:
        return None
    evidence = {"weights_gone": float((shrunk < FEW_LEFT).mean()), "weights_left": float(np.median(shrunk))}
    return Found("over_regularised", "critical", int(course.steps[0]), evidence)


def rate_too_low(course: Course, symptom: Symptom) -> Found | None:
    """Trap: weights of half precision may not move although the rate is right; ``unmoved`` comes before."""
    updates = layers.recent_updates(course.record)
    if updates is None or not np.isfinite(updates).any() or not 0 < np.nanmax(updates) < 5 * LEAST_UPDATE:
        return None
    if not np.nanmedian(updates) < LEAST_UPDATE:
        return None
    return Found("lr_too_low", "critical", int(course.steps[0]), {"update_ratio": float(np.nanmedian(updates))})


def ran_away_first(course: Course, symptom: Symptom) -> Found | None:
    """The loss was far above its start before it became flat: dead units and small gradients came after that."""
    high = _leapt(course)
    early = course.norms[: min(10, len(course.norms))]
    if not high.any() or not early.size or layers.amplification(early[:3]) > GROWTH:
        return None
    return rate_too_high(course, symptom)


def rate_too_high(course: Course, symptom: Symptom) -> Found | None:
    """Large updates, or a loss that was far above its start before it became flat."""
    largest, layer, step = layers.largest_update(course.record)
    peak = float(course.levels.max()) if len(course.levels) else math.nan
    floor = course.bound if course.bound is not None else 0.0
    leapt = bool(_leapt(course).any())
    if not largest > LARGE_UPDATE and not leapt:
        return None
    # Adam's first steps are as long in runs that are well, and a rate that is too high leaves the loss above that of a constant answer.
    reference = course.start if course.constant is None else course.constant
    higher = course.recent - floor > ABOVE_CONSTANT * (reference - floor)
    recent = layers.recent_updates(course.record)
    huge = largest > 4 * LARGE_UPDATE
    higher &= recent is None or huge or not float(np.nanmax(recent)) < STEADY_UPDATE
    rose = huge and _leapt(course, 1.3)[:ROSE_BLOCKS].any()
    if not (leapt or higher or rose or largest > DESTRUCTIVE):
        return None
    evidence = {**symptom.evidence, "largest_update_ratio": largest, "peak_loss": peak}
    first = int(course.level_steps[int(np.argmax(course.levels))]) if leapt else step
    return Found("lr_too_high", "critical", first, evidence, layer)


def _leapt(course: Course, factor: float = 2.0) -> NDArray[np.bool_]:
    """(N,) levels that are far above the start, by more than the noise of a level. Trap: a start that happened to be low."""
    margin = 4 * course.noise / math.sqrt(course.block)
    found: NDArray[np.bool_] = course.levels > above(course, course.untrained, factor) + margin
    return found


def unmoved(course: Course, symptom: Symptom) -> Found | None:
    """Gradients, a rate, and weights that stay as they are: rounded away under half precision, or not what the optimizer holds."""
    updates = layers.recent_updates(course.record)
    if updates is None or not np.isfinite(updates).any() or not course.norms.size:
        return None
    # Where no gradient comes, nothing moves either, and that has other causes; a bias may still have one.
    pulled = (np.median(course.norms[-MIN_STEPS:], axis=0) > 0).mean()
    largest = layers.recent(course.record.probes.largest)
    if pulled < 0.5 or (largest is not None and not (largest > 0).mean() >= 0.5):
        return None
    still = updates[np.isfinite(updates)] == 0
    half = _half(course)
    spacing = SPACING["bfloat16" if "bfloat16" in half.values() else "float16"]
    if half and (still.mean() > 0.5 or np.nanmedian(updates) < spacing / 8):
        name = next(iter(half))
        return Found(
            "precision_underflow",
            "critical",
            int(course.steps[0]),
            {"dtype": half[name], "update_ratio": float(np.nanmedian(updates))},
            name,
        )
    if not still.all():
        return None
    return Found("frozen_params", "critical", int(course.steps[0]), {"update_ratio": 0.0, "layers": int(still.sum())})


def _half(course: Course) -> dict[str, str]:
    """Layers whose weights are kept in half precision, and in which."""
    return {fact.name: fact.dtype for fact in course.record.facts.layers if fact.dtype in SPACING}


def rounded(course: Course, symptom: Symptom) -> Found | None:
    """It does learn, but weights of half precision take on only a part of each update: what is less than half of their spacing is lost."""
    updates = layers.recent_updates(course.record)
    half = _half(course)
    if not half or updates is None or not np.isfinite(updates).any():
        return None
    name, dtype = next(iter(half.items()))
    if not float(np.nanmedian(updates)) < SPACING[dtype] / 2:
        return None
    evidence = {"dtype": dtype, "update_ratio": float(np.nanmedian(updates))}
    return Found("precision_underflow", "warning", int(course.steps[0]), evidence, name)


def undone(course: Course, symptom: Symptom) -> Found | None:
    """Steps are taken, and before the next one all weights are what they were at first: something writes them back. Trap: weights that are kept at
    a length on purpose, whose job does not fail."""
    norms, updates = layers.of_weights(course.record), layers.recent_updates(course.record)
    if len(norms) < MIN_PROBES or updates is None or not np.isfinite(norms).all() or not (norms[0] > 0).all():
        return None
    if _half(course):
        return None  # rounded away
    if not np.nanmax(updates) > RESTED or np.abs(norms / norms[0] - 1).max() > 1e-6:
        return None
    return Found(
        "frozen_params",
        "critical",
        int(course.steps[0]),
        {"undone": float(np.nanmax(updates)), "layers": norms.shape[1]},
    )


def underflow(course: Course, symptom: Symptom) -> Found | None:
    facts = course.record.facts
    half = facts.precision == "fp16" or any(layer.dtype == "float16" for layer in facts.layers)
    zeros = layers.recent(course.record.probes.zero_shares)
    if not half or zeros is None:
        return None
    kinds = {fact.name: fact.kind for fact in facts.layers}
    dense = np.array(["Embedding" not in kinds.get(name, "") for name in course.record.probes.layers])
    share = zeros[dense & np.isfinite(zeros)]
    if not len(share) or not np.median(share) > 0.2:
        return None
    return Found(
        "precision_underflow",
        "critical",
        int(course.record.probes.steps[0]),
        {"zero_share": float(np.median(share)), "precision": facts.precision},
    )


def dying(course: Course, symptom: Symptom) -> Found | None:
    dead = layers.dead_units(course.record)
    if dead is None or not dead.share > DEAD:
        return None
    return Found("dying_relu", "critical", dead.step, {"dead_share": dead.share, "layers": dead.count}, dead.layer)


def killed_by_rate(course: Course, symptom: Symptom) -> Found | None:
    """Units that were alive at first and are dead since steps that were too long: the rate is the first cause."""
    dead = layers.dead_units(course.record)
    if dead is None or not dead.share > DEAD:
        return None
    probes = course.record.probes
    if dead.step <= int(probes.steps[0]):
        return None  # from the start
    largest, layer, step = layers.largest_update(course.record, through=dead.step)
    if not largest > LARGE_UPDATE:
        return None
    evidence = {"largest_update_ratio": largest, "dead_share": dead.share, "dead_layer": dead.layer}
    return Found("lr_too_high", "critical", step, evidence, layer)


def cannot_arrive(course: Course, symptom: Symptom) -> Found | None:
    """So short are the steps that all those of the run, were they to point the same way, would hardly move the weights. Traps: a schedule that
    still climbs (as far as it will); weights of half precision (``unmoved``)."""
    updates = layers.recent_updates(course.record)
    rates = course.record.series.learning_rates
    if updates is None or not np.isfinite(updates).any() or course.record.facts.total_steps is None:
        return None
    if _half(course):
        return None
    largest = float(np.nanmax(updates))  # where a gradient vanishes on its way the last layers move all the same
    highest = max(course.record.facts.schedule.values(), default=0.0)
    climb = max(1.0, highest / rates[-1]) if len(rates) and rates[-1] > 0 else 1.0
    moved = largest * climb * course.total
    if not 0 < moved < HARDLY:
        return None
    evidence = {"update_ratio": largest, "moved_at_most": moved}
    return Found("lr_too_low", "critical", int(course.steps[0]), evidence)


def saturated(course: Course, symptom: Symptom, limit: float = SATURATED) -> Found | None:
    found = layers.saturated(course.record, limit)
    if found is None:
        return None
    return Found(
        "saturated_activation",
        "critical",
        found.step,
        {"saturated_share": found.share, "layers": found.count},
        found.layer,
    )


def twin_rows(course: Course, symptom: Symptom) -> Found | None:
    """Also of layers that are zero, which may be right by themselves (a residual branch): here the job fails."""
    for layer in layers.hidden(course.record):
        if (layer.twin_rows or 0.0) > 0.5:
            return Found("bad_init", "critical", 0, {"twin_rows": layer.twin_rows}, layer.name)
    return None


def scale_of_weights(course: Course, symptom: Symptom) -> Found | None:
    """Most hidden weights far from He's scale, and none of them followed by a normalisation."""
    hidden = layers.hidden(course.record)
    # A recurrent layer is applied as often as there are positions: it is deep by itself.
    deep = len(hidden) >= 2 or any(fact.kind in ("RNN", "LSTM", "GRU") for fact in hidden)
    if course.record.facts.begins_trained or layers.normalised(course.record) or not deep:
        return None
    ratios = np.array([(fact.std or 0.0) / math.sqrt(2 / fact.fan_in) for fact in hidden if fact.fan_in and fact.std])
    if not len(ratios):
        return None
    middle = float(np.median(ratios))
    # torch's own default is 0.41 of He's; depth makes a factor of a third fatal, and so does one of three.
    if 0.1 < middle < 4:
        return None
    worst = hidden[int(np.argmax(np.abs(np.log(ratios))))] if len(ratios) == len(hidden) else hidden[0]
    return Found("bad_init", "critical", 0, {"std_over_he": middle, "layers": len(ratios)}, worst.name)


def vanishing(course: Course, symptom: Symptom, threshold: float = VANISHING) -> Found | None:
    """Traps: layers without any gradient of their own accord (zero branches, idle experts), convergence (no symptom there)."""
    flow = layers.flow(course.record)
    if flow is None:
        flow, threshold = layers.flow(course.record, fewest=2), min(threshold, VANISHED)
    if flow is None or not flow.ratio <= threshold or layers.cut(course.record):
        return None
    evidence = {"first_layers_norm": flow.first, "last_layers_norm": flow.last, "ratio": flow.ratio}
    return Found("vanishing_gradient", "critical", int(course.steps[0]), evidence, flow.drop)


def thrown_far(course: Course, symptom: Symptom) -> Found | None:
    """Nothing is learnt, and the weights have become several times as large in the attempt: whatever tells the targets was stepped over. Right:
    weights that began small."""
    grown, updates = layers.grown_weights(course.record), layers.recent_updates(course.record)
    if not course.past(_patience(course), 3 * MIN_STEPS) or grown is None or not grown > THROWN_FAR or updates is None:
        return None
    sizes = [(fact.std or 0.0) * math.sqrt(fact.fan_in or 0) for fact in layers.hidden(course.record) if fact.fan_in]
    if not sizes or not float(np.median(sizes)) > 0.3 or not np.nanmax(updates) > STEADY_UPDATE:
        return None
    evidence = {**symptom.evidence, "update_ratio": float(np.nanmax(updates)), "weights_grown": grown}
    return Found("lr_too_high", "warning", int(course.steps[0]), evidence)


def faint_at_first(course: Course, symptom: Symptom) -> Found | None:
    """Where nothing surer explains it, twice as much is little too."""
    return vanishing(course, symptom, FAINT_FIRST)


def cut_within(course: Course, symptom: Symptom) -> Found | None:
    """Some layers never have a gradient while their neighbours' is large: the graph is cut, which no product of small slopes does. Traps: a branch
    or a head that is not used, whose job does not fail."""
    name = layers.cut(course.record)
    if name is None or course.steps[0] > 3:
        return None
    return Found("frozen_params", "critical", int(course.steps[0]), {"gradient": 0.0}, name)


def unnormalised(course: Course, symptom: Symptom) -> Found | None:
    """Trap: scales that Adam copes with (no symptom there)."""
    facts, scale = course.record.facts, layers.scale_of_inputs(course.record)
    if scale is None or facts.inputs is None:
        return None
    first = facts.layers[0].name if facts.layers else None
    name = "largest_feature_scale" if scale > layers.FAINT else "largest_input"
    return Found(
        "unnormalised_input", "critical", 0, {name: scale, "mean": facts.inputs.mean, "std": facts.inputs.std}, first
    )


def far_from_normal(course: Course, symptom: Symptom) -> Found | None:
    """Inputs so far from normalised that nobody has to wait for more evidence."""
    found = unnormalised(course, symptom)
    return (
        found
        if found is not None and found.evidence.get("largest_feature_scale", 0.0) > 10 * layers.INPUT_SCALE
        else None
    )


def weights_vanish(course: Course, symptom: Symptom) -> Found | None:
    """Decay that was seen to have halved the weights already."""
    found = over_regularised(course, symptom)
    return found if found is not None and found.evidence.keys() & {"weights_left", "dropout"} else None


def labels(course: Course, symptom: Symptom) -> Found | None:
    """The loss stays at that of the best constant answer while gradients are lively: nothing in the inputs tells the targets. Traps: hard
    tasks early on (patience), regression with a little signal in much noise (nothing is said below H)."""
    totals = course.totals
    if not course.past(_patience(course), 3 * MIN_STEPS) or course.constant is None or not len(totals):
        return None
    if course.answers_improve:
        return None
    floor = course.bound or 0.0
    level = (course.recent - floor) / max(course.constant - floor, 1e-12)
    if not (0.985 if _regression(course) else 0.93) < level < 1.3:
        return None
    early, now = float(np.median(totals[:MIN_STEPS])), float(np.median(totals[-MIN_STEPS:]))
    if not now > LIVELY * early or course.noise < UNSTIRRED * course.scale:
        return None
    if _moved(course) < TRIED:
        return None
    return Found("label_error", "warning", int(course.steps[0]), {**symptom.evidence, "norm": now, "early_norm": early})


def through_time(course: Course, symptom: Symptom) -> Found | None:
    """The loss of the best constant answer, from a plain recurrent layer over many positions: what a step there multiplies the gradient with is
    below one, and nobody measures it position by position. Traps: gated layers, whose gates keep it."""
    facts = course.record.facts
    kinds = [fact for fact in facts.layers if fact.kind == "RNN"]
    shape = facts.inputs.shape if facts.inputs is not None else ()
    if not kinds or len(shape) != 3 or shape[1] < POSITIONS or labels(course, symptom) is None:
        return None
    evidence = {**symptom.evidence, "positions": shape[1]}
    return Found("vanishing_gradient", "warning", int(course.steps[0]), evidence, kinds[0].name)


def hardly_tried(course: Course, symptom: Symptom) -> Found | None:
    """The loss varies from batch to batch, and all steps so far have hardly moved the weights: whether anything could be learnt, nobody has tried."""
    moved = _moved(course)
    if (
        not course.past(_patience(course), 3 * MIN_STEPS)
        or not moved < TRIED
        or course.noise < UNSTIRRED * course.scale
    ):
        return None
    return Found("lr_too_low", "warning", int(course.steps[0]), {**symptom.evidence, "moved_at_most": moved})


def _patience(course: Course) -> float:
    """With short steps it takes longer to see that nothing is learnt."""
    updates = layers.recent_updates(course.record)
    return 0.75 if updates is not None and float(np.nanmedian(updates)) < layers.SHORT_STEPS else LATE_PATIENCE


def _moved(course: Course) -> float:
    """By how much of their size all steps so far would have moved the weights at most, had they all pointed the same way; infinite: unknown."""
    updates = layers.recent_updates(course.record)
    if updates is None or not np.isfinite(updates).any():
        return math.inf
    return float(np.nanmax(updates)) * course.now


def _regression(course: Course) -> bool:
    return course.record.facts.loss.function in SQUARED


def plateau(course: Course, symptom: Symptom) -> Found | None:
    totals = course.totals
    if not course.past(_patience(course), 3 * MIN_STEPS) or not len(totals) or course.answers_improve:
        return None
    unexplained = course.useless or symptom.evidence.keys() & {"unchanged_for", "norm_left"}
    if course.constant is None and not unexplained:
        return None
    early, now = float(np.median(totals[:MIN_STEPS])), float(np.median(totals[-MIN_STEPS:]))
    floor = course.bound or 0.0
    if (
        course.constant is not None
        and _regression(course)
        and course.recent - floor < 0.985 * (course.constant - floor)
    ):
        return None
    return Found("plateau", "warning", int(course.steps[0]), {**symptom.evidence, "norm": now, "early_norm": early})
