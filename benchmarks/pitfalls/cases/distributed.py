"""Data-parallel jobs with a sick rank."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.pitfalls.case import Goal
from benchmarks.pitfalls.data import digits
from benchmarks.pitfalls.faults import flipped_bit, gradients_of, part_of_a_rank, weights_of
from benchmarks.pitfalls.models import mlp
from benchmarks.pitfalls.recipe import Family, recipe, sgd

FAMILY = Family("distributed")
GOOD = Goal("accuracy", at_least=0.9)


def noisy(gradient: Tensor) -> Tensor:
    return gradient + 3 * torch.randn_like(gradient)


def drawn_anew(weight: Tensor) -> Tensor:
    return 0.3 * torch.randn_like(weight)


def foreign(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return 30 * torch.randn_like(x), y


TWO = recipe(partial(mlp, 64, 10), digits, loss=functional.cross_entropy, optimizer=sgd(0.1), ranks=2)
FOUR = TWO.but(ranks=4)

CASES = (
    FAMILY.sick(
        "noisy_gradients",
        "silent_corruption",
        "one of two ranks adds noise to its gradients from step 60 on",
        GOOD,
        TWO,
        TWO.but(tamper=gradients_of(1, 60, noisy)),
    ),
    FAMILY.sick(
        "flipped_weight",
        "silent_corruption",
        "a bit of an exponent flips in the weights of one of four ranks at step 90",
        GOOD,
        FOUR,
        FOUR.but(tamper=weights_of(2, [90], partial(flipped_bit, bit=30))),
        ("rank_divergence",),
    ),
    FAMILY.sick(
        "bad_shard",
        "silent_corruption",
        "one of two ranks reads noise from step 50 on",
        GOOD,
        TWO,
        TWO.but(disturb=part_of_a_rank(1, 2, 50, foreign)),
        ("rank_divergence",),
    ),
    FAMILY.sick(
        "not_broadcast",
        "rank_divergence",
        "the weights of one of two ranks are drawn anew from time to time",
        GOOD,
        TWO,
        TWO.but(tamper=weights_of(0, range(20, 300, 20), drawn_anew)),
        ("silent_corruption",),
    ),
    # healthy
    FAMILY.healthy("two", "two ranks with different data: their own norms differ", GOOD, TWO),
    FAMILY.healthy("four", "four ranks with eight samples each: their own norms are noisy", GOOD, FOUR),
)
