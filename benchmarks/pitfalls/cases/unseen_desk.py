"""What people ask for help with: models, starts and gradients that went wrong. By somebody who has not read the rules."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import nn

from benchmarks.pitfalls.case import Goal
from benchmarks.pitfalls.data import diabetes
from benchmarks.pitfalls.models import mlp, started
from benchmarks.pitfalls.recipe import Family, adam, sgd
from benchmarks.pitfalls.unseen import desk as made
from benchmarks.pitfalls.unseen import desk_data as own
from benchmarks.pitfalls.unseen import desk_losses as losses
from benchmarks.pitfalls.unseen import field, field_losses
from benchmarks.pitfalls.unseen import field_chains as chains
from benchmarks.pitfalls.unseen import field_data as real
from benchmarks.pitfalls.unseen.desk_recipes import (
    CELL,
    CHESTS,
    CROWDED,
    FLAT,
    ILL,
    ILLNESS,
    MEASURED,
    OVERLAID,
    PATCHED,
    PATIENTS,
    SUMMED,
    WORN,
)
from benchmarks.pitfalls.unseen.shared import using

FAMILY = Family("unseen_desk")
R2 = partial(Goal, "r2")


def of_the_normal(weight: torch.Tensor) -> torch.Tensor:
    return nn.init.normal_(weight, std=0.01)


def kernels(sharpness: float) -> nn.Module:
    return made.Radial(real.flat().train.inputs[:64], sharpness)


VIEWS = FLAT.but(
    field.Compared,
    objective=losses.exponentials(0.2),
    measure=field_losses.with_loss(losses.exponentials(0.2), field_losses.nearest),
    optimizer=adam(2e-3),
)
SCALED = FLAT.but(
    objective=losses.scaled_backwards(8),
    tamper=losses.unscaled(8),
    autocast=torch.float16,
    measure=losses.first_kinds,
)
FINE = using(torch.optim.Adam, 2e-3, eps=1e-14)
RAW = CROWDED.but(partial(mlp, 35, 1, 48, 2), partial(chains.crowding, raw=True), optimizer=adam(1e-2))

CASES = (
    # --- what reaches the first layers ---------------------------------------------------------------------------------
    FAMILY.sick(
        "sum_lost_in_a_refactoring",
        "vanishing_gradient",
        "24 residual blocks, rewritten, return what they have found and no longer add what came in",
        WORN,
        FLAT.but(partial(made.without_a_way_round, True, 24)),
        FLAT.but(partial(made.without_a_way_round, False, 24)),
        ("bad_init",),
    ),
    FAMILY.sick(
        "attention_summed_up",
        "exploding_gradient",
        "attention without a softmax, and nothing was put in its place: products of three, in four layers",
        Goal("accuracy", at_least=0.6),
        SUMMED,
        SUMMED.but(partial(made.Summing, False)),
        ("lr_too_high", "nonfinite_gradient"),
    ),
    FAMILY.sick(
        "targets_in_units",
        "exploding_gradient",
        "how far an illness has come, 25 to 346, as it is: squared errors of 30,000, and after a few steps nothing is a number",
        R2(at_least=0.35),
        ILLNESS,
        ILLNESS.but(data=partial(diabetes, True)),
        ("lr_too_high", "nonfinite_gradient"),
    ),
    # --- numbers that are none -----------------------------------------------------------------------------------------
    FAMILY.sick(
        "exponential_of_a_hundred",
        "nonfinite_gradient",
        "a softmax by exp and a sum, and a temperature of 0.01: the exponential of 100 is infinite",
        Goal("accuracy", at_least=0.6),
        VIEWS,
        VIEWS.but(
            objective=losses.exponentials(0.01),
            measure=field_losses.with_loss(losses.exponentials(0.01), field_losses.nearest),
        ),
    ),
    FAMILY.sick(
        "norm_without_epsilon",
        "nonfinite_gradient",
        "a batch norm by hand, after a ReLU: it divides by 0 as soon as a unit is silent for a whole batch",
        WORN,
        FLAT.but(partial(made.normed_by_hand, 1e-5), batch=16, steps=400),
        FLAT.but(partial(made.normed_by_hand, 0.0), batch=16, steps=400),
    ),
    FAMILY.sick(
        "logarithm_of_how_many",
        "nonfinite_data",
        "the logarithm of a count is to be foretold, and some counts are 0",
        R2(at_least=0.7),
        CHESTS.but(data=partial(own.bright_spots, 1.0), loss=nn.MSELoss(), measure=None),
        CHESTS.but(data=partial(own.bright_spots, 0.0), loss=nn.MSELoss(), measure=None),
    ),
    FAMILY.sick(
        "joined_on_a_key",
        "nonfinite_data",
        "two tables of patients were joined, and the second one does not know all of them",
        Goal("accuracy", at_least=0.88),
        PATIENTS.but(data=partial(own.joined, 0.0)),
        PATIENTS.but(data=partial(own.joined, float("nan"))),
    ),
    # --- activations ---------------------------------------------------------------------------------------------------
    FAMILY.sick(
        "more_is_never_less",
        "dying_relu",
        "a first layer whose weights cannot be below 0, for logarithms that are never above it",
        ILL,
        MEASURED.but(made.of_positive_weights, partial(own.logarithms, True), optimizer=adam(1e-2), steps=300),
        MEASURED.but(made.of_positive_weights, own.logarithms, optimizer=adam(1e-2), steps=300),
        ("unnormalised_input",),
    ),
    FAMILY.sick(
        "torch_rand",
        "saturated_activation",
        "weights by torch.rand, from 0 to 1, for pixels of 0 to 1 and sigmoids: every sum is large",
        WORN,
        FLAT.but(partial(mlp, 196, 10, 96, 2, nn.Sigmoid), partial(real.flat, raw=True), optimizer=adam(3e-3)),
        FLAT.but(
            lambda: started(mlp(196, 10, 96, 2, nn.Sigmoid), nn.init.uniform_),
            partial(real.flat, raw=True),
            optimizer=adam(3e-3),
        ),
        ("bad_init",),
    ),
    # --- starts --------------------------------------------------------------------------------------------------------
    FAMILY.sick(
        "as_an_old_paper_has_it",
        "bad_init",
        "weights of deviation 0.01, from a paper of 2012, in a net of ten layers",
        WORN,
        FLAT.but(partial(mlp, 196, 10, 96, 10, norm=nn.BatchNorm1d), optimizer=sgd(0.03, 0.9)),
        FLAT.but(lambda: started(mlp(196, 10, 96, 10), of_the_normal), optimizer=sgd(0.03, 0.9)),
        ("vanishing_gradient",),
    ),
    # --- inputs --------------------------------------------------------------------------------------------------------
    FAMILY.sick(
        "over_the_variance",
        "unnormalised_input",
        "columns are divided by their variance where their deviation was meant: by 0.001 and not by 0.03",
        ILL,
        MEASURED.but(data=partial(own.by_variance, 1), optimizer=sgd(0.05, 0.9)),
        MEASURED.but(data=partial(own.by_variance, 2), optimizer=sgd(0.05, 0.9)),
        ("exploding_gradient",),
    ),
    FAMILY.sick(
        "mean_of_photographs",
        "unnormalised_input",
        "X-rays of 0 to 255 are standardised by numbers that were made for 0 to 1: they reach 1,100",
        ILL,
        CHESTS.but(optimizer=sgd(0.01, 0.9)),
        CHESTS.but(data=own.image_net_bytes, optimizer=sgd(0.01, 0.9)),
        ("exploding_gradient", "dying_relu"),
    ),
    # --- what is not trained -------------------------------------------------------------------------------------------
    FAMILY.sick(
        "chosen_by_name",
        "frozen_params",
        "the optimizer is given what is called weight or bias: the matrices of a cell of one's own have other names",
        Goal("accuracy", at_least=0.34),
        CELL,
        CELL.but(optimizer=adam(5e-3, only=lambda name: name.endswith(("weight", "bias")))),
    ),
    FAMILY.sick(
        "optimizer_of_a_copy",
        "frozen_params",
        "the optimizer has the parameters of a copy that was made of the model",
        Goal("accuracy", at_least=0.7),
        PATCHED,
        PATCHED.but(optimizer=lambda model: torch.optim.AdamW(copy.deepcopy(model).parameters(), 3e-3)),
    ),
    FAMILY.sick(
        "callback_is_gone",
        "grad_accumulation",
        "zero_grad was in a callback that a new version does not call: attention with SGD",
        Goal("accuracy", at_least=0.7),
        PATCHED.but(optimizer=sgd(0.05, 0.9)),
        PATCHED.but(optimizer=sgd(0.05, 0.9), clears=False),
    ),
    FAMILY.sick(
        "nowhere_near_a_centre",
        "plateau",
        "kernels of width 1 in 196 dimensions: whatever the picture, all of them are 0",
        WORN,
        FLAT.but(partial(kernels, 0.01), optimizer=adam(2e-2)),
        FLAT.but(partial(kernels, 1.0), optimizer=adam(2e-2)),
        ("vanishing_gradient", "bad_init", "saturated_activation"),
    ),
    # --- outputs -------------------------------------------------------------------------------------------------------
    FAMILY.sick(
        "relu_after_each_layer",
        "output_activation",
        "a loop puts a ReLU after every layer, and after the last one too: that a kind is not there cannot be said",
        Goal("loss", at_most=0.4),
        OVERLAID,
        OVERLAID.but(partial(mlp, 196, 10, 96, 2, last=nn.ReLU())),
        ("dying_relu",),
    ),
    FAMILY.sick(
        "counts_of_zero_to_one",
        "output_activation",
        "a sigmoid at the end of a net that is to say how many neighbours a residue has, which are 5 to 30",
        R2(at_least=0.15),
        RAW,
        RAW.but(partial(mlp, 35, 1, 48, 2, last=nn.Sigmoid())),
        ("saturated_activation",),
    ),
    # --- few bits ------------------------------------------------------------------------------------------------------
    FAMILY.sick(
        "a_scale_for_another_net",
        "precision_overflow",
        "gradients are scaled by 2 ** 24 on their way back through half precision, which ends at 65,504",
        WORN,
        SCALED,
        SCALED.but(objective=losses.scaled_backwards(24), tamper=losses.unscaled(24)),
        ("nonfinite_gradient",),
    ),
    FAMILY.sick(
        "over_all_answers",
        "precision_underflow",
        "ten questions in half precision, without a scale, and a mean that is divided by the number of all answers once more",
        Goal("accuracy", at_least=0.86),
        OVERLAID.but(loss=losses.over_all_answers, autocast=torch.float16, scaler=True, optimizer=FINE),
        OVERLAID.but(loss=losses.over_all_answers, autocast=torch.float16, optimizer=FINE),
        ("lr_too_low",),
    ),
)
