"""What people ask for help with, and need none: jobs that are well and do not look it. By somebody who has not read the rules."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional

from benchmarks.pitfalls.case import Goal
from benchmarks.pitfalls.cases.unseen_desk import FAMILY
from benchmarks.pitfalls.data import breast_cancer, diabetes
from benchmarks.pitfalls.faults import stepping
from benchmarks.pitfalls.models import mlp
from benchmarks.pitfalls.recipe import adam, sgd
from benchmarks.pitfalls.unseen import desk as made
from benchmarks.pitfalls.unseen import desk_data as own
from benchmarks.pitfalls.unseen import desk_losses as losses
from benchmarks.pitfalls.unseen import field, field_losses
from benchmarks.pitfalls.unseen import field_data as real
from benchmarks.pitfalls.unseen.desk_recipes import (
    CELL,
    CHESTS,
    CLOTHES,
    COUNTED,
    FLAT,
    FOLDED,
    ILL,
    ILLNESS,
    PATIENTS,
    SEPARATE,
    WINES,
    WORDS,
    WORN,
)
from benchmarks.pitfalls.unseen.shared import nesterov, using

R2 = partial(Goal, "r2")


def stairs(share: float) -> float:
    return float(0.1 ** int(share * 3))


def begun_at_the_mean() -> nn.Module:
    net = mlp(10, 1, 16, 1)
    nn.init.constant_(net[-1].bias, float(diabetes(True).train.targets.mean()))  # type: ignore[arg-type]
    return net


def of_bytes() -> nn.Module:
    return nn.Sequential(nn.BatchNorm1d(196), *mlp(196, 10, 96, 2))


CASES = (
    FAMILY.healthy(
        "noise_on_purpose",
        "noise is added to all gradients, much of it at first",
        WORN,
        FLAT.but(optimizer=sgd(0.03, 0.9), tamper=losses.noise_that_fades(0.05)),
    ),
    FAMILY.healthy(
        "waves_drawn_once",
        "cosines of random directions, and only a linear layer on them is trained",
        WORN,
        FLAT.but(made.Waves, optimizer=adam(5e-3)),
    ),
    FAMILY.healthy(
        "counts_a_thousandth",
        "a loss that counts a thousandth, which Adam does not mind: it starts at 0.0023",
        WORN,
        FLAT.but(loss=losses.thousandth),
    ),
    FAMILY.healthy(
        "blocks_that_count_nothing_at_first",
        "sixteen blocks, each of which is multiplied by a number that begins at 0",
        WORN,
        FLAT.but(made.of_shares),
    ),
    FAMILY.healthy(
        "new_kinds_at_half_time",
        "five kinds at first, all ten from the middle on: the loss jumps, and comes down again",
        WORN,
        CLOTHES.but(disturb=losses.first_kinds_first(150, 5)),
    ),
    FAMILY.healthy(
        "two_tasks_in_turn",
        "clothes and X-rays, a batch of each in turn: the loss goes up and down at every step",
        WORN,
        CLOTHES.but(
            partial(field.convolutions, 12), own.clothes_and_chests, disturb=losses.in_turn(own.clothes_and_chests, 10)
        ),
    ),
    FAMILY.healthy(
        "mixture_of_softmaxes",
        "four softmaxes are mixed and their logarithm goes into NLLLoss, as it should",
        WORN,
        FLAT.but(made.Mixture, loss=losses.of_logarithms),
    ),
    FAMILY.healthy(
        "sigmoid_and_bce",
        "a sigmoid, and the loss that wants one",
        ILL,
        CHESTS.but(
            partial(field.convolutions, 1, last=nn.Sigmoid()),
            loss=functional.binary_cross_entropy,
            measure=losses.probabilities,
        ),
    ),
    FAMILY.healthy(
        "counts_by_a_relu",
        "a ReLU after the last layer, for counts, which are never below 0",
        R2(at_least=0.6),
        COUNTED.but(partial(made.counter, nn.ReLU())),
    ),
    FAMILY.healthy(
        "pictures_by_a_tanh",
        "an autoencoder of pixels of -1 to 1 that ends in a tanh",
        R2(at_least=0.7),
        FOLDED.but(partial(field.coder, last=nn.Tanh), own.between_minus_one_and_one, optimizer=adam(2e-3)),
    ),
    FAMILY.healthy(
        "bytes_behind_a_norm",
        "pixels of 0 to 255, and a batch norm that takes them",
        WORN,
        FLAT.but(of_bytes, lambda: real.flat(raw=True).mapped(255.0)),
    ),
    FAMILY.healthy(
        "mostly_empty_table",
        "4,000 rows for 400 words: nine in ten rows are nobody's and never have a gradient",
        Goal("accuracy", at_least=0.63),
        WORDS.but(made.Hashed, own.hashed),
    ),
    FAMILY.healthy(
        "under_attack",
        "pictures are changed towards what is got wrong: the training loss is twice that of validation",
        Goal("accuracy", at_least=0.68),
        FLAT.but(objective=losses.attacked(0.1), measure=field_losses.recalls),
    ),
    FAMILY.healthy(
        "cut_every_eight_letters",
        "a recurrent cell whose state is detached every eight letters, as long texts need it",
        Goal("accuracy", at_least=0.32),
        CELL.but(partial(made.OwnCell, real.LETTERS, cut=8)),
    ),
    FAMILY.healthy(
        "down_the_stairs",
        "the rate is a tenth after each third: the loss is flat for the last two",
        WORN,
        CLOTHES.but(optimizer=sgd(0.05, 0.9), schedule=stairs),
    ),
    FAMILY.healthy(
        "density_of_patients",
        "a density of thirty numbers by couplings: minus its logarithm falls below 0",
        Goal("loss", at_most=-0.4),
        PATIENTS.but(
            partial(made.Coupled, 30),
            loss=functional.mse_loss,
            objective=losses.density,
            measure=field_losses.with_loss(losses.density),
            optimizer=adam(3e-3),
            steps=250,
        ),
    ),
    FAMILY.healthy(
        "long_done",
        "wines are told apart after forty steps; 400 more follow with next to no gradient",
        Goal("accuracy", at_least=0.94),
        WINES.but(optimizer=adam(1e-2), steps=440),
    ),
    FAMILY.healthy(
        "own_batches_own_norms",
        "four cards, each of which norms its own sixteen pictures",
        WORN,
        SEPARATE.but(ranks=4),
    ),
    FAMILY.healthy(
        "momentum_of_099",
        "momentum of 0.99, and a rate that is a tenth of the usual",
        WORN,
        FLAT.but(optimizer=nesterov(0.003, 0.99), steps=400),
    ),
    FAMILY.healthy(
        "four_in_five_dropped",
        "a wide layer of which four in five units are dropped",
        WORN,
        FLAT.but(partial(mlp, 196, 10, 512, 1, dropout=0.8), optimizer=adam(2e-3)),
    ),
    FAMILY.healthy(
        "twenty_turns",
        "twenty layers of tanh, orthogonal at the start, with no norm and no way round them",
        WORN,
        FLAT.but(made.orthogonal_tanh, optimizer=sgd(0.01, 0.9)),
    ),
    FAMILY.healthy(
        "begun_at_the_mean",
        "targets of 25 to 346 as they are; the last bias begins at their mean and Adam has a rate to match",
        R2(at_least=0.35),
        ILLNESS.but(begun_at_the_mean, partial(diabetes, True), optimizer=adam(0.1)),
    ),
    FAMILY.healthy(
        "thirty_to_validate",
        "thirty pictures validate: that loss jumps as it likes",
        Goal("accuracy", at_least=0.6),
        FLAT.but(data=own.few_to_validate),
    ),
    FAMILY.healthy(
        "one_boot_in_twelve",
        "twelve pairs of trousers for a boot, without weights: they are easily told apart",
        Goal("worst_recall", at_least=0.9),
        CLOTHES.but(partial(field.convolutions, 2), own.boots_and_trousers, measure=field_losses.recalls, steps=100),
    ),
    FAMILY.healthy(
        "bf16_that_moves",
        "all weights are in bfloat16, and steps are large enough for them",
        WORN,
        FLAT.but(lambda: field.Half(mlp(196, 10, 96, 2)), optimizer=sgd(0.1, 0.9)),
    ),
    FAMILY.healthy(
        "settles_late",
        "the rate falls to a hundredth in the middle: a noisy loss is quiet at once",
        Goal("accuracy", at_least=0.9),
        PATIENTS.but(
            data=breast_cancer,
            optimizer=using(torch.optim.SGD, 0.02, momentum=0.9),
            batch=8,
            schedule=stepping(0.5, 0.01),
        ),
    ),
)
