"""Optimizers, data and parts of models that several of the families ``unseen_*`` use."""

from __future__ import annotations

import inspect
import random
import statistics
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.pitfalls.data import Pair, Split, _parts, digits
from benchmarks.pitfalls.recipe import Chosen, Optimize

# --- optimizers --------------------------------------------------------------------------------------------------------


class Lion(torch.optim.Optimizer):
    """Steps along the sign of a mean of momentum and gradient (Chen et al. 2023, "Symbolic discovery of optimization algorithms")."""

    def __init__(self, params: Iterable[Any], lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "betas": (0.9, 0.99)})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            now, kept = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                mean = self.state[parameter].setdefault("mean", torch.zeros_like(parameter))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(group["lr"] * torch.lerp(parameter.grad, mean, now).sign())
                mean.lerp_(parameter.grad, 1 - kept)


def using(
    kind: Callable[..., torch.optim.Optimizer], rate: float, only: Chosen | None = None, **fields: Any
) -> Optimize:
    """Any optimizer, of the parameters that train and whose names are ``only``'s."""
    return lambda model: kind(
        [p for name, p in model.named_parameters() if p.requires_grad and (only is None or only(name))],
        lr=rate,
        **fields,
    )


def nesterov(rate: float, momentum: float = 0.9, decay: float = 0.0) -> Optimize:
    return using(torch.optim.SGD, rate, momentum=momentum, nesterov=True, weight_decay=decay)


# --- data --------------------------------------------------------------------------------------------------------------


def enlarged() -> Pair:
    """Digits as pictures of 16 x 16 pixels, 0 to 1: (N, 1, 16, 16)."""

    def part(split: Split) -> Split:
        pictures = functional.interpolate(split.inputs.reshape(-1, 1, 8, 8) / 16, size=16, mode="bilinear")
        return replace(split, inputs=pictures)

    pair = digits(raw=True)
    return Pair(part(pair.train), part(pair.validation))


def each(pair: Pair, change: Callable[[Split], Split]) -> Pair:
    """Both parts changed alike."""
    return Pair(change(pair.train), change(pair.validation))


def trained_on(pair: Pair, change: Callable[[Split], Split]) -> Pair:
    """Only what is trained on is changed: validation shows the truth."""
    return replace(pair, train=change(pair.train))


MODULES = (random, statistics, textwrap)


@cache
def documentation(module: Any) -> str:
    """What a module of the standard library says of itself and of its functions and classes, one case of letters."""
    members = [
        member for _, member in inspect.getmembers(module) if getattr(member, "__module__", "") == module.__name__
    ]
    texts = [inspect.getdoc(part) or "" for part in (module, *members)]
    return "\n".join(texts).lower()


def spoken_of(length: int) -> tuple[Pair, int]:
    """Windows of documentation, (N, T) character numbers, and which of the modules they speak of (N,)."""
    texts = [documentation(module) for module in MODULES]
    alphabet = sorted(set("".join(texts)))
    windows, labels = [], []
    for label, text in enumerate(texts):
        codes = torch.tensor([alphabet.index(character) for character in text])
        own = codes.unfold(0, length, length // 2)
        windows.append(own)
        labels += [label] * len(own)
    return _parts(torch.cat(windows), torch.tensor(labels), 100), len(alphabet)


# --- parts of models ---------------------------------------------------------------------------------------------------


class AttentionPooling(nn.Module):
    """(B, T, W) -> (B, W): the mean over positions, weighted by how each answers one learnt question."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.score(x).softmax(1) * x).sum(1)  # type: ignore[no-any-return]


class Residual(nn.Module):
    """x + part(x)."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.part = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.part(x)  # type: ignore[no-any-return]
