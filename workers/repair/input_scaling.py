"""Where the standardisation of a model's first input belongs: into the first layer's weights, before that layer, or before the model itself.

Folding keeps all names and costs nothing, and the first forward pass is that on standardised inputs. The steps are not: the gradient of the folded
weights still has the raw inputs in it, so a feature of deviation 1000 learns too fast and one of 0.001 too slowly. Only the module in front cures
that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from workers.repair.anatomy import NORMS, is_plain, reason_against
from workers.repair.measuring import feature_spread
from workers.repair.patches import Patch
from workers.repair.surgery import reason_against_folding
from workers.repair.tracing import Trace

LEAST_SPREAD = (
    1e-6  # of a feature beside its mean: below, it is constant, and dividing by it would blow up rounding errors
)
VIEWS = (nn.Flatten, nn.Unflatten, nn.Identity)
WITH_OWN_NORM = (*NORMS, nn.Embedding, nn.EmbeddingBag)  # their inputs need no scale, or are ids


def scaling(
    model: nn.Module, seen: Trace, given: tuple[Sequence[float], Sequence[float]] | None, fold: bool
) -> list[Patch]:
    """At most one patch. ``given``: mean and deviation, one value or one a feature; None: those of the input that was seen."""
    x = seen.inputs.get("")
    if x is None or not x.is_floating_point() or x.ndim < 2 or not (seen.raw or seen.computed_from_input):
        return []  # no first argument, ids, or one that is not used
    first = _only_taker(model, seen)
    if first is not None and isinstance(model.get_submodule(first), WITH_OWN_NORM):
        return []
    layer = first if first is not None and is_plain(model.get_submodule(first)) and seen.calls[first] == 1 else None
    found = _at_layer(model, seen, layer, given, fold) if layer is not None else None
    found = found or _before_model(x, given)
    return [found] if found is not None else []


def _only_taker(model: nn.Module, seen: Trace) -> str | None:
    """The module that alone computes with the first input, of which others take views at most."""
    takers = [name for name in seen.raw if not isinstance(model.get_submodule(name), VIEWS)]
    return takers[0] if len(takers) == 1 and not seen.computed_from_input else None


def _at_layer(
    model: nn.Module, seen: Trace, name: str, given: tuple[Sequence[float], Sequence[float]] | None, fold: bool
) -> Patch | None:
    layer, x = model.get_submodule(name), seen.inputs[name]
    axis = -1 if isinstance(layer, nn.Linear) else 1
    if x.ndim < 2 or (axis == 1 and x.ndim != layer.get_parameter("weight").ndim):
        return None  # a single sample without a batch
    statistics = _statistics(given, seen.inputs[""], x, axis)
    if statistics is None:
        return None
    mean, std = statistics
    if fold and reason_against(model, name) is None and reason_against_folding(layer, mean) is None:
        return Patch("scale_input", name, {"mean": mean, "std": std, "fold": True})
    if name in seen.read_outside or reason_against(model, name, frozen=True) is not None:
        return None
    return Patch("scale_input", name, {"mean": mean, "std": std, "fold": False, "axis": axis})


def _before_model(x: Tensor, given: tuple[Sequence[float], Sequence[float]] | None) -> Patch | None:
    """Channels of images and volumes come second, features of tables and sequences last."""
    axis = 1 if x.ndim > 3 else -1
    statistics = _statistics(given, x, x, axis)
    if statistics is None:
        return None
    mean, std = statistics
    return Patch("scale_input", "", {"mean": mean, "std": std, "fold": False, "axis": axis})


def _statistics(
    given: tuple[Sequence[float], Sequence[float]] | None, raw: Tensor, x: Tensor, axis: int
) -> tuple[list[float], list[float]] | None:
    """As many values as ``x`` has features along ``axis``, or one; None where those that were given do not fit."""
    mean, std = feature_spread(x, axis) if given is None else (_matched(values, raw, x, axis) for values in given)
    if len(mean) != len(std) or len(mean) not in (1, x.shape[axis]) or not all(map(math.isfinite, [*mean, *std])):
        return None
    bounds = [LEAST_SPREAD * max(1.0, abs(value)) for value in mean]
    return mean, [value if value > bound else 1.0 for value, bound in zip(std, bounds, strict=True)]


def _matched(values: Sequence[float], raw: Tensor, x: Tensor, axis: int) -> list[float]:
    """Values of channels become those of a flattened image, one for each pixel of a channel."""
    flattened = x.ndim == 2 and raw.ndim > 2 and len(values) == raw.shape[1] and x.shape[1] == math.prod(raw.shape[1:])
    if flattened and len(values) != x.shape[axis]:
        return torch.tensor(values, dtype=torch.float64).repeat_interleave(x.shape[1] // len(values)).tolist()
    return list(map(float, values))
