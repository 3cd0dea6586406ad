"""What a model said of every sample of a set, brought together from all workers, and the metrics of the set as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from workers.batches import share
from workers.tasks.base import Measured


def measured(
    task: Measured, parts: Sequence[Mapping[str, Tensor]], *, samples: int, rank: int, world_size: int
) -> dict[str, float]:
    """Metrics of the whole set; ``parts`` are this worker's batches in order. Rank 0 measures, all get the same numbers."""
    own = {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}
    whole = _gathered(own, samples, rank, world_size) if world_size > 1 else own
    told: list[Any] = [None]
    if rank == 0:
        try:
            told = [dict(task.measure({name: value.cpu() for name, value in whole.items()}))]
        except Exception as error:  # told to all: they would wait for numbers that never come
            told = [error]
    if world_size > 1:
        dist.broadcast_object_list(told, src=0)
    if isinstance(told[0], Exception):
        raise told[0]
    found: dict[str, float] = told[0]
    return found


def _gathered(own: Mapping[str, Tensor], samples: int, rank: int, world_size: int) -> dict[str, Tensor]:
    """On rank 0 every sample's, in the order of the data set; elsewhere nothing. Rank 0 has a sample wherever there is one."""
    shapes: list[Any] = [{name: (value.shape[1:], value.dtype, value.device.type) for name, value in own.items()}]
    dist.broadcast_object_list(shapes, src=0)
    sizes = [len(share(np.arange(samples), other, world_size)) for other in range(world_size)]
    whole = {}
    for name, (shape, dtype, kind) in shapes[0].items():
        device = own[name].device if own else torch.device(kind)
        padded = torch.zeros(max(sizes), *shape, dtype=dtype, device=device)  # a gather's parts have one shape
        if own:
            padded[: sizes[rank]] = own[name]
        parts = [torch.empty_like(padded) for _ in sizes] if rank == 0 else None
        dist.gather(padded, parts, dst=0)
        if parts is not None:
            whole[name] = torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
    return whole
