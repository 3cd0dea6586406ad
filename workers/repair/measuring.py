"""What layers give on one batch, measured with a copy of the model."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from workers.repair.tracing import Example, copied, quietly, run

SPREADS = (
    1e-12,
    1e12,
)  # of a layer's outputs: outside, no factor brings them to 1 and stays a number in half precision


def unit_gains(model: nn.Module, example: Example, names: Collection[str]) -> dict[str, float]:
    """Factors for the weights of ``names`` (Linear or Conv without bias or with a bias of 0, each called once) after which outputs of each have
    variance 1, one behind the other (Mishkin and Matas 2016). A layer whose outputs do not vary keeps its weights.
    """
    gains: dict[str, float] = {}

    def rescale(name: str, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        spread = float(output.detach().double().std(correction=0))
        if not math.isfinite(spread) or not SPREADS[0] < spread < SPREADS[1]:
            return output
        gains[name] = 1 / spread
        return output / spread

    _run_with(model, example, names, rescale)
    return gains


def spreads(model: nn.Module, example: Example, names: Collection[str]) -> dict[str, tuple[list[float], list[float]]]:
    """(mean, standard deviation) of each output feature (last dimension of a Linear, channel of a Conv) of ``names``."""
    found: dict[str, tuple[list[float], list[float]]] = {}

    def measure(name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        found[name] = feature_spread(output, -1 if isinstance(module, nn.Linear) else 1)

    _run_with(model, example, names, measure)
    return found


def feature_spread(x: Tensor, axis: int) -> tuple[list[float], list[float]]:
    """(mean, standard deviation) along ``axis``, over all other dimensions, in float64."""
    rows = x.detach().double().movedim(axis, -1).flatten(0, -2)
    mean, std = rows.mean(0), rows.std(0, correction=0)
    return mean.tolist(), std.tolist()


def _run_with(model: nn.Module, example: Example, names: Collection[str], hook: Any) -> None:
    with quietly(model), torch.no_grad():
        twin = copied(model)
        for name in names:
            twin.get_submodule(name).register_forward_hook(functools.partial(hook, name))
        run(twin, example)
