"""What is known to be wrong before the job fails: from facts, and from the first steps where these only confirm a fact.

Each rule says what it takes for right although it looks wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from workers.watch import layers
from workers.watch.course import MIN_STEPS, SQUARED, Course
from workers.watch.findings import Found, Severity
from workers.watch.record import LossFacts, TensorFacts

IMBALANCE = 20  # largest class over smallest
SCALE = 10.0  # of He's, in the median of the hidden layers
EMBEDDING_SCALE = 30.0  # torch draws them with deviation 1
LABELS = 100  # fewer say nothing about classes
GONE = 1e-3  # of the weights' first norm
LEARNT = 0.3  # of what there is to learn is left
THIN = 4  # values that a mean is taken of
COMPARED = 4  # samples of a batch that are told from each other: fewer than that teach hardly anything
PRODUCTS = ("matmul", "mm", "bmm", "einsum", "mul", "div", "cosine_similarity")
UNCLEARED = 0.3  # of the first step's norm
WAITING = 0.25  # of the step
WAITING_SECONDS = 0.002  # less is the noise of a clock
OF_LOGARITHMS = ("nll_loss", "kl_div")  # what they are given is never above 0
LIMITS = {
    "sigmoid": (0.0, 1.0), "hardsigmoid": (0.0, 1.0), "softmax": (0.0, 1.0), "tanh": (-1.0, 1.0), "hardtanh": (-1.0, 1.0), "softsign": (-1.0, 1.0),
    "relu": (0.0, math.inf), "relu6": (0.0, 6.0), "softplus": (0.0, math.inf), "exp": (0.0, math.inf), "square": (0.0, math.inf),
    "gelu": (-0.17, math.inf), "silu": (-0.28, math.inf), "logsigmoid": (-math.inf, 0.0), "log_softmax": (-math.inf, 0.0),
    "normalize": (-1.0, 1.0), "cosine_similarity": (-1.0, 1.0), "sin": (-1.0, 1.0), "cos": (-1.0, 1.0),
}  # fmt: skip
LOSES = (
    "softmax",
    "sigmoid",
    "hardsigmoid",
    "relu",
    "relu6",
    "tanh",
    "hardtanh",
    "softsign",
    "softplus",
)  # what logits have to say


def findings(course: Course) -> list[Found]:
    return [found for rule in RULES if (found := rule(course)) is not None]


# --- loss and output --------------------------------------------------------------------------------------------------


def output_activation(course: Course) -> Found | None:
    """A function on the output that the loss already contains, or that cannot reach the targets. Right: log_softmax before cross_entropy (done
    twice it changes nothing), softmax inside the model."""
    loss = course.record.facts.loss
    operation = _operation(loss)
    if loss.function is None:
        return None
    if _of_one(loss) or (loss.function in SQUARED and _levelled(course)):
        evidence = {"loss": loss.function, "output": loss.output_operation, "levelled": True, **_range(loss.target)}
        return Found("output_activation", "warning", 0, evidence, _last_layer(course))
    if operation is None:
        return None
    wrong = (
        (loss.function == "cross_entropy" and operation in LOSES)
        or (loss.function == "binary_cross_entropy_with_logits" and operation in ("softmax", "sigmoid", "relu", "log_softmax", "logsigmoid"))
        or (loss.function in SQUARED and _cannot_reach(operation, loss.target))
    )  # fmt: skip
    if not wrong:
        return None
    evidence = {"loss": loss.function, "output": operation, **_range(loss.target)}
    return Found("output_activation", "warning", 0, evidence, _last_layer(course))


def _of_one(loss: LossFacts) -> bool:
    """A softmax over a single answer is 1 whatever that is, and its logarithm 0."""
    shape = loss.output.shape if loss.output is not None else ()
    return (
        _operation(loss) in ("softmax", "log_softmax")
        and len(shape) > 1
        and shape[1] == 1
        and max(shape[2:], default=1) == 1
    )


def _levelled(course: Course) -> bool:
    """A normalisation without a gain and a shift of its own brings answers to mean 0 and deviation 1, and to the targets that is further than to
    answer their mean always."""
    loss, known = course.record.facts.loss, course.record.facts.layers
    name = (loss.output_operation or "").rpartition(".")[2].lower()
    if not name.endswith("norm") or not known or "Norm" in [fact for fact in known if fact.requires_grad][-1].kind:
        return False
    target = loss.target
    if target is None or target.mean is None or not target.std:
        return False
    return target.mean**2 + (target.std - 1) ** 2 > 0.7 * target.std**2


def _operation(loss: LossFacts) -> str | None:
    name = (loss.output_operation or "").rpartition(".")[2].lower().replace("_", "")
    return next((known for known in LIMITS if name == known.replace("_", "")), None)


def _cannot_reach(operation: str, target: TensorFacts | None) -> bool:
    """Trap: targets that lie a little outside by noise."""
    if operation not in LIMITS or target is None or target.least is None or target.largest is None:
        return False
    low, high = LIMITS[operation]
    spread = max(target.std or 0.0, 1e-12)
    return target.least < low - 0.25 * spread or target.largest > high + 0.25 * spread


def _range(target: TensorFacts | None) -> dict[str, float]:
    if target is None or target.least is None or target.largest is None:
        return {}
    return {"least_target": target.least, "largest_target": target.largest}


def wrong_loss(course: Course) -> Found | None:
    loss = course.record.facts.loss
    why = _mismatch(loss)
    if why is None:
        return None
    return Found(
        "wrong_loss", "warning", 0, {"loss": loss.function, "why": why} | _range(loss.target), _last_layer(course)
    )


def _mismatch(loss: LossFacts) -> str | None:
    output, target = loss.output, loss.target
    if loss.function in OF_LOGARITHMS and output is not None and output.largest is not None and output.largest > 1e-3:
        given = "probabilities" if _operation(loss) == "softmax" else "something else"
        return f"{loss.function} takes logarithms of probabilities, and was given {given}"
    if loss.function == "cross_entropy" and loss.classes == 1:
        return "cross_entropy over a single class is always zero"
    if loss.function in SQUARED and output is not None and target is not None and _spread(output.shape, target.shape):
        return f"outputs {output.shape} and targets {target.shape} are spread over each other"
    if loss.function in ("binary_cross_entropy", "binary_cross_entropy_with_logits") and target is not None:
        least, largest = target.least, target.largest
        if least is not None and largest is not None and (least < -1e-6 or largest > 1 + 1e-6):
            return "targets of binary cross-entropy lie between 0 and 1"
    if loss.outer:
        return f"a difference of {loss.outer[0]} and {loss.outer[1]} values compares each with every other"
    if loss.function == "poisson_nll_loss" and target is not None and target.least is not None and target.least < 0:
        return "targets of poisson_nll_loss are counts, and these are negative"
    return None


def _spread(outputs: tuple[int, ...], targets: tuple[int, ...]) -> bool:
    """(B, 1) and (B,) become (B, B): each output is compared with every target. Right: one target for all."""
    return bool(outputs and targets) and outputs != targets and math.prod(targets) > 1


def _last_layer(course: Course) -> str | None:
    known = course.record.series.layers
    return known[-1] if known else None


# --- parameters -------------------------------------------------------------------------------------------------------


def bad_init(course: Course) -> Found | None:
    """Rows that are equal get equal gradients and stay equal. Right: zeros in an output's layer, in adapters, in residual branches (their first
    gradient parts them), checkpoints."""
    if course.record.facts.begins_trained:
        return None
    for layer in layers.hidden(course.record):
        constant = layer.std is not None and layer.std <= 1e-7 * abs(layer.mean or 0.0) and (layer.mean or 0.0) != 0
        if (layer.twin_rows or 0.0) > 0.5 and (constant or (layer.std or 0.0) > 0):
            return Found(
                "bad_init",
                "warning",
                0,
                {"twin_rows": layer.twin_rows, "mean": layer.mean, "std": layer.std},
                layer.name,
            )
        if layer.std == 0 and not layer.mean and _never_a_gradient(course, layer.name):
            return Found("bad_init", "warning", 0, {"twin_rows": 1.0, "mean": 0.0, "std": 0.0}, layer.name)
    return None


def far_from_any_scale(course: Course) -> Found | None:
    """Weights, or embeddings, beyond what any convention draws by orders. Right: in front of normalisations, checkpoints, what is frozen on
    purpose."""
    facts = course.record.facts
    if facts.begins_trained or layers.normalised(course.record):
        return None
    hidden = [fact for fact in layers.hidden(course.record) if fact.fan_in and fact.std]
    ratios = [(fact.std or 0.0) / math.sqrt(2 / (fact.fan_in or 1)) for fact in hidden]
    if len(hidden) >= 2 and sorted(ratios)[len(ratios) // 2] > SCALE:
        worst = max(range(len(hidden)), key=lambda index: ratios[index])
        evidence = {"std": hidden[worst].std, "std_over_he": ratios[worst]}
        return Found("bad_init", "warning", 0, evidence, hidden[worst].name)
    for fact in facts.layers:
        if fact.kind == "Embedding" and fact.requires_grad and (fact.std or 0.0) > EMBEDDING_SCALE:
            return Found("bad_init", "warning", 0, {"std": fact.std}, fact.name)
    return None


def _never_a_gradient(course: Course, layer: str) -> bool:
    names, norms = course.record.series.layers, course.norms
    if layer not in names or len(norms) < 5 or course.steps[0] > 3:
        return False
    # Nothing must have come to the layer that follows either: otherwise it is cut off, not dead by its zeros.
    return bool((norms[:, names.index(layer)] == 0).all())


def unregistered(course: Course) -> Found | None:
    """Trainable and in no optimizer. Right: what is frozen on purpose (requires_grad off)."""
    left_out = [fact for fact in course.record.facts.layers if fact.requires_grad and not fact.in_optimizer]
    if strays := course.record.facts.strays:
        return Found("frozen_params", "warning", 0, {"strays": strays, "layers": len(left_out)})
    if not left_out:
        return None
    return Found("frozen_params", "warning", 0, {"layers": len(left_out), "in_optimizer": False}, left_out[0].name)


def cut_off(course: Course) -> Found | None:
    """The first layers never had a gradient while later ones have: the graph is cut between them. Right: heads that are not used (they come
    last), zero gates (their layers have gradients after a step), layers that are dead or zero (other codes)."""
    norms = course.norms
    if len(norms) < MIN_STEPS or course.steps[0] > 3 or norms.shape[1] < 2:
        return None
    idle = (norms == 0).all(axis=0)
    prefix = int(np.argmin(idle)) if not idle.all() else 0
    if not prefix or idle[prefix:].any():
        return None
    if layers.dead_units(course.record) is not None and _silent(course):
        return None
    if layers.saturated(course.record, 0.9) is not None:
        return None
    known = {fact.name: fact for fact in course.record.facts.layers}
    cut = course.record.series.layers[:prefix]
    if (scale := layers.scale_of_inputs(course.record)) is not None and scale > layers.INPUT_SCALE:
        # Not the graph is cut: inputs that large leave what reads them without a slope.
        return Found("unnormalised_input", "warning", 0, {"largest_feature_scale": scale, "layers": prefix}, cut[0])
    if any(fact.std == 0 for name, fact in known.items() if fact.requires_grad and "Norm" not in fact.kind):
        return None
    if known and all("Embedding" in known[name].kind for name in cut if name in known):
        return None  # of rows that no batch has used
    if not len(course.record.probes.steps) and not known:
        return None
    if (norms[:, prefix:].min() if norms[:, prefix:].size else 0.0) < 1e-30:
        return None  # it may have underflowed on its way
    return Found("frozen_params", "warning", int(course.steps[0]), {"layers": prefix, "gradient": 0.0}, cut[-1])


def nothing_flows(course: Course) -> Found | None:
    """No gradient anywhere from the first step on: the loss hangs on no trainable parameter, or zeros keep it from all of them."""
    norms = course.norms
    if len(norms) < 5 or course.steps[0] > 3 or not norms.size or not (norms == 0).all():
        return None
    facts = course.record.facts
    if facts.precision == "fp16" or any(fact.dtype == "float16" for fact in facts.layers):
        return None  # they may have underflowed
    trainable = [fact for fact in facts.layers if fact.requires_grad]
    zeros = [fact for fact in trainable if fact.std == 0 and not fact.mean and "Norm" not in fact.kind]
    matrices = [fact for fact in trainable if "Norm" not in fact.kind]
    if len(zeros) >= 2 and (len(zeros) == len(matrices) or not layers.normalised(course.record)):
        evidence = {"twin_rows": 1.0, "mean": 0.0, "std": 0.0, "layers": len(zeros)}
        return Found("bad_init", "critical", 0, evidence, zeros[0].name)
    evidence = {"layers_without_gradient": norms.shape[1]}
    return Found("frozen_params", "critical", int(course.steps[0]), evidence, course.record.series.layers[0])


def _silent(course: Course) -> bool:
    return bool(course.record.probes.silent.size)


def grad_accumulation(course: Course) -> Found | None:
    """Right: accumulation over microbatches (no optimizer step lies between), leftovers on frozen weights (a small share)."""
    left = course.record.uncleared
    if left is None or not left > UNCLEARED:
        return None
    return Found("grad_accumulation", "warning", 2, {"left_over": left})


# --- data -------------------------------------------------------------------------------------------------------------


def nonfinite_data(course: Course) -> Found | None:
    facts = course.record.facts
    for name, tensor in (("inputs", facts.inputs), ("target", facts.loss.target)):
        if tensor is not None and tensor.nonfinite_rows:
            return Found(
                "nonfinite_data",
                "critical",
                0,
                {"tensor": name, "rows": list(tensor.nonfinite_rows), "looked_at": tensor.rows},
            )
    counts = course.record.series.nonfinite_inputs
    if len(counts) and (counts > 0).any():
        return Found(
            "nonfinite_data",
            "critical",
            int(course.steps[int(np.argmax(counts > 0))]),
            {"nonfinite_inputs": float(np.nanmax(counts))},
        )
    return None


def class_imbalance(course: Course) -> Found | None:
    """Right: weights, a sampler (its batches are counted), words of a text and pixels of a picture (classes of parts, not of samples)."""
    loss = course.record.facts.loss
    if loss.class_weights and len(loss.class_weights) == len(loss.class_counts):
        return _weighted_the_wrong_way(loss)
    if loss.weighted or loss.function is None:
        return None
    shape = loss.target.shape if loss.target is not None else ()
    if len(shape) > 2 or (len(shape) == 2 and shape[1] > 1):
        return None
    counts = [count for count in loss.class_counts if count >= 0]
    if not counts and loss.function.startswith("binary") and loss.target is not None and loss.target.mean is not None:
        positive = loss.target.mean * loss.target.rows
        counts = [round(positive), round(loss.target.rows - positive)]
    if len(counts) < 2 or sum(counts) < max(LABELS, 10 * len(counts)) or len(counts) > 1000:
        return None
    rows = [fact.shape[0] for fact in course.record.facts.layers if fact.kind == "Embedding" and fact.shape]
    if any(abs(count - len(counts)) <= 2 + 0.05 * len(counts) for count in rows):  # with a few that are never asked for
        return None  # what is told is what is read: words, letters
    counts = [count for count in counts if count] if loss.classes else counts  # a class that is not there is not rare
    if len(counts) < 2 or not (ratio := max(counts) / max(min(counts), 1)) > IMBALANCE:
        return None
    return Found(
        "class_imbalance",
        "warning",
        0,
        {"ratio": ratio, "smallest": min(counts), "largest": max(counts)},
        explains=False,
    )


def _weighted_the_wrong_way(loss: LossFacts) -> Found | None:
    """Weights that make the frequent classes count for still more. Right: weights that make up for a part of the imbalance, or for more than that."""
    counts = np.array(loss.class_counts, dtype=np.float64)
    seen = counts > 0
    if counts.sum() < LABELS or seen.sum() < 2:
        return None
    parts = (counts * np.array(loss.class_weights))[seen]
    ratio, unweighted = float(parts.max() / max(parts.min(), 1e-12)), float(counts[seen].max() / counts[seen].min())
    if not ratio > IMBALANCE or not ratio > 2 * unweighted or counts[seen].argmax() != parts.argmax():
        return None
    evidence = {
        "weighted_ratio": ratio,
        "ratio": unweighted,
        "smallest": int(counts[seen].min()),
        "largest": int(counts.max()),
    }
    return Found("class_imbalance", "warning", 0, evidence, explains=False)


def thin_statistics(course: Course) -> Found | None:
    """A batch norm that takes mean and deviation of two or three values: of two it leaves nothing but which is larger. Right: one that is held
    still."""
    values = course.record.facts.batch_statistics
    if values is None or values >= THIN:
        return None
    return Found("batch_size", "warning", 0, {"values": values, "batch": course.record.facts.batch_size})


def weights_gone(course: Course) -> Found | None:
    """Whatever takes them away, no model answers anything with weights of nearly zero. Right: pruned or gated away in part, a start from zero."""
    shrunk = layers.ratio_to_start(layers.of_weights(course.record))
    if shrunk is None or len(shrunk) < 2 or not (shrunk < GONE).mean() >= 0.5:
        return None
    evidence = {"weights_gone": float((shrunk < GONE).mean()), "weights_left": float(np.median(shrunk))}
    return Found(
        "over_regularised",
        "warning",
        int(course.steps[0]),
        {**evidence, "loss": course.recent, "first_loss": course.start},
    )


def few_to_compare(course: Course) -> Found | None:
    """Each sample of a batch is told from the others of it, and there are hardly any. Right: classes that the batch happens to have once each."""
    loss = course.record.facts.loss
    shape = loss.output.shape if loss.output is not None else ()
    if loss.function != "cross_entropy" or len(shape) != 2 or shape[0] != shape[1] or not 2 <= shape[0] <= COMPARED:
        return None
    if (loss.output_operation or "") not in PRODUCTS or set(loss.class_counts) != {1}:
        return None
    return Found("batch_size", "warning", 0, {"batch": float(shape[0]), "others": shape[0] - 1})


def data_starvation(course: Course) -> Found | None:
    """Right: the first steps, a cold cache."""
    series = course.record.series
    if len(course.steps) < 2 * MIN_STEPS or not len(series.wait_seconds) or not np.isfinite(series.wait_seconds).any():
        return None
    window = max(MIN_STEPS, len(series.seconds) // 10)
    seconds, waits = series.seconds[-window:], series.wait_seconds[-window:]
    share = float(np.median(waits / np.maximum(seconds, 1e-9)))
    if not share > WAITING or not float(np.median(waits)) > WAITING_SECONDS:
        return None
    waiting = series.wait_seconds > WAITING * series.seconds
    waiting[:10] = False
    return Found(
        "data_starvation",
        "warning",
        int(course.steps[int(np.argmax(waiting))]),
        {"share": share, "wait_seconds": float(np.median(waits))},
        explains=False,
    )


# --- rate -------------------------------------------------------------------------------------------------------------


def lr_zero(course: Course) -> Found | None:
    """Right: zero at the first step of a warm-up, and at the end."""
    facts = course.record.facts
    schedule = {float(share): rate for share, rate in facts.schedule.items()}
    if max(schedule.values(), default=facts.learning_rate) == 0:
        return Found("lr_zero", "warning", 0, {"learning_rate": 0.0, "schedule": dict(facts.schedule)})
    early = schedule.get(0.1)
    if early is not None and facts.total_steps and facts.warmup_steps < 0.1 * facts.total_steps:
        largest = facts.learning_rate or max(schedule.values())
        later = schedule.get(1.0, 0.0)
        gone = later < 1e-6 * largest and early < 0.05 * largest  # a factor for each epoch, applied at each step
        if (early <= 1e-3 * largest or gone) and later <= early and schedule.get(0.01, early) >= early:
            return Found("lr_zero", "warning", 0, {"schedule": dict(facts.schedule)})
    rates = course.record.series.learning_rates
    recent = rates[-max(10, round(0.02 * course.total)) :]
    if (
        len(rates) >= max(10, round(0.02 * course.total))
        and (recent == 0).all()
        and course.now < 0.8 * course.total
        and course.past(0.0, 10)
    ):
        row = len(rates) - int(np.argmax(rates[::-1] != 0)) if (rates != 0).any() else 0
        floor = course.bound if course.bound is not None else course.start - course.scale
        learnt = course.recent - floor < LEARNT * course.scale  # the rest of the run is a waste, and nothing fails
        severity: Severity = "note" if learnt else "warning"
        step = int(course.steps[min(row, len(rates) - 1)])
        return Found("lr_zero", severity, step, {"learning_rate": 0.0}, explains=not learnt)
    return None


def endless_warmup(course: Course) -> Found | None:
    """A rate that climbs through all of the run, and ends far below what it should come to: counted in samples in place of steps, say. In loops of
    one's own: our schedules end their warm-up with the run."""
    facts = course.record.facts
    rates = [rate for _, rate in sorted((float(share), rate) for share, rate in facts.schedule.items())]
    if not facts.learning_rate or len(rates) < 3 or any(later <= before for before, later in pairwise(rates)):
        return None
    if not 0 < rates[-1] < 0.1 * facts.learning_rate:
        return None
    return Found("lr_too_low", "warning", 0, {"schedule": dict(facts.schedule), "learning_rate": facts.learning_rate})


RULES: tuple[Callable[[Course], Found | None], ...] = (
    nonfinite_data, wrong_loss, output_activation, grad_accumulation, bad_init, far_from_any_scale, unregistered, nothing_flows, cut_off, lr_zero,
    endless_warmup, weights_gone, few_to_compare, thin_statistics, class_imbalance, data_starvation,
)  # fmt: skip
