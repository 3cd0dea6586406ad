"""The state of one worker becomes that of all: by broadcast, when a group is formed with somebody who has none or an older one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from workers import checkpoints

CHUNK_BYTES = 32 << 20  # tensors are sent together in pieces of about this size
SMALL_BYTES = (
    64  # step counters and the like travel with the document; they may lie on the CPU although the rest does not
)


def hand_over(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    document: Mapping[str, Any],
    *,
    rank: int,
    source: int,
    same: bool,
    device: torch.device,
    group: dist.ProcessGroup | None,
) -> dict[str, Any]:
    """Gives model, buffers and optimizer of rank ``source`` to all ranks; all of them call it. Returns the source's ``document``.

    ``same``: this rank stands where the source does, bit for bit, and only passes on what is sent. ``group``: for objects, on the CPU (None: the
    default group). What breaks off in the middle leaves the source and those that were the same as they were, and the others unusable.
    """
    own, values = checkpoints.tensors_of(model, optimizer)
    sent: list[Any] = [None]
    if rank == source:
        small = {name: value.cpu() for name, value in own.items() if _small(value)}
        large = [(name, value.dtype, tuple(value.shape)) for name, value in own.items() if not _small(value)]
        sent = [(dict(document), values, small, large)]
    dist.broadcast_object_list(sent, src=source, group=group)
    document, values, small, large = sent[0]
    parameters = dict(model.named_parameters())
    tensors: dict[str, Tensor] = {
        # The live ones where there are any; an optimizer that has not stepped yet has none.
        name: own[name] if name in own else _new_state(name, dtype, shape, parameters, device)
        for name, dtype, shape in large
    }
    for chunk in _chunks(list(tensors.values())):
        _broadcast(chunk, source)
    if rank != source and not same:
        checkpoints.restore(model, optimizer, {**tensors, **small}, values)
    return dict(document)


def _new_state(
    name: str, dtype: torch.dtype, shape: tuple[int, ...], parameters: Mapping[str, nn.Parameter], device: torch.device
) -> Tensor:
    """Optimizer state of a parameter. In the same order in memory: fused kernels take that for granted."""
    parameter = parameters[name.removeprefix("optimizer.").rpartition(".")[0]]
    if parameter.shape == shape:
        return torch.empty_like(parameter.detach(), dtype=dtype)
    return torch.empty(shape, dtype=dtype, device=device)


def _small(tensor: Tensor) -> bool:
    return tensor.numel() * tensor.element_size() <= SMALL_BYTES


def _chunks(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one type, some CHUNK_BYTES together. A larger tensor is a chunk of its own."""
    chunk: list[Tensor] = []
    size = 0
    for tensor in tensors:
        bytes_ = tensor.numel() * tensor.element_size()
        if chunk and (tensor.dtype != chunk[0].dtype or size + bytes_ > CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(tensor)
        size += bytes_
    if chunk:
        yield chunk


@torch.no_grad()
def _broadcast(chunk: Sequence[Tensor], source: int) -> None:
    if len(chunk) == 1 and chunk[0].is_contiguous():
        dist.broadcast(chunk[0].detach(), src=source)
        return
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in chunk])
    dist.broadcast(flat, src=source)
    for tensor, part in zip(chunk, flat.split([tensor.numel() for tensor in chunk]), strict=True):
        tensor.copy_(part.view(tensor.shape))


class BufferKeeper:
    """The buffers (batch norm's statistics, say) as they stood when a step began, so that a step which breaks off can be done again.

    Only what a step really changed is copied at the next: tensors count their changes.
    """

    def __init__(self, model: nn.Module) -> None:
        self._slots = [
            (module, name) for module in model.modules() for name, b in module._buffers.items() if b is not None
        ]
        self._kept: list[tuple[Tensor, int, Tensor] | None] = [None] * len(self._slots)  # (buffer, its version, copy)

    def keep(self) -> None:
        for index, (module, name) in enumerate(self._slots):
            buffer, kept = module._buffers[name], self._kept[index]
            silent = isinstance(module, _NormBase)  # torch's own kernels change running statistics without counting it
            if buffer is None or (kept is not None and kept[0] is buffer and kept[1] == buffer._version and not silent):
                continue
            copy = (
                kept[2].copy_(buffer) if kept is not None and kept[2].shape == buffer.shape else buffer.detach().clone()
            )
            self._kept[index] = (buffer, buffer._version, copy)

    @torch.no_grad()
    def put_back(self) -> None:
        for index, (module, name) in enumerate(self._slots):
            kept = self._kept[index]
            if kept is not None:
                kept[0].copy_(kept[2])
                module._buffers[name] = kept[0]
                self._kept[index] = (kept[0], kept[0]._version, kept[2])
