"""Regression: disease progression, and pictures that are to be reconstructed."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.pitfalls.case import Goal
from benchmarks.pitfalls.data import Pair, Split, diabetes, digits
from benchmarks.pitfalls.faults import against, cosine, gaussian, warmup
from benchmarks.pitfalls.models import mlp, started
from benchmarks.pitfalls.recipe import Family, adam, recipe, sgd

FAMILY = Family("regression")
GOOD = Goal("r2", at_least=0.3)
PICTURES = Goal("r2", at_least=0.5)


def pictures(scale: float = 1.0, shift: float = 0.0) -> Pair:
    """Inputs and targets are the same pictures."""

    def same(split: Split) -> Split:
        return Split(split.inputs, split.inputs * scale + shift)

    pair = digits()
    return Pair(same(pair.train), same(pair.validation))


def autoencoder(
    activation: type[nn.Module] = nn.ReLU, last: nn.Module | None = None, gain: float | None = None, hidden: int = 3
) -> nn.Module:
    model = mlp(64, 64, 48, hidden, activation, last=last)
    return model if gain is None else started(model, partial(nn.init.normal_, std=gain))


def measure_mean(model: nn.Module, split: Split) -> dict[str, float]:
    """Of a model that gives a mean and a log variance."""
    mean = model(split.inputs)[:, :1]
    return {"r2": float(1 - (mean - split.targets).square().mean() / split.targets.var(unbiased=False))}


def shuffled() -> Pair:
    pair = diabetes()
    return replace(pair, train=replace(pair.train, targets=pair.train.targets.roll(11, 0)))


def outliers(value: float, count: int) -> Pair:
    """Some training targets are ``value`` (a code for missing)."""
    pair = diabetes()
    targets = pair.train.targets.clone()
    targets[torch.arange(count) * 31 % len(targets)] = value
    return replace(pair, train=replace(pair.train, targets=targets))


def brightness() -> Pair:
    """How bright a picture is on the whole, nearly without noise: (N, 1)."""

    def mean(split: Split) -> Split:
        return Split(split.inputs, 3 * split.inputs.mean(1, keepdim=True))

    pair = digits()
    return Pair(mean(pair.train), mean(pair.validation))


def log_error(output: Tensor, targets: Tensor) -> Tensor:
    """Squared error of logarithms, of outputs that may be below 0."""
    return (output.log() - (targets + 3).log()).square().mean()


def flat_sum(output: Tensor, targets: Tensor) -> Tensor:
    """(B, 1) against (B,): every output is compared with every target."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, which people overlook
        return functional.mse_loss(output, targets.flatten())


MSE = recipe(partial(mlp, 10, 1, 32, 1), diabetes, loss=functional.mse_loss, optimizer=sgd(0.02), steps=200)
AUTO = recipe(autoencoder, pictures, loss=functional.mse_loss, optimizer=adam(3e-3), steps=250)
SGD_AUTO = AUTO.but(optimizer=sgd(0.5, 0.9), steps=400)
WIDE = MSE.but(partial(mlp, 10, 1, 128, 2), optimizer=adam(1e-3), steps=300)
RAW = MSE.but(data=partial(diabetes, True), optimizer=adam(0.3, decay=0.01), steps=200)

CASES = (
    FAMILY.sick(
        "rate_high",
        "lr_too_high",
        "SGD with a rate of 1.5",
        GOOD,
        MSE,
        MSE.but(optimizer=sgd(1.5)),
        ("oscillating_loss",),
    ),
    FAMILY.sick(
        "raw_targets",
        "exploding_gradient",
        "targets up to 346 with a rate for targets near 1",
        GOOD,
        MSE,
        MSE.but(data=partial(diabetes, True)),
        ("lr_too_high",),
    ),
    FAMILY.sick(
        "rate_tiny",
        "lr_too_low",
        "Adam with a rate of 1e-6",
        GOOD,
        MSE.but(optimizer=adam(1e-2)),
        MSE.but(optimizer=adam(1e-6)),
        ("slow_convergence",),
    ),
    FAMILY.sick(
        "relu_output",
        "output_activation",
        "an output that ends in ReLU, half of the targets are below 0",
        PICTURES,
        AUTO,
        AUTO.but(partial(autoencoder, last=nn.ReLU())),
    ),
    FAMILY.sick(
        "sigmoid_output",
        "output_activation",
        "an output that ends in a sigmoid, targets from 25 to 346",
        GOOD,
        RAW,
        RAW.but(partial(mlp, 10, 1, 32, 1, last=nn.Sigmoid())),
    ),
    FAMILY.sick(
        "tanh_output",
        "output_activation",
        "an output that ends in tanh, targets of deviation 10",
        PICTURES,
        AUTO.but(data=partial(pictures, 10.0), steps=400),
        AUTO.but(partial(autoencoder, last=nn.Tanh()), data=partial(pictures, 10.0), steps=400),
    ),
    FAMILY.sick(
        "wrong_sign",
        "wrong_loss",
        "the squared error with the wrong sign: the loss falls below 0",
        GOOD,
        MSE,
        MSE.but(loss=against(functional.mse_loss)),
    ),
    FAMILY.sick(
        "broadcast",
        "wrong_loss",
        "outputs (B, 1) are compared with targets (B,): it learns the mean",
        GOOD,
        MSE,
        MSE.but(loss=flat_sum),
    ),
    FAMILY.sick(
        "shuffled",
        "label_error",
        "targets belong to other patients",
        GOOD,
        MSE,
        MSE.but(data=shuffled),
    ),
    FAMILY.sick(
        "missing_code",
        "nonfinite_data",
        "missing targets are NaN",
        GOOD,
        MSE,
        MSE.but(data=partial(outliers, torch.nan, 9)),
    ),
    FAMILY.sick(
        "log_of_negative",
        "nonfinite_gradient",
        "the logarithm of an output that may be below 0",
        GOOD,
        MSE,
        MSE.but(loss=log_error),
    ),
    FAMILY.sick(
        "by_heart",
        "overfitting",
        "forty patients in place of 332, seen 300 times each by a wide network",
        Goal("loss", at_most=0.65),
        WIDE,
        WIDE.but(data=lambda: diabetes().small(40)),
    ),
    FAMILY.sick(
        "decay", "over_regularised", "weight decay 3 under SGD", GOOD, MSE, MSE.but(optimizer=sgd(0.02, decay=3.0))
    ),
    FAMILY.sick(
        "saddle",
        "plateau",
        "an autoencoder that begins at a saddle: weights of deviation 0.01",
        PICTURES,
        SGD_AUTO,
        SGD_AUTO.but(partial(autoencoder, gain=0.01)),
        ("vanishing_gradient", "bad_init"),
    ),
    FAMILY.sick(
        "frozen_decoder",
        "frozen_params",
        "the optimizer was made before the decoder was replaced",
        PICTURES,
        AUTO,
        AUTO.but(optimizer=adam(3e-3, only=lambda name: not name.startswith(("4", "6")))),
    ),
    FAMILY.sick(
        "rings",
        "oscillating_loss",
        "momentum 0.97 with a rate made for none",
        GOOD,
        MSE.but(optimizer=sgd(0.3)),
        MSE.but(optimizer=sgd(0.3, 0.97)),
        ("lr_too_high",),
    ),
    # healthy
    FAMILY.healthy(
        "raw_targets_adam", "targets up to 346: a loss of 29,000 and large gradients, under Adam", GOOD, RAW
    ),
    FAMILY.healthy("noise_floor", "noisy targets: the loss is flat at half of the variance from early on", GOOD, MSE),
    FAMILY.healthy(
        "gaussian",
        "a likelihood loss that falls below 0",
        PICTURES,
        AUTO.but(
            partial(mlp, 64, 2, 48),
            data=brightness,
            loss=gaussian,
            optimizer=adam(1e-3),
            clip_norm=1.0,
            measure=measure_mean,
        ),
    ),
    FAMILY.healthy(
        "autoencoder",
        "pictures through a narrow layer, with warm-up",
        PICTURES,
        AUTO.but(schedule=warmup(0.2), warmup_steps=50),
    ),
    FAMILY.healthy(
        "huber",
        "Huber's loss on targets with outliers",
        GOOD,
        MSE.but(data=partial(outliers, 12.0, 5), loss=functional.smooth_l1_loss, optimizer=sgd(0.05)),
    ),
    FAMILY.healthy(
        "cosine_late",
        "a cosine schedule that goes on for long after the floor",
        GOOD,
        MSE.but(schedule=cosine, steps=300),
    ),
)
