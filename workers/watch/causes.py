"""Why a job fails, by exclusion: for each symptom causes in the order of shared/HEALTH.md, section 3. The first that matches is the cause, the
others are also seen. Only called with a symptom: none of these signals is a sickness by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from workers.watch import layers
from workers.watch.course import MIN_STEPS, Course
from workers.watch.findings import Found
from workers.watch.rank_rules import noise_scale
from workers.watch.symptoms import STUCK_PATIENCE, Symptom, rate_rose, slow

VANISHING = 1e-3  # first layers' median norm over the last ones'
VANISHING_EARLY = 1e-6
DEAD = 0.85  # of a layer's units
SATURATED = 0.5
LEAST_UPDATE = 2e-5  # of the weights
SHORT_STEPS = 3e-4
LARGE_UPDATE = 0.05
RINGING_UPDATE = 1e-2
DECAY = 0.01  # learning rate times weight decay
COUPLED = ("SGD", "Adam", "RMSprop", "Adagrad", "NAdam", "RAdam")  # their weight decay is not as in AdamW
INPUT_SCALE = 10.0  # of a feature's mean or deviation; 1 is normalised
GROWTH = 100.0  # of the norm over its own early median
LIVELY = 0.05  # norm now over its early median
LATE_PATIENCE = 0.45  # where only exclusion speaks

Rule = Callable[[Course, Symptom], Found | None]


def causes(course: Course, symptom: Symptom) -> list[Found]:
    """Those that match, the likeliest first; empty when nothing that was measured explains it."""
    return [found for rule in RULES[symptom.kind] if (found := rule(course, symptom)) is not None]


# --- rate and decay ---------------------------------------------------------------------------------------------------


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
    return Found("lr_zero", "critical", int(course.steps[first]), {"learning_rate": float(rates[-1]), "largest": float(rates.max())})  # fmt: skip


def over_regularised(course: Course, symptom: Symptom) -> Found | None:
    facts = course.record.facts
    decay = facts.weight_decay or 0.0
    if not decay:
        return None
    norms = layers.of_weights(course.record)
    shrunk = layers.ratio_to_start(norms)
    if len(norms) >= 3 and shrunk is not None:
        if not np.median(shrunk) < 0.5:
            return None
    elif not (facts.learning_rate or 0.0) * decay > DECAY or facts.optimizer not in (*COUPLED, None):
        return None
    evidence = {"weight_decay": decay, "rate_times_decay": (facts.learning_rate or math.nan) * decay}
    if shrunk is not None:
        evidence["weights_left"] = float(np.median(shrunk))
    return Found("over_regularised", "critical", int(course.steps[0]), evidence)


def rate_too_low(course: Course, symptom: Symptom) -> Found | None:
    """Trap: weights of half precision may not move although the rate is right; ``unmoved`` comes before."""
    updates = layers.recent_updates(course.record)
    if updates is None or not np.isfinite(updates).any() or not 0 < np.nanmax(updates) < 5 * LEAST_UPDATE:
        return None
    if not np.nanmedian(updates) < LEAST_UPDATE:
        return None
    return Found("lr_too_low", "critical", int(course.steps[0]), {"update_ratio": float(np.nanmedian(updates))})


def rate_low_for_slow(course: Course, symptom: Symptom) -> Found | None:
    updates = layers.recent_updates(course.record)
    if updates is None or not np.isfinite(updates).any() or not np.nanmedian(updates) < SHORT_STEPS:
        return None
    return Found("lr_too_low", "warning", symptom.step, {**symptom.evidence, "update_ratio": float(np.nanmedian(updates))})  # fmt: skip


def ran_away_first(course: Course, symptom: Symptom) -> Found | None:
    """The loss was far above its start before it became flat: dead units and small gradients came after that."""
    floor = course.bound if course.bound is not None else 0.0
    high = course.levels - floor > 2 * (course.untrained - floor)
    early = course.norms[: min(10, len(course.norms))]
    if not high.any() or not early.size or layers.amplification(early[:3]) > GROWTH:
        return None
    return rate_too_high(course, symptom)


def rate_too_high(course: Course, symptom: Symptom) -> Found | None:
    """Large updates, or a loss that was far above its start before it became flat."""
    largest, layer, step = layers.largest_update(course.record)
    peak = float(course.levels.max()) if len(course.levels) else math.nan
    floor = course.bound if course.bound is not None else 0.0
    leapt = peak - floor > 2 * (course.untrained - floor)
    if not largest > LARGE_UPDATE and not leapt:
        return None
    evidence = {**symptom.evidence, "largest_update_ratio": largest, "peak_loss": peak}
    first = int(course.level_steps[int(np.argmax(course.levels))]) if leapt else step
    return Found("lr_too_high", "critical", first, evidence, layer)


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


def rings_by_batch(course: Course, symptom: Symptom) -> Found | None:
    scale = noise_scale(course.record)
    if scale is None or not scale.batch < 0.1 * scale.critical_batch:
        return None
    return Found("batch_size", "warning", symptom.step, {**symptom.evidence, "batch": scale.batch, "critical_batch": scale.critical_batch})  # fmt: skip


def rate_changed(course: Course, symptom: Symptom) -> Found | None:
    if not course.past(0.02) or not rate_rose(course, symptom.step) or symptom.step <= course.warmup:
        return None
    return Found("lr_too_high", "critical", symptom.step, {**symptom.evidence, "rate_rose": True})


# --- what flows -------------------------------------------------------------------------------------------------------


def nothing_flows(course: Course, symptom: Symptom) -> Found | None:
    """No gradient anywhere from the first step on: the loss hangs on no parameter."""
    norms = course.norms
    if not norms.size or not (norms == 0).all() or len(norms) < 5:
        return None
    return Found("frozen_params", "critical", int(course.steps[0]), {"layers_without_gradient": norms.shape[1]})


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
    half = {fact.name: fact.dtype for fact in course.record.facts.layers if fact.dtype in ("bfloat16", "float16")}
    spacing = 2.0**-9 if "bfloat16" in half.values() else 2.0**-12
    if half and (still.mean() > 0.5 or np.nanmedian(updates) < spacing / 8):
        name = next(iter(half))
        return Found("precision_underflow", "critical", int(course.steps[0]), {"dtype": half[name], "update_ratio": float(np.nanmedian(updates))}, name)  # fmt: skip
    if not still.all():
        return None
    return Found("frozen_params", "critical", int(course.steps[0]), {"update_ratio": 0.0, "layers": int(still.sum())})


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
    return Found("precision_underflow", "critical", int(course.record.probes.steps[0]), {"zero_share": float(np.median(share)), "precision": facts.precision})  # fmt: skip


def dying(course: Course, symptom: Symptom) -> Found | None:
    dead = layers.dead_units(course.record)
    if dead is None or not dead.share > DEAD:
        return None
    return Found("dying_relu", "critical", dead.step, {"dead_share": dead.share, "layers": dead.count}, dead.layer)


def saturated(course: Course, symptom: Symptom) -> Found | None:
    found = layers.saturated(course.record, SATURATED)
    if found is None:
        return None
    return Found("saturated_activation", "critical", found.step, {"saturated_share": found.share, "layers": found.count}, found.layer)  # fmt: skip


def twin_rows(course: Course, symptom: Symptom) -> Found | None:
    """Also of layers that are zero, which may be right by themselves (a residual branch): here the job fails."""
    for layer in layers.hidden(course.record):
        if (layer.twin_rows or 0.0) > 0.5:
            return Found("bad_init", "critical", 0, {"twin_rows": layer.twin_rows}, layer.name)
    return None


def scale_of_weights(course: Course, symptom: Symptom) -> Found | None:
    """Most hidden weights far from He's scale, and none of them followed by a normalisation."""
    hidden = layers.hidden(course.record)
    if course.record.facts.begins_trained or layers.normalised(course.record) or len(hidden) < 2:
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
    if flow is None or not flow.ratio <= threshold:
        return None
    evidence = {"first_layers_norm": flow.first, "last_layers_norm": flow.last, "ratio": flow.ratio}
    return Found("vanishing_gradient", "critical", int(course.steps[0]), evidence, flow.drop)


def unnormalised(course: Course, symptom: Symptom) -> Found | None:
    """Traps: models that begin with a normalisation, numbers that are ids, scales that Adam copes with (no symptom there)."""
    facts = course.record.facts
    inputs = facts.inputs
    if inputs is None or facts.normalized_input or "int" in inputs.dtype:
        return None
    scale = max(inputs.largest_feature_mean or 0.0, inputs.largest_feature_std or 0.0)
    if inputs.largest_feature_mean is None:
        scale = max(abs(inputs.mean or 0.0), inputs.std or 0.0)
    if not scale > INPUT_SCALE:
        return None
    first = facts.layers[0].name if facts.layers else None
    return Found("unnormalised_input", "critical", 0, {"largest_feature_scale": scale, "mean": inputs.mean, "std": inputs.std}, first)  # fmt: skip


# --- what is left -----------------------------------------------------------------------------------------------------


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
    """The first outputs were already out of range."""
    if course.constant is None or course.bound is None or course.record.facts.loss.function == "mse_loss":
        return None
    if not course.start - course.bound > 5 * (course.constant - course.bound):
        return None
    return Found("bad_init", "critical", 0, {"first_loss": course.start, "constant_loss": course.constant}, layers.largest_scale(course.record))  # fmt: skip


def the_rate(course: Course, symptom: Symptom) -> Found | None:
    """What is left of a loss that ran away."""
    largest, layer, _ = layers.largest_update(course.record)
    evidence = {**symptom.evidence} | ({"largest_update_ratio": largest} if math.isfinite(largest) else {})
    return Found("lr_too_high", "critical", symptom.step, evidence, layer)


def labels(course: Course, symptom: Symptom) -> Found | None:
    """The loss stays at that of the best constant answer while gradients are lively: nothing in the inputs tells the targets. Traps: hard
    tasks early on (patience), regression with a little signal in much noise (nothing is said below H)."""
    totals = course.totals
    if not course.past(_patience(course), 3 * MIN_STEPS) or course.constant is None or not len(totals):
        return None
    floor = course.bound or 0.0
    level = (course.recent - floor) / max(course.constant - floor, 1e-12)
    if not (0.985 if _regression(course) else 0.93) < level < 1.3:
        return None
    early, now = float(np.median(totals[:MIN_STEPS])), float(np.median(totals[-MIN_STEPS:]))
    if not now > LIVELY * early:
        return None
    return Found("label_error", "warning", int(course.steps[0]), {**symptom.evidence, "norm": now, "early_norm": early})


def _patience(course: Course) -> float:
    """With short steps it takes longer to see that nothing is learnt."""
    updates = layers.recent_updates(course.record)
    return 0.75 if updates is not None and float(np.nanmedian(updates)) < SHORT_STEPS else LATE_PATIENCE


def _regression(course: Course) -> bool:
    return course.record.facts.loss.function in ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")


def plateau(course: Course, symptom: Symptom) -> Found | None:
    totals = course.totals
    if not course.past(_patience(course), 3 * MIN_STEPS) or course.constant is None or not len(totals):
        return None
    early, now = float(np.median(totals[:MIN_STEPS])), float(np.median(totals[-MIN_STEPS:]))
    floor = course.bound or 0.0
    if _regression(course) and (course.recent - floor) < 0.985 * (course.constant - floor):
        return None
    return Found("plateau", "warning", int(course.steps[0]), {**symptom.evidence, "norm": now, "early_norm": early})


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


# --- not a number, spikes, validation ---------------------------------------------------------------------------------


def bad_rows(course: Course, symptom: Symptom) -> Found | None:
    counts = course.record.series.nonfinite_inputs
    if len(counts) and (counts > 0).any():
        row = int(np.argmax(counts > 0))
        if course.steps[row] <= symptom.step:
            return Found("nonfinite_data", "critical", int(course.steps[row]), {"nonfinite_inputs": float(counts[row])})
    facts = course.record.facts
    for name, tensor in (("inputs", facts.inputs), ("target", facts.loss.target)):
        if tensor is not None and tensor.nonfinite_rows:
            return Found("nonfinite_data", "critical", symptom.step, {"tensor": name, "rows": list(tensor.nonfinite_rows)})  # fmt: skip
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
    early = float(np.median(totals[: max(1, min(MIN_STEPS, row // 2))]))
    huge = ~(totals <= 1e3 * max(early, 1e-30))
    largest, _, _ = layers.largest_update(course.record)
    if not high[-20:].any() and not huge[-20:].any() and not largest > 1.0:
        return None
    at = int(np.argmax(high | huge)) if (high | huge).any() else row
    before = Symptom("runaway", int(course.steps[at]), {k: v for k, v in symptom.evidence.items() if k != "row"})
    found = next((each for rule in RULES["runaway"] if (each := rule(course, before)) is not None), None)
    return found


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
    before = float(np.median(course.losses[row - reach - MIN_STEPS // 2 : row - reach + 1]))
    if not before - floor < 0.7 * (course.untrained - floor):
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


def wrong_sign(course: Course, symptom: Symptom) -> Found | None:
    return Found("wrong_loss", "critical", symptom.step, {**symptom.evidence, "below_its_bound": True})


def fitted_only(course: Course, symptom: Symptom) -> Found | None:
    """Validation was never better than a constant answer: what the training data say of the targets holds nowhere else."""
    losses = course.record.evaluations.metrics["loss"]
    floor = course.bound or 0.0
    if course.constant is None or not float(np.nanmin(losses)) - floor > 0.95 * (course.constant - floor):
        return None
    if not course.recent - floor < 0.7 * (course.constant - floor):
        return None
    return Found("label_error", "warning", symptom.step, {**symptom.evidence, "constant_loss": course.constant})


def overfitting(course: Course, symptom: Symptom) -> Found | None:
    return Found("overfitting", "warning", symptom.step, symptom.evidence)


RULES: dict[str, tuple[Rule, ...]] = {
    "not_a_number": (bad_rows, overflow, wrong_from_the_start, away_before, made_by_a_layer),
    "below_bound": (wrong_sign,),
    "spike": (rate_changed, jumped),
    "runaway": (rate_changed, jumped_away, unnormalised, scale_of_weights, exploding, rate_changed, huge_first_forward, grown, the_rate),
    "stuck": (
        rate_zero, nothing_flows, unmoved, underflow, rate_died, unnormalised, over_regularised, twin_rows, scale_of_weights,
        ran_away_first, dying, saturated, vanishing, rate_too_low, rate_too_high, along_a_line, labels, plateau,
    ),
    "lost": (rate_changed, rate_too_high, dying, rings_by_rate, oscillating),
    "rings": (unnormalised, rings_by_batch, rings_by_rate),
    "slow": (rate_died, over_regularised, rate_low_for_slow, slow_convergence),
    "walks_away": (fitted_only, overfitting),
}  # fmt: skip


def certain_early(course: Course, symptom: Symptom) -> Iterator[Found]:
    """Causes of a flat loss that are beyond doubt long before ``STUCK_PATIENCE`` has passed."""
    if course.past(STUCK_PATIENCE):
        return
    for rule in (rate_zero, nothing_flows):
        if found := rule(course, symptom):
            yield found
    dead = layers.dead_units(course.record, every_probe=True)
    if dead is not None and dead.share >= 0.97 and len(course.record.probes.steps) >= 4:
        yield Found("dying_relu", "critical", dead.step, {"dead_share": dead.share, "layers": dead.count}, dead.layer)
    lost = vanishing(course, symptom, VANISHING_EARLY)
    if lost and (scale := scale_of_weights(course, symptom)):
        yield scale
    if lost:
        yield lost
