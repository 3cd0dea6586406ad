"""Evaluation over all workers that counts every sample exactly once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from workers.batches import Indices, share, to_device
from workers.tasks.base import Dataset, Task


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
    """Metric name -> value over the whole data set, the same on every rank. ``model`` is the plain one, not DDP's wrapper:
    workers may have different numbers of batches, so the forward pass must not communicate."""
    sums: dict[str, torch.Tensor] = {}
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            for indices in _parts(len(dataset), batch_size, rank, world_size):
                batch = to_device(dataset.batch(indices.tolist(), seed=0), device)
                for name, (total, count) in task.evaluate(model, batch).items():
                    pair = torch.stack([total.detach().double(), count.detach().double()])
                    sums[name] = sums[name] + pair if name in sums else pair
    finally:
        model.train()
    if world_size > 1:
        sums = _reduced(sums, device)
    return {name: float(pair[0] / pair[1]) for name, pair in sums.items()}


def _parts(samples: int, batch_size: int, rank: int, world_size: int) -> Iterator[Indices]:
    mine = share(np.arange(samples), rank, world_size)
    size = max(1, batch_size // world_size)
    return (mine[start : start + size] for start in range(0, len(mine), size))


def _reduced(sums: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """Sums over all ranks. A rank without a single sample learns the names from the others."""
    names: list[list[str] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(names, list(sums))
    order = next((found for found in names if found), [])
    zero = torch.zeros(2, dtype=torch.float64, device=device)
    table = torch.stack([sums.get(name, zero) for name in order]) if order else zero.unsqueeze(0)
    dist.all_reduce(table)
    return dict(zip(order, table, strict=False))
