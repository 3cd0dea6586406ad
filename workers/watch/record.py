"""What is recorded of a run so that it can be judged: facts known before its first step, series measured while it trains. NumPy only.

Everything that was not measured is None, or NaN within a series: a rule that needs it says nothing then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Steps = NDArray[np.int64]  # optimizer steps, from 1 on


# --- facts ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerFacts:
    """A module that owns parameters, as it is before the first step."""

    name: str
    kind: str  # class of the module: Linear, Conv2d, Embedding, LayerNorm, LSTM, ...
    shape: tuple[int, ...] = ()  # of its largest parameter
    fan_in: int | None = None  # of a weight with two dimensions or more
    mean: float | None = None  # of that parameter's elements
    std: float | None = None
    twin_rows: float | None = (
        None  # share of rows (output units) that are equal to another row; weights with two dimensions or more
    )
    requires_grad: bool = True
    in_optimizer: bool = True
    dtype: str = "float32"
    activation: str | None = None  # class or function that follows it, where it could be seen


@dataclass(frozen=True)
class TensorFacts:
    """A tensor as it was in the first batches."""

    dtype: str
    shape: tuple[int, ...]  # of one batch
    least: float | None = None
    largest: float | None = None
    mean: float | None = None
    std: float | None = None
    percentile_99: float | None = None  # of the absolute values
    largest_feature_mean: float | None = None  # absolute value, over features (last dimension, or channels)
    least_feature_std: float | None = None
    largest_feature_std: float | None = None
    nonfinite_rows: tuple[int, ...] = ()  # samples of the batches looked at, the first 20
    rows: int = 0  # samples looked at


@dataclass(frozen=True)
class LossFacts:
    """The call of a loss in the first step, as it was seen."""

    function: str | None = (
        None  # cross_entropy, nll_loss, binary_cross_entropy_with_logits, binary_cross_entropy, mse_loss, ...
    )
    output_operation: str | None = (
        None  # the last function or module on the model's output before it: softmax, log_softmax, sigmoid, relu, ...
    )
    output: TensorFacts | None = None  # what was given to the loss
    target: TensorFacts | None = None
    classes: int | None = None  # size of the class dimension
    class_counts: tuple[
        int, ...
    ] = ()  # of targets that are class numbers, over the training split or the batches looked at
    weighted: bool = False  # with class weights
    class_weights: tuple[float, ...] = ()  # where they are one for each class
    outer: tuple[int, ...] = ()  # (B, B): a column of B outputs less a row of B targets was seen
    bound: float | None = (
        None  # below which it cannot fall: 0.0 for cross-entropy and squared error; None: unknown or none
    )
    # H: the loss of the best constant answer: entropy of the labels, variance of the targets
    constant: float | None = None
    constant_rows: int | None = None  # samples that H was estimated from; None: it is no estimate, or nobody knows


@dataclass(frozen=True)
class Facts:
    layers: tuple[LayerFacts, ...] = ()  # network order; those of ``Series.layers`` first of all
    inputs: TensorFacts | None = None  # None: none of floating point
    normalized_input: bool = False  # the model begins with a normalisation
    loss: LossFacts = LossFacts()
    total_steps: int | None = None  # None: nobody knows (a script)
    warmup_steps: int = 0
    steps_per_epoch: int | None = None
    batch_size: int | None = None  # over all ranks
    world_size: int = 1
    optimizer: str | None = None
    learning_rate: float | None = None  # the largest of the schedule
    momentum: float | None = None
    weight_decay: float | None = None
    schedule: Mapping[str, float] = field(default_factory=dict)  # learning rate at "0", "0.01", "0.1", "1" of the run
    precision: str = "fp32"  # of the forward pass: fp32, bf16, fp16
    begins_trained: bool = False  # from a checkpoint
    dropout: float = 0.0  # the largest share of units that a layer leaves out
    batch_statistics: int | None = (
        None  # values that a batch norm takes a mean of, the fewest; None: no batch norm does
    )
    strays: int = 0  # parameters that the loss hangs on and the model does not have
    optimizers: int = 1  # two and more may train against each other: their losses rise and fall as they should


# --- series -----------------------------------------------------------------------------------------------------------


def none(*shape: int) -> Floats:
    return np.full(shape, np.nan)


def nothing() -> Floats:
    return none(0, 0)


def no_steps() -> Steps:
    return np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class Rows:
    """Arrays whose first dimension goes with ``steps``."""

    def until(self, step: int) -> Self:
        kept = self.steps <= step  # type: ignore[attr-defined]  # every table has them, each as its own first field
        return replace(self, **{name: _cut(value, kept) for name, value in vars(self).items()})

    def since(self, step: int) -> Self:
        """Those after it, with steps that count from there."""
        cut = self._only(self.steps > step)  # type: ignore[attr-defined]
        return replace(cut, steps=cut.steps - step)  # type: ignore[attr-defined, call-arg]

    def without(self, after: int, through: int) -> Self:
        """But for those in between."""
        return self._only((self.steps <= after) | (self.steps > through))  # type: ignore[attr-defined]

    def _only(self, kept: NDArray[np.bool_]) -> Self:
        return replace(self, **{name: _cut(value, kept) for name, value in vars(self).items()})


def _cut(value: Any, kept: NDArray[np.bool_]) -> Any:
    if isinstance(value, np.ndarray):
        return value[kept] if len(value) else value  # what was never measured has no rows
    return {name: _cut(array, kept) for name, array in value.items()} if isinstance(value, Mapping) else value


@dataclass(frozen=True)
class Series(Rows):
    """One entry or row a step. S steps, L layers."""

    layers: tuple[str, ...]  # that have gradients, network order
    steps: Steps  # (S,)
    losses: Floats  # (S,) mean training loss of the step's batch
    norms: Floats  # (S, L) gradient norm before clipping
    learning_rates: Floats  # (S,)
    clip_factors: Floats  # (S,) 1: not clipped
    seconds: Floats  # (S,) of the step
    wait_seconds: Floats  # (S,) of these for data
    # (S,) elements of the batch's inputs and targets that are not finite; or no rows
    nonfinite_inputs: Floats = field(default_factory=lambda: none(0))

    @staticmethod
    def of(layers: tuple[str, ...], steps: Steps, losses: Floats, norms: Floats) -> Series:
        """With nothing else known."""
        unknown = none(len(steps))
        return Series(layers, steps, losses, norms, unknown, unknown, unknown, unknown)


@dataclass(frozen=True)
class Probes(Rows):
    """What is measured now and then, within the budget. P probes, L layers, A activations. Rows are NaN where something does not apply."""

    layers: tuple[str, ...] = ()
    activations: tuple[str, ...] = ()  # names of activation modules, network order
    steps: Steps = field(default_factory=no_steps)  # (P,)
    weight_norms: Floats = field(default_factory=nothing)  # (P, L)
    update_ratios: Floats = field(default_factory=nothing)  # (P, L) norm of the step's update over the weight's norm
    zero_shares: Floats = field(default_factory=nothing)  # (P, L) share of gradient elements that are exactly 0
    zero_rows: Floats = field(default_factory=nothing)  # (P, L) share of output units whose gradient is exactly 0
    largest: Floats = field(default_factory=nothing)  # (P, L) largest absolute gradient element
    nonfinite: Floats = field(default_factory=nothing)  # (P, L) gradient elements that are not finite
    first_moments: Floats = field(default_factory=nothing)  # (P, L) norm of the optimizer's exp_avg or momentum buffer
    second_moments: Floats = field(default_factory=nothing)  # (P, L) norm of exp_avg_sq
    silent: Floats = field(default_factory=nothing)  # (P, A) share of units that gave 0 for the whole batch
    saturated: Floats = field(default_factory=nothing)  # (P, A) share of outputs where the slope is nearly 0
    cost_share: float | None = None  # what all of it cost so far, as a share of the steps' time


@dataclass(frozen=True)
class Evaluations(Rows):
    steps: Steps = field(default_factory=no_steps)  # (E,)
    metrics: Mapping[str, Floats] = field(default_factory=dict)  # name without "eval/" -> (E,)


@dataclass(frozen=True)
class Ranks(Rows):
    """What each rank had by itself before the all-reduce. R ranks."""

    steps: Steps = field(default_factory=no_steps)  # (Q,)
    norms: Floats = field(
        default_factory=nothing
    )  # (Q, R) norm of the rank's own gradient; NaN on all where it was not measured
    samples: Floats = field(default_factory=nothing)  # (Q, R) in the rank's part of the batch
    losses: Floats = field(default_factory=nothing)  # (Q, R) mean loss of the rank's part


@dataclass(frozen=True)
class Checksums(Rows):
    """Of the parameters, on every rank: equal where all is well. C of them, R ranks."""

    steps: Steps = field(default_factory=no_steps)  # (C,)
    values: NDArray[np.uint64] = field(default_factory=lambda: np.zeros((0, 0), dtype=np.uint64))  # (C, R)


@dataclass(frozen=True)
class Record:
    facts: Facts
    series: Series
    probes: Probes = Probes()
    evaluations: Evaluations = Evaluations()
    ranks: Ranks = Ranks()
    checksums: Checksums = Checksums()
    origin: int = 0  # steps of the job before this run of it, which began anew then: steps here count from there
    # norm of what was left in the gradients when the passes of the second step began, over the first step's norm
    uncleared: float | None = None

    def until(self, step: int) -> Record:
        """As it was after that step: a finished run can be judged as it would have been while it ran."""
        return replace(
            self,
            series=self.series.until(step),
            probes=self.probes.until(step),
            evaluations=self.evaluations.until(step),
            ranks=self.ranks.until(step),
            checksums=self.checksums.until(step),
        )

    def since(self, origin: int) -> Record:
        """Of the run that began anew after that step, with steps that count from there."""
        total = self.facts.total_steps
        facts = replace(self.facts, total_steps=total - origin if total is not None else None)
        return replace(self, facts=facts, origin=origin, **{name: rows.since(origin) for name, rows in self._rows()})

    def without(self, after: int, through: int) -> Record:
        """Without steps that the run has left behind."""
        return replace(self, **{name: rows.without(after, through) for name, rows in self._rows()})

    def _rows(self) -> list[tuple[str, Any]]:
        return [(name, value) for name, value in vars(self).items() if isinstance(value, Rows)]

    @property
    def total_steps(self) -> int:
        """Of the whole run; those recorded where nobody knows."""
        return self.facts.total_steps or int(self.series.steps[-1] if len(self.series.steps) else 0)

    @property
    def start(self) -> float:
        """L_0: the loss before anything was learnt."""
        losses = self.series.losses[:3]
        return float(np.median(losses)) if len(losses) else math.nan
