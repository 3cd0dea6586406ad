"""What ranks have by themselves is what plain autograd says, leaves no trace in what is trained, and names the rank that is off with its first bad step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.distributed.processes import Processes
from tests.distributed.toys import CLASSES, FEATURES, Memory, Points, Result, Toy, ToyTask, job, train_toy
from workers import batches, optim, parallel, sharding
from workers.gradients import clip_factor
from workers.jobfolder import JobFolder
from workers.membership import Alone, MeetingPoint
from workers.spec import JobSpec
from workers.tasks.base import Batch, Dataset, Datasets
from workers.train import Run, RunContext, run
from workers.watch.diagnosis import diagnose
from workers.watch.findings import Finding
from workers.watch.rank_files import RankWriter, read_ranks
from workers.watch.record import Record

pytestmark = pytest.mark.distributed

STEPS = 120
ONSET = 70  # step, from 1 on, in which something breaks on rank 1
STRATEGIES = ("ddp", "fsdp")


@dataclass(frozen=True)
class Harm:
    """What happens on rank 1 in step ``ONSET``, or from then on."""

    data: bool = False  # from then on its samples are noise with labels by chance
    gradient: int | None = None  # this bit of one element of its own gradient is flipped
    weight: int | None = None  # this bit of one of its weights, before the step


class Spoilt:
    """Rows of one rank, of which each is asked once a step."""

    def __init__(self, points: Points, rank: int, samples_before: int) -> None:
        self.points, self.rank, self.left = points, rank, samples_before

    def __len__(self) -> int:
        return len(self.points)

    def batch(self, indices: Sequence[int], *, seed: int) -> Batch:
        batch = self.points.batch(indices, seed=seed)
        if self.rank != 1 or self.left > 0:
            self.left -= len(indices)
            return batch
        generator = torch.Generator().manual_seed(int(sum(indices)))
        noise = torch.randn(batch["x"].shape, generator=generator)
        return {"x": 3 * noise, "y": torch.randint(0, CLASSES, batch["y"].shape, generator=generator)}


class _FlipBack(torch.autograd.Function):
    """Gives on what it is given; on the way back one bit of the gradient is another."""

    @staticmethod
    def forward(context: Any, weight: Tensor, bit: int) -> Tensor:
        context.bit = bit
        return weight.view_as(weight)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        flipped = gradients[0].contiguous().clone()
        flip(flipped, context.bit)
        return flipped, None


def flip(tensor: Tensor, bit: int) -> None:
    """Of the element with the largest absolute value: one of 0 has no exponent to speak of."""
    with torch.no_grad():
        flat = tensor.view(-1).view(torch.int32)
        flat[int(tensor.abs().argmax())] ^= 1 << bit


class Weak(nn.Linear):
    """A layer whose gradient can be spoilt on its way out."""

    bit: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.bit is None else _FlipBack.apply(self.weight, self.bit)
        return F.linear(x, weight, self.bias)


class HarmedTask(ToyTask):
    def __init__(self, rank: int, world_size: int, harm: Harm, batch_size: int) -> None:
        super().__init__(Toy(samples=6000, evaluation_samples=0))
        before = (ONSET - 1) * batch_size // world_size if harm.data else 1 << 60
        self.harm, self.rank, self.calls = harm, rank, 0
        self.spoilt: Dataset = Spoilt(self.train, rank, before)
        self.weak = Weak(16, 16)

    def datasets(self) -> Datasets:
        return Datasets(self.spoilt, None)

    def model(self) -> nn.Module:
        self.weak = Weak(16, 16)
        return nn.Sequential(nn.Linear(FEATURES, 16), nn.ReLU(), self.weak, nn.Tanh(), nn.Linear(16, CLASSES))

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Called once a step: nothing is accumulated here."""
        self.calls += 1
        now = self.rank == 1 and self.calls == ONSET
        self.weak.bit = self.harm.gradient if now else None
        if now and self.harm.weight is not None:
            flip(self.weak.weight.data, self.harm.weight)
        return super().loss(model, batch)


def train_harmed(
    rank: int, world_size: int, harm: Harm, spec: JobSpec, folder: Path, *, meeting: MeetingPoint = None
) -> tuple[Result, Record]:
    sharding.SMALLEST_UNIT = 1
    memory = Memory()
    context = RunContext(
        device=torch.device("cpu"),
        reporter=memory,
        link=Alone(rank, world_size, lambda: None, meeting),
        checkpoints=str(folder / "checkpoints"),
        model_folder=folder / "model",
    )
    task = HarmedTask(rank, world_size, harm, spec.training.batch_size)
    training = Run(task, spec, context)
    try:
        outcome = training.train()
        return Result(outcome, memory, []), training.recorder.record_of_run()
    finally:
        training.close()


train_harmed.forms_its_own_group = True  # type: ignore[attr-defined]  # told to Processes


def watched_job(strategy: str = "ddp", budget: float = 1.0, workers: int = 2, **training: Any) -> JobSpec:
    return job(
        training={"epochs": None, "steps": STEPS, "batch_size": 48, **training},
        workers={"count": workers, "strategy": strategy},
        optimizer={"name": "sgd", "learning_rate": 0.05},
        gradients={"overhead_budget": budget},
    )


# --- what is found ----------------------------------------------------------------------------------------------------


def verdict(
    processes: Processes, folder: Path, harm: Harm, strategy: str = "ddp", budget: float = 1.0
) -> list[Finding]:
    """The same from what the workers know as from what was reported."""
    results = processes.run(2, folder, train_harmed, harm, watched_job(strategy, budget), folder)
    memory, record = results[0][0].memory, results[0][1]
    ranks, checksums = memory.ranked()
    np.testing.assert_array_equal(ranks.norms, record.ranks.norms)
    np.testing.assert_array_equal(checksums.values, record.checksums.values)
    return [finding for finding in diagnose(record).findings if finding.severity != "note"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_healthy_run_has_no_finding(processes: Processes, tmp_path: Path, strategy: str) -> None:
    assert verdict(processes, tmp_path, Harm(), strategy) == []


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_corrupted_data_of_one_rank(processes: Processes, tmp_path: Path, strategy: str) -> None:
    first = verdict(processes, tmp_path, Harm(data=True), strategy)[0]
    assert first.code in ("rank_divergence", "silent_corruption")
    assert (first.rank, first.severity) == (1, "critical")
    assert abs(first.first_bad_step - ONSET) <= 2


@pytest.mark.parametrize("bit", [30, 27, 26], ids=["infinite", "by-65536", "by-256"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_bit_of_a_gradient(processes: Processes, tmp_path: Path, strategy: str, bit: int) -> None:
    """Before the all-reduce: after it all ranks have it, and nobody knows whose it was."""
    first = verdict(processes, tmp_path, Harm(gradient=bit), strategy)[0]
    assert (first.code, first.rank, first.first_bad_step) == ("silent_corruption", 1, ONSET)


@pytest.mark.parametrize("bit", [30, 25], ids=["infinite", "by-16"])
def test_a_bit_of_a_weight(processes: Processes, tmp_path: Path, bit: int) -> None:
    first = verdict(processes, tmp_path, Harm(weight=bit))[0]
    assert first.code in ("silent_corruption", "rank_divergence")
    assert (first.rank, first.first_bad_step) == (1, ONSET)


def test_any_bit_of_a_weight_is_seen(processes: Processes, tmp_path: Path) -> None:
    """The last of the mantissa: of two ranks nobody can say which one is right, but that they are no copies, and since when."""
    first = verdict(processes, tmp_path, Harm(weight=0))[0]
    assert (first.code, first.rank, first.first_bad_step) == ("rank_divergence", None, ONSET)


def test_within_the_budget_of_a_job(processes: Processes, tmp_path: Path) -> None:
    """As jobs are by default, not at every step."""
    first = verdict(processes, tmp_path, Harm(weight=30), budget=0.02)[0]
    assert (first.rank, first.first_bad_step) == (1, ONSET)
