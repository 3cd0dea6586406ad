"""What a task gives to the training loop: data, a model, a loss and metrics. Plain single-device PyTorch.

The loop knows nothing of images or tables; wrapping for data parallelism, moving to devices, accumulation, clipping and
checkpoints happen outside of the task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from workers.sources.problems import BadDataError

__all__ = [
    "BadDataError",
    "Batch",
    "Counted",
    "Dataset",
    "Datasets",
    "Deriving",
    "Illustrated",
    "Measured",
    "ModelFacts",
    "Task",
    "Weighing",
    "Writing",
]

Batch = Mapping[str, Tensor]  # every tensor has the samples of the batch in its first dimension


class Dataset(Protocol):
    """Samples addressed by index. ``batch`` must be a pure function of its arguments: any worker may read any sample."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int], *, seed: int) -> Batch:
        """The samples at ``indices``, on the CPU. ``seed`` (job seed and epoch mixed, 63 bits) is for random augmentation, which must
        depend on it and on the sample's index only, so that every number of workers sees the same pictures.

        Raises BadDataError that names file or row when a sample cannot be read.
        """
        ...


@dataclass(frozen=True)
class Datasets:
    train: Dataset
    evaluation: Dataset | None
    test: Dataset | None = None  # evaluated once, when the model is finished; reported as test/<metric>


@dataclass(frozen=True)
class ModelFacts:
    """What is needed, besides the weights, to use the model later; JSON values only, written next to the weights."""

    input_shape: tuple[int, ...]  # of one sample, without the batch dimension
    class_names: tuple[str, ...] = ()
    preprocessing: Mapping[str, object] = field(default_factory=dict)  # e.g. {"mean": [...], "std": [...]}


class Task(Protocol):
    """Built by the factory of its kind as ``factory(spec.task, seed=...)``; ``datasets`` is called before ``model``."""

    def datasets(self) -> Datasets:
        """Opens the data. Raises BadDataError with the spec's field in its message when it cannot be used."""
        ...

    def model(self) -> nn.Module:
        """A new model with random weights drawn from torch's global generator, which the caller has seeded."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """(sum of the losses of the batch, how many terms that sum has), both scalars on the batch's device.

        Sums, not means: the loop divides by the count over all workers and microbatches, so that neither changes the result.
        """
        ...

    def evaluate(self, model: nn.Module, batch: Batch) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Metric name -> (sum, count), added up over all samples and workers; reported as ``eval/<name>`` = sum / count.

        Always has ``loss``. Called without gradients and with the model in evaluation mode.
        """
        ...

    def facts(self) -> ModelFacts: ...


@runtime_checkable
class Deriving(Protocol):
    """A task with metrics that are functions of the other ones. Optional, besides Task."""

    def derived(self, metrics: Mapping[str, float]) -> Mapping[str, float]:
        """Metric name -> value, from the metrics over the whole data set; the same on every rank."""
        ...


@runtime_checkable
class Counted(Protocol):
    """A task that knows what its model computes: reported as system/model_flops_per_second. Optional, besides Task."""

    def flops_per_sample(self, model: nn.Module) -> float:
        """Model FLOPs of one training sample, forward and backward (``workers.flops``). ``model``: one of its own, plain; changes nothing of it."""
        ...


@runtime_checkable
class Writing(Protocol):
    """A task whose model is written as its library writes it. Optional, besides Task; its module then has ``open_model(folder, spec, facts)``."""

    def write_model(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Weights (all of them, by name) and whatever else belongs to the model, into the folder that exists already."""
        ...


@runtime_checkable
class Weighing(Protocol):
    """A task whose loss can count some classes for more than others. Optional, besides Task."""

    def class_counts(self) -> Sequence[int] | None:
        """(C,) training samples of each class; None: there are no classes, or the job has given weights of its own."""
        ...

    def weigh(self, weights: Sequence[float] | None) -> None:
        """Of the classes, from the next loss on; None: as the job says."""
        ...


@runtime_checkable
class Measured(Protocol):
    """A task with metrics that are no sums over samples, such as the area under a curve. Optional, besides Task."""

    def answers(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """What the model says of each sample, and what is true of it: tensors (B, ...), always with the same names and shapes."""
        ...

    def sums(self, answers: Mapping[str, Tensor]) -> Mapping[str, tuple[Tensor, Tensor]]:
        """What ``Task.evaluate`` gives, of answers: called in its place, so that the model runs once."""
        ...

    def measure(self, answers: Mapping[str, Tensor]) -> Mapping[str, float]:
        """More metrics, of the answers of the whole set in its order, each sample once, on the CPU. Called on rank 0 only."""
        ...


class Illustrated(Protocol):
    """A task that can show what its model does now: pictures, texts, structures. Optional, besides Task."""

    def illustrate(self, model: nn.Module, device: torch.device) -> Mapping[str, bytes]:
        """File name (no folders; its ending says what it is: .txt, .json, .csv, .png, .pdb) -> content.

        Called after an evaluation with the model in evaluation mode, without gradients, under the evaluation's autocast: on every
        rank where a forward pass communicates (FSDP), else on rank 0 only while the others wait, for a minute at most: it should take
        seconds. The caller puts the state of the random generators back. What it raises is told as an event and does not stop the
        run. What can be kept: ``workers.artifacts.check``.
        """
        ...
