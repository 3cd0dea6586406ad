"""What only a group of workers can show: a rank whose gradients, losses or parameters are off its peers', and the noise of gradients.

Every rank draws its samples from the same data, so that logarithms of its norm and loss differ from its peers' by noise alone; the rules measure
that noise on the run itself. Two ranks suffice: bad samples and bad numbers make a rank's loss and norm
larger, so of two the larger one is off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from workers.watch.course import Course
from workers.watch.findings import Found
from workers.watch.record import Checksums, Floats, Ranks, Record

HISTORY = 12  # rows before a rank can be called off its own past
AT_ONCE = math.log(30.0)  # a single step: a bit of the exponent
LASTING = math.log(3.0)  # norms, in the median; ranks with data of their own differ less
LASTING_OF_MANY = math.log(1.7)  # where several peers agree
LASTING_LOSS = math.log(1.6)
LASTING_ROWS = 15
ONSET_ROWS = 8  # whose mean says whether it had begun
WORSE_ROWS = 200  # on either side of the step in which parameters became unequal
WORSE_DEVIATIONS = 5.0
NOISE_ROWS = 100  # single readings of the noise scale are noise


def findings(course: Course) -> list[Found]:
    record = course.record
    rules = (not_finite_on_one(record.ranks), drifted(record), gradients_off(record.ranks), losses_off(record.ranks))
    found = [each for each in rules if each is not None]
    return found + [each for each in (batch_size(record),) if each is not None]


# --- parameters -------------------------------------------------------------------------------------------------------


def drifted(record: Record) -> Found | None:
    """Parameters that should be equal on all ranks are not. Of two ranks the checksums alone do not tell which; gradients may."""
    sums = record.checksums
    if sums.values.ndim != 2 or sums.values.shape[1] < 2 or not len(sums.values):
        return None
    unequal = (sums.values != sums.values[:, :1]).any(axis=1)
    if not unequal[-1]:
        return None  # mended since
    row = len(unequal) - int(np.argmin(unequal[::-1])) if not unequal.all() else 0
    rank = _odd_one(sums, row)
    equal_until, step = int(sums.steps[row - 1]) if row else 0, int(sums.steps[row])
    evidence: dict[str, Any] = {"ranks": sums.values.shape[1], "equal_until": equal_until}
    off = gradients_off(record.ranks)
    if off is not None and (rank is None or off.rank == rank) and off.step <= step:
        return Found("silent_corruption", "critical", off.step, {**evidence, **off.evidence}, rank=off.rank)
    if rank is None:
        worse = _worse_since(record.ranks, equal_until, step)
        if worse is not None:
            return Found("rank_divergence", "critical", worse.step, evidence | worse.evidence, rank=worse.rank)
    return Found("rank_divergence", "critical", step, evidence, rank=rank)


class _Worse(NamedTuple):
    rank: int
    step: int
    evidence: dict[str, float]


def _worse_since(ranks: Ranks, equal_until: int, step: int) -> _Worse | None:
    """The rank whose own loss has risen against its peers': parameters were equal after the step ``equal_until`` and unequal after ``step``, and
    such as nobody has trained are hardly ever better. Not before it is beyond doubt, which small damage never is; since the likeliest step between.
    """
    table = _logs(ranks.losses, ranks)
    if table is None:
        return None
    apart, steps = _apart(table)
    before, later = apart[steps <= equal_until][-WORSE_ROWS:], steps > equal_until
    apart, steps = apart[later], steps[later]
    if len(before) < HISTORY:
        return None
    surest = (WORSE_DEVIATIONS, 0, 0, 0.0)  # deviations, rank, row, rise
    for row in range(min(int((steps < step).sum()) + 1, len(steps) - HISTORY + 1)):
        since = apart[row : row + WORSE_ROWS]
        risen = since.mean(axis=0) - before.mean(axis=0)
        noise = 1e-9 + np.sqrt(since.var(axis=0, ddof=1) / len(since) + before.var(axis=0, ddof=1) / len(before))
        rank = int(np.argmax(risen))
        surest = max(surest, (float(risen[rank] / noise[rank]), rank, row, float(risen[rank])))
    _, rank, row, risen_by = surest
    return _Worse(rank, int(steps[row]), {"loss_over_peers": math.exp(risen_by)}) if risen_by > 0 else None


def _odd_one(sums: Checksums, row: int) -> int | None:
    values, inverse, counts = np.unique(sums.values[row], return_inverse=True, return_counts=True)
    if len(values) == 2 and counts.min() == 1 and counts.max() > 1:
        return int(np.flatnonzero(inverse == int(np.argmin(counts)))[0])
    if row and counts.max() == 1:  # of two: the one that did not go on from where both were cannot be told
        return None
    return int(np.flatnonzero(counts[inverse] == 1)[0]) if (counts == 1).sum() == 1 else None


# --- gradients before they are added up -------------------------------------------------------------------------------


def not_finite_on_one(ranks: Ranks) -> Found | None:
    """Before the all-reduce a NaN has an owner. Where norms were not measured the losses tell."""
    if ranks.norms.ndim != 2 or ranks.norms.shape[1] < 2 or not len(ranks.norms):
        return None
    samples = ranks.samples if ranks.samples.size else np.ones_like(ranks.norms)
    losses = ranks.losses if ranks.losses.size else np.zeros_like(ranks.norms)
    measured = np.isnan(ranks.norms).sum(axis=1) < ranks.norms.shape[1]
    values = np.where(measured[:, None], ranks.norms, losses)
    bad = ~np.isfinite(values) & (samples > 0)
    if not bad.any():
        return None
    row = int(np.argmax(bad.any(axis=1)))
    if bad[row].sum() > bad.shape[1] / 2:
        return None  # all of them
    kind = measured if measured[row] else ~measured
    if _exploding(values[:row][kind[:row]], values[row]):
        return None  # one of them had to be the first
    rank = int(np.argmax(bad[row]))
    own_loss = ranks.losses[row, rank] if ranks.losses.size else math.nan
    evidence: dict[str, Any] = {"norm": str(ranks.norms[row, rank])} if measured[row] else {}
    evidence["loss"] = float(own_loss) if math.isfinite(own_loss) else str(own_loss)
    # A finite loss with a gradient that is not: not the samples.
    return Found("silent_corruption", "critical", int(ranks.steps[row]), evidence, rank=rank)


def _exploding(before: Floats, row: Floats) -> bool:
    """Whether the ranks that are finite are, or the whole group lately was, far from what it used to be."""
    earlier = before[np.isfinite(before).all(axis=1)]
    if not len(earlier):
        return False
    usual = float(np.median(earlier))
    lately = np.concatenate([row[np.isfinite(row)], earlier[-1]])
    return float(lately.max()) > 30 * usual


def gradients_off(ranks: Ranks) -> Found | None:
    """One rank's norm: once by orders, or lastingly. Traps: a ragged last batch (few samples), noise of small batches, data of its own."""
    table = _logs(ranks.norms, ranks)
    if table is None:
        return None
    apart, steps = _apart(table)
    logs = table[0]
    highest = np.maximum.accumulate(logs.max(axis=1))
    # Far above its peers, and ten times what any rank had before: a part whose samples are all learnt has next to none, by right.
    leaps = apart[1:] > AT_ONCE
    leaps &= logs[1:] > highest[:-1, None] + math.log(10.0)
    if leaps.any():
        row = int(np.argmax(leaps.any(axis=1)))
        rank = int(np.argmax(np.where(leaps[row], apart[row + 1], -np.inf)))
        evidence = {"norm_over_peers": float(np.exp(apart[row + 1, rank]))}
        return Found("silent_corruption", "critical", int(steps[row + 1]), evidence, rank=rank)
    lasting = LASTING if apart.shape[1] == 2 else LASTING_OF_MANY
    return _lasting(table, apart, steps, lasting, "silent_corruption", "norm_over_peers")


def losses_off(ranks: Ranks) -> Found | None:
    """One rank's samples are lastingly harder than its peers', which are drawn from the same data."""
    table = _logs(ranks.losses, ranks)
    if table is None:
        return None
    apart, steps = _apart(table)
    return _lasting(table, apart, steps, LASTING_LOSS, "rank_divergence", "loss_over_peers")


def _logs(values: Floats, ranks: Ranks) -> tuple[Floats, np.ndarray] | None:  # fmt: skip
    """(Q, R) logarithms of rows where all ranks have about as many samples, with their steps."""
    if values.ndim != 2 or values.shape[1] < 2 or len(values) < HISTORY:
        return None
    kept = np.isfinite(values).all(axis=1) & (values > 0).all(axis=1)
    if ranks.samples.size:
        samples = np.where(np.isfinite(ranks.samples), ranks.samples, 1.0)
        kept &= samples.min(axis=1) > 0.7 * samples.max(axis=1)
    if kept.sum() < HISTORY:
        return None
    return np.log(values[kept]), ranks.steps[kept]


def _apart(table: tuple[Floats, np.ndarray]) -> tuple[Floats, np.ndarray]:
    """(Q, R) each rank's logarithm less the median of the others'."""
    logs, steps = table
    count = logs.shape[1]
    others = [np.median(np.delete(logs, rank, axis=1), axis=1) for rank in range(count)]
    return logs - np.stack(others, axis=1), steps


def _deviation(values: Floats) -> float:
    return 1.4826 * float(np.median(np.abs(values - np.median(values)))) + 0.05


def _lasting(
    table: tuple[Floats, np.ndarray], apart: Floats, steps: np.ndarray, limit: float, code: str, name: str
) -> Found | None:
    if len(apart) < LASTING_ROWS:
        return None
    window = max(LASTING_ROWS, len(apart) // 10)
    recent = apart[-window:]
    middle = np.median(recent, axis=0)
    noise = np.array([_deviation(recent[:, rank]) for rank in range(recent.shape[1])]) * 1.25 / math.sqrt(window)
    same_side = (np.sign(recent) == np.sign(middle)).mean(axis=0)
    off = (np.abs(middle) > limit) & (np.abs(middle) > 6 * noise) & (same_side >= 0.9)
    if not off.any():
        return None
    # Of two both are off each other: bad samples and bad numbers make a rank's loss and norm larger.
    rank = int(np.argmax(middle if apart.shape[1] == 2 else np.where(off, np.abs(middle), 0.0)))
    row = _onset(apart[:, rank] * np.sign(middle[rank]), abs(float(middle[rank])), limit)
    return Found(code, "critical", int(steps[row]), {name: float(np.exp(middle[rank]))}, rank=rank)


def _onset(values: Floats, height: float, limit: float) -> int:
    """The likeliest row of a step from 0 to ``height``; where it rose slowly, that from which it was above ``limit``."""
    gain = np.clip(values, -height, 2 * height) - height / 2
    row = int(np.argmax(np.cumsum(gain[::-1])[::-1]))
    while row and values[max(0, row - ONSET_ROWS) : row].mean() > limit:
        row -= 1
    return row


# --- noise ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NoiseScale:
    """``critical_batch``: B_simple = tr(S) / |G|^2, in samples. Batches far below it gain from more samples a step, far above waste them."""

    critical_batch: float
    batch: float
    readings: int


def noise_scale(record: Record, rows: int = 1000) -> NoiseScale | None:
    """McCandlish et al. 2018, appendix A: from squared norms at two batch sizes, the ranks' own (b samples) and the mean's (B). Numerator and
    denominator are averaged before they are divided. None with fewer than ``NOISE_ROWS`` readings, or where the estimate is no number."""
    ranks, series = record.ranks, record.series
    if ranks.norms.ndim != 2 or ranks.norms.shape[1] < 2 or ranks.samples.shape != ranks.norms.shape:
        return None
    measured = np.flatnonzero(np.isfinite(ranks.norms).all(axis=1))[-rows:]
    _, here, there = np.intersect1d(ranks.steps[measured], series.steps, assume_unique=True, return_indices=True)
    if len(here) < NOISE_ROWS:
        return None
    norms, samples = ranks.norms[measured][here], ranks.samples[measured][here]
    whole = np.square(series.norms[there]).sum(axis=1)
    small, large = samples.mean(axis=1), samples.sum(axis=1)
    local = np.square(norms).mean(axis=1)
    kept = np.isfinite(local) & np.isfinite(whole) & (samples.min(axis=1) > 0.9 * samples.max(axis=1)) & (small > 0)
    if kept.sum() < NOISE_ROWS:
        return None
    small, large, local, whole = small[kept], large[kept], local[kept], whole[kept]
    signal = float(((large * whole - small * local) / (large - small)).mean())
    noise = float(((local - whole) / (1 / small - 1 / large)).mean())
    if signal <= 0 or noise <= 0:
        return None
    return NoiseScale(noise / signal, float(np.median(large)), int(kept.sum()))


def batch_size(record: Record) -> Found | None:
    """Advice, no alarm: small jobs are far from it and well."""
    scale = noise_scale(record)
    if scale is None or scale.critical_batch / 30 < scale.batch < scale.critical_batch * 30:
        return None
    evidence = {"batch": scale.batch, "critical_batch": scale.critical_batch, "readings": scale.readings}
    return Found("batch_size", "note", int(record.ranks.steps[0]), evidence, explains=False)
