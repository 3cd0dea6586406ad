"""How a run's loss goes: levels by medians of blocks, with what it is measured against. Everything that rules of symptoms share.

All thresholds are shares of ``scale``, what there is to learn at most: from the loss before the first update (or of the best constant answer) to
its bound. So neither the unit of the loss nor its size matters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from workers.watch.record import Floats, Record, Steps

MIN_STEPS = 20  # fewer say nothing about a course
LATE_PATIENCE = 0.45  # where only exclusion speaks
BLOCKS = 200  # of the run, at most
WARMUP = 0.25  # of the run, at most, of what looks like one
SQUARED = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
UNKNOWN_LENGTH = 300  # steps of patience where nobody knows how long a script will run
CHECKS = 6  # of validation: fewer say nothing about a course
CREEPS = 0.002  # of what there is to learn
CLEARLY = 0.1  # of all answers
NO_BETTER = 0.02  # in a metric that a constant answer has too
BOUNDED = (
    "cross_entropy",
    "nll_loss",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "mse_loss",
    "l1_loss",
)


@dataclass(frozen=True)
class Course:
    record: Record

    # --- time ---------------------------------------------------------------------------------------------------------

    @cached_property
    def steps(self) -> Steps:
        return self.record.series.steps

    @cached_property
    def losses(self) -> Floats:
        return self.record.series.losses

    @cached_property
    def now(self) -> int:
        return int(self.steps[-1]) if len(self.steps) else 0

    @cached_property
    def total(self) -> int:
        """Steps of the run; where nobody knows, at least ``UNKNOWN_LENGTH`` times three."""
        return self.record.facts.total_steps or max(self.now, 3 * UNKNOWN_LENGTH)

    @cached_property
    def warmup(self) -> int:
        """The step after which the learning rate is what it should be: as declared, or as seen."""
        rates = self.record.series.learning_rates
        declared = self.record.facts.warmup_steps
        if not len(rates) or not np.isfinite(rates).any() or not np.nanmax(rates) > 0:
            return declared
        if not (rates[0] < 0.5 * np.nanmax(rates) and np.nanmax(rates[:10]) > rates[0]):
            return declared  # it does not begin by climbing; what rises later is another matter
        reached = int(self.steps[int(np.argmax(rates >= 0.5 * np.nanmax(rates)))])
        climbs = rates[-1] >= np.nanmax(rates) and rates[-1] > rates[-min(len(rates), 4)]
        seen = self.now if climbs else reached if reached > 3 else 0
        # What nobody has declared and goes on for longer is no warm-up but a rate that is too low.
        longest = round(WARMUP * self.total) if self.record.facts.total_steps else seen
        return max(declared, min(seen, longest))

    def past(self, share: float, at_least: int = MIN_STEPS) -> bool:
        """Whether so much of the run is over, not counting warm-up."""
        trained = self.now - self.warmup
        return len(self.steps) >= at_least and trained >= max(at_least, share * (self.total - self.warmup))

    # --- what the loss is measured against ----------------------------------------------------------------------------

    @cached_property
    def start(self) -> float:
        """L_0. The first loss alone is before any update; with a small batch it is noisy, so the lower of it and the first three's median
        counts where the run begins by falling, and the first where it begins by climbing."""
        losses = self.losses[:3]
        losses = losses[np.isfinite(losses)]
        if not len(losses):
            return math.nan
        return float(min(losses[0], np.median(losses))) if losses[-1] > losses[0] else float(np.median(losses))

    @cached_property
    def constant(self) -> float | None:
        """H, or None."""
        loss = self.record.facts.loss
        if loss.constant is not None and math.isfinite(loss.constant):
            return loss.constant
        if loss.output is not None:
            return None  # the call was seen, and is not the whole loss
        if loss.classes and loss.classes > 1 and loss.function in ("cross_entropy", "nll_loss") and not loss.weighted:
            return math.log(loss.classes)
        return None

    @cached_property
    def constant_error(self) -> float:
        """Relative standard error of H where it was estimated from few samples: sqrt(2 / n) for a variance, by the delta method for an entropy."""
        loss = self.record.facts.loss
        rows, constant = loss.constant_rows, loss.constant
        if not rows or not constant or constant <= 0:
            return 0.0
        if loss.function in SQUARED:
            return math.sqrt(2 / rows)
        counts = [count / rows for count in loss.class_counts if count > 0] if sum(loss.class_counts) == rows else []
        if not counts and loss.target is not None and loss.target.mean is not None and 0 < loss.target.mean < 1:
            counts = [loss.target.mean, 1 - loss.target.mean]
        second = sum(share * math.log(share) ** 2 for share in counts)
        entropy = -sum(share * math.log(share) for share in counts)
        return math.sqrt(max(0.0, second - entropy**2) / rows) / constant

    @cached_property
    def constant_at_most(self) -> float | None:
        """Two standard errors above the estimate of H."""
        return None if self.constant is None else self.constant * (1 + 2 * self.constant_error)

    @cached_property
    def constant_at_least(self) -> float | None:
        return None if self.constant is None else self.constant * max(0.0, 1 - 2 * self.constant_error)

    @cached_property
    def bound(self) -> float | None:
        loss = self.record.facts.loss
        if loss.bound is not None or loss.output is not None:
            return loss.bound
        return 0.0 if loss.function in BOUNDED else None

    @cached_property
    def untrained(self) -> float:
        """max(L_0, H): no job that learns anything stays above."""
        return max(self.start, self.constant) if self.constant is not None else self.start

    @cached_property
    def scale(self) -> float:
        """What there is to learn from the start on; of a loss without a bound that falls below zero, what it has moved if that is more."""
        floor = self.bound if self.bound is not None else min(0.0, self.start)
        found = abs(self.untrained - floor)
        if self.bound is None and len(self.losses):
            found = max(found, abs(self.start - self.best))
        return max(found, 1e-12)

    @cached_property
    def begins_trained(self) -> bool:
        """It knows already what is to be learnt: from a checkpoint, or as good as that."""
        return (self.constant is not None and self.start < 0.6 * self.constant) or (
            self.record.facts.begins_trained and (self.constant is None or self.start < 0.9 * self.constant)
        )

    @cached_property
    def adversarial(self) -> bool:
        """Two optimizers, or losses or gradients of two kinds in turn: what rises and falls there does so by design."""
        if self.record.facts.optimizers > 1:
            return True
        if len(self.steps) < 2 * MIN_STEPS or not (np.diff(self.steps) == 1).all():
            return False
        norms = self.record.series.norms[-64:]
        idle = norms == 0
        if idle.size and (idle[::2].all(0) & ~idle[1::2].any(0) | idle[1::2].all(0) & ~idle[::2].any(0)).any():
            return True
        losses = self.losses[-64:]
        even, odd = losses[::2], losses[1::2]
        apart = np.median(even) - np.median(odd)
        return bool(abs(apart) > 4 * (_mad(even) + _mad(odd)) and abs(apart) > 0.05 * self.scale)

    # --- levels -------------------------------------------------------------------------------------------------------

    @cached_property
    def block(self) -> int:
        """Rows a block: at most ``BLOCKS`` of them over the run, at least 5 rows."""
        return max(5, -(-len(self.losses) // BLOCKS))

    @cached_property
    def levels(self) -> Floats:
        """(N,) medians of whole blocks, the last one ends with the last row; what is not finite counts as infinite."""
        count = len(self.losses) // self.block
        if not count:
            return np.zeros(0)
        kept = np.where(np.isfinite(self.losses), self.losses, np.inf)[len(self.losses) - count * self.block :]
        found: Floats = np.median(kept.reshape(count, self.block), axis=1)
        return found

    @cached_property
    def level_steps(self) -> Steps:
        """(N,) first step of each block."""
        return self.steps[len(self.losses) - len(self.levels) * self.block :: self.block]

    @cached_property
    def best(self) -> float:
        finite = self.levels[np.isfinite(self.levels)]
        return float(finite.min()) if len(finite) else self.start

    def level(self, rows: int = MIN_STEPS) -> float:
        """Median of the last rows."""
        return float(np.median(self.losses[-rows:])) if len(self.losses) else math.nan

    def mean(self, rows: int, most: float) -> float:
        """Over the last rows; none counts for more than ``most`` above the bound, so that a few huge ones do not decide."""
        floor = self.bound if self.bound is not None else 0.0
        return float(np.mean(np.minimum(self.losses[-rows:], floor + most))) if len(self.losses) else math.nan

    @cached_property
    def recent(self) -> float:
        """Median of the last twentieth of the steps, at least of ``MIN_STEPS``."""
        return self.level(max(MIN_STEPS, len(self.losses) // 20))

    @cached_property
    def lost(self) -> int | None:
        """The step from which on half of what had been gained was gone, for at least a tenth of the steps, up to now; or None."""
        width = max(MIN_STEPS, len(self.losses) // 40)
        count = len(self.losses) // width
        if count < 5 or not math.isfinite(self.untrained):
            return None
        kept = np.where(np.isfinite(self.losses), self.losses, np.inf)[len(self.losses) - count * width :]
        levels = np.median(kept.reshape(count, width), axis=1)
        best = int(np.argmin(levels))
        gained = self.untrained - levels[best]
        tail = max(2, math.ceil(count / 10))
        if gained < 0.3 * self.scale or not (levels[-tail:] > levels[best] + 0.5 * gained).all():
            return None
        after = np.flatnonzero(levels[best:] > levels[best] + 0.5 * gained)
        return int(self.steps[len(self.losses) - count * width + (best + int(after[0])) * width])

    @cached_property
    def noise(self) -> float:
        """Robust standard deviation of a single step's loss about its own trend: from differences of neighbours."""
        differences = np.diff(self.losses[-max(4 * MIN_STEPS, len(self.losses) // 4) :])
        differences = differences[np.isfinite(differences)]
        return float(1.4826 * np.median(np.abs(differences)) / math.sqrt(2)) if len(differences) else math.nan

    @cached_property
    def falls(self) -> bool:
        """Whether the loss goes on falling, by more than noise and than 3 % of what there is to learn, over the second half of what was
        recorded."""
        if self._validation_falls:
            return True
        half = len(self.losses) // 2
        window = max(5, half // 3)
        if half < 2 * window:
            return False
        earlier, later = np.median(self.losses[half : half + window]), np.median(self.losses[-window:])
        return bool(earlier - later > max(0.03 * self.scale, 3 * 1.25 * self.noise * math.sqrt(2 / window)))

    @cached_property
    def _validation_falls(self) -> bool:
        """It is the mean over many samples, the same ones each time: what is noise in a batch's loss is seen there."""
        known = self.record.evaluations.metrics.get("loss")
        if known is None or len(known) < 6:
            return False
        late = known[len(known) // 2 :]
        if not np.isfinite(late).all():
            return False
        # Of a second difference the deviation is the root of 6 times that of a value.
        jitter = 1.4826 / math.sqrt(6) * float(np.median(np.abs(np.diff(late, 2)))) if len(late) > 3 else 0.0
        fell = float(np.median(late[:2]) - np.median(late[-2:]))
        return fell > max(0.015 * self.scale, 3 * jitter)

    @cached_property
    def measures_nothing(self) -> bool:
        """How large the loss is says nothing of what was learnt: of adversaries, or it has either sign and no function that is known by name, as a
        policy's."""
        return self.adversarial or self._lies_about_zero

    @cached_property
    def _lies_about_zero(self) -> bool:
        loss, early = self.record.facts.loss, self.losses[: 2 * MIN_STEPS]
        if self.bound is not None or loss.function is not None or not len(early):
            return False
        return bool(abs(self.start) < 0.5 * self.scale and early.min() < 0)

    # --- what was measured on validation samples -----------------------------------------------------------------------

    def checks(self, metric: str) -> Floats | None:
        """(E,) its values, where there are ``CHECKS`` and all are finite; else None."""
        values = self.record.evaluations.metrics.get(metric)
        return values if values is not None and len(values) >= CHECKS and np.isfinite(values).all() else None

    @cached_property
    def useless(self) -> dict[str, float]:
        """The metric whose best value over the second half of the checks is no better than what a constant answer has; or nothing."""
        counts = [n for n in self.record.facts.loss.class_counts if n >= 0]
        r2 = _best_late(self.checks("r2"))
        if r2 is not None and r2 < NO_BETTER:
            return {"r2": r2}
        accuracy = _best_late(self.checks("accuracy"))
        if accuracy is not None and len(counts) > 1 and accuracy < max(counts) / sum(counts) + NO_BETTER:
            return {"accuracy": accuracy}
        return {}

    @cached_property
    def answers_improve(self) -> bool:
        """More validation samples are answered right the longer it goes on, by far more than chance; or their loss creeps down check by check."""
        accuracy, losses = self.checks("accuracy"), self.checks("loss")
        if losses is not None:
            late = losses[-CHECKS:]
            steadily = (np.diff(late) < 0).sum() >= CHECKS - 2 and late[-1] <= losses.min()
            if steadily and late[0] - late[-1] > CREEPS * self.scale:
                return True
        if accuracy is None:
            return False
        third = len(accuracy) // 3
        first, middle, last = (
            float(np.median(part)) for part in (accuracy[:third], accuracy[third:-third], accuracy[-third:])
        )
        return last > first + CLEARLY and last > middle

    # --- gradients ----------------------------------------------------------------------------------------------------

    @cached_property
    def norms(self) -> Floats:
        return self.record.series.norms

    @cached_property
    def totals(self) -> Floats:
        """(S,) norm over all layers."""
        with np.errstate(over="ignore", invalid="ignore"):
            found: Floats = np.sqrt(np.square(self.norms).sum(axis=1))
        return found


def _best_late(values: Floats | None) -> float | None:
    return None if values is None else float(values[len(values) // 2 :].max())


def _mad(values: Floats) -> float:
    return float(np.median(np.abs(values - np.median(values)))) if len(values) else math.nan


def finest(shares: Floats) -> float:
    """Of how many samples a share was taken shows in how finely it is told: what one of them makes; 0: it never changed."""
    steps = np.diff(np.unique(np.round(shares, 6)))
    return float(steps[steps > 1e-5].min()) if (steps > 1e-5).any() else 0.0
