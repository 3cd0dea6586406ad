"""Tables whose features are ids of bins, each with an embedding: most rows have no gradient in a step, and are well."""

from __future__ import annotations

from functools import partial

from torch.nn import functional

from benchmarks.pitfalls.case import Goal
from benchmarks.pitfalls.data import Pair, binned, breast_cancer
from benchmarks.pitfalls.models import Bins
from benchmarks.pitfalls.recipe import Family, adam, recipe, sgd

FAMILY = Family("embeddings")
GOOD = Goal("accuracy", at_least=0.85)


def ids() -> Pair:
    return binned(breast_cancer())


BINS = recipe(partial(Bins, 480, 30, 2), ids, loss=functional.cross_entropy, optimizer=adam(1e-2), steps=150)

CASES = (
    FAMILY.sick(
        "rate_tiny",
        "lr_too_low",
        "SGD with a rate of 1e-6",
        GOOD,
        BINS.but(optimizer=sgd(1.0)),
        BINS.but(optimizer=sgd(1e-6)),
        ("slow_convergence",),
    ),
    FAMILY.sick(
        "rate_high",
        "lr_too_high",
        "SGD with a rate of 100",
        GOOD,
        BINS.but(optimizer=sgd(1.0)),
        BINS.but(optimizer=sgd(100.0)),
        ("oscillating_loss",),
    ),
    # healthy
    FAMILY.healthy("dense", "embeddings of which a batch touches a part", GOOD, BINS),
    FAMILY.healthy(
        "small_batch", "four samples a step: 98 % of the rows have no gradient", GOOD, BINS.but(batch=4, steps=300)
    ),
)
