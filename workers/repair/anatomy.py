"""What of a tree of modules may be changed, and changing it so that it can be taken back."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from workers.sharding import is_sharded

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
PLAIN = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)
RECURRENT = (nn.RNNBase, nn.RNNCellBase)
NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
# Their own code reads the parameters of the modules inside: MultiheadAttention of out_proj, the layers of a Transformer of all in evaluation.
OPAQUE = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, *RECURRENT)
SATURATING = (nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardsigmoid, nn.Softsign)
# Hardtanh is the base of ReLU6, which saturates at one side only.
RECTIFIERS = (nn.ReLU, nn.ReLU6)
ELEMENTWISE = (*SATURATING, *RECTIFIERS, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Hardswish,
               nn.LogSigmoid)  # fmt: skip
ACTIVATIONS = (*ELEMENTWISE, nn.Softmax, nn.LogSoftmax, nn.Softmin)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class Unfit(ValueError):  # a reason on its way to a PatchError
    """``str()`` says why a patch does not fit the model."""


def is_plain(module: nn.Module) -> bool:
    """A Linear or Conv that computes what its class does: of a subclass with a forward of its own nobody knows what it makes of its weight."""
    return isinstance(module, PLAIN) and any(type(module).forward is kind.forward for kind in PLAIN)


def is_sequence(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def saturates(module: nn.Module) -> bool:
    return isinstance(module, SATURATING) and not isinstance(module, RECTIFIERS)


def module_at(model: nn.Module, where: str) -> nn.Module:
    try:
        return model.get_submodule(where)
    except AttributeError:
        raise Unfit("the model has no such module") from None


def reason_against(model: nn.Module, where: str, *, frozen: bool = False) -> str | None:
    """Why the module at ``where`` must be left alone as far as the tree shows it; None where nothing speaks against it.

    ``frozen``: whether parameters that are not trained are no reason.
    """
    module = module_at(model, where)
    if is_sharded(model) or any(hasattr(parameter, "placements") for parameter in module.parameters()):
        return "its parameters are sharded: patches come before the model is distributed"
    if isinstance(module, torch.jit.ScriptModule):
        return "it is compiled by TorchScript"
    return (
        _reason_in_parents(model, where)
        or _reason_in_parameters(module, frozen)
        or _reason_in_sharing(model, module, where)
    )


def _reason_in_parents(model: nn.Module, where: str) -> str | None:
    parent, parts = model, where.split(".") if where else []
    for part in parts:
        if isinstance(parent, OPAQUE):
            return f"the code of the {type(parent).__name__} around it reads its parameters"
        if isinstance(parent, torch.jit.ScriptModule):
            return "it is a part of what TorchScript has compiled"
        if hasattr(parent, "base_layer"):
            return "it is a part of an adapted layer"
        parent = parent.get_submodule(part)
    return "it is a part of an adapter" if any("lora_" in part for part in parts) else None


def _reason_in_parameters(module: nn.Module, frozen: bool) -> str | None:
    own = dict(module.named_parameters())
    if any(isinstance(parameter, UninitializedParameter) for parameter in own.values()):
        return "its parameters are made by the first forward pass"
    if any("lora_" in name for name in own):
        return "it has adapters"
    if any(map(parametrize.is_parametrized, module.modules())):
        return "its parameters are computed from others by a parametrization"
    if isinstance(module, PLAIN) and not isinstance(module._parameters.get("weight"), nn.Parameter):
        return (
            "its weight is computed from other parameters"  # torch.nn.utils' hooks: weight norm, spectral norm, pruning
        )
    if any(not parameter.is_floating_point() for parameter in own.values()):
        return "its parameters are no real floating-point numbers"
    if not frozen and any(not parameter.requires_grad for parameter in own.values()):
        return "it has parameters that are not trained"
    return None


def _reason_in_sharing(model: nn.Module, module: nn.Module, where: str) -> str | None:
    """Modules without parameters may have several names: each is a place of its own."""
    inside = set(module.modules())
    held = set(module.parameters())
    if not held:
        return None
    names = [name for name, each in model.named_modules(remove_duplicate=False) if each is module]
    if len(names) > 1:
        return f"it is used in several places: {', '.join(names)}"
    for name, other in model.named_modules(remove_duplicate=False):
        if other not in inside and not held.isdisjoint(other.parameters(recurse=False)):
            return f"it shares a parameter with {name or 'the model itself'}"
        parent = name.rpartition(".")[0]
        if other in inside and name != where and where and not f"{name}.".startswith(f"{where}."):
            return f"a part of it is used in {parent or 'the model itself'} too"
    return None


def width_of(layer: nn.Module) -> int:
    """Features or channels that a Linear or Conv gives."""
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)  # type: ignore[arg-type]


def fans_of(layer: nn.Module) -> tuple[int, int]:
    """(inputs of an output, outputs of an input) of a Linear or Conv."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    assert isinstance(layer, nn.modules.conv._ConvNd)
    field = math.prod(layer.kernel_size)
    return layer.in_channels // layer.groups * field, layer.out_channels // layer.groups * field


class Edits:
    """Changes of one model that can be taken back together. ``model`` is the model as it is now, with a new root where that was wrapped."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._undo: list[Callable[[], Any]] = []

    def replace(self, where: str, new: nn.Module) -> None:
        """Puts ``new`` into the place of the module at ``where``, in the mode (training or not) of that one."""
        new.training = module_at(self.model, where).training
        if not where:
            old, self.model = self.model, new
            self._undo.append(lambda: setattr(self, "model", old))
            return
        parent, _, name = where.rpartition(".")
        holder = self.model.get_submodule(parent)
        before = holder.get_submodule(name)
        setattr(holder, name, new)
        self._undo.append(lambda: setattr(holder, name, before))

    @torch.no_grad()
    def write(self, tensor: Tensor, value: Tensor) -> None:
        """Copies ``value``, which may be of another device or precision, into a parameter or buffer."""
        before = tensor.detach().clone()
        tensor.copy_(value)
        self._undo.append(lambda: _put_back(tensor, before))

    def undo(self) -> None:
        while self._undo:
            self._undo.pop()()


@torch.no_grad()
def _put_back(tensor: Tensor, value: Tensor) -> None:
    tensor.copy_(value)
