"""Evaluation over all workers that counts every sample exactly once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from workers import parallel, sharding
from workers.answers import measured
from workers.batches import Indices, share, to_device
from workers.tasks.base import Dataset, Deriving, Measured, Task


def evaluate(
    task: Task,
    model: nn.Module,
    dataset: Dataset,
    *,
    batch_size: int,
    rank: int,
    world_size: int,
    device: torch.device,
    bf16: bool,
) -> dict[str, float]:
    """Metric name -> value over the whole data set, the same on every rank. ``model`` is the plain one, not DDP's wrapper.

    Workers may have different numbers of batches. Where a forward pass communicates (FSDP), those that have fewer repeat a sample whose sums count
    nothing.
    """
    sums: dict[str, torch.Tensor] = {}
    kept: list[Mapping[str, torch.Tensor]] = []  # answers, of tasks that measure the whole set
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            for indices, counts in _parts(len(dataset), batch_size, rank, world_size, parallel.lockstep(model)):
                batch = to_device(dataset.batch(indices.tolist(), seed=0), device)
                if isinstance(task, Measured):
                    answers = task.answers(model, batch)
                    found = task.sums(answers)
                    kept += [answers] if counts else []
                else:
                    found = task.evaluate(model, batch)
                for name, (total, count) in found.items() if counts else ():
                    pair = torch.stack([total.detach().double(), count.detach().double()])
                    sums[name] = sums[name] + pair if name in sums else pair
    finally:
        model.train()
        sharding.free(model)
    if world_size > 1:
        sums = _reduced(sums, device)
    values = {name: float(pair[0] / pair[1]) for name, pair in sums.items()}
    if isinstance(task, Measured):
        values |= measured(task, kept, samples=len(dataset), rank=rank, world_size=world_size)
    return values | dict(task.derived(values)) if isinstance(task, Deriving) else values


def _parts(samples: int, batch_size: int, rank: int, world_size: int, lockstep: bool) -> Iterator[tuple[Indices, bool]]:
    """This worker's batches and whether they count; in ``lockstep`` as many as the worker with most samples has."""
    mine = share(np.arange(samples), rank, world_size)
    size = max(1, batch_size // world_size)
    most = len(share(np.arange(samples), 0, world_size)) if lockstep else len(mine)
    for start in range(0, most, size):
        indices = mine[start : start + size]
        yield (indices, True) if len(indices) else (np.arange(1), False)


def _reduced(sums: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """Sums over all ranks. A rank without a single sample learns the names from the others."""
    names: list[list[str] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(names, list(sums))
    order = next((found for found in names if found), [])
    zero = torch.zeros(2, dtype=torch.float64, device=device)
    table = torch.stack([sums.get(name, zero) for name in order]) if order else zero.unsqueeze(0)
    dist.all_reduce(table)
    return dict(zip(order, table, strict=False))
