"""How cases are written down: a healthy recipe, and what changes when it falls sick."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from benchmarks.pitfalls.case import Case, Goal, Job
from benchmarks.pitfalls.data import Pair

Optimize = Callable[[nn.Module], torch.optim.Optimizer]
Chosen = Callable[[str], bool]  # name of a parameter -> the optimizer has it


def sgd(rate: float, momentum: float = 0.0, decay: float = 0.0, only: Chosen | None = None) -> Optimize:
    return lambda model: torch.optim.SGD(_chosen(model, only), rate, momentum=momentum, weight_decay=decay)


def adam(rate: float, decay: float = 0.0, only: Chosen | None = None) -> Optimize:
    """AdamW: its decay is decoupled."""
    return lambda model: torch.optim.AdamW(_chosen(model, only), rate, weight_decay=decay)


def _chosen(model: nn.Module, only: Chosen | None) -> list[nn.Parameter]:
    return [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (only is None or only(name))
    ]


@dataclass(frozen=True)
class Recipe:
    model: Callable[[], nn.Module]
    data: Callable[[], Pair]
    fields: Mapping[str, Any] = field(default_factory=dict)  # of the job

    def __call__(self, seed: int) -> Job:
        torch.manual_seed(seed)
        pair = self.data()
        return Job(model=self.model(), train=pair.train, validation=pair.validation, **self.fields)

    def but(
        self, model: Callable[[], nn.Module] | None = None, data: Callable[[], Pair] | None = None, **fields: Any
    ) -> Recipe:
        return Recipe(model or self.model, data or self.data, {**self.fields, **fields})


def recipe(model: Callable[[], nn.Module], data: Callable[[], Pair], **fields: Any) -> Recipe:
    return Recipe(model, data, fields)


@dataclass(frozen=True)
class Family:
    """Makes the cases of a family; their names begin with its own."""

    name: str
    held_back: bool = False

    def sick(
        self,
        name: str,
        expected: str,
        words: str,
        goal: Goal,
        healed: Recipe,
        sick: Recipe,
        accepted: tuple[str, ...] = (),
        **more: Any,
    ) -> Case:
        return Case(
            f"{self.name}/{name}", self.name, expected, words, goal, sick, healed, accepted, self.held_back, **more
        )

    def healthy(self, name: str, words: str, goal: Goal, build: Recipe, **more: Any) -> Case:
        return Case(f"{self.name}/{name}", self.name, None, words, goal, build, None, (), self.held_back, **more)
