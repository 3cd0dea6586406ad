"""Which tensors of the state this rank writes, and memory for copies of them that is used again from one checkpoint to the next."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Piece:
    """A tensor of the state, or this rank's box of one."""

    name: str
    source: Tensor  # the live one, on its device
    size: tuple[int, ...]  # of the whole tensor
    offsets: tuple[int, ...]  # where ``source`` lies in it


def pieces_of(tensors: Mapping[str, Tensor], buffers: Collection[str], rank: int, world_size: int) -> list[Piece]:
    """What rank ``rank`` writes: its shards of DTensors, and a share of the tensors that all ranks have alike.

    Shares are dealt by bytes, the largest tensor first, each to the rank that has least: the same on every rank, without asking. ``buffers`` (names)
    are rank 0's, so that they fit each other also where ranks keep their own.
    """
    pieces = []
    loads = [0] * world_size
    whole = {name: tensor for name, tensor in tensors.items() if not is_sharded(tensor)}
    for name in sorted(whole, key=lambda name: (-whole[name].nbytes, name)):
        owner = 0 if name in buffers else loads.index(min(loads))
        loads[owner] += whole[name].nbytes
        if owner == rank:
            tensor = whole[name].detach()
            pieces.append(Piece(name, tensor, tuple(tensor.shape), (0,) * tensor.dim()))
    shards = (_shard(name, tensor) for name, tensor in tensors.items() if is_sharded(tensor))
    return pieces + [shard for shard in shards if shard is not None]


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "placements")  # a DTensor; asked so, because importing its class takes long


def _shard(name: str, tensor: Any) -> Piece | None:
    """None: this rank's shard is empty, or another rank, which has the same, writes it."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    position = tensor.device_mesh.get_coordinate()
    replicas = [
        at for at, placement in zip(position or (), tensor.placements, strict=False) if placement.is_replicate()
    ]
    local = tensor.detach().to_local()
    if position is None or any(replicas) or local.numel() == 0:
        return None
    shape, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    assert tuple(shape) == tuple(local.shape)
    return Piece(name, local, tuple(tensor.shape), tuple(offsets))


class Staging:
    """Copies of pieces on the CPU. One set: it is overwritten by the next ``copy``."""

    def __init__(self) -> None:
        self._copies: dict[str, Tensor] = {}

    def copy(
        self, pieces: Iterable[Piece], ready: torch.cuda.Event | None, abandoned: Callable[[], bool]
    ) -> list[tuple[Piece, Tensor]]:
        """Complete on return; cut short once abandoned. ``ready``: what the device must have done before (its pieces are up to date then)."""
        if ready is None:
            return self._copy(pieces, abandoned)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            stream.wait_event(ready)
            copied = self._copy(pieces, abandoned)
            stream.synchronize()
        return copied

    def _copy(self, pieces: Iterable[Piece], abandoned: Callable[[], bool]) -> list[tuple[Piece, Tensor]]:
        copied = []
        for piece in pieces:
            if abandoned():
                break
            target = self._memory_for(piece)
            _copy(target, piece.source)
            copied.append((piece, target))
        return copied

    def _memory_for(self, piece: Piece) -> Tensor:
        """Of each piece its own, because ``torch.save`` writes all of the memory that a tensor is a view of."""
        source, found = piece.source, self._copies.get(piece.name)
        if found is None or found.shape != source.shape or found.dtype != source.dtype:
            found = torch.empty(source.shape, dtype=source.dtype, pin_memory=source.is_cuda)
            self._copies[piece.name] = found
        return found


def _copy(target: Tensor, source: Tensor) -> None:
    if source.is_cpu and source.is_contiguous():
        # Not by torch, which would start a set of threads of its own beside those that compute.
        np.copyto(_bytes(target), _bytes(source))
    else:
        target.copy_(source, non_blocking=True)


def _bytes(tensor: Tensor) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return found
