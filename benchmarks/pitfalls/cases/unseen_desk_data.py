"""What people ask for help with: rates, losses, data and machines that went wrong. By somebody who has not read the rules."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional

from benchmarks.pitfalls.case import Goal
from benchmarks.pitfalls.cases.unseen_desk import FAMILY
from benchmarks.pitfalls.faults import gradients_of, warmup
from benchmarks.pitfalls.models import Recurrent, Transformer
from benchmarks.pitfalls.recipe import adam, sgd
from benchmarks.pitfalls.unseen import desk_data as own
from benchmarks.pitfalls.unseen import desk_losses as losses
from benchmarks.pitfalls.unseen import field, field_losses
from benchmarks.pitfalls.unseen import field_data as real
from benchmarks.pitfalls.unseen.desk_recipes import (
    CHESTS,
    CLOTHES,
    CODED,
    FLAT,
    ILL,
    LETTERS,
    LINES,
    LOCATED,
    MATCHED,
    MEASURED,
    NEAREST,
    TUNED,
    WORDS,
    WORN,
)
from benchmarks.pitfalls.unseen.shared import using

R2 = partial(Goal, "r2")
SGD = CLOTHES.but(optimizer=sgd(0.03, 0.9))
EDGE = MEASURED.but(
    partial(nn.Linear, 32, 1),
    loss=functional.mse_loss,
    measure=None,
    batch=2428,
    steps=200,
)
SURE = FLAT.but(objective=losses.surprise(0.01), measure=losses.first_kinds)
SHIRTS = CLOTHES.but(
    partial(field.convolutions, 5, dropout=0.3),
    partial(own.few_of, 0),
    loss=partial(functional.cross_entropy, weight=torch.tensor([30.0, 1, 1, 1, 1])),
    measure=field_losses.recalls,
    steps=100,
)
DECODER = LETTERS.but(partial(Transformer, real.LETTERS, 32, 48, 2), optimizer=adam(3e-3), schedule=warmup(0.5))
GRU = LETTERS.but(partial(Recurrent, nn.GRU, 32, real.LETTERS, 96, each=True, embedded=real.LETTERS), steps=200)


def after_epochs(share: float) -> float:
    """A tenth after each of 3, 6 and 9 of 300 steps, which were to be epochs."""
    return float(0.1 ** min(3, int(share * 100 + 1e-6)))


CASES = (
    # --- rates ---------------------------------------------------------------------------------------------------------
    FAMILY.sick(
        "times_four_twice",
        "lr_too_high",
        "four cards: the script multiplies the rate by four, and the launcher has done so before",
        WORN,
        SGD.but(ranks=4),
        SGD.but(optimizer=sgd(0.48, 0.9), ranks=4),
        ("exploding_gradient", "oscillating_loss", "dying_relu"),
    ),
    FAMILY.sick(
        "too_high_a_top",
        "lr_too_high",
        "a warm-up that leads to 0.1: a decoder learns well on the way there, and has forgotten all when it arrives",
        Goal("accuracy", at_least=0.28),
        DECODER,
        DECODER.but(optimizer=adam(0.1)),
        ("oscillating_loss",),
    ),
    FAMILY.sick(
        "sum_of_sixteen",
        "lr_too_high",
        "gradients of sixteen parts are added up, and nobody divides the loss by sixteen",
        WORN,
        SGD.but(accumulate=16),
        SGD.but(accumulate=16, loss=losses.times(16.0)),
        ("exploding_gradient", "oscillating_loss", "dying_relu", "grad_accumulation"),
    ),
    FAMILY.sick(
        "nobody_shuffles",
        "oscillating_loss",
        "pictures come in the order of their folders, a kind after the other: each is learnt and forgotten for the next",
        WORN,
        SGD,
        SGD.but(disturb=losses.in_order(real.clothes, 64)),
        ("overfitting", "label_error", "loss_spike"),
    ),
    FAMILY.sick(
        "over_the_edge",
        "lr_too_high",
        "a linear model on the whole table, and a rate a little above two over the largest curvature: it swings ever wider",
        R2(at_least=0.5),
        EDGE.but(optimizer=sgd(0.03)),
        EDGE.but(optimizer=sgd(0.0502)),
        ("oscillating_loss", "exploding_gradient"),
    ),
    FAMILY.sick(
        "betas_swapped",
        "oscillating_loss",
        "Adam's two betas are swapped: a mean of a thousand gradients, divided by the size of the last ten",
        WORN,
        FLAT.but(optimizer=using(torch.optim.Adam, 1e-2, betas=(0.9, 0.999))),
        FLAT.but(optimizer=using(torch.optim.Adam, 1e-2, betas=(0.999, 0.9))),
        ("lr_too_high",),
    ),
    FAMILY.sick(
        "a_mean_divided_again",
        "lr_too_low",
        "the loss is a mean, and is divided by the size of the batch once more",
        Goal("accuracy", at_least=0.7),
        SGD,
        SGD.but(loss=losses.divided_again),
        ("slow_convergence",),
    ),
    FAMILY.sick(
        "milestones_in_epochs",
        "lr_too_low",
        "the rate is to be a tenth after 3, 6 and 9 epochs, and the scheduler is stepped with every batch",
        WORN,
        CLOTHES,
        CLOTHES.but(schedule=after_epochs),
        ("slow_convergence", "lr_zero"),
    ),
    FAMILY.sick(
        "rate_for_a_single_pair",
        "slow_convergence",
        "the rate of 0.025 of word vectors, which was meant for the sum over pairs, and a mean over 512 of them",
        Goal("accuracy", at_least=0.61),
        WORDS.but(optimizer=sgd(1.5, 0.9)),
        WORDS.but(optimizer=sgd(0.025)),
        ("lr_too_low",),
    ),
    FAMILY.sick(
        "scheduler_was_resumed",
        "lr_zero",
        "a trained net is to learn more kinds: the scheduler was loaded with the weights, and is at its end",
        WORN,
        TUNED,
        TUNED.but(schedule=lambda share: 0.0),
    ),
    # --- losses --------------------------------------------------------------------------------------------------------
    FAMILY.sick(
        "right_ones_at_place_zero",
        "wrong_loss",
        "halves of pictures are to be matched, and the labels are those of a loss that has the right one at place 0",
        Goal("accuracy", at_least=0.25),
        MATCHED,
        MATCHED.but(
            objective=losses.halves_of_the_first,
            measure=field_losses.with_loss(losses.halves_of_the_first, losses.right_half),
        ),
        ("label_error", "plateau"),
    ),
    FAMILY.sick(
        "positive_and_negative_swapped",
        "wrong_loss",
        "positive and negative are swapped in the call of a triplet loss: it falls, and like is put far from like",
        Goal("accuracy", at_least=0.65),
        NEAREST,
        NEAREST.but(
            objective=losses.triplets(True),
            measure=field_losses.with_loss(losses.triplets(True), field_losses.nearest),
        ),
        ("label_error",),
    ),
    # --- labels and classes --------------------------------------------------------------------------------------------
    FAMILY.sick(
        "cast_to_zero",
        "label_error",
        "labels of 0 and 0.5 became whole numbers: all that it trains on is well",
        ILL,
        CHESTS.but(partial(field.convolutions, 2), real.named_chests, loss=functional.cross_entropy, measure=None),
        CHESTS.but(partial(field.convolutions, 2), own.never_ill, loss=functional.cross_entropy, measure=None),
        ("class_imbalance",),
    ),
    FAMILY.sick(
        "few_shirts",
        "class_imbalance",
        "of five kinds of clothes T-shirts have a thirtieth of the pictures that the others have, and nothing makes up for it",
        Goal("worst_recall", at_least=0.4),
        SHIRTS,
        SHIRTS.but(loss=functional.cross_entropy),
    ),
    # --- fit -----------------------------------------------------------------------------------------------------------
    FAMILY.sick(
        "one_scene_by_heart",
        "overfitting",
        "forty lines of a play, which it can say by heart, and no other",
        Goal("loss", at_most=2.7),
        GRU.but(optimizer=adam(5e-3)),
        GRU.but(data=own.scene, optimizer=adam(5e-3)),
    ),
    FAMILY.sick(
        "paid_for_not_knowing",
        "over_regularised",
        "a bonus on entropy of 5, where it should be 0.01: it pays to say that all kinds are alike",
        Goal("loss", at_most=0.9),
        SURE,
        SURE.but(objective=losses.surprise(5.0)),
        ("plateau", "wrong_loss"),
    ),
    FAMILY.sick(
        "codes_too_dear",
        "over_regularised",
        "a price of 10 on codes that are to be sparse: none is used",
        R2(at_least=0.6),
        CODED,
        CODED.but(
            objective=losses.price_of_codes(10.0),
            measure=field_losses.with_loss(losses.price_of_codes(10.0), field_losses.explained),
        ),
        ("plateau", "dying_relu"),
    ),
    # --- spikes --------------------------------------------------------------------------------------------------------
    FAMILY.sick(
        "comma_forgotten",
        "loss_spike",
        "one place in one of the last batches is given as 600 and not as 0.6",
        R2(at_least=0.5),
        LOCATED,
        LOCATED.but(disturb=losses.odd_target(285, 600.0)),
        ("exploding_gradient",),
    ),
    # --- machines ------------------------------------------------------------------------------------------------------
    FAMILY.sick(
        "worn_memory",
        "silent_corruption",
        "from a third of the run on one gradient in 97 reads 20 on one of four cards",
        WORN,
        FLAT.but(ranks=4, optimizer=sgd(0.05, 0.9)),
        FLAT.but(ranks=4, optimizer=sgd(0.05, 0.9), tamper=gradients_of(2, 100, losses.stuck_words)),
        ("rank_divergence",),
    ),
    FAMILY.sick(
        "another_configuration",
        "rank_divergence",
        "one of two cards has read an older configuration: its rate is twenty times as large",
        Goal("accuracy", at_least=0.7),
        SGD.but(ranks=2),
        SGD.but(ranks=2, tamper=losses.OwnRate(1, 20.0)),
        ("silent_corruption",),
    ),
    FAMILY.sick(
        "turned_by_pillow",
        "data_starvation",
        "pictures are turned and cut in the main process: 30 ms a batch",
        Goal("wait_share", at_most=0.2),
        LINES.but(steps=60),
        LINES.but(steps=60, stall=0.03),
    ),
    FAMILY.sick(
        "as_much_as_fits",
        "batch_size",
        "as many pictures a step as fit into the card, and as many epochs as before: 24 steps in all",
        WORN,
        SGD,
        SGD.but(batch=2000, steps=24),
        ("slow_convergence", "lr_too_low"),
    ),
)
