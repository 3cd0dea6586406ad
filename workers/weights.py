"""Questions about a model's weights as a whole. All ranks ask them together, and all get the same answer."""

from __future__ import annotations

import hashlib

import torch
import torch.distributed as dist
from torch import Tensor, nn

from workers.sharding import local, whole


@torch.no_grad()
def finite(model: nn.Module) -> bool:
    found = torch.stack(torch._foreach_norm([local(parameter) for parameter in model.parameters()])).isfinite().all()
    if dist.is_initialized() and dist.get_world_size() > 1:
        # Copies are equal, but on a machine that is broken: a rank that went another way from here would break the group.
        found = found.to(torch.int32)  # which every backend reduces, unlike bool
        dist.all_reduce(found, dist.ReduceOp.MIN)
    return bool(found)


def parameters_sha256(model: nn.Module) -> str:
    """Of all weights and buffers with their names; sharded or not, the same model has the same digest."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(_on_cpu(value).contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def full_state_dict(model: nn.Module, *, keep: bool = True) -> dict[str, Tensor]:
    """Every weight and buffer by name, whole and on the CPU; empty with ``keep`` false, for ranks that only help to gather.

    Tensors that are whole and on the CPU already are not copied. Names that share a parameter share its tensor here too.
    """
    found: dict[str, Tensor] = {}
    first: dict[int, str] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        same = first.setdefault(id(value), name)
        tensor = _on_cpu(value) if same == name else found.get(same)
        if keep and tensor is not None:
            found[name] = tensor
    return found


@torch.no_grad()
def _on_cpu(value: Tensor) -> Tensor:
    """One tensor at a time is gathered, so that no worker ever holds a second model on its device."""
    return whole(value.detach()).cpu()
