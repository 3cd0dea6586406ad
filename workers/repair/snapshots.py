"""A run as it stood after some of its steps, in the memory of the host: each rank its own part; the first, the newest, some between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workers import checkpoints
from workers.sharding import local

DEPTH = 4  # beside the first


@dataclass(frozen=True)
class Snapshot:
    step: int
    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]


class Snapshots:
    """Of the weights, the buffers and the optimizer's state. Nothing here communicates."""

    def __init__(self) -> None:
        self._first: Snapshot | None = None
        self._kept: list[Snapshot] = []

    @property
    def steps(self) -> Sequence[int]:
        """Ascending."""
        return [kept.step for kept in self._all()]

    def take(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        snapshot = copied(step, model, optimizer)
        if self._first is None:
            self._first = snapshot
            return
        self._kept = [*[kept for kept in self._kept if kept.step != step], snapshot]
        if len(self._kept) > DEPTH:
            del self._kept[_least_missed([self._first.step, *(kept.step for kept in self._kept)])]

    def restore(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Raises KeyError where there is none of that step. Later ones are dropped: they are of what is left behind."""
        found = {kept.step: kept for kept in self._all()}[step]
        put_back(found, model, optimizer)
        self.drop_after(step)

    def drop_after(self, step: int) -> None:
        """Those of what is left behind."""
        self._kept = [kept for kept in self._kept if kept.step <= step]

    def forget(self) -> None:
        """Of another model, or of a run that goes on from somewhere else."""
        self._first, self._kept = None, []

    def _all(self) -> list[Snapshot]:
        return [*([self._first] if self._first is not None else []), *self._kept]


def _least_missed(steps: Sequence[int]) -> int:
    """Which of the steps after the first goes, the newest never: so that they lie the further apart the older they are, and whatever began long ago
    costs a part of the steps since and not all of the run."""
    now = steps[-1]
    gaps = [(steps[i + 1] - steps[i - 1]) / (now - steps[i - 1]) for i in range(1, len(steps) - 1)]
    return gaps.index(min(gaps))


@torch.no_grad()
def copied(step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> Snapshot:
    tensors, values = checkpoints.tensors_of(model, optimizer)
    return Snapshot(step, {name: local(tensor).detach().cpu().clone() for name, tensor in tensors.items()}, values)


@torch.no_grad()
def put_back(snapshot: Snapshot, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """In place: wrappers, buckets and kernels know the tensors by where they lie. What the optimizer has learnt since is gone."""
    own, _ = checkpoints.tensors_of(model, optimizer)
    for name, tensor in own.items():
        kept = snapshot.tensors.get(name)
        if kept is not None:
            local(tensor).copy_(kept)
        else:
            local(tensor).zero_()  # of an optimizer that had not stepped yet
