"""Clothes, X-rays, plays and proteins: jobs that are well and may not look it. By somebody who has not read the rules."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional

from benchmarks.pitfalls.case import Goal
from benchmarks.pitfalls.cases.unseen_field import ADAPTED, FAMILY
from benchmarks.pitfalls.cases.unseen_field_data import APART, COATS, SCREENED, TUNED
from benchmarks.pitfalls.faults import restarts, warmup, warmup_cosine
from benchmarks.pitfalls.models import Transformer, mlp
from benchmarks.pitfalls.recipe import adam, sgd
from benchmarks.pitfalls.unseen import field as made
from benchmarks.pitfalls.unseen import field_data as real
from benchmarks.pitfalls.unseen import field_losses as losses
from benchmarks.pitfalls.unseen.field_recipes import (
    BENT,
    CLOTHES,
    DRAWN,
    FLAT,
    ILL,
    ITSELF,
    LETTERS,
    LOCATED,
    MEASURED,
    MEMORY,
    OUTLINED,
    PATH,
    READ,
    RESIDUAL,
    SHAPED,
    SPOKEN,
    TOLD,
    VIEWED,
    WORDS,
    WORN,
)
from benchmarks.pitfalls.unseen.shared import Lion, nesterov, using

R2 = partial(Goal, "r2")


def head_of_zeros() -> nn.Module:
    net = made.convolutions()
    nn.init.zeros_(net[-1].weight)  # type: ignore[arg-type]
    nn.init.zeros_(net[-1].bias)  # type: ignore[arg-type]
    return net


def of_lengths() -> nn.Module:
    """Every matrix is a direction and a length."""
    net = mlp(196, 10, 96, 2)
    for index in (0, 2, 4):
        net[index] = nn.utils.parametrizations.weight_norm(net[index])
    return net


def over_and_out(share: float) -> float:
    """Falls to nothing in three fifths of the run, and stays there."""
    return max(0.0, 1 - share / 0.6)


CASES = (
    # --- teachers, pupils and what is held still -----------------------------------------------------------------------
    FAMILY.healthy(
        "mean_of_its_past",
        "half of the weights are a running mean that nothing trains, and one picture in seven has a label",
        Goal("accuracy", at_least=0.62),
        FLAT.but(
            lambda: made.Averaged(mlp(196, 10, 96, 2)),
            real.few_named,
            objective=losses.taught,
            measure=losses.with_loss(losses.taught, losses.kind),
        ),
    ),
    FAMILY.healthy(
        "softened_answers",
        "a pupil learns from a teacher's answers at a temperature of 4, and sees no label",
        WORN,
        FLAT.but(
            made.pupil,
            objective=losses.softened(made.teacher),
            measure=losses.with_loss(losses.softened(made.teacher), losses.kind),
        ),
    ),
    FAMILY.healthy(
        "new_head_only",
        "nine tenths of the weights are frozen on purpose, and a new head is trained",
        Goal("accuracy", at_least=0.55),
        TUNED.but(partial(made.pretrained, frozen=True), optimizer=adam(5e-3), begins_trained=False),
    ),
    FAMILY.healthy(
        "narrow_matrices",
        "LoRA: all layers are frozen, and of the new matrices one of two begins at zero",
        Goal("accuracy", at_least=0.7),
        ADAPTED,
    ),
    FAMILY.healthy(
        "tuned_gently",
        "a net that has learnt half of the kinds is tuned at a rate of 0.01, and starts at a high loss",
        Goal("accuracy", at_least=0.7),
        TUNED.but(optimizer=sgd(1e-2, 0.9)),
    ),
    FAMILY.healthy(
        "hardly_anything_left",
        "a net that knows five kinds is trained on for them at 0.00002: its loss hardly moves",
        Goal("accuracy", at_least=0.76),
        CLOTHES.but(
            partial(made.pretrained, new_head=False),
            real.first_five,
            optimizer=adam(2e-5),
            begins_trained=True,
            steps=150,
        ),
    ),
    FAMILY.healthy(
        "head_of_zeros",
        "the last layer begins at zero: at first nothing reaches the others",
        WORN,
        CLOTHES.but(head_of_zeros),
    ),
    FAMILY.healthy(
        "blocks_of_nothing",
        "each residual block's last scale begins at zero",
        WORN,
        RESIDUAL.but(partial(made.resnet, zero=True)),
    ),
    FAMILY.healthy(
        "asked_for_one",
        "each picture is given to one of eight experts: some are seldom asked",
        WORN,
        FLAT.but(made.Experts, optimizer=adam(2e-3)),
    ),
    # --- losses that look wrong ----------------------------------------------------------------------------------------
    FAMILY.healthy(
        "smoothed_labels",
        "a fifth of the truth is spread over all kinds: the loss stays above 1.1",
        WORN,
        FLAT.but(loss=losses.smoothed),
    ),
    FAMILY.healthy(
        "two_labels_in_five",
        "two in five labels are any, which is known and borne: training accuracy stays below 0.7",
        Goal("accuracy", at_least=0.7),
        FLAT.but(partial(mlp, 196, 10, 64, 1), partial(real.with_noise, 0.4)),
    ),
    FAMILY.healthy(
        "minus_one_is_best",
        "views predict each other: a loss between 0 and -1, and half of the ways are cut for gradients",
        Goal("accuracy", at_least=0.55),
        VIEWED.but(
            partial(made.Compared, True),
            objective=losses.predicted,
            measure=losses.with_loss(losses.predicted, losses.nearest),
            optimizer=sgd(0.05, 0.9),
        ),
    ),
    FAMILY.healthy(
        "likelihood_below_zero",
        "a density of sizes whose deviation is 0.05: its logarithm is above 0, and the loss below",
        R2(at_least=0.4),
        LOCATED.but(
            partial(made.Located, outputs=2),
            real.sizes,
            loss=partial(losses.normal, spread=losses.positive),
            measure=losses.first,
        ),
    ),
    FAMILY.healthy(
        "sum_of_all_pixels",
        "squared errors of 64 pictures and 196 pixels are added up: a first loss of 2,000, all gradients clipped",
        R2(at_least=0.7),
        ITSELF.but(loss=partial(functional.mse_loss, reduction="sum"), clip_norm=1.0),
    ),
    FAMILY.healthy(
        "pixels_of_a_photograph",
        "places in pixels of a photograph of 1,200: a first loss of 80,000, which Adam does not mind",
        R2(at_least=0.5),
        LOCATED.but(
            lambda: nn.Sequential(made.Located(), made.Scaled(600.0)),
            lambda: real.placed_clothes().mapped(targets=600.0, targets_shift=600.0),
        ),
    ),
    FAMILY.healthy(
        "divergence_that_grows",
        "a variational autoencoder whose divergence counts fully after 150 steps only",
        R2(at_least=0.6),
        DRAWN.but(
            objective=losses.evidence(2.0, 150), measure=losses.with_loss(losses.evidence(2.0), losses.explained)
        ),
    ),
    FAMILY.healthy(
        "hidden_pixels",
        "six in ten pixels are hidden, and only they count: what cannot be known keeps the loss up",
        R2(at_least=0.55),
        ITSELF.but(
            partial(mlp, 196, 196, 128, 2),
            real.itself_standardised,
            objective=losses.filled_in,
            measure=losses.with_loss(losses.filled_in, losses.guessed),
        ),
    ),
    FAMILY.healthy(
        "overlap_as_loss", "Dice's coefficient of masks", Goal("overlap", at_least=0.75), OUTLINED.but(loss=losses.dice)
    ),
    FAMILY.healthy(
        "one_pixel_in_twenty",
        "one pixel in twenty is a spot, and counts twice",
        Goal("overlap", at_least=0.45),
        OUTLINED.but(
            data=real.bright_spots,
            loss=losses.spots_count_twice,
        ),
    ),
    FAMILY.healthy(
        "nearer_than_others",
        "the mean distance within a class is to be smaller by 1 than to others: whoever has that has no gradient",
        Goal("loss", at_most=0.2),
        VIEWED.but(
            objective=losses.triplets(1e-6),
            measure=losses.with_loss(losses.triplets(1e-6), losses.nearest),
        ),
    ),
    FAMILY.healthy(
        "apart_by_two",
        "most pairs are as far apart as they should be and have no gradient",
        Goal("accuracy", at_least=0.65),
        APART,
    ),
    FAMILY.healthy(
        "coats_count_more",
        "one in thirty is a coat, and counts thirty times",
        Goal("worst_recall", at_least=0.75),
        COATS,
    ),
    FAMILY.healthy(
        "the_ill_count_more",
        "one in thirty is ill, and counts twenty-five times",
        Goal("worst_recall", at_least=0.6),
        SCREENED,
    ),
    # --- batches -------------------------------------------------------------------------------------------------------
    FAMILY.healthy(
        "four_at_a_time",
        "batches of four, whose losses jump",
        WORN,
        FLAT.but(batch=4, optimizer=adam(3e-4), steps=1500),
    ),
    FAMILY.healthy(
        "sixteen_parts",
        "gradients of sixteen microbatches of four are added before a step",
        WORN,
        FLAT.but(accumulate=16),
    ),
    FAMILY.healthy(
        "ever_sharper",
        "pictures are blurred at first: training begins on what validation never shows",
        WORN,
        CLOTHES.but(disturb=losses.sharper),
    ),
    FAMILY.healthy(
        "ever_longer", "texts of 8 letters at first, and of 32 in the end", SPOKEN, MEMORY.but(disturb=losses.longer)
    ),
    FAMILY.healthy(
        "mirrored_and_dropped",
        "mirrored pictures and half of the units dropped: training looks worse than validation",
        WORN,
        CLOTHES.but(partial(made.convolutions, dropout=0.5), disturb=losses.turned),
    ),
    FAMILY.healthy("four_ranks", "four ranks with sixteen pictures each", WORN, FLAT.but(ranks=4)),
    # --- rates and optimizers ------------------------------------------------------------------------------------------
    FAMILY.healthy(
        "back_to_the_top",
        "a cosine that starts anew four times",
        WORN,
        CLOTHES.but(optimizer=sgd(0.05, 0.9), schedule=restarts(4)),
    ),
    FAMILY.healthy(
        "long_way_up",
        "a warm-up of three fifths of the run",
        SPOKEN,
        MEMORY.but(optimizer=adam(6e-3), schedule=warmup(0.6)),
    ),
    FAMILY.healthy(
        "over_and_out",
        "the rate is 0 for the last two fifths, when all is learnt",
        SHAPED,
        BENT.but(schedule=over_and_out),
    ),
    FAMILY.healthy("by_sign", "Lion on letters", SPOKEN, MEMORY.but(optimizer=using(Lion, 1e-3))),
    FAMILY.healthy(
        "ever_smaller_steps",
        "Adagrad at 0.05: steps become smaller by themselves",
        TOLD,
        READ.but(optimizer=using(torch.optim.Adagrad, 0.05), steps=400),
    ),
    FAMILY.healthy(
        "whole_table_by_sign",
        "Rprop on the whole table at once",
        ILL,
        MEASURED.but(optimizer=using(torch.optim.Rprop, 1e-3), batch=2428, steps=80),
    ),
    FAMILY.healthy(
        "rate_of_one", "Adadelta at its rate of 1", WORN, CLOTHES.but(optimizer=using(torch.optim.Adadelta, 1.0))
    ),
    FAMILY.healthy(
        "up_and_down_once",
        "a rate that goes up to 0.4 with batch norm, and back",
        WORN,
        RESIDUAL.but(optimizer=nesterov(0.4), schedule=warmup_cosine(0.3), steps=200),
    ),
    FAMILY.healthy(
        "clipped_hard", "a norm of 0.01 at most, which Adam makes good again", SHAPED, PATH.but(clip_norm=0.01)
    ),
    FAMILY.healthy(
        "held_within", "no gradient's value is beyond 0.001", WORN, FLAT.but(tamper=losses.held_within(1e-3))
    ),
    FAMILY.healthy(
        "rows_now_and_then",
        "sparse tables: most words are in no batch",
        Goal("accuracy", at_least=0.63),
        WORDS.but(
            partial(made.Pairs, sparse=True), optimizer=using(torch.optim.SparseAdam, 0.01), batch=256, steps=800
        ),
    ),
    # --- parts ---------------------------------------------------------------------------------------------------------
    FAMILY.healthy(
        "one_layer_of_sigmoids",
        "one layer of sigmoids, many of them saturated in the end",
        WORN,
        FLAT.but(partial(mlp, 196, 10, 128, 1, nn.Sigmoid), optimizer=adam(5e-3)),
    ),
    FAMILY.healthy(
        "direction_and_length", "each row of a matrix is a direction and a length", WORN, FLAT.but(of_lengths)
    ),
    FAMILY.healthy(
        "head_is_table",
        "a decoder whose head is its table of letters",
        Goal("accuracy", at_least=0.26),
        LETTERS.but(partial(Transformer, real.LETTERS, 32, 48, 2, tied=True), steps=200),
    ),
    FAMILY.healthy("in_sixteen_bits", "bfloat16 for all products", WORN, CLOTHES.but(autocast=torch.bfloat16)),
    FAMILY.healthy(
        "scaled_in_half",
        "float16 with a loss that is scaled by 65,536",
        WORN,
        FLAT.but(autocast=torch.float16, scaler=True),
    ),
    FAMILY.healthy(
        "twelve_deep",
        "twelve layers, each with a norm and nothing round it",
        WORN,
        FLAT.but(partial(mlp, 196, 10, 64, 12, norm=nn.BatchNorm1d)),
    ),
    FAMILY.healthy(
        "wide_and_quiet",
        "a first layer of 1,024 units, most of which are silent for a picture",
        WORN,
        FLAT.but(partial(mlp, 196, 10, 1024, 1), optimizer=adam(5e-4, decay=0.1)),
    ),
)
