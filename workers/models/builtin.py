"""The small built-in networks. Layers have names that a person can read in a gradient heat map.

Weights of layers before ReLU-like activations are drawn as He et al. 2015 propose, those before tanh and sigmoid as Glorot and Bengio 2010;
torch's own default for linear layers suits neither. Biases start at 0.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn

from workers.kinds.images import CnnModel
from workers.kinds.networks import MlpModel

ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}
XAVIER = frozenset({"tanh", "sigmoid"})


def mlp(spec: MlpModel, inputs: int, outputs: int) -> nn.Sequential:
    """(B, ...) with ``inputs`` values a sample -> (B, outputs)."""
    parts: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    width = inputs
    for index, hidden in enumerate(spec.hidden, 1):
        parts[f"linear{index}"] = initialised(nn.Linear(width, hidden), spec.activation)
        if spec.normalization != "none":
            parts[f"norm{index}"] = nn.BatchNorm1d(hidden) if spec.normalization == "batch" else nn.LayerNorm(hidden)
        parts[f"{spec.activation}{index}"] = ACTIVATIONS[spec.activation]()
        if spec.dropout:
            parts[f"dropout{index}"] = nn.Dropout(spec.dropout)
        width = hidden
    parts["output"] = initialised(nn.Linear(width, outputs), "sigmoid")
    return nn.Sequential(parts)


def cnn(spec: CnnModel, image: tuple[int, int, int], outputs: int) -> nn.Sequential:
    """(B, C, H, W) -> (B, outputs); ``image`` is (C, H, W). A block halves height and width while they are larger than 1."""
    width, height, breadth = image
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for index, channels in enumerate(spec.channels, 1):
        parts[f"conv{index}"] = initialised(nn.Conv2d(width, channels, 3, padding=1), spec.activation)
        if spec.normalization == "batch":
            parts[f"norm{index}"] = nn.BatchNorm2d(channels)
        parts[f"{spec.activation}{index}"] = ACTIVATIONS[spec.activation]()
        if min(height, breadth) > 1:
            parts[f"pool{index}"] = nn.MaxPool2d(2)
            height, breadth = height // 2, breadth // 2
        width = channels
    parts["mean"] = SpatialMean()
    if spec.dropout:
        parts["dropout"] = nn.Dropout(spec.dropout)
    parts["output"] = initialised(nn.Linear(width, outputs), "sigmoid")
    return nn.Sequential(parts)


class SpatialMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C)"""
        return x.mean(dim=(2, 3))


def initialised(layer: nn.Linear | nn.Conv2d, activation: str) -> nn.Module:
    if activation in XAVIER:
        nn.init.xavier_normal_(layer.weight, gain=5 / 3 if activation == "tanh" else 1.0)
    elif activation == "selu":  # Klambauer et al. 2017: variance 1 / fan-in keeps it self-normalising
        nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.weight[0].numel()))
    else:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
