"""Tables: breast cancer, wine, iris."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.pitfalls.case import Goal
from benchmarks.pitfalls.data import Pair, Split, breast_cancer, iris, thinned, wine
from benchmarks.pitfalls.faults import against
from benchmarks.pitfalls.models import mlp
from benchmarks.pitfalls.recipe import Family, adam, recipe, sgd

FAMILY = Family("tabular")
GOOD = Goal("accuracy", at_least=0.9)


def recall(model: nn.Module, split: Split) -> dict[str, float]:
    """Of the class that is recognised least."""
    answers = model(split.inputs).argmax(-1)
    shares = [(answers[split.targets == c] == c).float().mean() for c in split.targets.unique()]
    return {"worst_recall": float(torch.stack(shares).min())}


def rare() -> Pair:
    """Of the patients with a tumour 3 % are left."""
    return thinned(breast_cancer(), [1], 0.03)


def weighted(output: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(output, targets, torch.tensor([40.0, 1.0]))


CANCER = recipe(partial(mlp, 30, 2, 16, 1), breast_cancer, loss=functional.cross_entropy, optimizer=sgd(0.1), steps=200)
WINE = recipe(partial(mlp, 13, 3, 32, 1), wine, loss=functional.cross_entropy, optimizer=sgd(0.1), steps=200, batch=16)
SLOW = CANCER.but(stall=0.0, optimizer=sgd(0.1), steps=150)

CASES = (
    FAMILY.sick(
        "raw_wine",
        "unnormalised_input",
        "raw features, up to 1,680, under SGD",
        GOOD,
        WINE,
        WINE.but(data=partial(wine, True)),
    ),
    FAMILY.sick(
        "raw_cancer",
        "unnormalised_input",
        "raw features, up to 4,254, under SGD",
        GOOD,
        CANCER,
        CANCER.but(data=partial(breast_cancer, True)),
    ),
    FAMILY.sick(
        "rare_class",
        "class_imbalance",
        "3 % of the tumours are left, without class weights",
        Goal("worst_recall", at_least=0.8),
        CANCER.but(measure=recall),
        CANCER.but(data=rare, measure=recall),
    ),
    FAMILY.sick(
        "wrong_sign",
        "wrong_loss",
        "cross-entropy with the wrong sign",
        GOOD,
        WINE,
        WINE.but(loss=against(functional.cross_entropy)),
    ),
    FAMILY.sick(
        "slow_loader",
        "data_starvation",
        "the loader needs ten times as long as the step",
        Goal("wait_share", at_most=0.2),
        SLOW,
        SLOW.but(stall=0.008),
    ),
    FAMILY.sick(
        "decay", "over_regularised", "weight decay 2 under SGD", GOOD, WINE, WINE.but(optimizer=sgd(0.1, decay=2.0))
    ),
    FAMILY.sick(
        "rate_tiny",
        "lr_too_low",
        "SGD with a rate of 1e-6",
        GOOD,
        WINE,
        WINE.but(optimizer=sgd(1e-6)),
        ("slow_convergence",),
    ),
    # healthy
    FAMILY.healthy("cancer", "two classes of unequal size", GOOD, CANCER),
    FAMILY.healthy("wine", "few samples, near convergence for most of the run", GOOD, WINE.but(steps=400)),
    FAMILY.healthy(
        "iris", "150 samples of 4 features", GOOD, WINE.but(partial(mlp, 4, 3, 32, 1), data=iris, optimizer=adam(1e-2))
    ),
    FAMILY.healthy(
        "raw_norm",
        "raw features in front of a batch norm",
        GOOD,
        CANCER.but(lambda: nn.Sequential(nn.BatchNorm1d(30), *mlp(30, 2, 16, 1)), data=partial(breast_cancer, True)),
    ),
)
