"""The suite's models: small, and as people write them. B samples, D features, T positions, C classes, W width."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)
Activation = Callable[[], nn.Module]
Start = Callable[[Tensor], object]  # fills a weight in place


def started(model: Model, weights: Start, biases: float | None = 0.0) -> Model:
    """Every weight of two dimensions or more in ``model`` filled by ``weights``; the biases constant, or as they are."""
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.dim() >= 2:
                    weights(parameter)
                elif biases is not None and name.startswith("bias") and not isinstance(module, nn.LayerNorm):
                    parameter.fill_(biases)
    return model


def mlp(
    inputs: int,
    outputs: int,
    width: int = 64,
    hidden: int = 2,
    activation: Activation = nn.ReLU,
    norm: Callable[[int], nn.Module] | None = None,
    dropout: float = 0.0,
    last: nn.Module | None = None,
) -> nn.Sequential:
    """``hidden`` layers of ``width``, then the output layer, then ``last`` if there is one."""
    parts: list[nn.Module] = []
    for index in range(hidden):
        parts.append(nn.Linear(inputs if index == 0 else width, width))
        parts += [norm(width)] if norm else []
        parts.append(activation())
        parts += [nn.Dropout(dropout)] if dropout else []
    parts.append(nn.Linear(width if hidden else inputs, outputs))
    parts += [last] if last is not None else []
    return nn.Sequential(*parts)


class ResidualBlock(nn.Module):
    """x + W2 relu(W1 norm(x)); ``zero``: W2 begins at zero, so that the block begins as the identity."""

    def __init__(self, width: int, zero: bool = False, norm: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)
        if zero:
            nn.init.zeros_(self.down.weight)
            nn.init.zeros_(self.down.bias)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.down(torch.relu(self.up(self.norm(x))))
        return found


def residual_net(inputs: int, outputs: int, width: int = 48, blocks: int = 12, zero: bool = False) -> nn.Sequential:
    body = [ResidualBlock(width, zero) for _ in range(blocks)]
    return nn.Sequential(nn.Linear(inputs, width), *body, nn.LayerNorm(width), nn.Linear(width, outputs))


def cnn(
    classes: int = 10,
    width: int = 12,
    layers: int = 2,
    norm: bool = False,
    activation: Activation = nn.ReLU,
    last: nn.Module | None = None,
) -> nn.Sequential:
    """Pictures of one channel (B, 1, 8, 8); ``layers`` convolutions, then the mean over positions of 2 x 2 fields."""
    parts: list[nn.Module] = []
    for index in range(layers):
        parts.append(nn.Conv2d(1 if index == 0 else width, width, 3, padding=1))
        parts += [nn.BatchNorm2d(width)] if norm else []
        parts.append(activation())
    parts += [nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * width, classes)]
    parts += [last] if last is not None else []
    return nn.Sequential(*parts)


class Recurrent(nn.Module):
    """A recurrent layer over (B, T, D), or over (B, T) ids through an embedding; ``each``: an answer at every position."""

    def __init__(
        self,
        kind: type[nn.RNNBase],
        inputs: int,
        outputs: int,
        width: int = 48,
        layers: int = 1,
        each: bool = False,
        embedded: int | None = None,
        detached: bool = False,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(embedded, inputs) if embedded else None
        self.recurrent = kind(inputs, width, layers, batch_first=True)  # type: ignore[arg-type]
        self.head = nn.Linear(width, outputs)
        self.each, self.detached = each, detached

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.recurrent(self.embedding(x) if self.embedding is not None else x)
        if self.detached:
            states = states.detach()
        return self.head(states if self.each else states[:, -1])  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """A small decoder over (B, T) ids: an answer at every position."""

    def __init__(
        self,
        vocabulary: int,
        length: int,
        width: int = 32,
        layers: int = 2,
        norm_first: bool = True,
        tied: bool = False,
    ) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, batch_first=True, norm_first=norm_first)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        mask = torch.full((length, length), -torch.inf).triu(1)
        x = self.tokens(ids) + self.positions(torch.arange(length))
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        return self.head(self.norm(x))  # type: ignore[no-any-return]


class Bins(nn.Module):
    """Features as ids (B, D): an embedding each, all of them to an MLP."""

    def __init__(self, ids: int, features: int, outputs: int, width: int = 4, sparse: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(ids, width, sparse=sparse)
        self.head = mlp(features * width, outputs, 32, 1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embedding(ids).flatten(1))  # type: ignore[no-any-return]
