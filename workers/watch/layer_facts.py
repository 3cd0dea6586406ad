"""What is known of layers before the first step: kind, shape, spread of their weights, twins among their rows, what follows them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.modules.batchnorm import _NormBase

from workers.sharding import local
from workers.watch.record import LayerFacts

ACTIVATIONS = frozenset(
    {"ReLU", "ReLU6", "LeakyReLU", "PReLU", "ELU", "SELU", "CELU", "GELU", "SiLU", "Mish", "Sigmoid", "Tanh", "Softplus", "Softsign", "Softmax",
     "LogSoftmax", "LogSigmoid", "Hardtanh", "Hardsigmoid", "Hardswish"}
)  # fmt: skip
ROWS_COMPARED = 1024
NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@torch.no_grad()
def layer_facts(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[LayerFacts, ...]:
    """Of every module that owns parameters: first those that are trained, in network order, as in the record's series."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    modules = dict(model.named_modules())
    owned: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        owned.setdefault(name.rpartition(".")[0] or name, []).append(parameter)
    following = _activations(model)
    found = []
    for name, parameters in owned.items():
        module = modules.get(name, model)
        largest = max(parameters, key=lambda parameter: parameter.numel())
        here = local(largest.detach())
        # Of complex weights real and imaginary parts are numbers of their own.
        here = (torch.view_as_real(here).flatten(-2) if here.is_complex() else here).float()
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        found.append(
            LayerFacts(
                name=name,
                kind=_kind(module),
                shape=tuple(largest.shape),
                fan_in=math.prod(largest.shape[1:])
                if largest.ndim > 1
                else None,  # a row of a sharded one would be gathered
                mean=float(here.mean()) if here.numel() else None,
                std=float(here.std(correction=0)) if here.numel() else None,
                twin_rows=twin_rows(here) if largest.ndim > 1 and here.numel() else None,
                requires_grad=bool(trained),
                in_optimizer=all(id(parameter) in held for parameter in trained),
                dtype=str(largest.dtype).removeprefix("torch."),
                activation=following.get(name),
            )
        )
    return tuple(sorted(found, key=lambda layer: not layer.requires_grad))


def _kind(module: nn.Module) -> str:
    """Its class as it was before ``fully_shard`` made it one of its own, which is called FSDPLinear and the like."""
    return next(kind.__name__ for kind in type(module).__mro__ if not issubclass(kind, FSDPModule))


def twin_rows(weight: Tensor) -> float:
    """Share of the rows (N, ...) that are equal to another one, among the first thousand: rows are sorted for it."""
    rows = weight[:ROWS_COMPARED].flatten(1)
    _, counts = rows.unique(dim=0, return_counts=True)
    return float(counts[counts > 1].sum()) / len(rows)


def _activations(model: nn.Module) -> dict[str, str]:
    """Class of the activation module behind a layer in the order of definition, with norms and dropout passed over."""
    found: dict[str, str] = {}
    last: str | None = None
    for name, module in model.named_modules():
        if type(module).__name__ in ACTIVATIONS:
            if last is not None:
                found.setdefault(last, type(module).__name__)
            last = None
        elif next(module.parameters(recurse=False), None) is not None and not isinstance(module, NORMS):
            last = name
    return found


def begins_with_norm(model: nn.Module) -> bool:
    """Whether the first module that owns parameters normalises what it is given."""
    owner = next((each for each in model.modules() if next(each.parameters(recurse=False), None) is not None), None)
    return isinstance(owner, NORMS)
