"""Digits as pictures: MLPs and small convolutional networks."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.pitfalls.case import Goal
from benchmarks.pitfalls.data import Pair, digits
from benchmarks.pitfalls.faults import cosine, restarts, stepping, summed, warmup, warmup_cosine, window
from benchmarks.pitfalls.models import cnn, mlp, started
from benchmarks.pitfalls.recipe import Family, adam, recipe, sgd

FAMILY = Family("vision")
GOOD = Goal("accuracy", at_least=0.90)
MLP = recipe(partial(mlp, 64, 10), digits, loss=functional.cross_entropy, optimizer=sgd(0.1))


def pictures(raw: bool = False) -> Pair:
    return digits(raw).shaped(1, 8, 8)


CNN = recipe(cnn, pictures, loss=functional.cross_entropy, optimizer=adam(3e-3))
TANH = MLP.but(partial(mlp, 64, 10, activation=nn.Tanh))


def relabelled(share: float) -> Pair:
    """That share of the training labels drawn anew."""
    pair = digits()
    generator = torch.Generator().manual_seed(5)
    hit = torch.rand(len(pair.train), generator=generator) < share
    drawn = torch.randint(0, 10, (len(pair.train),), generator=generator)
    return replace(pair, train=replace(pair.train, targets=torch.where(hit, drawn, pair.train.targets)))


def shifted() -> Pair:
    """Inputs were sorted by something, labels were not."""
    pair = digits()
    return replace(pair, train=replace(pair.train, targets=pair.train.targets.roll(1)))


def with_rows(value: float, count: int) -> Pair:
    """A number of training samples with a pixel that is no number."""
    pair = digits()
    inputs = pair.train.inputs.clone()
    inputs[torch.arange(count) * 97 % len(inputs), 20] = value
    return replace(pair, train=replace(pair.train, inputs=inputs))


def frozen_body() -> nn.Module:
    """The first layer frozen on purpose: random features, and a head that learns."""
    model = mlp(64, 10, width=256, hidden=1)
    model[0].requires_grad_(False)
    return model


def deep_tanh(deviation: float) -> nn.Module:
    return started(mlp(64, 10, hidden=4, activation=nn.Tanh), partial(nn.init.normal_, std=deviation))


def zero_head() -> nn.Module:
    model = mlp(64, 10)
    for parameter in model[-1].parameters():
        nn.init.zeros_(parameter)
    return model


def low_logits(last: nn.Module | None) -> nn.Module:
    """The output layer's biases begin at -4."""
    model = cnn(last=last)
    nn.init.constant_(next(m for m in model if isinstance(m, nn.Linear)).bias, -4.0)
    return model


def small_kernels(weight: Tensor) -> None:
    nn.init.constant_(weight, 0.05)


def smoothed(output: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(output, targets, label_smoothing=0.2)


def squared_norm(output: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy plus the distance of the mean output from itself: the root of 0, whose slope is infinite."""
    return functional.cross_entropy(output, targets) + 1e-3 * (output - output.detach()).square().sum().sqrt()


HEART = MLP.but(partial(mlp, 64, 10, width=256), data=partial(relabelled, 0.2), optimizer=adam(1e-3))

NORMED = MLP.but(partial(mlp, 64, 10, norm=nn.BatchNorm1d), data=lambda: digits(True).mapped(3e4))

CASES = (
    FAMILY.sick(
        "rate_40x",
        "lr_too_high",
        "SGD with 40 times the rate",
        GOOD,
        MLP,
        MLP.but(optimizer=sgd(4.0)),
        ("oscillating_loss",),
    ),
    FAMILY.sick(
        "adam_rate_high",
        "lr_too_high",
        "Adam with a rate of 1.0",
        GOOD,
        CNN,
        CNN.but(optimizer=adam(1.0)),
        ("oscillating_loss",),
    ),
    FAMILY.sick(
        "momentum_rate_high",
        "oscillating_loss",
        "momentum 0.99 with a rate made for none",
        GOOD,
        TANH,
        TANH.but(optimizer=sgd(1.0, 0.99)),
        ("lr_too_high",),
    ),
    FAMILY.sick(
        "rate_tiny",
        "lr_too_low",
        "SGD with a rate of 1e-5",
        GOOD,
        MLP,
        MLP.but(optimizer=sgd(1e-5)),
        ("slow_convergence",),
    ),
    FAMILY.sick(
        "rate_small",
        "slow_convergence",
        "Adam with a rate of 1e-5: the loss falls steadily, and far too slowly",
        GOOD,
        CNN,
        CNN.but(optimizer=adam(1e-5)),
        ("lr_too_low",),
    ),
    FAMILY.sick(
        "schedule_zero",
        "lr_zero",
        "a factor of the schedule that is 0 throughout (integer division)",
        GOOD,
        MLP,
        MLP.but(schedule=lambda share: 0.0),
    ),
    FAMILY.sick(
        "schedule_dies",
        "lr_zero",
        "a schedule counted in epochs and stepped by batches: 0 after 5 % of the run",
        GOOD,
        CNN.but(optimizer=adam(1e-3)),
        CNN.but(optimizer=adam(1e-3), schedule=stepping(0.05, 0.0)),
    ),
    FAMILY.sick(
        "bias_minus_ten",
        "dying_relu",
        "biases at -10 in front of every ReLU",
        GOOD,
        MLP.but(lambda: started(mlp(64, 10, hidden=3), nn.init.kaiming_normal_)),
        MLP.but(lambda: started(mlp(64, 10, hidden=3), nn.init.kaiming_normal_, -10.0)),
        ("bad_init",),
    ),
    FAMILY.sick(
        "adam_kills_relu",
        "dying_relu",
        "the first steps of Adam with a rate of 0.3 put out the units of a deep MLP",
        GOOD,
        MLP.but(partial(mlp, 64, 10, hidden=4), optimizer=adam(1e-3)),
        MLP.but(partial(mlp, 64, 10, hidden=4), optimizer=adam(0.3)),
        ("lr_too_high",),
    ),
    FAMILY.sick(
        "tanh_wide_weights",
        "saturated_activation",
        "tanh with weights of deviation 3",
        GOOD,
        TANH.but(partial(deep_tanh, 0.12)),
        TANH.but(partial(deep_tanh, 3.0)),
        ("bad_init",),
    ),
    FAMILY.sick(
        "constant_weights",
        "bad_init",
        "all weights are 0.05: units of a layer are twins",
        GOOD,
        MLP,
        MLP.but(lambda: started(mlp(64, 10), partial(nn.init.constant_, val=0.05))),
    ),
    FAMILY.sick(
        "constant_kernels",
        "bad_init",
        "all kernels are equal",
        Goal("accuracy", at_least=0.95),
        CNN,
        CNN.but(lambda: started(cnn(), small_kernels)),
    ),
    FAMILY.sick(
        "softmax_twice",
        "output_activation",
        "softmax before cross-entropy",
        GOOD,
        MLP,
        MLP.but(partial(mlp, 64, 10, last=nn.Softmax(-1))),
    ),
    FAMILY.sick(
        "relu_logits",
        "output_activation",
        "the output layer of a convolutional network ends in a ReLU, and begins below 0",
        GOOD,
        CNN.but(partial(low_logits, None)),
        CNN.but(partial(low_logits, nn.ReLU())),
    ),
    FAMILY.sick(
        "random_labels",
        "label_error",
        "labels that have nothing to do with the pictures",
        GOOD,
        MLP,
        MLP.but(data=partial(relabelled, 1.0)),
    ),
    FAMILY.sick(
        "shifted_labels",
        "label_error",
        "labels shifted against the pictures by one row",
        GOOD,
        CNN,
        CNN.but(data=lambda: shifted().shaped(1, 8, 8)),
    ),
    FAMILY.sick(
        "bad_pixels",
        "nonfinite_data",
        "twelve training pictures hold a pixel that is NaN",
        GOOD,
        MLP,
        MLP.but(data=partial(with_rows, torch.nan, 12)),
    ),
    FAMILY.sick(
        "infinite_pixel",
        "nonfinite_data",
        "one training picture holds a pixel that is infinite",
        GOOD,
        MLP,
        MLP.but(data=partial(with_rows, torch.inf, 1)),
    ),
    FAMILY.sick(
        "root_of_zero",
        "nonfinite_gradient",
        "a regulariser that takes the root of 0",
        GOOD,
        MLP,
        MLP.but(loss=squared_norm),
    ),
    FAMILY.sick(
        "not_cleared",
        "grad_accumulation",
        "gradients are never cleared",
        GOOD,
        MLP,
        MLP.but(clears=False),
    ),
    FAMILY.sick(
        "not_cleared_cnn",
        "grad_accumulation",
        "gradients are never cleared, plain SGD on a convolutional network",
        GOOD,
        CNN.but(optimizer=sgd(0.1, 0.5)),
        CNN.but(optimizer=sgd(0.1, 0.5), clears=False),
    ),
    FAMILY.sick(
        "bad_window",
        "loss_spike",
        "after 60 % of the run eight batches come with pixels 100 times too large",
        GOOD,
        MLP,
        MLP.but(disturb=window(180, 187, inputs=100.0)),
    ),
    FAMILY.sick(
        "few_samples",
        "overfitting",
        "sixty pictures, learnt by heart with every wrong label",
        Goal("loss", at_most=1.2),
        HEART,
        HEART.but(data=lambda: relabelled(0.2).small(60)),
        ("label_error",),
    ),
    FAMILY.sick(
        "batch_of_one",
        "batch_size",
        "one picture a step at a rate for a large batch",
        GOOD,
        MLP.but(optimizer=sgd(0.5)),
        MLP.but(optimizer=sgd(0.5), batch=1),
        ("lr_too_high", "oscillating_loss"),
    ),
    FAMILY.sick(
        "fp16_overflow",
        "precision_overflow",
        "sums beyond 65,504 under fp16, in front of a batch norm",
        GOOD,
        NORMED,
        NORMED.but(autocast=torch.float16),
    ),
    # healthy
    FAMILY.healthy("plain", "nothing at all", GOOD, MLP),
    FAMILY.healthy(
        "warmup",
        "a warm-up over a fifth of the run, the rate begins near 0",
        GOOD,
        MLP.but(schedule=warmup(0.2), warmup_steps=60),
    ),
    FAMILY.healthy(
        "small_batch", "four pictures a step: noisy losses", GOOD, MLP.but(optimizer=sgd(0.02), batch=4, steps=500)
    ),
    FAMILY.healthy(
        "frozen_body", "the first layer is frozen on purpose", GOOD, MLP.but(frozen_body, optimizer=adam(3e-3))
    ),
    FAMILY.healthy(
        "zero_head",
        "the output layer begins at zero: no gradient behind it in the first step",
        GOOD,
        MLP.but(zero_head),
    ),
    FAMILY.healthy(
        "wide_relu",
        "a wide hidden layer with many units that are silent",
        GOOD,
        MLP.but(lambda: started(mlp(64, 10, width=512, hidden=2), nn.init.kaiming_normal_, -0.5), optimizer=adam(1e-3)),
    ),
    FAMILY.healthy(
        "summed_loss",
        "the loss is summed over the batch, the rate is smaller for it",
        GOOD,
        MLP.but(loss=summed, optimizer=sgd(0.1 / 32)),
    ),
    FAMILY.healthy(
        "cosine_end",
        "a cosine schedule that ends at 0, the loss is near its floor",
        GOOD,
        CNN.but(schedule=warmup_cosine(0.1), warmup_steps=30),
    ),
    FAMILY.healthy("restarts", "three warm restarts of the rate", GOOD, MLP.but(schedule=restarts(3))),
    FAMILY.healthy(
        "dropout",
        "half of the units are dropped: the training loss stays above the validation loss",
        GOOD,
        MLP.but(partial(mlp, 64, 10, width=128, dropout=0.5), optimizer=adam(3e-3)),
    ),
    FAMILY.healthy("smoothing", "label smoothing keeps the loss above 1", GOOD, MLP.but(loss=smoothed)),
    FAMILY.healthy(
        "raw_adam", "raw pixels, 0 to 16, under Adam", GOOD, CNN.but(data=partial(pictures, True), optimizer=adam(1e-3))
    ),
    FAMILY.healthy(
        "raw_batch_norm",
        "raw pixels in front of a batch norm",
        GOOD,
        MLP.but(lambda: nn.Sequential(nn.BatchNorm1d(64), *mlp(64, 10)), data=partial(digits, True)),
    ),
    FAMILY.healthy("bf16", "autocast to bf16 with fp32 weights", GOOD, CNN.but(autocast=torch.bfloat16)),
    FAMILY.healthy(
        "noisy_labels",
        "a fifth of the labels is wrong, and it learns all the same",
        GOOD,
        MLP.but(data=partial(relabelled, 0.2), optimizer=sgd(0.05)),
    ),
    FAMILY.healthy(
        "converged",
        "goes on for long after it has learnt all: gradients vanish with the loss",
        GOOD,
        MLP.but(optimizer=adam(3e-3), steps=500, schedule=cosine),
    ),
)
