"""What the layers tell: reading norms, probes and facts for the rules of causes. Everything is a ratio or a share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from workers.watch.record import Floats, LayerFacts, Record

RECENT = 3  # probes
NORMALISATIONS = ("norm",)
NO_MATRIX = ("Embedding", "Norm", "Parameter")  # kinds without rows that are units
RELUS = ("relu", "gelu", "silu")
SHORT_STEPS = 3e-4  # of the weights, in the median layer: a thousandth is usual
ZERO_IN_FLOAT32 = 1e-37
INPUT_SCALE = 10.0  # of a feature's mean or deviation; 1 is normalised
FAINT = 0.02  # the largest input: what is between 0 and 1 was divided by 255 once more


@dataclass(frozen=True)
class Flow:
    """Gradient norms of the first quarter of the layers and of the last, medians over the last 20 steps."""

    first: float
    last: float
    drop: str  # the layer at whose passage backwards most is lost

    @property
    def ratio(self) -> float:
        return self.first / self.last if self.last > 0 else math.inf


@dataclass(frozen=True)
class Share:
    """Of the worst layer: the share of its units, the step of the probe that showed it first, how many layers are as bad."""

    layer: str
    share: float
    step: int
    count: int


def flow(record: Record, fewest: int = 4) -> Flow | None:
    """None with fewer layers that have a weight, or none with a gradient."""
    norms = record.series.norms[-20:]
    kinds = {fact.name: fact.kind for fact in record.facts.layers}
    weighted = [j for j, name in enumerate(record.series.layers) if "Norm" not in kinds.get(name, "")]
    if not len(norms):
        return None
    middle = np.median(norms, axis=0)
    # One without a gradient behind one that has some is not on the way (an expert that nobody asks).
    weighted = [j for place, j in enumerate(weighted) if middle[j] > 0 or not (middle[weighted[:place]] > 0).any()]
    if len(weighted) < fewest:
        return None
    values = middle[weighted]
    if not np.isfinite(values).all():
        return None
    quarter = max(1, len(values) // 4)
    first, last = float(np.median(values[:quarter])), float(np.median(values[-quarter:]))
    drops = np.log(np.maximum(values[1:], 1e-300)) - np.log(np.maximum(values[:-1], 1e-300))
    # Within stretches that have underflowed to zero all drops are equal: the one next to the living counts.
    worst = len(drops) - 1 - int(np.argmax(drops[::-1]))
    return Flow(first, last, record.series.layers[weighted[worst]])


def cut(record: Record) -> str | None:
    """The last of the layers that have had no gradient at all while none of the others' was small, and the last layer's was among these; None: it is
    not so. Traps: weights of zero and what lies behind them, units that are dead, embeddings of which no row was used, half precision."""
    norms, facts = record.series.norms, {fact.name: fact for fact in record.facts.layers}
    if len(norms) < 10 or not np.isfinite(norms).all() or record.facts.precision == "fp16":
        return None
    if any(fact.std == 0 and "Norm" not in fact.kind and fact.requires_grad for fact in facts.values()):
        return None
    if any(fact.kind == "RNN" for fact in facts.values()):
        return None  # through time it vanishes as completely
    idle = (norms == 0).all(axis=0)
    names = record.series.layers
    matrices = [j for j in np.flatnonzero(idle) if names[j] in facts and len(facts[names[j]].shape) > 1]
    if not matrices or idle[-1] or not norms[:, ~idle].min() > 1e-4 * norms[:, ~idle].max(axis=1).min():
        return None
    dead = dead_units(record)
    if (dead is not None and dead.share > 0.9) or saturated(record, 0.9) is not None:
        return None
    return names[int(matrices[-1])]


def amplification(norms: Floats) -> float:
    """(S, L) -> the largest norm of the first half of the layers over the median of the last quarter, in the median step."""
    values = np.median(norms, axis=0)
    values = values[values > 0]  # a layer whose turn it is not says nothing
    if len(values) < 2:
        return math.nan
    last = float(np.median(values[-max(1, len(values) // 4) :]))
    return float(values[: len(values) // 2].max()) / last if last > 0 else math.inf


# --- probes -----------------------------------------------------------------------------------------------------------


def recent(table: Floats) -> Floats | None:
    """(P, L) -> (L,) medians of the last probes; None without any."""
    if len(table) < RECENT or not table.size:
        return None
    with np.errstate(invalid="ignore"):
        found: Floats = np.median(table[-RECENT:], axis=0)
    return found


def recent_updates(record: Record) -> Floats | None:
    return recent(record.probes.update_ratios)


def largest_update(record: Record, through: int | None = None) -> tuple[float, str | None, int]:
    """Over weights of two dimensions without embeddings, the third largest of all probes (a single step says little): its ratio, layer and step.
    NaN: unknown. ``through``: only probes up to that step.

    Layers that began with zeros, and biases or gains, move by their own size in a step.
    """
    probes = record.probes if through is None else record.probes.until(through)
    table = probes.update_ratios
    if not table.size or not len(table):
        return math.nan, None, 0
    matrices = {
        fact.name
        for fact in record.facts.layers
        if len(fact.shape) > 1 and (fact.std is None or fact.std > 0) and "Embedding" not in fact.kind
    }
    columns = [j for j, name in enumerate(probes.layers) if not record.facts.layers or name in matrices]
    values = table[:, columns] if columns else table[:, :0]
    values = values * _size(record, [probes.layers[j] for j in columns])
    with np.errstate(invalid="ignore"):
        of_probe = np.where(np.isfinite(values), values, -1.0)
    if not of_probe.size:
        return math.nan, None, 0
    worst = of_probe.max(axis=1)
    row = int(np.argsort(worst)[-min(3, len(worst))])
    if worst[row] < 0:
        return math.nan, None, 0
    layer = probes.layers[columns[int(np.argmax(of_probe[row]))]]
    return float(worst[row]), layer, int(probes.steps[row])


def _size(record: Record, names: list[str]) -> Floats:
    """(columns,) how large weights were at first for their fan-in, at most 1, which torch's own are: much smaller ones may well move by more of
    themselves."""
    facts = {fact.name: fact for fact in record.facts.layers}
    sizes = []
    for fact in map(facts.get, names):
        if fact is None or fact.std is None or fact.fan_in is None:
            sizes.append(1.0)
        else:
            sizes.append(min(1.0, fact.std * math.sqrt(3 * fact.fan_in)))
    return np.array(sizes)


def of_weights(record: Record) -> Floats:
    return record.probes.weight_norms


def ratio_to_start(norms: Floats) -> Floats | None:
    """(P, L) -> (L,) the last norms over the first, of layers that did not begin with zero."""
    if len(norms) < RECENT or not norms.size:
        return None
    kept = np.isfinite(norms).all(axis=0) & (norms[0] > 0)
    return norms[-1, kept] / norms[0, kept] if kept.any() else None


def grown_weights(record: Record) -> float | None:
    """The last norms of weights over the first, in the median layer; None: unknown."""
    ratios = ratio_to_start(of_weights(record))
    return None if ratios is None else float(np.median(ratios))


def dead_units(record: Record, *, every_probe: bool = False) -> Share | None:
    """Units of a rectified layer that gave nothing for a whole batch in each of the last five probes; by outputs where activations are
    watched, else by gradient rows that are exactly zero. Traps: embeddings, the output's layer, sigmoids whose gradient underflowed."""
    probes = record.probes
    if probes.silent.size and np.isfinite(probes.silent).any():
        return _worst(probes.silent, probes.activations, probes.steps, 0.85, every_probe)
    if not probes.zero_rows.size:
        return None
    facts = {fact.name: fact for fact in record.facts.layers}
    last = [name for name in probes.layers if not facts or len(facts[name].shape) > 1][-1:] if _known(record) else []
    columns = [
        j
        for j, name in enumerate(probes.layers)
        if name not in last and _may_be_rectified(facts.get(name)) and np.nanmedian(probes.largest[:, j]) >= 0
    ] if probes.largest.size else []  # fmt: skip
    if not columns:
        return None
    return _worst(
        probes.zero_rows[:, columns], tuple(probes.layers[j] for j in columns), probes.steps, 0.85, every_probe
    )


def _known(record: Record) -> bool:
    names = {fact.name for fact in record.facts.layers}
    return all(name in names for name in record.probes.layers)


def _may_be_rectified(fact: LayerFacts | None) -> bool:
    if fact is None or len(fact.shape) < 2 or any(kind in fact.kind for kind in NO_MATRIX):
        return False
    return fact.activation is None or any(name in fact.activation.lower() for name in RELUS)


def saturated(record: Record, limit: float) -> Share | None:
    """Trap: gates, and what saturates as it should, do so late; and the job learns."""
    table = record.probes.saturated
    return _worst(table, record.probes.activations, record.probes.steps, limit, False) if table.size else None


def _worst(
    table: Floats, names: tuple[str, ...], steps: np.ndarray, limit: float, every_probe: bool
) -> Share | None:  # fmt: skip
    window = table if every_probe else table[-5:]
    if len(window) < RECENT:
        return None
    with np.errstate(invalid="ignore"):
        least = window.min(axis=0) if every_probe else np.median(window, axis=0)
    least = np.where(np.isfinite(least), least, -1.0)
    bad = np.flatnonzero(least > limit)
    if not len(bad):
        return None
    column = int(bad[0])  # the first one: those behind it get nothing from it
    above = table[:, column] > limit
    since = len(above) - int(np.argmin(above[::-1])) if not above.all() else 0
    return Share(names[column], float(least[column]), int(steps[min(since, len(steps) - 1)]), len(bad))


# --- facts ------------------------------------------------------------------------------------------------------------


def hidden(record: Record) -> list[LayerFacts]:
    """Trainable weights of two dimensions and more, without embeddings, low-rank adapters and the output's."""
    matrices = [
        fact
        for fact in record.facts.layers
        if len(fact.shape) > 1 and not any(kind in fact.kind for kind in NO_MATRIX) and "lora" not in fact.name.lower()
    ]
    return [fact for fact in matrices[:-1] if fact.requires_grad]


def scale_of_inputs(record: Record) -> float | None:
    """The largest mean or deviation of a feature where that is far from 1, or the largest value where all of them are nearly zero; else None. Right:
    models that begin with a normalisation, numbers that are ids."""
    facts, inputs = record.facts, record.facts.inputs
    if inputs is None or facts.normalized_input or "int" in inputs.dtype:
        return None
    scale = max(inputs.largest_feature_mean or 0.0, inputs.largest_feature_std or 0.0)
    if inputs.largest_feature_mean is None:
        scale = max(abs(inputs.mean or 0.0), inputs.std or 0.0)
    elif (inputs.largest_feature_std or 0.0) < INPUT_SCALE and any("Embedding" in fact.kind for fact in facts.layers):
        return None  # a column of ids among numbers
    if scale > INPUT_SCALE:
        return scale
    if inputs.least is None or inputs.largest is None:
        return None
    largest = max(abs(inputs.least), abs(inputs.largest))
    return largest if 0 < largest < FAINT else None


def normalised(record: Record) -> bool:
    return any("norm" in fact.kind.lower() for fact in record.facts.layers)


def largest_scale(record: Record) -> str | None:
    """The hidden weight that is largest for its fan-in."""
    scales = [(fact.std * math.sqrt(fact.fan_in), fact.name) for fact in hidden(record) if fact.std and fact.fan_in]
    return max(scales)[1] if scales else None
