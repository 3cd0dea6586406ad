"""Cases that rules must not be tuned on."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional

from benchmarks.pitfalls.case import Goal
from benchmarks.pitfalls.data import digits, wine
from benchmarks.pitfalls.faults import burst, warmup_cosine
from benchmarks.pitfalls.models import Recurrent, mlp, residual_net, started
from benchmarks.pitfalls.recipe import Family, adam, recipe, sgd

FAMILY = Family("held_back", held_back=True)
GOOD = Goal("accuracy", at_least=0.85)
MLP = recipe(partial(mlp, 64, 10, 40, 3), digits, loss=functional.cross_entropy, optimizer=sgd(0.1, 0.5), steps=260)
WINE = recipe(
    partial(mlp, 13, 3, 24, 2), wine, loss=functional.cross_entropy, optimizer=adam(5e-3), steps=160, batch=20
)
LSTM = recipe(
    partial(Recurrent, nn.LSTM, 8, 10, 32),
    lambda: digits().shaped(8, 8),
    loss=functional.cross_entropy,
    optimizer=adam(1e-2),
    steps=180,
)
DEEP = MLP.but(lambda: started(mlp(64, 10, 40, 12), nn.init.kaiming_normal_), optimizer=sgd(0.02, 0.5), steps=300)

CASES = (
    FAMILY.sick(
        "sigmoid12",
        "vanishing_gradient",
        "twelve sigmoid layers of width 40 in place of ReLUs",
        GOOD,
        DEEP,
        DEEP.but(lambda: started(mlp(64, 10, 40, 12, nn.Sigmoid), nn.init.kaiming_normal_)),
    ),
    FAMILY.sick(
        "large",
        "exploding_gradient",
        "eight layers with weights of deviation 1, whatever the fan-in",
        GOOD,
        MLP.but(lambda: started(mlp(64, 10, 40, 8), nn.init.kaiming_normal_), optimizer=sgd(0.02, 0.5)),
        MLP.but(lambda: started(mlp(64, 10, 40, 8), nn.init.normal_), optimizer=sgd(0.02, 0.5)),
        ("bad_init",),
    ),
    FAMILY.sick(
        "wine_rate",
        "lr_too_high",
        "Adam with a rate of 30",
        GOOD,
        WINE,
        WINE.but(optimizer=adam(30.0)),
        ("oscillating_loss",),
    ),
    FAMILY.sick(
        "lstm_zero",
        "lr_zero",
        "the rate is 0 after 2 % of the run",
        GOOD,
        LSTM,
        LSTM.but(schedule=burst(0.02, 2.0, 0.0)),
    ),
    FAMILY.sick(
        "lstm_softmax",
        "output_activation",
        "softmax before cross-entropy",
        GOOD,
        LSTM.but(optimizer=sgd(0.5), steps=300),
        LSTM.but(lambda: nn.Sequential(Recurrent(nn.LSTM, 8, 10, 32), nn.Softmax(-1)), optimizer=sgd(0.5), steps=300),
    ),
    FAMILY.sick(
        "uncleared",
        "grad_accumulation",
        "gradients are never cleared",
        GOOD,
        MLP,
        MLP.but(clears=False),
    ),
    FAMILY.sick(
        "twins",
        "bad_init",
        "all weights are 0.02",
        GOOD,
        MLP,
        MLP.but(lambda: started(mlp(64, 10, 40, 3), partial(nn.init.constant_, val=0.02))),
    ),
    FAMILY.sick(
        "raw",
        "unnormalised_input",
        "raw features under SGD",
        GOOD,
        WINE.but(optimizer=sgd(0.1)),
        WINE.but(data=partial(wine, True), optimizer=sgd(0.1)),
    ),
    # healthy
    FAMILY.healthy("mlp", "momentum and three layers", GOOD, MLP),
    FAMILY.healthy(
        "lstm", "an LSTM with warm-up and cosine", GOOD, LSTM.but(schedule=warmup_cosine(0.15), warmup_steps=27)
    ),
    FAMILY.healthy("wine", "few samples under Adam", GOOD, WINE),
    FAMILY.healthy(
        "residual",
        "eight residual blocks that begin as the identity, bf16",
        GOOD,
        MLP.but(partial(residual_net, 64, 10, 32, 8, True), optimizer=adam(3e-3), steps=150, autocast=torch.bfloat16),
    ),
)
