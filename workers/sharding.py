"""Fully sharded data parallelism (FSDP2): which modules are gathered together, and what of a sharded tensor is here.

Each worker holds a part of every parameter, of its gradient and of its optimizer state (Zhao et al. 2023). A unit is a module whose parameters
are gathered in one collective before it computes and freed after it; the root is the unit of all that no other one holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

SMALLEST_UNIT = 1 << 20  # elements; below, a collective of its own costs more than the memory that it saves
LARGEST_SHARE = 8  # a larger part of the model than 1/8 is split into the blocks inside it, if there are any


def shard(model: nn.Module, device: torch.device) -> nn.Module:
    """Shards ``model`` in place over all workers. All ranks hold the same weights before; names stay."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    assert dist.group.WORLD is not None
    # Not torch's own mesh, which it would remember beyond the life of this process group.
    mesh = DeviceMesh.from_group(dist.group.WORLD, device.type)
    for module in [*units(model), model]:
        fully_shard(module, mesh=mesh)
    return model


def units(model: nn.Module) -> list[nn.Module]:
    """The blocks of ``model`` that are gathered one by one, inner ones first: elements of lists and sequences.

    Only these are sure to be called as modules; others may have their parameters read from outside (as attention layers do).
    """
    largest = max(SMALLEST_UNIT, _elements(model) // LARGEST_SHARE)
    alone = _without_outside_owners(model)
    found: list[nn.Module] = []

    def visit(module: nn.Module, block: bool) -> None:
        block = block and not isinstance(module, nn.ModuleList | nn.ModuleDict)
        known = len(found)
        if not block or _elements(module) > largest:
            for child in module.children():
                visit(child, isinstance(module, nn.ModuleList | nn.Sequential))
        rest = _elements(module) - sum(map(_elements, found[known:]))
        if block and rest >= SMALLEST_UNIT and module in alone and module not in found:
            found.append(module)

    visit(model, False)
    return found


def compilable(model: nn.Module) -> list[nn.Module]:
    """What of a model that will be sharded computes without a collective in between: units that have none inside."""
    found = units(model) or [model]
    return [unit for unit in found if not any(other in found for other in unit.modules() if other is not unit)]


def _elements(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _without_outside_owners(model: nn.Module) -> set[nn.Module]:
    """Modules none of whose parameters belongs to a module outside of them too, as tied weights do."""
    owners: dict[nn.Parameter, set[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter, set()).add(module)
    return {
        module
        for module in model.modules()
        if set().union(*(owners[parameter] for parameter in module.parameters())) <= set(module.modules())
    }


def shard_modules(model: nn.Module) -> Iterator[FSDPModule]:
    """The units of a sharded model with its root; nothing of another model."""
    return (cast("FSDPModule", module) for module in model.modules() if hasattr(module, "set_requires_gradient_sync"))


def is_sharded(model: nn.Module) -> bool:
    return next(shard_modules(model), None) is not None


def free(model: nn.Module) -> None:
    """Frees what a forward pass without a backward pass left gathered: the root, of which a backward pass was expected."""
    for module in shard_modules(model):
        module.reshard()


def is_part(tensor: Tensor) -> bool:
    """Whether other workers hold the rest of ``tensor``. The answer is the same on all of them."""
    placements = getattr(tensor, "placements", ())
    return any(placement.is_shard() for placement in placements)


def local(tensor: Tensor) -> Tensor:
    """What this worker has of ``tensor``: all of it, unless it is sharded. Shares its memory; call it without gradients."""
    return cast(Tensor, tensor.to_local()) if hasattr(tensor, "to_local") else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of ``tensor``, gathered when it is sharded. Collective."""
    return cast(Tensor, tensor.full_tensor()) if hasattr(tensor, "full_tensor") else tensor
