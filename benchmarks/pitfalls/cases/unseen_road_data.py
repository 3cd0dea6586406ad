"""What is met on the road: inputs, labels, numbers that are none, and ranks that are not alike. By somebody who has not read the rules."""

from __future__ import annotations

import math
from functools import partial

import torch

from benchmarks.pitfalls.case import Goal
from benchmarks.pitfalls.cases.unseen_road import FAMILY
from benchmarks.pitfalls.faults import gradients_of, weights_of
from benchmarks.pitfalls.models import mlp
from benchmarks.pitfalls.recipe import sgd
from benchmarks.pitfalls.unseen import road, road_data
from benchmarks.pitfalls.unseen import road_losses as losses
from benchmarks.pitfalls.unseen.road_recipes import (
    CHESTS,
    CROWDED,
    FLAT,
    ILL,
    LEANING,
    LEANS,
    MEASURED,
    MET,
    NORMED,
    PICTURES,
    RESIDUAL,
    ROWS,
    SEEN,
    SPEAKING,
    SPOKEN,
    WORN,
)

sick = FAMILY.sick
R2 = partial(Goal, "r2")
AT_ODDS = Goal("worst_recall", at_least=0.4)


def other_start(weight: torch.Tensor) -> torch.Tensor:
    return torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())) * 0.1


CASES = (
    # --- inputs
    sick(
        "rows_of_bytes",
        "unnormalised_input",
        "an LSTM reads rows of 0 to 255",
        Goal("accuracy", at_least=0.67),
        ROWS.but(optimizer=sgd(0.1, 0.9)),
        ROWS.but(data=partial(road_data.rows, 255.0), optimizer=sgd(0.1, 0.9)),
        ("saturated_activation",),
    ),
    sick(
        "years_as_they_are",
        "unnormalised_input",
        "four columns are years: 2,016 and a bit, beside others of deviation 1",
        ILL,
        MEASURED.but(partial(mlp, 36, 1, 32, 2), partial(road_data.admitted, 2016.0), optimizer=sgd(0.05, 0.9)),
        MEASURED.but(partial(mlp, 36, 1, 32, 2), partial(road_data.admitted, 0.0), optimizer=sgd(0.05, 0.9)),
        ("lr_too_high", "dying_relu"),
    ),
    sick(
        "angles_in_degrees",
        "unnormalised_input",
        "an angle is to be found in degrees, of -57 to 57, and SGD's rate is for numbers about 1",
        LEANS,
        LEANING.but(optimizer=sgd(0.05, 0.9)),
        LEANING.but(data=road_data.degrees, optimizer=sgd(0.05, 0.9)),
        ("lr_too_high", "exploding_gradient", "dying_relu"),
    ),
    sick(
        "black_pictures",
        "nonfinite_data",
        "each X-ray is standardised by itself, and some files are black: 0 / 0",
        ILL,
        CHESTS.but(data=partial(road_data.each_by_its_own, 1e-2)),
        CHESTS.but(data=partial(road_data.each_by_its_own, 0.0)),
    ),
    sick(
        "not_measured",
        "nonfinite_data",
        "three of the targets were not measured, and pandas says NaN for it",
        MET,
        CROWDED.but(data=partial(road_data.not_measured, 0.0)),
        CROWDED.but(data=partial(road_data.not_measured, math.nan)),
    ),
    sick(
        "one_rank_without_targets",
        "nonfinite_data",
        "the second of two ranks reads a column of targets that ends too early",
        MET,
        CROWDED.but(ranks=2),
        CROWDED.but(ranks=2, disturb=losses.ends_too_early(120)),
    ),
    # --- labels
    sick(
        "shuffled_after_an_epoch",
        "label_error",
        "after the first epoch inputs are shuffled again and labels are not",
        SEEN,
        PICTURES,
        PICTURES.but(disturb=losses.order_lost_after(62)),
    ),
    sick(
        "mirrored_and_not_told",
        "label_error",
        "pictures are mirrored at random, and that they lean to the other side then is forgotten",
        LEANS,
        LEANING.but(disturb=road_data.mirrored_and_told),
        LEANING.but(disturb=road_data.mirrored_but_not_told),
        ("plateau",),
    ),
    sick(
        "next_is_the_same",
        "label_error",
        "targets of training are not shifted: a letter is to be followed by itself",
        SPOKEN,
        SPEAKING,
        SPEAKING.but(data=road_data.not_shifted),
        ("overfitting",),
    ),
    sick(
        "ill_is_two",
        "label_error",
        "labels are 1 and 2 where 0 and 1 were meant, and binary cross-entropy takes them: it falls below 0",
        ILL,
        CHESTS,
        CHESTS.but(data=road_data.from_one_on),
        ("wrong_loss",),
    ),
    sick(
        "few_shirts",
        "class_imbalance",
        "one shirt for a hundred coats and pullovers",
        AT_ODDS,
        FLAT.but(partial(mlp, 196, 2, 64, 1), partial(road_data.rare_bags, 1.0), measure=losses.recalls, steps=200),
        FLAT.but(partial(mlp, 196, 2, 64, 1), road_data.rare_bags, measure=losses.recalls, steps=200),
    ),
    sick(
        "few_ill_in_a_table",
        "class_imbalance",
        "one in a hundred is ill, and nobody weighs them",
        Goal("worst_recall", at_least=0.6),
        MEASURED.but(partial(mlp, 32, 2, 32, 2), road_data.table_of_few(1.0), loss=losses.CE, measure=losses.recalls),
        MEASURED.but(partial(mlp, 32, 2, 32, 2), road_data.table_of_few(0.01), loss=losses.CE, measure=losses.recalls),
        (),
    ),
    # --- one bad moment
    sick(
        "another_sensor",
        "loss_spike",
        "two late batches are in other units, a thousand times as large",
        Goal("accuracy", at_least=0.6),
        PICTURES.but(optimizer=sgd(0.03, 0.9), schedule=losses.to_nothing, steps=300),
        PICTURES.but(optimizer=sgd(0.03, 0.9), schedule=losses.to_nothing, steps=300, disturb=losses.wild),
        ("unnormalised_input",),
    ),
    sick(
        "head_of_another_name",
        "loss_spike",
        "a resume at step 250 loads all but the last layer, when the rate is almost nothing",
        WORN,
        FLAT.but(schedule=losses.to_nothing),
        FLAT.but(schedule=losses.to_nothing, tamper=losses.head_lost(250)),
    ),
    sick(
        "resumed_with_another_rate",
        "loss_spike",
        "a resume at nine tenths begins the schedule again, for a rate ten times as high",
        Goal("accuracy", at_least=0.6),
        NORMED.but(road.picture_net, optimizer=sgd(0.05, 0.9), steps=350, schedule=losses.to_nothing),
        NORMED.but(road.picture_net, optimizer=sgd(0.05, 0.9), steps=350, schedule=losses.begun_again(0.88)),
        ("lr_too_high",),
    ),
    # --- ranks
    sick(
        "broken_multiplier",
        "silent_corruption",
        "from step 60 on one of four ranks has noise in one of eight elements of its gradients",
        Goal("accuracy", at_least=0.67),
        PICTURES.but(optimizer=sgd(0.03, 0.9), ranks=4),
        PICTURES.but(optimizer=sgd(0.03, 0.9), ranks=4, tamper=gradients_of(2, 60, losses.noisy)),
        ("rank_divergence",),
    ),
    sick(
        "half_a_message",
        "silent_corruption",
        "a part of one rank's gradients comes with another sign and three times as large",
        WORN,
        FLAT.but(ranks=2, optimizer=sgd(0.05, 0.9)),
        FLAT.but(ranks=2, optimizer=sgd(0.05, 0.9), tamper=gradients_of(1, 40, losses.cut(0.3))),
        ("rank_divergence",),
    ),
    sick(
        "fetched_from_nowhere",
        "rank_divergence",
        "the first rank draws its weights anew whenever it thinks it was restarted, the other goes on",
        WORN,
        RESIDUAL.but(ranks=2),
        RESIDUAL.but(ranks=2, tamper=weights_of(0, [30, 60, 90, 120], other_start)),
        ("silent_corruption",),
    ),
    sick(
        "one_comes_back_from_the_past",
        "rank_divergence",
        "one of two ranks starts again and loads the first checkpoint, not the last",
        SPOKEN,
        SPEAKING.but(ranks=2),
        SPEAKING.but(ranks=2, tamper=losses.older_weights(0, 150)),
        ("silent_corruption",),
    ),
)
