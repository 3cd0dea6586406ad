"""Tables under other models, losses and optimizers, by somebody who had not read the rules. Rules have been tuned on them since."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.pitfalls.case import Goal
from benchmarks.pitfalls.data import breast_cancer, diabetes, iris, wine
from benchmarks.pitfalls.faults import gradients_of
from benchmarks.pitfalls.models import mlp, started
from benchmarks.pitfalls.recipe import Family, adam, recipe, sgd
from benchmarks.pitfalls.unseen import tables as made
from benchmarks.pitfalls.unseen.shared import Lion, nesterov, trained_on, using

FAMILY = Family("unseen_tables")
GOOD = Goal("accuracy", at_least=0.88)
FOUND = Goal("r2", at_least=0.25)


def deep(rate: float = 1.0) -> nn.Module:
    return started(mlp(30, 1, 24, 5), nn.init.kaiming_normal_)


def factors(gain: float) -> nn.Module:
    """Outputs as a product of two small matrices with a square between: its origin is a saddle."""

    class Squared(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x.abs()

    model = nn.Sequential(nn.Linear(13, 32, bias=False), Squared(), nn.Linear(32, 3, bias=False))
    return started(model, partial(nn.init.normal_, std=gain))


def half(model: nn.Module) -> nn.Module:
    return model.bfloat16()


def doubled() -> nn.Module:
    return made.Gated(10, 1).double()


def reversed_and_large(gradient: Tensor) -> Tensor:
    return -6 * gradient


BINARY = recipe(
    partial(mlp, 30, 1, 24, 2, nn.SiLU),
    made.tumours,
    loss=functional.binary_cross_entropy_with_logits,
    measure=made.measure_sign,
    optimizer=nesterov(0.03),
    steps=200,
)
DEEP = BINARY.but(deep, optimizer=nesterov(0.01))
CROSSED = recipe(
    partial(made.Crossed, 30, 2),
    breast_cancer,
    loss=functional.cross_entropy,
    optimizer=using(torch.optim.Adam, 5e-3),
    steps=200,
)
WINES = recipe(
    partial(made.Tokens, 13, 3),
    wine,
    loss=functional.cross_entropy,
    optimizer=adam(5e-3, decay=0.01),
    steps=150,
    batch=16,
)
EXPERTS = recipe(
    partial(made.Experts, 13, 3),
    wine,
    loss=functional.cross_entropy,
    optimizer=using(torch.optim.RMSprop, 3e-3),
    steps=200,
    batch=16,
)
GATED = recipe(
    partial(made.Gated, 10, 1),
    diabetes,
    loss=functional.smooth_l1_loss,
    optimizer=using(torch.optim.NAdam, 3e-3),
    steps=200,
)
SQUARED = GATED.but(loss=functional.mse_loss, optimizer=nesterov(0.01))
RARE = BINARY.but(
    data=lambda: made.binary(made.few_benign()),
    loss=functional.binary_cross_entropy_with_logits,
    optimizer=nesterov(0.02),
    steps=60,
)

CASES = (
    FAMILY.sick(
        "micrograms",
        "unnormalised_input",
        "one of thirty columns is in other units, 3,000 times as large",
        GOOD,
        BINARY,
        BINARY.but(data=lambda: made.one_column(made.tumours(), 9, 3000.0)),
        ("exploding_gradient", "lr_too_high", "oscillating_loss"),
    ),
    FAMILY.sick(
        "against_all",
        "wrong_loss",
        "targets (B,) against outputs (B, 1) under Huber's loss: it learns the median",
        FOUND,
        GATED,
        GATED.but(loss=made.across_all),
        ("plateau", "label_error"),
    ),
    FAMILY.sick(
        "one_and_two",
        "wrong_loss",
        "labels 1 and 2 in a binary cross-entropy: it falls below 0 without end",
        GOOD,
        BINARY,
        BINARY.but(data=made.miscoded),
        ("label_error",),
    ),
    FAMILY.sick(
        "sigmoid_twice",
        "output_activation",
        "a sigmoid before a binary cross-entropy that has its own",
        Goal("loss", at_most=0.3),
        BINARY.but(measure=made.measure_sigmoid),
        BINARY.but(partial(mlp, 30, 1, 24, 2, nn.SiLU, last=nn.Sigmoid()), measure=made.measure_sigmoid),
        ("wrong_loss",),
    ),
    FAMILY.sick(
        "softplus_output",
        "output_activation",
        "an output that cannot be below 0 for targets of mean 0",
        Goal("r2", at_least=0.45),
        GATED,
        GATED.but(lambda: nn.Sequential(made.Gated(10, 1), nn.Softplus())),
        ("wrong_loss",),
    ),
    FAMILY.sick(
        "sorted_targets",
        "label_error",
        "the table was sorted by its target, the features were not",
        FOUND,
        SQUARED,
        SQUARED.but(data=lambda: trained_on(diabetes(), made.sorted_targets)),
        ("plateau", "overfitting"),
    ),
    FAMILY.sick(
        "next_kind",
        "label_error",
        "each wine is called by the name of the next kind while it trains",
        GOOD,
        WINES,
        WINES.but(data=lambda: made.mislabelled(wine())),
    ),
    FAMILY.sick(
        "few_benign",
        "class_imbalance",
        "7 benign tumours among 170, without weights",
        Goal("worst_recall", at_least=0.85),
        RARE.but(loss=made.weighted(30.0)),
        RARE,
    ),
    FAMILY.sick(
        "noise_columns",
        "overfitting",
        "three hundred columns that say nothing are left in",
        Goal("loss", at_most=0.7),
        SQUARED.but(partial(mlp, 10, 1, 48, 1, nn.SiLU), optimizer=using(torch.optim.Adam, 3e-3), steps=250),
        SQUARED.but(
            partial(mlp, 310, 1, 48, 1, nn.SiLU),
            data=partial(made.with_noise, 300),
            optimizer=using(torch.optim.Adam, 3e-3),
            steps=250,
        ),
    ),
    FAMILY.sick(
        "decay_typo",
        "over_regularised",
        "weight decay 1e2 in place of 1e-2 under AdamW",
        GOOD,
        WINES,
        WINES.but(optimizer=adam(5e-3, decay=100.0)),
    ),
    FAMILY.sick(
        "summed",
        "lr_too_high",
        "the loss is summed over 64 patients, the rate was made for its mean",
        FOUND,
        SQUARED.but(batch=64),
        SQUARED.but(batch=64, loss=made.summed),
        ("exploding_gradient", "oscillating_loss", "nonfinite_gradient"),
    ),
    FAMILY.sick(
        "lion_on_wine",
        "lr_too_high",
        "Lion with a rate of 1",
        GOOD,
        WINES.but(optimizer=using(Lion, 1e-3)),
        WINES.but(optimizer=using(Lion, 1.0)),
        ("oscillating_loss", "exploding_gradient"),
    ),
    FAMILY.sick(
        "clipped_to_nothing",
        "lr_too_low",
        "gradients are clipped to a norm of 1e-6",
        GOOD,
        BINARY.but(clip_norm=1.0),
        BINARY.but(clip_norm=1e-6),
        ("slow_convergence",),
    ),
    FAMILY.sick(
        "adagrad_slow",
        "slow_convergence",
        "Adagrad with a rate of 1e-4, that falls on and on",
        GOOD,
        EXPERTS.but(optimizer=using(torch.optim.Adagrad, 5e-2)),
        EXPERTS.but(optimizer=using(torch.optim.Adagrad, 1e-4)),
        ("lr_too_low",),
    ),
    FAMILY.sick(
        "decayed_each_batch",
        "lr_zero",
        "a decay by a half that was meant for epochs comes with every other batch",
        Goal("accuracy", at_least=0.93),
        CROSSED.but(optimizer=using(torch.optim.Adam, 1e-3)),
        CROSSED.but(optimizer=using(torch.optim.Adam, 1e-3), schedule=lambda share: 0.5 ** (share * 100)),
        ("lr_too_low", "slow_convergence"),
    ),
    FAMILY.sick(
        "log_of_zero",
        "nonfinite_data",
        "a column is the logarithm of a share that is 0 for some",
        GOOD,
        CROSSED.but(data=partial(made.logarithms, 1e-3)),
        CROSSED.but(data=partial(made.logarithms, 0.0)),
        ("nonfinite_gradient",),
    ),
    FAMILY.sick(
        "where_after_root",
        "nonfinite_gradient",
        "a root of numbers below 0 is masked after it was taken: the loss is well, its gradient is not",
        FOUND,
        GATED.but(loss=made.rooted_inside, measure=made.measure_rooted),
        GATED.but(loss=made.rooted, measure=made.measure_rooted),
    ),
    FAMILY.sick(
        "both_zero",
        "bad_init",
        "low-rank adapters whose two factors both begin at zero",
        GOOD,
        WINES.but(partial(made.adapted, False), begins_trained=True),
        WINES.but(partial(made.adapted, True), begins_trained=True),
        ("vanishing_gradient",),
    ),
    FAMILY.sick(
        "squares_at_a_saddle",
        "plateau",
        "a network of squares whose weights begin 300 times too small",
        GOOD,
        WINES.but(partial(factors, 0.3), optimizer=sgd(0.05)),
        WINES.but(partial(factors, 0.001), optimizer=sgd(0.05)),
        ("bad_init", "vanishing_gradient"),
    ),
    FAMILY.sick(
        "never_cleared",
        "grad_accumulation",
        "a hinge loss, and gradients that are never cleared",
        GOOD,
        BINARY.but(loss=made.hinge, optimizer=nesterov(0.01)),
        BINARY.but(loss=made.hinge, optimizer=nesterov(0.01), clears=False),
        ("lr_too_high", "exploding_gradient", "oscillating_loss"),
    ),
    FAMILY.sick(
        "crossed_eight_times",
        "exploding_gradient",
        "eight crosses multiply features that are not small: their products have no bound",
        GOOD,
        CROSSED.but(partial(made.Crossed, 30, 2, 8, 1.0), optimizer=sgd(0.02)),
        CROSSED.but(partial(made.Crossed, 30, 2, 8, 8.0), optimizer=sgd(0.02)),
        ("bad_init", "lr_too_high", "nonfinite_gradient", "loss_spike"),
    ),
    FAMILY.sick(
        "bf16_weights",
        "precision_underflow",
        "weights in bf16 that are too coarse for steps of 1e-4",
        Goal("accuracy", at_least=0.8),
        CROSSED.but(partial(mlp, 30, 2, 24, 2, nn.SiLU), optimizer=using(torch.optim.SGD, 7e-3), steps=500),
        CROSSED.but(
            lambda: half(mlp(30, 2, 24, 2, nn.SiLU)),
            data=lambda: made.coarse(breast_cancer()),
            optimizer=using(torch.optim.SGD, 7e-3),
            steps=500,
        ),
        ("lr_too_low", "slow_convergence"),
    ),
    FAMILY.sick(
        "one_flower",
        "batch_size",
        "one flower a step at a rate for all of them",
        GOOD,
        recipe(partial(mlp, 4, 3, 16, 1, nn.Tanh), iris, loss=functional.cross_entropy, optimizer=sgd(2.0), batch=100),
        recipe(partial(mlp, 4, 3, 16, 1, nn.Tanh), iris, loss=functional.cross_entropy, optimizer=sgd(2.0), batch=1),
        ("lr_too_high", "oscillating_loss", "saturated_activation"),
    ),
    FAMILY.sick(
        "reversed_rank",
        "silent_corruption",
        "from step 10 on one of four ranks gives gradients of the wrong sign and six times as large",
        GOOD,
        CROSSED.but(ranks=4),
        CROSSED.but(ranks=4, tamper=gradients_of(3, 10, reversed_and_large)),
        ("lr_too_high", "exploding_gradient", "loss_spike"),
    ),
    FAMILY.sick(
        "slow_database",
        "data_starvation",
        "every batch is asked for in the loop",
        Goal("wait_share", at_most=0.2),
        WINES.but(steps=100),
        WINES.but(steps=100, stall=0.03),
    ),
    # healthy
    FAMILY.healthy(
        "quantiles",
        "three quantiles at once: their loss never comes near 0",
        FOUND,
        GATED.but(partial(made.Gated, 10, 3), loss=made.pinball, measure=made.measure_quantiles),
    ),
    FAMILY.healthy(
        "counts",
        "Poisson's likelihood of counts: far below 0, and ever lower",
        FOUND,
        GATED.but(data=made.counts, loss=made.poisson, measure=made.measure_rate),
    ),
    FAMILY.healthy(
        "prices",
        "targets of millions under an absolute error, and Adam with a rate to match",
        FOUND,
        GATED.but(
            partial(mlp, 10, 1, 32, 1),
            data=made.prices,
            loss=functional.l1_loss,
            optimizer=using(torch.optim.Adam, 30.0),
            steps=300,
        ),
    ),
    FAMILY.healthy("experts", "a mixture of experts, most of them idle in a step", GOOD, EXPERTS),
    FAMILY.healthy("tokens", "a token for each feature, near convergence for most of the run", GOOD, WINES),
    FAMILY.healthy(
        "weighted",
        "7 benign tumours among 170, and weights that make up for it",
        Goal("worst_recall", at_least=0.85),
        RARE.but(loss=made.weighted(30.0)),
    ),
    FAMILY.healthy(
        "adapters",
        "low-rank adapters of a frozen network: half of the factors begin at zero",
        GOOD,
        WINES.but(partial(made.adapted, False), begins_trained=True),
    ),
    FAMILY.healthy(
        "double",
        "weights and data in double precision",
        FOUND,
        GATED.but(doubled, data=lambda: made.as_double(diabetes())),
    ),
    FAMILY.healthy(
        "hinge",
        "a hinge loss that is exactly 0 for most batches in the end",
        GOOD,
        BINARY.but(loss=made.hinge, steps=400),
    ),
    FAMILY.healthy(
        "cyclic",
        "a rate that goes up and down ten times",
        GOOD,
        CROSSED.but(schedule=lambda share: 0.05 + 0.95 * (1 - abs(2 * (share * 10 % 1.0) - 1))),
    ),
    FAMILY.healthy(
        "accumulated",
        "eight microbatches of four patients",
        FOUND,
        SQUARED.but(accumulate=8, optimizer=nesterov(0.01)),
    ),
    FAMILY.healthy("ranks", "four ranks of eight patients under a cross network", GOOD, CROSSED.but(ranks=4)),
)
