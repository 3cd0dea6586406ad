"""What people ask about: data, rates and optimizers that are not what they were meant to be. By somebody who has not read the rules."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.pitfalls.case import Goal
from benchmarks.pitfalls.cases.unseen_people import BINARY, DIABETES, DIGITS, FAMILY, FOUND, GOOD, PICTURES, STEPPED
from benchmarks.pitfalls.data import digits
from benchmarks.pitfalls.faults import part_of_a_rank
from benchmarks.pitfalls.models import Recurrent, cnn, mlp
from benchmarks.pitfalls.recipe import Optimize, adam, recipe, sgd
from benchmarks.pitfalls.unseen import people as made
from benchmarks.pitfalls.unseen import people_sound as sound
from benchmarks.pitfalls.unseen.shared import nesterov, using


def weighted(*weights: float) -> partial[Tensor]:
    return partial(functional.cross_entropy, weight=torch.tensor(weights))


def head_at(rate: float) -> Optimize:
    """The last layer has a rate of its own."""

    def make(model: nn.Module) -> torch.optim.Optimizer:
        groups = [{"params": part.parameters(), "lr": 0.05} for part in model.children() if isinstance(part, nn.Linear)]
        groups[-1]["lr"] = rate
        return torch.optim.SGD(groups, momentum=0.9)

    return make


def triangle(top: float, share: float) -> float:
    """From 1 to ``top`` and back, five and a half times."""
    place = 5.5 * share % 1
    return 1 + (top - 1) * (1 - abs(2 * place - 1))


LINES = recipe(
    partial(sound.Frames, 8),
    sound.lines,
    loss=sound.connectionist,
    measure=sound.read,
    optimizer=adam(1e-2),
    steps=120,
)
RARE = recipe(
    partial(mlp, 30, 2, 24, 1, nn.GELU),
    sound.few_ill,
    loss=weighted(270.0, 7.0),
    measure=made.by_class,
    optimizer=adam(3e-3),
    steps=80,
)
MASKS = recipe(
    made.masks,
    made.outlines,
    loss=functional.binary_cross_entropy_with_logits,
    measure=made.nothing_but_loss,
    optimizer=adam(1e-2),
    steps=120,
)
NORMED = DIGITS.but(lambda: mlp(64, 10, 48, 3, nn.ReLU, nn.BatchNorm1d))
NUMBERED = DIABETES.but(made.Numbered, partial(made.numbered, False), steps=250)
SERIES = recipe(
    partial(Recurrent, nn.GRU, 1, 1, 24),
    made.series,
    loss=functional.mse_loss,
    optimizer=adam(1e-2),
    steps=120,
)
HUBER = SERIES.but(loss=functional.huber_loss, optimizer=nesterov(0.1), steps=150)
SPOKEN = recipe(
    lambda: made.Pooled(made.texts(48)[1], True),
    lambda: made.texts(48)[0],
    loss=functional.cross_entropy,
    optimizer=adam(2e-2),
    steps=120,
)
TABLE = BINARY.but(data=partial(made.with_gaps, 0.0), optimizer=nesterov(0.03))

CASES = (
    FAMILY.sick(
        "labels_without_room",
        "nonfinite_gradient",
        "CTC with two frames for two labels: equal neighbours, as 33, need a blank between them and cost infinity",
        Goal("accuracy", at_least=0.8),
        LINES,
        LINES.but(partial(sound.Frames, 2)),
    ),
    FAMILY.sick(
        "weights_upside_down",
        "class_imbalance",
        "classes are weighted by how many samples they have, and not by the inverse",
        Goal("worst_recall", at_least=0.8),
        RARE,
        RARE.but(loss=weighted(7.0, 270.0)),
        ("wrong_loss",),
    ),
    FAMILY.sick(
        "turned_without_masks",
        "label_error",
        "augmentation turns the pictures, and leaves their masks as they were",
        Goal("loss", at_most=0.25),
        MASKS,
        MASKS.but(disturb=made.turned),
        ("plateau",),
    ),
    FAMILY.sick(
        "a_folder_is_missing",
        "label_error",
        "classes are numbered by the folders that there are, and validation has one folder less",
        GOOD,
        DIGITS,
        DIGITS.but(data=made.without_a_folder),
        ("overfitting",),
    ),
    FAMILY.sick(
        "two_scales",
        "label_error",
        "targets are standardised for training, and as they were for validation",
        FOUND,
        DIABETES,
        DIABETES.but(data=made.two_scales),
    ),
    FAMILY.sick(
        "rows_by_number",
        "overfitting",
        "the number of the row was left among the features, and has an embedding",
        Goal("r2", at_least=0.35),
        NUMBERED,
        NUMBERED.but(data=partial(made.numbered, True)),
    ),
    FAMILY.sick(
        "price_of_all_weights",
        "over_regularised",
        "the sum of all absolute weights, times 0.05, is added to the loss",
        GOOD,
        DIGITS,
        DIGITS.but(objective=made.with_lasso),
    ),
    FAMILY.sick(
        "clamped",
        "over_regularised",
        "weights are clamped to 0.01 after every step, as for a critic, in a classifier of three hidden layers",
        GOOD,
        NORMED.but(partial(mlp, 64, 10, 48, 3, nn.GELU)),
        NORMED.but(partial(mlp, 64, 10, 48, 3, nn.GELU), tamper=made.clamped),
        ("vanishing_gradient",),
    ),
    FAMILY.sick(
        "two_at_a_time",
        "batch_size",
        "sixteen microbatches of two pictures, to save memory, in front of batch norms",
        GOOD,
        NORMED,
        NORMED.but(accumulate=16),
    ),
    FAMILY.sick(
        "order_of_a_set",
        "silent_corruption",
        "one of two ranks numbers the classes by itself, in the order in which a set has them",
        GOOD,
        DIGITS.but(ranks=2),
        DIGITS.but(ranks=2, disturb=part_of_a_rank(1, 2, 1, made.counted_backwards)),
        ("label_error", "rank_divergence"),
    ),
    FAMILY.sick(
        "kept_in_half",
        "nonfinite_data",
        "features were kept in sixteen bits, and the largest areas became infinite",
        GOOD,
        BINARY.but(data=partial(made.areas, False)),
        BINARY.but(data=partial(made.areas, True)),
    ),
    FAMILY.sick(
        "brightness_of_negatives",
        "nonfinite_data",
        "augmentation takes now and then a power of pixels that have been standardised, and are below 0",
        GOOD,
        PICTURES.but(disturb=made.brightened(True)),
        PICTURES.but(disturb=made.brightened(False)),
    ),
    FAMILY.sick(
        "gamma_above_one",
        "lr_too_high",
        "an exponential schedule with 1.05 where 0.95 was meant: all is well for a while",
        GOOD,
        STEPPED,
        STEPPED.but(schedule=lambda share: 1.05 ** (120 * share)),
        ("exploding_gradient", "oscillating_loss"),
    ),
    FAMILY.sick(
        "rate_of_the_head",
        "lr_too_high",
        "the new head was to have ten times the rate of the body, and has a thousand times",
        GOOD,
        STEPPED.but(optimizer=head_at(0.05)),
        STEPPED.but(optimizer=head_at(50.0)),
        ("exploding_gradient", "oscillating_loss"),
    ),
    FAMILY.sick(
        "arguments_swapped",
        "lr_too_high",
        "SGD(0.9, 0.05): the momentum is where the rate should be",
        GOOD,
        STEPPED.but(partial(cnn, layers=3), made.pictures, optimizer=sgd(0.05, 0.9)),
        STEPPED.but(partial(cnn, layers=3), made.pictures, optimizer=sgd(0.9, 0.05)),
        ("oscillating_loss",),
    ),
    FAMILY.sick(
        "rate_times_rate",
        "lr_too_low",
        "LambdaLR is given a function that returns a rate, and multiplies it by the rate",
        GOOD,
        DIGITS,
        DIGITS.but(schedule=lambda share: 5e-3),
        ("slow_convergence",),
    ),
    FAMILY.sick(
        "epsilon_of_one",
        "slow_convergence",
        "Adam with an epsilon of 1, as one finds it for another network",
        GOOD,
        DIGITS.but(optimizer=using(torch.optim.Adam, 2e-2)),
        DIGITS.but(optimizer=using(torch.optim.Adam, 2e-2, eps=1.0)),
        ("lr_too_low",),
    ),
    FAMILY.sick(
        "best_is_largest",
        "lr_zero",
        "ReduceLROnPlateau in the mode for accuracies is told losses: as long as they fall it divides the rate",
        GOOD,
        STEPPED.but(optimizer=nesterov(0.01)),
        STEPPED.but(optimizer=nesterov(0.01), schedule=lambda share: 0.1 ** (120 * share // 6)),
        ("lr_too_low",),
    ),
    FAMILY.sick(
        "minus_9999",
        "unnormalised_input",
        "missing values are -9999, in one cell of fifty",
        GOOD,
        TABLE,
        TABLE.but(data=partial(made.with_gaps, -9999.0)),
        ("exploding_gradient", "lr_too_high"),
    ),
    FAMILY.sick(
        "only_training_is_standardised",
        "unnormalised_input",
        "the transformation was added to the training data only",
        GOOD,
        BINARY,
        BINARY.but(data=made.raw_validation),
        ("label_error", "overfitting"),
    ),
    FAMILY.sick(
        "divided_twice",
        "unnormalised_input",
        "pixels from 0 to 1 are divided by 255 once more",
        GOOD,
        STEPPED.but(data=lambda: digits(raw=True).mapped(1 / 16), steps=200),
        STEPPED.but(data=lambda: digits(raw=True).mapped(1 / 16 / 255), steps=200),
        ("slow_convergence", "lr_too_low"),
    ),
    FAMILY.sick(
        "prices_as_they_are",
        "unnormalised_input",
        "prices around 30,000 into a GRU, as they are",
        Goal("r2", at_least=0.7),
        SERIES,
        SERIES.but(data=partial(made.series, 8000.0, 30000.0)),
        ("saturated_activation",),
    ),
    FAMILY.sick(
        "rolling_mean",
        "nonfinite_data",
        "a column is the mean of the last thirty days, and the first days have none",
        Goal("r2", at_least=0.7),
        SERIES.but(partial(Recurrent, nn.GRU, 2, 1, 24), partial(made.series, rolling=False)),
        SERIES.but(partial(Recurrent, nn.GRU, 2, 1, 24), partial(made.series, rolling=True)),
    ),
    FAMILY.sick(
        "delta_in_other_units",
        "lr_too_low",
        "Huber's loss with a delta of 0.001: slopes are a thousandth, and the rate was made for 1",
        Goal("r2", at_least=0.6),
        HUBER,
        HUBER.but(loss=partial(functional.huber_loss, delta=1e-3)),
        ("slow_convergence",),
    ),
    FAMILY.sick(
        "two_vocabularies",
        "label_error",
        "texts of validation were made into numbers by a vocabulary of their own",
        Goal("accuracy", at_least=0.65),
        SPOKEN,
        SPOKEN.but(data=partial(made.two_vocabularies, 48)),
        ("overfitting",),
    ),
    FAMILY.sick(
        "top_of_the_cycle",
        "oscillating_loss",
        "a rate that goes up and down five times, and whose upper end was taken too high",
        GOOD,
        STEPPED.but(schedule=partial(triangle, 3.0)),
        STEPPED.but(schedule=partial(triangle, 8.0)),
        ("lr_too_high",),
    ),
)
