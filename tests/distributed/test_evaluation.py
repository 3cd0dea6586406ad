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


def evaluated(
    rank: int, world_size: int, strategy: Literal["ddp", "fsdp"], samples: int, batch_size: int
) -> tuple[dict[str, float], bool, int]:
    """(metrics, whether the model is in training mode again, samples that this rank read)."""
    sharding.SMALLEST_UNIT = 1  # in this process of the tests; each layer communicates
    task = CountingTask(Toy(normalization=True))
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
