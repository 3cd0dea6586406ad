"""Changes of a model's structure, and the modules that they put into it. Each raises ``Unfit`` where the tree shows that it does not fit.

Names of parameters change with normalise (x.weight -> x.0.weight), residual (x.weight -> x.branch.0.weight) and scale_input where it does not
fold (x.weight -> x.inner.weight).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from workers.repair.anatomy import (
    ACTIVATIONS,
    CONVOLUTIONS,
    DROPOUTS,
    ELEMENTWISE,
    NORMS,
    RECTIFIERS,
    Edits,
    Unfit,
    is_plain,
    is_sequence,
    module_at,
    reason_against,
    saturates,
    width_of,
)

BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
LARGEST_GROUPS = 32  # Wu and He 2018


class Residual(nn.Module):
    """x -> x + damping * branch(x). A small branch keeps a deep stack near the identity at first, where gradients pass."""

    def __init__(self, branch: nn.Sequential, damping: float) -> None:
        super().__init__()
        self.branch, self.damping = branch, damping

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.branch(x)
        return x + self.damping * y

    def extra_repr(self) -> str:
        return f"damping={self.damping}"


class Standardised(nn.Module):
    """Gives ``inner`` its first argument less its mean, divided by its standard deviation, feature by feature along ``axis``.

    Both numbers are the patch's and no part of the state: a checkpoint of the unpatched model has all that is needed.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, inner: nn.Module, mean: Sequence[float], std: Sequence[float], axis: int) -> None:
        super().__init__()
        self.inner, self.axis = inner, axis
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    def forward(self, x: Tensor, *arguments: Any, **keywords: Any) -> Any:
        if not x.is_floating_point():
            raise TypeError(f"inputs of {x.dtype} are ids or raw bytes; only floating-point inputs can be standardised")
        shape = [1] * x.ndim
        shape[self.axis] = -1
        # In their own precision until the end: raw inputs may be large beside their spread.
        y = (x.to(torch.promote_types(x.dtype, self.mean.dtype)) - self.mean.view(shape)) / self.std.view(shape)
        return self.inner(y.to(x.dtype), *arguments, **keywords)


def normalise(
    edits: Edits, layer: nn.Module, where: str, norm: str, groups: int | None, scale: Any, shift: Any
) -> None:
    """``scale``, ``shift``: deviation and mean that each of the layer's outputs had, so that they are nearly what they were; None: 1 and 0."""
    if not is_plain(layer):
        raise Unfit(f"a {type(layer).__name__} is no Linear or Conv")
    assert isinstance(layer.weight, Tensor)
    width = width_of(layer)
    new = _norm(layer, norm, width, groups).to(device=layer.weight.device, dtype=layer.weight.dtype)
    for name, values in (("scale", scale), ("shift", shift)):
        if values is not None and len(values) != width:
            raise Unfit(f"{name} has {len(values)} values for {width} outputs")
    with torch.no_grad():
        if scale is not None:
            _spread(new, torch.tensor(scale))
        if shift is not None:
            _mean(new, torch.tensor(shift))
    edits.replace(where, nn.Sequential(layer, new.train(layer.training)))


def _norm(layer: nn.Module, norm: str, width: int, groups: int | None) -> nn.Module:
    if norm == "batch":
        return BATCH_NORMS[1 if isinstance(layer, nn.Linear) else _dimensions(layer)](width)
    if norm == "layer":
        if not isinstance(layer, nn.Linear):
            raise Unfit("a layer norm is over the last dimension, which is no channel here; use a group norm")
        return nn.LayerNorm(width)
    groups = groups or groups_for(width)
    if width % groups:
        raise Unfit(f"{width} outputs cannot be divided into {groups} groups")
    return nn.GroupNorm(groups, width)


def _dimensions(layer: nn.Module) -> int:
    assert isinstance(layer.weight, Tensor)
    return layer.weight.ndim - 2


def groups_for(width: int) -> int:
    """The largest number up to 32 that divides ``width``, with two channels a group or more where there are two."""
    return max(
        number for number in range(1, LARGEST_GROUPS + 1) if width % number == 0 and number <= max(1, width // 2)
    )


def _spread(norm: nn.Module, std: Tensor) -> None:
    assert isinstance(norm.weight, Tensor)
    if isinstance(norm, _BatchNorm):
        assert norm.running_var is not None
        norm.running_var.copy_(std.square())
        std = (std.square() + norm.eps).sqrt()
    norm.weight.copy_(std)


def _mean(norm: nn.Module, mean: Tensor) -> None:
    assert isinstance(norm.bias, Tensor)
    if isinstance(norm, _BatchNorm):
        assert norm.running_mean is not None
        norm.running_mean.copy_(mean)
    norm.bias.copy_(mean)


def activate(edits: Edits, module: nn.Module, where: str, to: str, slope: float) -> None:
    if not saturates(module) and not (isinstance(module, RECTIFIERS) and to == "leaky_relu"):
        raise Unfit(f"a {type(module).__name__} is no activation that saturates" + (
            "" if to == "relu" else ", nor a ReLU"))  # fmt: skip
    edits.replace(where, nn.ReLU() if to == "relu" else nn.LeakyReLU(slope))


def drop_output(edits: Edits, module: nn.Module, where: str) -> None:
    if not isinstance(module, ACTIVATIONS):
        raise Unfit(f"a {type(module).__name__} is no activation")
    edits.replace(where, nn.Identity())


def dropout(edits: Edits, module: nn.Module, where: str, p: float) -> None:
    if not isinstance(module, DROPOUTS):
        raise Unfit(f"a {type(module).__name__} drops nothing")
    edits.replace(where, type(module)(p=p))


def residual(edits: Edits, layer: nn.Module, where: str, others: Sequence[str], damping: float) -> None:
    """``others``: names of what follows the layer in its Sequential: a norm perhaps, and an activation. They leave an Identity each behind,
    so that the numbers of what comes later stay."""
    parent, _, name = where.rpartition(".")
    sequence = module_at(edits.model, parent)
    if not where or not is_sequence(sequence):
        raise Unfit("only what lies in an nn.Sequential is certain to have one input and one output")
    names = list(sequence._modules)
    at = names.index(name)
    if names[at + 1 : at + 1 + len(others)] != list(others):
        raise Unfit(f"{', '.join(others)} does not follow it in its Sequential")
    members = [module_at(sequence, other) for other in others]
    paths = [f"{parent}.{other}" if parent else other for other in others]
    reasons = (reason_against(edits.model, path) for path in paths)
    problem = reason_against_run(layer, members) or next(filter(None, reasons), None)
    if problem is not None:
        raise Unfit(problem)
    edits.replace(where, Residual(nn.Sequential(layer, *members).train(layer.training), damping))
    for path in paths:
        edits.replace(path, nn.Identity())


def reason_against_run(layer: nn.Module, others: Sequence[nn.Module]) -> str | None:
    """Why x + f(x) is not certain to fit where f is ``layer`` followed by ``others``."""
    if not _is_square(layer):
        return "the layer does not certainly give what has the shape of its input"
    *norms, last = others
    if not isinstance(last, ELEMENTWISE):
        return f"a {type(last).__name__} at the end of the branch is no activation that works on each element"
    wrong = next((each for each in norms if not isinstance(each, NORMS)), None)
    return None if wrong is None else f"a {type(wrong).__name__} inside the branch is no norm"


def _is_square(layer: nn.Module) -> bool:
    if is_sequence(layer) and len(layer) > 1:  # type: ignore[arg-type]  # a layer with the norm that a patch gave it
        first, *rest = layer.children()
        return _is_square(first) and all(isinstance(each, NORMS) for each in rest)
    if not is_plain(layer):
        return False
    if isinstance(layer, nn.Linear):
        return layer.in_features == layer.out_features
    if not isinstance(layer, CONVOLUTIONS):
        return False
    assert isinstance(layer, nn.modules.conv._ConvNd)
    sizes = zip(layer.kernel_size, layer.dilation, _padding(layer), strict=True)
    kept = all(2 * padding == dilation * (size - 1) for size, dilation, padding in sizes)
    same = layer.padding == "same" or kept
    return layer.in_channels == layer.out_channels and set(layer.stride) == {1} and same


def _padding(layer: nn.modules.conv._ConvNd) -> tuple[int, ...]:
    return (0,) * len(layer.kernel_size) if isinstance(layer.padding, str) else tuple(map(int, layer.padding))


def scale_input(
    edits: Edits, module: nn.Module, where: str, mean: Sequence[float], std: Sequence[float], fold: bool, axis: int
) -> None:
    """``mean``, ``std``: one value, or one a feature. ``axis``: of features in the input, where it is not folded."""
    if len(mean) != len(std):
        raise Unfit(f"there are {len(mean)} means and {len(std)} deviations")
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        raise Unfit("its inputs are ids")
    if not fold:
        edits.replace(where, Standardised(module, mean, std, axis))
        return
    problem = reason_against_folding(module, mean)
    if problem is not None:
        raise Unfit(problem)
    assert isinstance(module.weight, Tensor)
    weight, bias = _folded(module, torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64))
    edits.write(module.weight, weight)
    if bias is not None:
        assert isinstance(module.bias, Tensor)
        edits.write(module.bias, bias)


def reason_against_folding(layer: nn.Module, mean: Sequence[float]) -> str | None:
    """Why no weights of ``layer`` give for raw inputs what it gave for standardised ones."""
    if not is_plain(layer) or not isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
        return f"a {type(layer).__name__} is no Linear or Conv"
    features = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    if len(mean) not in (1, features):
        return f"{len(mean)} means do not fit {features} inputs"
    if not any(mean):
        return None
    if layer.bias is None:
        return "it has no bias that could take the mean"
    if isinstance(layer, nn.Linear):
        return None
    if not isinstance(layer, CONVOLUTIONS):
        return "at the border a transposed convolution adds up fewer inputs, of which the bias knows nothing"
    padded = (
        layer.padding not in ("valid",) and layer.padding_mode == "zeros" and layer.padding != (0,) * _dimensions(layer)
    )
    return "it pads with zeros, which would no longer be the mean" if padded else None


def _folded(layer: nn.Module, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor | None]:
    """In float64: sum over inputs i of W_i (x_i - mean_i) / std_i + b = sum over i of (W_i / std_i) x_i + (b - sum of W_i mean_i / std_i)."""
    assert isinstance(layer.weight, Tensor)
    weight = layer.weight.detach().cpu().double()
    if isinstance(layer, nn.Linear):
        scaled = weight / std
        shift = (scaled * mean).sum(1)
    else:
        assert isinstance(layer, nn.modules.conv._ConvNd)
        mean, std = mean.expand(layer.in_channels), std.expand(layer.in_channels)
        shape = (layer.groups, layer.in_channels // layer.groups)
        if isinstance(
            layer, CONVOLUTIONS
        ):  # (outputs, inputs of a group, *field): output o belongs to group o // outputs of a group
            group = torch.arange(layer.out_channels) // (layer.out_channels // layer.groups)
            per_weight = (layer.out_channels, shape[1]) + (1,) * len(layer.kernel_size)
            scaled = weight / std.view(shape)[group].view(per_weight)
            shift = (scaled * mean.view(shape)[group].view(per_weight)).flatten(1).sum(1)
        else:  # (inputs, outputs of a group, *field); its mean is 0
            return weight / std.view(-1, *(1,) * (weight.ndim - 1)), None
    return scaled, None if layer.bias is None else layer.bias.detach().cpu().double() - shift
