"""Clothes, X-rays, plays and proteins: models, starts and gradients as people get them wrong. By somebody who has not read the rules."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from benchmarks.pitfalls.case import Goal
from benchmarks.pitfalls.models import mlp, residual_net, started
from benchmarks.pitfalls.recipe import Family, adam, sgd
from benchmarks.pitfalls.unseen import field as made
from benchmarks.pitfalls.unseen import field_data as real
from benchmarks.pitfalls.unseen import field_losses as losses
from benchmarks.pitfalls.unseen.field_recipes import (
    ATTENDED,
    CHESTS,
    CLOTHES,
    FLAT,
    ILL,
    LETTERS,
    LOCATED,
    MEASURED,
    MEMORY,
    OUTLINED,
    READ,
    SPOKEN,
    TOLD,
    TOUCHED,
    VIEWED,
    WORDS,
    WORN,
)

FAMILY = Family("unseen_field")


def from_minus(weight: Tensor) -> Tensor:
    return nn.init.uniform_(weight, -0.1, 0.0)


NAMED = FLAT.but(data=real.few_named, batch=16)
ADAPTED = FLAT.but(
    partial(made.adapted, rank=12),
    lambda: real.flat().mapped(-1.0),
    optimizer=adam(1e-2),
    steps=200,
    begins_trained=True,
)

CASES = (
    # --- what reaches the first layers ---------------------------------------------------------------------------------
    FAMILY.sick(
        "ten_sigmoids",
        "vanishing_gradient",
        "ten convolutions with sigmoids, as in an old book, and no norm",
        Goal("accuracy", at_least=0.7),
        CLOTHES.but(partial(made.tower, 10, nn.ReLU, True)),
        CLOTHES.but(partial(made.tower, 10, nn.Sigmoid, False)),
    ),
    FAMILY.sick(
        "deeper_is_better",
        "vanishing_gradient",
        "from 2 to 24 layers as they come, to have a deeper net, without a way round them",
        Goal("accuracy", at_least=0.7),
        FLAT.but(partial(residual_net, 196, 10, 64, 12)),
        FLAT.but(partial(mlp, 196, 10, 64, 24)),
    ),
    FAMILY.sick(
        "sums_that_double",
        "exploding_gradient",
        "24 residual blocks whose norms were taken out: every sum is twice as large as what came in",
        Goal("accuracy", at_least=0.7),
        FLAT.but(partial(made.plain_sums, 0.2), optimizer=sgd(3e-3, 0.9)),
        FLAT.but(partial(made.plain_sums, 1.0), optimizer=sgd(3e-3, 0.9)),
        ("bad_init",),
    ),
    FAMILY.sick(
        "neighbours_added_up",
        "exploding_gradient",
        "six layers of a graph add up who is near, and the norms between them were left out",
        Goal("accuracy", at_least=0.8),
        TOUCHED.but(partial(made.Contacts, 6), optimizer=sgd(0.04, 0.9), steps=80),
        TOUCHED.but(partial(made.Contacts, 6, norm=False), optimizer=sgd(0.04, 0.9), steps=80),
        ("bad_init", "lr_too_high"),
    ),
    # --- numbers that are none -----------------------------------------------------------------------------------------
    FAMILY.sick(
        "far_from_itself",
        "nonfinite_gradient",
        "distances as roots of squared differences: every picture is at 0 from itself, where a root has no slope",
        Goal("loss", at_most=0.2),
        VIEWED.but(
            objective=losses.triplets(1e-6),
            measure=losses.with_loss(losses.triplets(1e-6), losses.nearest),
        ),
        VIEWED.but(
            objective=losses.triplets(0.0),
            measure=losses.with_loss(losses.triplets(0.0), losses.nearest),
        ),
    ),
    FAMILY.sick(
        "nothing_to_attend_to",
        "nonfinite_gradient",
        "now and then a text is empty: all its scores are minus infinity, and softmax divides 0 by 0",
        TOLD,
        ATTENDED,
        ATTENDED.but(partial(made.Attentive, careful=False)),
    ),
    FAMILY.sick(
        "nobody_has_a_label",
        "nonfinite_gradient",
        "few have a label, and their loss is divided by how many they are: in some batches by 0",
        Goal("accuracy", at_least=0.6),
        NAMED.but(loss=losses.of_the_named(1.0)),
        NAMED.but(loss=losses.of_the_named(0.0)),
    ),
    FAMILY.sick(
        "probabilities_by_hand",
        "nonfinite_gradient",
        "y log p + (1 - y) log(1 - p) by hand: p is exactly 1 for what is sure",
        ILL,
        MEASURED.but(optimizer=adam(2e-2), steps=400),
        MEASURED.but(
            partial(mlp, 32, 1, 32, 2, last=nn.Sigmoid()), loss=losses.logarithms, optimizer=adam(2e-2), steps=400
        ),
    ),
    FAMILY.sick(
        "pixels_that_never_change",
        "nonfinite_data",
        "every pixel is divided by its deviation, which is 0 in the corners of the pictures that were looked at",
        WORN,
        FLAT.but(data=partial(real.by_pixel, 0.1)),
        FLAT.but(data=partial(real.by_pixel, 0.0)),
    ),
    FAMILY.sick(
        "one_over_none",
        "nonfinite_data",
        "a column is one over the number of bright pixels, and some X-rays have none",
        ILL,
        MEASURED.but(partial(mlp, 33, 1, 32, 2), partial(real.bright_chests, 1.0)),
        MEASURED.but(partial(mlp, 33, 1, 32, 2), partial(real.bright_chests, 0.0)),
    ),
    # --- activations ---------------------------------------------------------------------------------------------------
    FAMILY.sick(
        "uniform_from_minus",
        "dying_relu",
        "weights from -0.1 to 0 where -0.1 to 0.1 was meant: no unit is ever active for pixels of 0 to 1",
        WORN,
        FLAT.but(data=partial(real.flat, raw=True)),
        FLAT.but(lambda: started(mlp(196, 10, 96, 2), from_minus), partial(real.flat, raw=True)),
        ("bad_init",),
    ),
    FAMILY.sick(
        "killed_at_once",
        "dying_relu",
        "a few steps of 0.2 under Adam, and the ReLUs of a narrow net are silent for all pictures",
        WORN,
        CLOTHES,
        CLOTHES.but(optimizer=adam(0.2)),
        ("lr_too_high",),
    ),
    FAMILY.sick(
        "summed_positions",
        "saturated_activation",
        "positions are summed where their mean was meant, in front of layers of tanh: 64 times as much",
        Goal("accuracy", at_least=0.76),
        READ,
        READ.but(partial(made.Reader, mean=False)),
    ),
    # --- starts --------------------------------------------------------------------------------------------------------
    FAMILY.sick(
        "uniform_to_one",
        "bad_init",
        "a loop over all parameters of a GRU draws each from -1 to 1",
        SPOKEN,
        MEMORY,
        MEMORY.but(lambda: started(MEMORY.model(), partial(nn.init.uniform_, a=-1.0, b=1.0))),
        ("saturated_activation",),
    ),
    FAMILY.sick(
        "all_a_hundredth",
        "bad_init",
        "all weights are 0.01, so that all filters are one",
        Goal("accuracy", at_least=0.7),
        CLOTHES,
        CLOTHES.but(lambda: started(made.convolutions(), partial(nn.init.constant_, val=0.01))),
        ("plateau",),
    ),
    FAMILY.sick(
        "both_are_zero",
        "bad_init",
        "LoRA whose two matrices both begin at zero: neither has a gradient",
        Goal("accuracy", at_least=0.7),
        ADAPTED,
        ADAPTED.but(partial(made.adapted, 0.0, rank=12)),
        ("plateau", "frozen_params"),
    ),
    FAMILY.sick(
        "torch_randn",
        "bad_init",
        "weights by torch.randn, of deviation 1 whatever the width, in front of tanh",
        WORN,
        FLAT.but(partial(mlp, 196, 10, 96, 3, nn.Tanh)),
        FLAT.but(lambda: started(mlp(196, 10, 96, 3, nn.Tanh), nn.init.normal_)),
        ("saturated_activation",),
    ),
    # --- inputs --------------------------------------------------------------------------------------------------------
    FAMILY.sick(
        "bytes_as_they_are",
        "unnormalised_input",
        "pixels of 0 to 255 go into a net as they are",
        WORN,
        FLAT.but(optimizer=sgd(0.03, 0.9)),
        FLAT.but(data=lambda: real.flat(raw=True).mapped(255.0), optimizer=sgd(0.03, 0.9)),
    ),
    FAMILY.sick(
        "squares_of_bytes",
        "unnormalised_input",
        "a table of means of 0 to 255 and variances up to 10,000 into layers of tanh",
        ILL,
        MEASURED.but(partial(mlp, 32, 1, 32, 2, nn.Tanh)),
        MEASURED.but(partial(mlp, 32, 1, 32, 2, nn.Tanh), real.byte_chests),
        ("saturated_activation",),
    ),
    FAMILY.sick(
        "seconds_since_1970",
        "unnormalised_input",
        "a column with the time of the picture was left in, in seconds since 1970",
        ILL,
        MEASURED.but(partial(mlp, 33, 1, 32, 2), partial(real.dated_chests, 2e7)),
        MEASURED.but(partial(mlp, 33, 1, 32, 2), real.dated_chests),
    ),
    # --- what is not trained -------------------------------------------------------------------------------------------
    FAMILY.sick(
        "features_without_gradient",
        "frozen_params",
        "the body is called under no_grad, as it was when features were only looked at",
        Goal("r2", at_least=0.55),
        LOCATED,
        LOCATED.but(partial(made.Located, without_gradient=True)),
    ),
    FAMILY.sick(
        "only_the_head",
        "frozen_params",
        "the optimizer has the head's parameters alone, from an experiment with a trained body; this one is new",
        SPOKEN,
        LETTERS,
        LETTERS.but(optimizer=adam(3e-3, only=lambda name: name.startswith("head"))),
    ),
    FAMILY.sick(
        "never_cleared",
        "grad_accumulation",
        "zero_grad was forgotten, with SGD and momentum",
        Goal("accuracy", at_least=0.7),
        CLOTHES.but(optimizer=sgd(0.03, 0.9)),
        CLOTHES.but(optimizer=sgd(0.03, 0.9), clears=False),
    ),
    FAMILY.sick(
        "cleared_in_the_wrong_place",
        "grad_accumulation",
        "zero_grad stands before the loop of X-rays and not in it, with Adam",
        ILL,
        CHESTS.but(optimizer=adam(3e-3)),
        CHESTS.but(optimizer=adam(3e-3), clears=False),
    ),
    FAMILY.sick(
        "nothing_is_nearly_right",
        "plateau",
        "Dice's loss alone for one pixel in twenty: after a few steps no pixel is ever named, and nothing pulls it back",
        Goal("overlap", at_least=0.4),
        OUTLINED.but(data=real.bright_spots, loss=losses.spots_count_twice),
        OUTLINED.but(data=real.bright_spots, loss=losses.dice),
        ("class_imbalance", "saturated_activation"),
    ),
    FAMILY.sick(
        "vectors_of_nearly_zero",
        "plateau",
        "two tables of words are drawn of deviation 0.00001 and trained by SGD: both wait for the other at a saddle",
        Goal("accuracy", at_least=0.61),
        WORDS.but(optimizer=sgd(1.5, 0.9)),
        WORDS.but(partial(made.Pairs, 1e-5), optimizer=sgd(1.5, 0.9)),
        ("bad_init",),
    ),
)
