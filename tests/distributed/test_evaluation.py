"""Evaluation counts every sample once, however many there are for each worker."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.distributed.processes import Processes
from tests.distributed.toys import Points, Toy, ToyTask
from workers import parallel, sharding
from workers.evaluation import evaluate
from workers.tasks.base import Batch

pytestmark = pytest.mark.distributed


class CountingTask(ToyTask):
    """Says also how many samples it saw."""

    def evaluate(self, model: nn.Module, batch: Batch) -> Mapping[str, tuple[Tensor, Tensor]]:
        assert not model.training
        assert not torch.is_grad_enabled()
        seen = torch.tensor(float(len(batch["y"])))
        return {**super().evaluate(model, batch), "seen": (seen, torch.tensor(0.5)), "label": (batch["y"].sum(), seen)}


class WholeTask(ToyTask):
    """Measures the set as a whole; the metric depends on the order of the samples, and on their number."""

    def answers(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        return {"logits": model(batch["x"]), "labels": batch["y"]}

    def sums(self, answers: Mapping[str, Tensor]) -> Mapping[str, tuple[Tensor, Tensor]]:
        return {"loss": (answers["logits"].sum(), torch.tensor(len(answers["logits"])))}

    def measure(self, answers: Mapping[str, Tensor]) -> Mapping[str, float]:
        if self.toy.untaught:
            raise ValueError("cannot be measured")
        places = 1.0 + torch.arange(len(answers["labels"]))
        return {
            "in_order": float((answers["labels"] * places).sum()),
            "logits": float((answers["logits"].double() * places[:, None]).sum()),
        }


def evaluated(
    rank: int,
    world_size: int,
    strategy: Literal["ddp", "fsdp"],
    samples: int,
    batch_size: int,
    kind: type[ToyTask] = CountingTask,
    toy: Toy | None = None,
) -> tuple[dict[str, float], bool, int]:
    """(metrics, whether the model is in training mode again, samples that this rank read)."""
    sharding.SMALLEST_UNIT = 1  # in this process of the tests; each layer communicates
    task = kind(toy or Toy(normalization=True))
    torch.manual_seed(0)
    cpu = torch.device("cpu")
    model = parallel.plain(parallel.distribute(parallel.prepare(task.model(), cpu), cpu, world_size, strategy))
    model.train()
    data = Points(samples, seed=5)
    found = evaluate(
        task,
        model,
        data,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        device=torch.device("cpu"),
        bf16=False,
    )
    assert all(sharding.is_part(parameter) for parameter in model.parameters()) == (
        strategy == "fsdp" and world_size > 1
    )
    return found, model.training, sum(map(len, data.read))


@pytest.mark.parametrize(("samples", "batch_size"), [(23, 4), (2, 4), (1, 1), (24, 7)])
@pytest.mark.parametrize(("world_size", "strategy"), [(1, "ddp"), (2, "ddp"), (3, "ddp"), (2, "fsdp"), (3, "fsdp")])
def test_each_sample_once(
    processes: Processes, tmp_path: Path, world_size: int, strategy: str, samples: int, batch_size: int
) -> None:
    """Catches padding of uneven shares, a mean of means, a rank without a sample that waits or spoils the sum, and one that
    leaves the others waiting for the part of the model that it has."""
    results = processes.run(world_size, tmp_path, evaluated, strategy, samples, batch_size)
    assert strategy == "fsdp" or sum(read for _, _, read in results) == samples
    assert all(training for _, training, _ in results)
    assert all(metrics == results[0][0] for metrics, _, _ in results)

    data = Points(samples, seed=5)
    torch.manual_seed(0)
    model = ToyTask(Toy(normalization=True)).model().eval()
    logits = model(data.points)
    expected = {
        "loss": F.cross_entropy(logits, data.labels).item(),
        "accuracy": (logits.argmax(1) == data.labels).float().mean().item(),
        "label": data.labels.float().mean().item(),
    }
    metrics = results[0][0]
    assert {key: metrics[key] for key in expected} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("samples", "batch_size"), [(23, 4), (2, 4)])
@pytest.mark.parametrize(("world_size", "strategy"), [(1, "ddp"), (3, "ddp"), (3, "fsdp")])
def test_a_set_is_measured_as_a_whole(
    processes: Processes, tmp_path: Path, world_size: int, strategy: str, samples: int, batch_size: int
) -> None:
    """Catches answers that are lost, counted twice or out of order, and ranks that do not get the numbers."""
    results = processes.run(world_size, tmp_path, evaluated, strategy, samples, batch_size, WholeTask)
    assert all(metrics == results[0][0] for metrics, _, _ in results)
    data = Points(samples, seed=5)
    torch.manual_seed(0)
    logits = ToyTask(Toy(normalization=True)).model().eval()(data.points).detach().double()
    places = 1.0 + torch.arange(samples)
    assert results[0][0] == pytest.approx(
        {
            "loss": logits.sum().item() / samples,
            "in_order": (data.labels * places).sum().item(),
            "logits": (logits * places[:, None]).sum().item(),
        },
        rel=1e-4,
        abs=1e-4,
    )


def test_what_measuring_raises_is_raised_on_every_rank(processes: Processes, tmp_path: Path) -> None:
    """The others would wait for numbers that never come."""
    toy = Toy(normalization=True, untaught=True)
    with pytest.raises(AssertionError) as caught:
        processes.run(2, tmp_path, evaluated, "ddp", 6, 4, WholeTask, toy)
    assert str(caught.value).count("ValueError: cannot be measured") == 2
