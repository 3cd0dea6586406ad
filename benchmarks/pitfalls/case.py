"""What a case of the suite is: a job, what is wrong with it, and what it reaches when nothing is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.pitfalls.data import Split

Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]  # model, inputs, targets -> mean loss of the batch
Measure = Callable[[nn.Module, Split], Mapping[str, float]]


@dataclass(frozen=True)
class Goal:
    """What the end of the run must reach; exactly one bound is given."""

    metric: str  # of the validation split, or ``wait_share``
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(f"a goal on {self.metric!r} needs at_least or at_most, not both and not neither")

    def reached(self, metrics: Mapping[str, float]) -> bool:
        """A metric that is not a number or is missing reaches nothing."""
        value = metrics.get(self.metric, math.nan)
        return value >= self.at_least if self.at_least is not None else value <= (self.at_most or 0.0)

    def __str__(self) -> str:
        return f"{self.metric} " + (f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}")


@dataclass(frozen=True)
class Job:
    """Everything that a training run needs, faults included. Those of the loop itself are the last fields."""

    model: nn.Module
    train: Split
    validation: Split
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    loss: Callable[[Tensor, Tensor], Tensor]  # output, target -> mean over the batch
    steps: int = 300
    batch: int = 32  # over all ranks
    schedule: Callable[[float], float] = lambda share: 1.0  # share of the run done -> factor on the learning rate
    warmup_steps: int = 0  # known to the facts; the schedule does it
    clip_norm: float | None = None
    autocast: torch.dtype | None = None
    scaler: bool = False  # scale the loss against underflow (torch's GradScaler)
    accumulate: int = 1  # microbatches a step
    measure: Measure | None = None  # None: loss and accuracy, or loss and r2
    objective: Objective | None = None  # None: loss of the model's output
    begins_trained: bool = False  # from a checkpoint
    ranks: int = 1  # data-parallel replicas, in one process: each has its part of the batch, gradients are averaged
    # faults
    clears: bool = True  # gradients before every step
    disturb: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None  # step, inputs, targets of the batch
    # step, replicas; called when each has its own gradient and none is averaged yet
    tamper: Callable[[int, list[nn.Module]], None] | None = None
    stall: float = 0.0  # seconds that the loader needs for a batch


@dataclass(frozen=True)
class Case:
    name: str
    family: str
    expected: str | None  # code of the first finding; None: healthy
    words: str  # what the fault is, or what looks suspicious
    goal: Goal
    build: Callable[[int], Job]  # seed -> the job
    healed: Callable[[int], Job] | None = None  # the same without the fault; None for healthy cases
    accepted: tuple[str, ...] = ()  # other codes that are as true for this fault
    held_back: bool = False  # not to be looked at while rules are tuned

    def __post_init__(self) -> None:
        if (self.expected is None) != (self.healed is None):
            raise ValueError(f"{self.name}: a sick case has a healed variant, a healthy one has none")

    @property
    def sick(self) -> bool:
        return self.expected is not None
