"""What is met on the road and looks worse than it is: jobs that are well. By somebody who has not read the rules."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional

from benchmarks.pitfalls.case import Goal
from benchmarks.pitfalls.cases.unseen_road import FAMILY
from benchmarks.pitfalls.data import iris
from benchmarks.pitfalls.faults import restarts, summed, warmup
from benchmarks.pitfalls.models import mlp
from benchmarks.pitfalls.recipe import adam, sgd
from benchmarks.pitfalls.unseen import field, road, road_data
from benchmarks.pitfalls.unseen import road_losses as losses
from benchmarks.pitfalls.unseen.road_recipes import (
    BOTH,
    CHESTS,
    COUNTS,
    CROWDED,
    DRAWN,
    FLAT,
    ILL,
    LETTERS,
    MEASURED,
    MET,
    NORMED,
    PICTURES,
    PLACED,
    ROWS,
    SEEN,
    SPEAKING,
    SPOKEN,
    TAGGED,
    TUNED,
    WORN,
)
from benchmarks.pitfalls.unseen.shared import using

healthy = FAMILY.healthy
R2 = partial(Goal, "r2")


def drawn_once() -> nn.Module:
    """A wide layer that is not trained, and two that are."""
    net = mlp(196, 10, 192, 2)
    net[0].requires_grad_(False)
    return net


def of_means_and_deviations() -> nn.Module:
    return mlp(35, 2, 48, 2)


CASES = (
    healthy(
        "half_the_run_to_warm_up",
        "the rate rises from 0 for half the run: a language model that does not move at first",
        SPOKEN,
        LETTERS.but(optimizer=adam(5e-3), schedule=warmup(0.5), warmup_steps=125),
    ),
    healthy("one_layer_stays", "the first layer, wide and as it was drawn, is frozen", WORN, FLAT.but(drawn_once)),
    healthy(
        "labels_of_a_third",
        "labels are smoothed by 0.35: the loss stays far above 1",
        SEEN,
        PICTURES.but(loss=partial(functional.cross_entropy, label_smoothing=0.35), measure=losses.kinds),
    ),
    healthy(
        "summed_over_the_batch",
        "a loss that is a sum: 150 at first, gradients of hundreds, and a rate to match",
        WORN,
        FLAT.but(loss=summed, optimizer=sgd(5e-4, 0.9)),
    ),
    healthy(
        "tuned_by_little",
        "a net that knows it all is trained on with 3e-5: hardly anything moves, nor has to",
        Goal("accuracy", at_least=0.75),
        TUNED,
    ),
    healthy(
        "four_at_a_time",
        "four samples a batch: the loss jumps from 0 to 3",
        ILL,
        CHESTS.but(batch=4, optimizer=sgd(0.01, 0.9), steps=500),
    ),
    healthy(
        "words_one_by_one",
        "tables of words with sparse gradients: most rows are not met at a step",
        R2(at_least=0.5),
        COUNTS.but(partial(road.Counts, sparse=True), optimizer=using(torch.optim.SparseAdam, 0.02), batch=256),
    ),
    healthy(
        "back_up_five_times",
        "cosines that begin again five times: the loss climbs with each",
        WORN,
        NORMED.but(optimizer=sgd(0.1, 0.9), schedule=restarts(5)),
    ),
    healthy(
        "half_dropped_everywhere",
        "half of all inputs and six in ten units are dropped: worse in training than in validation",
        WORN,
        FLAT.but(lambda: nn.Sequential(nn.Dropout(0.5), *mlp(196, 10, 256, 2, dropout=0.6)), optimizer=adam(2e-3)),
    ),
    healthy(
        "flat_and_then_not",
        "products of two small vectors: nothing for a while, and then it falls",
        R2(at_least=0.3),
        COUNTS.but(partial(road.Counts, 1e-5, own=False), optimizer=sgd(3.0, 0.9), steps=400),
    ),
    healthy(
        "hidden_from_an_adversary",
        "part of the trunk's gradient is turned round, so that its second loss does not fall",
        WORN,
        FLAT.but(
            road.Adversary,
            objective=losses.hidden_from,
            measure=losses.with_loss(losses.hidden_from, losses.kinds),
            optimizer=adam(2e-3),
        ),
    ),
    healthy(
        "through_two_numbers",
        "pictures through two numbers: what they cannot tell is soon all that is left",
        R2(at_least=0.5),
        DRAWN.but(
            partial(field.coder, 2), objective=None, measure=None, loss=functional.mse_loss, optimizer=adam(4e-3)
        ),
    ),
    healthy(
        "done_at_once",
        "trousers and bags: told apart after twenty steps of 300",
        Goal("accuracy", at_least=0.95),
        FLAT.but(data=partial(road_data.of_kinds, 1, 8), optimizer=adam(3e-3)),
    ),
    healthy(
        "density_below_zero",
        "a mean and a deviation of how crowded residues are: the loss falls below 0",
        MET,
        CROWDED.but(of_means_and_deviations, loss=losses.normal, measure=losses.of_the_mean),
    ),
    healthy(
        "few_who_count_more",
        "one in thirty is ill, and counts thirty times",
        Goal("worst_recall", at_least=0.55),
        MEASURED.but(
            partial(mlp, 32, 2, 32, 1),
            road_data.table_of_few(0.03),
            loss=partial(functional.cross_entropy, weight=torch.tensor([0.065, 1.935])),
            measure=losses.recalls,
            optimizer=adam(1e-3, 0.1),
            steps=150,
        ),
    ),
    healthy(
        "always_clipped",
        "gradients are cut to 0.05 at every step, and the rate is 0.5",
        SEEN,
        ROWS.but(optimizer=sgd(0.5, 0.9), clip_norm=0.05),
    ),
    healthy(
        "slow_twin",
        "a mean of weights over fifty steps validates, and has no gradients",
        SEEN,
        PICTURES.but(lambda: road.Slow(road.picture_net())),
    ),
    healthy(
        "eight_small_parts",
        "a batch in eight parts, whose gradients are added up before a step",
        SEEN,
        PICTURES.but(accumulate=8, steps=150, optimizer=adam(3e-3)),
    ),
    healthy(
        "told_only_whether_right",
        "kinds are guessed, and only what was right is told: a loss about 0 that does not fall",
        Goal("accuracy", at_least=0.5),
        FLAT.but(
            objective=losses.rewards,
            measure=losses.with_loss(losses.rewards, losses.kinds),
            optimizer=adam(3e-3),
            steps=500,
        ),
    ),
    healthy(
        "margins_kept",
        "a margin loss that is exactly 0 in the end, and so are gradients",
        Goal("accuracy", at_least=0.95),
        FLAT.but(
            data=partial(road_data.of_kinds, 1, 7, 8),
            objective=losses.agreed,
            measure=losses.with_loss(losses.agreed, losses.kinds),
        ),
    ),
    healthy(
        "halves_with_a_scaler",
        "fp16 with a scaler that skips its first steps",
        WORN,
        FLAT.but(autocast=torch.float16, scaler=True),
    ),
    healthy(
        "median_of_the_crowd",
        "half the absolute error of a noisy target: a floor that is soon reached",
        MET,
        CROWDED.but(loss=losses.quantile, optimizer=adam(4e-3)),
    ),
    healthy(
        "blocks_next_to_nothing",
        "eight blocks whose scales begin at a hundred-thousandth: next to no gradient in them",
        WORN,
        FLAT.but(road.layer_scaled, optimizer=adam(2e-3)),
    ),
    healthy(
        "one_sigmoid_layer",
        "a wide layer of sigmoids, as in the nineties",
        WORN,
        FLAT.but(partial(mlp, 196, 10, 128, 1, nn.Sigmoid), optimizer=adam(5e-3)),
    ),
    healthy(
        "kinds_of_their_own",
        "two ranks, of which each has other kinds of clothes in most batches",
        WORN,
        FLAT.but(ranks=2, disturb=losses.by_kind, optimizer=sgd(0.05, 0.9)),
    ),
    healthy(
        "blends",
        "pictures are blends of two: the training loss is twice that of validation",
        WORN,
        FLAT.but(objective=losses.mixed, measure=losses.kinds, optimizer=adam(2e-3)),
    ),
    healthy(
        "great_sum_beside",
        "all pixels' squared errors are added as a second loss, which is far the larger one",
        WORN,
        BOTH,
    ),
    healthy(
        "near_and_far",
        "a contrastive loss that flattens early and goes on sorting",
        SEEN,
        PLACED,
    ),
    healthy(
        "flowers_one_by_one",
        "105 flowers and seven a batch: the loss is spiky and then next to 0",
        Goal("accuracy", at_least=0.9),
        FLAT.but(partial(mlp, 4, 3, 16, 1), iris, batch=7, optimizer=adam(1e-2)),
    ),
    healthy(
        "rate_to_nothing",
        "the rate falls to 0 by squares, and the last third is flat",
        Goal("accuracy", at_least=0.25),
        SPEAKING.but(schedule=losses.to_nothing, steps=250),
    ),
    healthy(
        "proteins_are_few",
        "proteins are few and their states hard to tell: half right is a fair share",
        Goal("accuracy", at_least=0.65),
        TAGGED.but(partial(field.Tagger, dropout=0.3), optimizer=adam(2e-3), steps=120),
    ),
)
