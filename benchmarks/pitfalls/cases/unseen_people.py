"""What people ask about: models, losses, gradients and numbers that are not what they were meant to be. By somebody who has not read the rules."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional

from benchmarks.pitfalls.case import Goal
from benchmarks.pitfalls.data import diabetes, digits
from benchmarks.pitfalls.models import cnn, mlp
from benchmarks.pitfalls.recipe import Family, adam, recipe, sgd
from benchmarks.pitfalls.unseen import people as made
from benchmarks.pitfalls.unseen.shared import nesterov, using
from benchmarks.pitfalls.unseen.tables import measure_sign

FAMILY = Family("unseen_people")
GOOD = Goal("accuracy", at_least=0.88)
FOUND = Goal("r2", at_least=0.3)


def net(activation: type[nn.Module] = nn.GELU, hidden: int = 2) -> nn.Sequential:
    return mlp(64, 10, 48, hidden, activation)


def threshold(value: float) -> nn.Module:
    return mlp(64, 10, 48, 2, partial(nn.Threshold, value, 0.0))


def reader(shut: float) -> nn.Module:
    return made.Reader(made.texts(48, True)[1], shut)


def pooled(mean: bool) -> nn.Module:
    return made.Pooled(made.texts(160)[1], mean)


def whitened(by_eigenvectors: bool) -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), made.Whitened(by_eigenvectors), nn.Linear(32, 10))


DIGITS = recipe(net, digits, loss=functional.cross_entropy, optimizer=adam(5e-3), steps=120)
STEPPED = DIGITS.but(optimizer=nesterov(0.05))
PICTURES = DIGITS.but(partial(cnn, norm=True), made.pictures)
BINARY = recipe(
    partial(mlp, 30, 1, 24, 2, nn.GELU),
    made.floats,
    loss=functional.binary_cross_entropy_with_logits,
    measure=measure_sign,
    optimizer=adam(5e-3),
    steps=120,
)
SHARES = BINARY.but(
    partial(mlp, 30, 1, 24, 2, nn.GELU, last=nn.Sigmoid()),
    loss=functional.binary_cross_entropy,
    measure=made.of_shares,
)
DIABETES = recipe(
    partial(mlp, 10, 1, 32, 2, nn.GELU), diabetes, loss=functional.mse_loss, optimizer=adam(3e-3), steps=120
)
PROGRESS = DIABETES.but(data=partial(diabetes, True), optimizer=adam(3e-2), steps=200)
COUNTS = PROGRESS.but(loss=made.counts, measure=made.of_logarithms, optimizer=sgd(0.02, 0.9), clip_norm=1.0, steps=250)
HALF = DIGITS.but(
    lambda: net().half(),
    lambda: made.halved(digits()),
    loss=made.in_single,
    optimizer=using(torch.optim.Adam, 2e-3, eps=1e-4),
)
READS = recipe(
    partial(reader, -1e4),
    lambda: made.texts(48, True)[0],
    loss=made.in_single,
    optimizer=adam(1e-2),
    autocast=torch.float16,
    steps=120,
)
POOLED = recipe(
    partial(pooled, True), lambda: made.texts(160)[0], loss=functional.cross_entropy, optimizer=nesterov(0.1), steps=200
)

CASES = (
    FAMILY.sick(
        "one_output",
        "wrong_loss",
        "cross-entropy over one output: its softmax is always 1, and the loss 0 from the start",
        GOOD,
        BINARY,
        BINARY.but(loss=functional.cross_entropy),
        ("output_activation",),
    ),
    FAMILY.sick(
        "zero_and_one",
        "wrong_loss",
        "labels 0 and 1 in a margin loss that asks for -1 and 1: half of the samples have no say",
        Goal("accuracy", at_least=0.92),
        BINARY.but(loss=partial(made.margin, signs=True), steps=200),
        BINARY.but(loss=partial(made.margin, signs=False), steps=200),
        ("label_error",),
    ),
    FAMILY.sick(
        "softmax_of_one",
        "output_activation",
        "a softmax over one output, which is 1 for everything",
        GOOD,
        SHARES,
        SHARES.but(partial(mlp, 30, 1, 24, 2, nn.GELU, last=nn.Softmax(1))),
        ("wrong_loss",),
    ),
    FAMILY.sick(
        "rounded_answers",
        "output_activation",
        "answers are rounded to 0 and 1 before the loss, and rounding has no slope",
        GOOD,
        SHARES.but(loss=functional.mse_loss),
        SHARES.but(partial(mlp, 30, 1, 24, 2, nn.GELU, last=made.Rounded()), loss=functional.mse_loss),
        ("wrong_loss", "frozen_params"),
    ),
    FAMILY.sick(
        "normalised_answer",
        "output_activation",
        "a batch norm without scale after the last layer: the answer has mean 0, targets have 152",
        FOUND,
        PROGRESS,
        PROGRESS.but(partial(mlp, 10, 1, 32, 2, nn.GELU, last=nn.BatchNorm1d(1, affine=False))),
        ("plateau",),
    ),
    FAMILY.sick(
        "loss_made_a_leaf",
        "frozen_params",
        "the share of wrong answers as a loss; requires_grad_() has silenced the error that followed",
        GOOD,
        DIGITS,
        DIGITS.but(objective=made.made_a_leaf),
        ("wrong_loss",),
    ),
    FAMILY.sick(
        "made_in_forward",
        "frozen_params",
        "a layer is made in forward(), anew for every batch, and the optimizer has the first one",
        GOOD,
        DIGITS.but(partial(made.Remade, False)),
        DIGITS.but(partial(made.Remade, True)),
        ("bad_init",),
    ),
    FAMILY.sick(
        "copied_back",
        "frozen_params",
        "the target network is copied into the one that learns, and not the other way, at every step",
        GOOD,
        DIGITS,
        DIGITS.but(tamper=made.copied_back()),
        ("lr_zero",),
    ),
    FAMILY.sick(
        "cleared_in_part",
        "grad_accumulation",
        "zero_grad() is called of the head, and the body's gradients add up",
        GOOD,
        STEPPED,
        STEPPED.but(objective=made.head_cleared, clears=False),
    ),
    FAMILY.sick(
        "cleared_each_epoch",
        "grad_accumulation",
        "zero_grad() stands in the loop over epochs",
        GOOD,
        STEPPED.but(made.Counted),
        STEPPED.but(made.Counted, objective=made.cleared_seldom, clears=False),
        ("oscillating_loss",),
    ),
    FAMILY.sick(
        "adam_in_half",
        "precision_underflow",
        "Adam over weights in half precision: squares of gradients and its epsilon are both 0",
        GOOD,
        HALF,
        HALF.but(optimizer=using(torch.optim.Adam, 2e-3)),
        ("precision_overflow", "nonfinite_gradient"),
    ),
    FAMILY.sick(
        "mask_in_half",
        "precision_overflow",
        "a mask of -1e9 is minus infinity in half precision, and some texts are empty",
        Goal("accuracy", at_least=0.6),
        READS,
        READS.but(partial(reader, -1e9)),
        ("nonfinite_gradient",),
    ),
    FAMILY.sick(
        "epsilon_in_half",
        "precision_underflow",
        "the logarithm of a share plus 1e-8, both of which are 0 in half precision, and a temperature of 0.1",
        GOOD,
        DIGITS.but(
            data=partial(digits, True), loss=partial(made.logarithm_of_shares, exact=True), autocast=torch.float16
        ),
        DIGITS.but(
            data=partial(digits, True), loss=partial(made.logarithm_of_shares, exact=False), autocast=torch.float16
        ),
        ("precision_overflow", "nonfinite_gradient"),
    ),
    FAMILY.sick(
        "memory_as_it_was",
        "bad_init",
        "a weight that was made by torch.empty and never filled",
        GOOD,
        STEPPED,
        STEPPED.but(lambda: made.unfilled(net())),
        ("exploding_gradient",),
    ),
    FAMILY.sick(
        "scales_of_zero",
        "bad_init",
        "a loop over all weights that was meant for biases sets the scales of batch norms to 0 as well",
        GOOD,
        PICTURES,
        PICTURES.but(lambda: made.scaled(cnn(norm=True), 0.0)),
        ("dying_relu",),
    ),
    FAMILY.sick(
        "threshold_of_six",
        "dying_relu",
        "Threshold(6, 0) where ReLU6 was meant: nothing that small passes",
        GOOD,
        STEPPED.but(partial(net, nn.ReLU6)),
        STEPPED.but(partial(threshold, 6.0)),
        ("vanishing_gradient",),
    ),
    FAMILY.sick(
        "summed_over_time",
        "saturated_activation",
        "embeddings of 160 characters are added up, not averaged, in front of a tanh",
        Goal("accuracy", at_least=0.75),
        POOLED,
        POOLED.but(partial(pooled, False)),
        ("exploding_gradient",),
    ),
    FAMILY.sick(
        "softmax_in_between",
        "vanishing_gradient",
        "a softmax after every hidden layer",
        GOOD,
        STEPPED.but(partial(net, nn.ReLU, 4), steps=200),
        STEPPED.but(lambda: mlp(64, 10, 48, 4, partial(nn.Softmax, 1)), steps=200),
        ("plateau",),
    ),
    FAMILY.sick(
        "percent_of_nothing",
        "exploding_gradient",
        "errors in per cent of targets that are near 0",
        FOUND,
        DIABETES.but(loss=partial(made.percentage, at_least=1.0), optimizer=sgd(0.03, 0.9)),
        DIABETES.but(loss=partial(made.percentage, at_least=0.0), optimizer=sgd(0.03, 0.9)),
        ("wrong_loss", "oscillating_loss"),
    ),
    FAMILY.sick(
        "exponential_of_answers",
        "exploding_gradient",
        "counts of a hundred and more under a Poisson loss: the slope is an exponential, and it is not clipped",
        FOUND,
        COUNTS,
        COUNTS.but(clip_norm=None),
        ("lr_too_high", "nonfinite_gradient"),
    ),
    FAMILY.sick(
        "steps_of_euler",
        "exploding_gradient",
        "thirty steps of a differential equation, each of size 0.3 instead of a thirtieth",
        GOOD,
        STEPPED.but(partial(made.Flow, 1 / 30)),
        STEPPED.but(partial(made.Flow, 0.3)),
        ("bad_init", "lr_too_high"),
    ),
    FAMILY.sick(
        "power_of_negatives",
        "nonfinite_gradient",
        "pooling by a power that is learnt, of numbers that may be below 0",
        GOOD,
        PICTURES.but(partial(made.retrieval, 1e-6)),
        PICTURES.but(partial(made.retrieval, None)),
    ),
    FAMILY.sick(
        "equal_eigenvalues",
        "nonfinite_gradient",
        "features are whitened by eigenvectors, whose slope has no bound where two eigenvalues are equal",
        GOOD,
        DIGITS.but(partial(whitened, False), batch=24),
        DIGITS.but(partial(whitened, True), batch=24),
    ),
    FAMILY.sick(
        "deviation_of_one",
        "nonfinite_gradient",
        "a source with one feature is divided by the deviation of that one number",
        GOOD,
        BINARY.but(partial(made.TwoSources, False)),
        BINARY.but(partial(made.TwoSources, True)),
    ),
    FAMILY.sick(
        "begun_again",
        "loss_spike",
        "a callback that was meant for the start fills the weights anew six steps before the end",
        GOOD,
        STEPPED,
        STEPPED.but(tamper=made.begun_again(115)),
    ),
)
