"""What does not train as one loss from scratch: adversaries, tasks in turn, and models that were trained before. Sick and healthy."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from benchmarks.pitfalls.case import Goal
from benchmarks.pitfalls.data import Pair, Split, digits
from benchmarks.pitfalls.models import mlp
from benchmarks.pitfalls.recipe import Family, adam, recipe, sgd

FAMILY = Family("alternating")
GOOD = Goal("accuracy", at_least=0.9)
NOISE = 16


class InTurns(nn.Module):
    """Two parts that are trained in alternating steps. ``turn`` counts passes of the training; it is the model's, so that no run knows of another."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.turn = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))  # type: ignore[no-any-return]


def adversaries() -> nn.Module:
    """A generator of pictures and what tells them from real ones."""
    return InTurns(mlp(NOISE, 64, 64, 1), mlp(64, 1, 64, 1, partial(nn.LeakyReLU, 0.2)))


def against_each_other(model: nn.Module, x: Tensor, _: Tensor) -> Tensor:
    """Goodfellow et al. 2014, with the loss of the generator that does not saturate. What is not its turn gets no gradient."""
    assert isinstance(model, InTurns)
    model.turn += model.training
    noise = torch.randn(len(x), NOISE)
    if model.turn % 2:
        judged = model.second(torch.cat([x, model.first(noise).detach()]))
        real = torch.cat([torch.ones(len(x), 1), torch.zeros(len(x), 1)])
        return functional.binary_cross_entropy_with_logits(judged, real)
    still = {name: parameter.detach() for name, parameter in model.second.named_parameters()}
    judged = functional_call(model.second, still, (model.first(noise),))
    return functional.binary_cross_entropy_with_logits(judged, torch.ones(len(x), 1))


def likeness(model: nn.Module, split: Split) -> dict[str, float]:
    """How far the mean picture that is made lies from the mean real one, as a share of how far an empty picture lies."""
    assert isinstance(model, InTurns)
    made = model.first(torch.randn(500, NOISE, generator=torch.Generator().manual_seed(1))).mean(0)
    real = split.inputs.mean(0)
    return {"distance": float((made - real).norm() / (real - real.min()).norm())}


class Tasks(nn.Module):
    """A body with two heads: what is on a picture, and the picture itself."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.classes, self.picture = mlp(64, 48, 64, 1), nn.Linear(48, 10), nn.Linear(48, 64)
        self.turn = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.classes(self.body(x).relu())  # type: ignore[no-any-return]


def in_turn(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    assert isinstance(model, Tasks)
    model.turn += model.training
    if model.turn % 2:
        return functional.cross_entropy(model(x), y)
    return functional.mse_loss(model.picture(model.body(x).relu()), x)


def trained_before() -> nn.Module:
    """For 400 steps on the first half of the training samples."""
    model = mlp(64, 10)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    half = digits().train.first(700)
    for _ in range(400):
        batch = half.at(torch.randint(len(half), (32,)))
        optimizer.zero_grad()
        functional.cross_entropy(model(batch.inputs), batch.targets).backward()
        optimizer.step()
    return model


def zeros() -> Pair:
    """Pictures of the digit 0 only."""

    def kept(split: Split) -> Split:
        return split.at(torch.nonzero(split.targets == 0).flatten())

    pair = digits()
    return Pair(kept(pair.train), kept(pair.validation))


def other_half() -> Pair:
    pair = digits()
    return Pair(pair.train.at(torch.arange(700, len(pair.train))), pair.validation)


PLAIN = recipe(partial(mlp, 64, 10), digits, loss=functional.cross_entropy, optimizer=adam(3e-3), steps=300)
GAN = PLAIN.but(
    adversaries, data=zeros, optimizer=adam(3e-3), objective=against_each_other, measure=likeness, steps=600
)
TUNED = PLAIN.but(trained_before, data=other_half, optimizer=adam(1e-5), begins_trained=True)

CASES = (
    FAMILY.sick(
        "tuned_rate",
        "lr_too_high",
        "a trained model is tuned with a rate of 3 under SGD",
        GOOD,
        TUNED.but(optimizer=sgd(1e-3)),
        TUNED.but(optimizer=sgd(3.0)),
        ("oscillating_loss",),
    ),
    FAMILY.sick(
        "tasks_rate",
        "lr_too_high",
        "two losses in turn under Adam with a rate of 1",
        GOOD,
        PLAIN.but(Tasks, objective=in_turn),
        PLAIN.but(Tasks, objective=in_turn, optimizer=adam(1.0)),
        ("oscillating_loss",),
    ),
    # healthy
    FAMILY.healthy(
        "adversaries",
        "a generator and its critic in turns: losses rise and fall as they should",
        Goal("distance", at_most=0.35),
        GAN,
    ),
    FAMILY.healthy("tasks", "two tasks in turn, with losses of two sizes", GOOD, PLAIN.but(Tasks, objective=in_turn)),
    FAMILY.healthy("tuned", "a trained model is tuned with a rate of 1e-5: hardly anything moves", GOOD, TUNED),
    FAMILY.healthy(
        "tuned_sgd", "a trained model is tuned under SGD with a rate of 1e-3", GOOD, TUNED.but(optimizer=sgd(1e-3))
    ),
)
