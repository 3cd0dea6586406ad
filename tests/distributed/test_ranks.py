"""What ranks have by themselves is what plain autograd says, leaves no trace in what is trained, and names the rank that is off."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.distributed.processes import Processes
from tests.distributed.toys import CLASSES, FEATURES, Memory, Points, Result, Toy, ToyTask, context_in, job, train_toy
from workers import batches, optim, parallel, sharding
from workers.gradients import clip_factor
from workers.jobfolder import JobFolder
from workers.membership import Alone, MeetingPoint
from workers.own_gradients import OwnGradient
from workers.spec import JobSpec
from workers.tasks.base import Batch, Dataset, Datasets
from workers.train import Run
from workers.watch.diagnosis import diagnose
from workers.watch.findings import Finding
from workers.watch.rank_files import RankWriter, read_ranks
from workers.watch.record import Record

pytestmark = pytest.mark.distributed

STEPS = 120
ONSET = 70  # step, from 1 on, in which something breaks on rank 1
LOSS_SCALE = 2**-6  # gradients are as small as those of larger models
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
    """Of the largest element in which this bit is 0: from 1 to 0 a bit of the exponent makes it next to nothing."""
    with torch.no_grad():
        flat = tensor.view(-1).view(torch.int32)
        zero = (flat & (1 << bit)) == 0
        flat[int((tensor.abs().view(-1) * zero).argmax())] ^= 1 << bit


class Weak(nn.Linear):
    """A layer whose gradient can be spoilt on its way out."""

    bit: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.bit is None:
            return super().forward(x)
        weight: Tensor = _FlipBack.apply(self.weight, self.bit)  # type: ignore[no-untyped-call]
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
        loss_sum, count = super().loss(model, batch)
        return loss_sum * LOSS_SCALE, count


def train_harmed(
    rank: int, world_size: int, harm: Harm, spec: JobSpec, folder: Path, *, meeting: MeetingPoint = None
) -> tuple[Result, Record]:
    sharding.SMALLEST_UNIT = 1
    memory = Memory()
    context = context_in(folder, memory, Alone(rank, world_size, store=meeting))
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
        optimizer={"name": "sgd", "learning_rate": 0.05 / LOSS_SCALE},
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


@pytest.mark.parametrize("bit", [30, 27], ids=["infinite", "by-65536"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_bit_of_a_gradient(processes: Processes, tmp_path: Path, strategy: str, bit: int) -> None:
    """Before the all-reduce: after it all ranks have it, and nobody knows whose it was."""
    first = verdict(processes, tmp_path, Harm(gradient=bit), strategy)[0]
    assert (first.code, first.rank, first.first_bad_step) == ("silent_corruption", 1, ONSET)


def test_a_bit_of_a_weight(processes: Processes, tmp_path: Path) -> None:
    first = verdict(processes, tmp_path, Harm(weight=30))[0]
    assert first.code in ("silent_corruption", "rank_divergence")
    assert (first.rank, first.first_bad_step) == (1, ONSET)


def test_both_kinds_of_record_say_it(processes: Processes, tmp_path: Path) -> None:
    """What was reported, when it is written and read again, is what the workers judge by."""
    results = processes.run(2, tmp_path, train_harmed, Harm(data=True), watched_job(), tmp_path)
    (first, record), (_, other) = results
    folder = JobFolder(tmp_path, "job")
    RankWriter(folder.ranks_path, 1).append(first.memory.rank_rows, after=-1)
    found = read_ranks(folder.ranks_path)
    assert found is not None
    for ranks, checksums in (found, (other.ranks, other.checksums)):
        for name in ("steps", "norms", "samples", "losses"):
            np.testing.assert_array_equal(getattr(ranks, name), getattr(record.ranks, name))
        np.testing.assert_array_equal(checksums.values, record.checksums.values)
    assert folder.last_rank_step() == STEPS - 1
    told = first.memory.found("finding.raised")
    assert any(each["finding"]["rank"] == 1 for each in told), "while it trained"


@pytest.mark.parametrize("bit", [0, 25], ids=["last", "by-16"])
def test_any_bit_of_a_weight_is_seen(processes: Processes, tmp_path: Path, bit: int) -> None:
    """One that does no harm to speak of: of two ranks nobody can say which one is right, but that they are no copies, and since when."""
    first = verdict(processes, tmp_path, Harm(weight=bit))[0]
    assert (first.code, first.first_bad_step) == ("rank_divergence", ONSET)
    assert first.rank is None or (bit > 0 and first.rank == 1)


def test_within_the_budget_of_a_job(processes: Processes, tmp_path: Path) -> None:
    """As jobs are by default: parameters and gradients are looked at when that is cheap enough here, losses at every step."""
    first = verdict(processes, tmp_path, Harm(weight=30), budget=0.02)[0]
    assert first.rank == 1
    assert abs(first.first_bad_step - ONSET) <= 10


def test_with_next_to_no_budget(processes: Processes, tmp_path: Path) -> None:
    """No machine is fast enough to look at what it need not: from the losses alone the rank and its step are known."""
    first = verdict(processes, tmp_path, Harm(weight=30), budget=1e-9)[0]
    assert (first.code, first.rank) == ("rank_divergence", 1)
    assert abs(first.first_bad_step - ONSET) <= 10


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_healthy_run_with_next_to_no_budget(processes: Processes, tmp_path: Path, strategy: str) -> None:
    assert verdict(processes, tmp_path, Harm(), strategy, budget=1e-9) == []


# --- what is measured -------------------------------------------------------------------------------------------------


def mixed_job(workers: int, strategy: str, budget: float, steps: int = 7) -> JobSpec:
    """Microbatches of unequal sizes, a share that is empty at times, clipping, a loss that counts other things than samples."""
    return job(
        training={"epochs": None, "steps": steps, "batch_size": 13, "accumulate": 3, "clip_norm": 0.3},
        workers={"count": workers, "strategy": strategy},
        optimizer={"name": "adamw", "learning_rate": 0.003},
        gradients={"overhead_budget": budget},
    )


MIXED = Toy(counts_weights=True, evaluation_samples=0)


def train_mixed(rank: int, world_size: int, spec: JobSpec, folder: Path, *, meeting: MeetingPoint = None) -> Result:
    sharding.SMALLEST_UNIT = 1  # on all ranks alike, whatever their processes did before
    return train_toy(rank, world_size, MIXED, spec, folder, meeting=meeting)


train_mixed.forms_its_own_group = True  # type: ignore[attr-defined]  # told to Processes


def by_hand(spec: JobSpec, world_size: int) -> tuple[list[list[float]], list[list[float]], list[list[float]]]:
    """Norms, samples and losses of each rank's part, (S, R) each, of the same training in one process."""
    task = ToyTask(MIXED)
    batches.seed_everything(spec.training.seed)
    model = task.model()
    optimizer = optim.build_optimizer(spec.optimizer, model.parameters(), torch.device("cpu"))
    plan = batches.plan_of(spec, MIXED.samples)
    norms: list[list[float]] = []
    samples: list[list[float]] = []
    losses: list[list[float]] = []
    for step in range(spec.training.steps or 0):
        indices, own = plan.step_indices(step), []
        for rank in range(world_size):
            parts = batches.microbatches(indices, rank, world_size, spec.training.accumulate)
            chosen = [int(index) for part in parts if part.weight for index in part.indices]
            loss_sum, count = task.loss(model, task.train.batch(chosen, seed=0))
            gradients = torch.autograd.grad(loss_sum / count, list(model.parameters()))
            own.append(
                (torch.cat([g.flatten() for g in gradients]).norm().item(), len(chosen), (loss_sum / count).item())
            )
        for table, column in zip((norms, samples, losses), zip(*own, strict=True), strict=True):
            table.append(list(column))
        optim.set_learning_rate(
            optimizer, optim.learning_rate(step, plan.steps, spec.schedule, spec.optimizer.learning_rate)
        )
        loss_sum, count = task.loss(model, task.train.batch(indices.tolist(), seed=0))
        optimizer.zero_grad()
        (loss_sum / count).backward()
        nn.utils.clip_grad_norm_(model.parameters(), spec.training.clip_norm or 1e9)
        optimizer.step()
    return norms, samples, losses


@pytest.mark.parametrize(("workers", "strategy"), [(2, "ddp"), (3, "ddp"), (2, "fsdp"), (3, "fsdp")])
def test_what_autograd_says_of_each_rank(processes: Processes, tmp_path: Path, workers: int, strategy: str) -> None:
    """Catches norms of the last microbatch alone, of what is all-reduced already, of means over workers, and rows of another step."""
    spec = mixed_job(workers, strategy, 1.0)
    memory = processes.run(workers, tmp_path, train_mixed, spec, tmp_path)[0].memory
    ranks, checksums = memory.ranked()
    norms, samples, losses = (np.array(table)[:-1] for table in by_hand(spec, workers))  # the last step's never travel
    assert ranks.steps.tolist() == list(range(1, 7))
    np.testing.assert_allclose(ranks.norms, norms, rtol=2e-4)
    np.testing.assert_array_equal(ranks.samples, samples)
    np.testing.assert_allclose(ranks.losses, losses, rtol=1e-4)
    assert checksums.steps.tolist() == (list(range(1, 7)) if strategy == "ddp" else [])
    assert (checksums.values == checksums.values[:, :1]).all()
    assert len({int(value) for value in checksums.values[:, 0]}) == len(checksums.steps)


@pytest.mark.parametrize(("workers", "strategy"), [(2, "ddp"), (3, "ddp"), (2, "fsdp")])
def test_watching_ranks_changes_nothing(processes: Processes, tmp_path: Path, workers: int, strategy: str) -> None:
    watched, alone = (
        processes.run(
            workers, tmp_path, train_mixed, mixed_job(workers, strategy, budget), tmp_path / f"{strategy}-{budget}"
        )
        for budget in (1.0, 0.0)
    )
    assert watched[0].memory.rank_rows
    assert not alone[0].memory.rank_rows
    for digest in ("parameters_sha256", "gradients_sha256"):
        assert len({result.outcome.detail[digest] for result in (*watched, *alone)}) == 1, digest


def weights_of(rank: int, world_size: int, hooked: bool) -> list[Tensor]:
    """Some steps of DDP as torch makes them, or with the hook; accumulation and clipping are on."""
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Embedding(50, 12, sparse=True), nn.Flatten(), nn.Linear(36, 40), nn.Tanh(), nn.Linear(40, 3)
    )
    wrapped = parallel.distribute(model, torch.device("cpu"), world_size, "ddp")
    assert isinstance(wrapped, DistributedDataParallel)
    divisor = world_size
    if hooked:
        own = OwnGradient(wrapped, torch.device("cpu"))
        own.begin(True)
        divisor = 1 if own.adds_up else world_size
    dense = [parameter for parameter in model.parameters() if parameter.shape[0] != 50]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for step in range(8):
        generator = torch.Generator().manual_seed(100 * step + rank)
        for more in (True, False):
            x = torch.randint(0, 50, (6, 3), generator=generator)
            y = torch.randint(0, 3, (6,), generator=generator)
            scale = divisor / (12 * world_size)
            with parallel.no_sync(wrapped) if more else contextlib.nullcontext():
                (F.cross_entropy(wrapped(x), y, reduction="sum") * scale).backward()
        norm = torch.stack(torch._foreach_norm([p.grad for p in dense if p.grad is not None])).norm()
        factor = clip_factor(norm, 0.4)
        for parameter in dense:
            assert parameter.grad is not None
            parameter.grad.mul_(factor)
        optimizer.step()
        optimizer.zero_grad()
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_the_hook_is_the_default_all_reduce(processes: Processes, tmp_path: Path) -> None:
    """Bit by bit; of three ranks torch multiplies each gradient with a rounded third, and the hook divides once."""
    plain, hooked = (processes.run(2, tmp_path, weights_of, hooked) for hooked in (False, True))
    for one, other in zip((*plain[0], *plain[1]), (*hooked[0], *hooked[1]), strict=True):
        assert torch.equal(one, other)


# --- how noisy gradients are ------------------------------------------------------------------------------------------


def noise_by_hand(spec: JobSpec) -> float:
    """tr(S) / |G|^2 over the gradients of all samples, one by one, at the weights that the run begins with."""
    task = ToyTask(NOISY)
    batches.seed_everything(spec.training.seed)
    model = task.model()
    rows = []
    for index in range(NOISY.samples):
        loss_sum, _ = task.loss(model, task.train.batch([index], seed=0))
        gradients = torch.autograd.grad(loss_sum, list(model.parameters()))
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]).double())
    table = torch.stack(rows)
    mean = table.mean(dim=0)
    return float((table - mean).square().sum() / (len(table) - 1) / mean.square().sum())


NOISY = Toy(samples=2000, evaluation_samples=0)


def train_noisy(rank: int, world_size: int, spec: JobSpec, folder: Path, *, meeting: MeetingPoint = None) -> Result:
    sharding.SMALLEST_UNIT = 1
    return train_toy(rank, world_size, NOISY, spec, folder, meeting=meeting)


train_noisy.forms_its_own_group = True  # type: ignore[attr-defined]  # told to Processes


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_noise_scale(processes: Processes, tmp_path: Path, strategy: str) -> None:
    """At fixed weights the series comes within a tenth of what per-sample gradients give."""
    spec = job(
        training={"epochs": None, "steps": 600 if strategy == "fsdp" else 1200, "batch_size": 32},
        workers={"count": 2, "strategy": strategy},
        optimizer={"name": "sgd", "learning_rate": 1e-30},
        gradients={"overhead_budget": 1.0},
    )
    memory = processes.run(2, tmp_path, train_noisy, spec, tmp_path)[0].memory
    found = memory.series("gradient/noise_scale")
    assert len(found) > 3
    assert found[-1] == pytest.approx(noise_by_hand(spec), rel=0.1)
