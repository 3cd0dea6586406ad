"""Forecasts, autoencoders, comparisons, graphs, recommenders and other jobs that are neither plain classifiers nor text."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from benchmarks.pitfalls.case import Goal
from benchmarks.pitfalls.cases import unseen_signals_around as around
from benchmarks.pitfalls.cases import unseen_signals_sound as sound
from benchmarks.pitfalls.cases.unseen_signals_around import FAMILY, FORESEEN, NAMED
from benchmarks.pitfalls.data import digits
from benchmarks.pitfalls.faults import (
    cross_entropy,
)
from benchmarks.pitfalls.models import mlp
from benchmarks.pitfalls.recipe import adam, sgd
from benchmarks.pitfalls.unseen import signals as made
from benchmarks.pitfalls.unseen import signals_data as real
from benchmarks.pitfalls.unseen import signals_losses as losses
from benchmarks.pitfalls.unseen.shared import Lion, nesterov, using
from benchmarks.pitfalls.unseen.signals_recipes import (
    ADAM,
    ANGLES,
    CLOUDS,
    COMMITTEE,
    DENOISED,
    ENCODED,
    FILTER,
    FORECAST,
    GAMBLED,
    MIXED,
    NODES,
    PLACES,
    RATED,
    SURVIVAL,
    TRIPLETS,
)

CASES = (
    # --- what reaches the first layers ---------------------------------------------------------------------------------
    FAMILY.sick(
        "gates_in_a_row",
        "vanishing_gradient",
        "twelve gated convolutions, tanh times sigmoid, with no way round them",
        FORESEEN,
        FORECAST.but(partial(made.Dilated, 12), optimizer=nesterov(0.01), steps=120),
        FORECAST.but(partial(made.Dilated, 12, around=False), optimizer=nesterov(0.01), steps=120),
    ),
    FAMILY.sick(
        "stacked_sigmoids",
        "vanishing_gradient",
        "an autoencoder of ten sigmoid layers, trained at once instead of layer by layer",
        Goal("r2", at_least=0.5),
        ENCODED.but(partial(made.autoencoder, hidden=5, activation=nn.SELU), optimizer=adam(2e-3)),
        ENCODED.but(partial(made.autoencoder, hidden=5, activation=nn.Sigmoid), optimizer=adam(2e-3)),
        ("saturated_activation",),
    ),
    FAMILY.sick(
        "growing_memory",
        "exploding_gradient",
        "a recurrent net of ReLUs whose matrix makes its state 2.2 times as large at each of 24 positions",
        FORESEEN,
        FORECAST.but(partial(made.Rolled, 1.0), optimizer=sgd(3e-3)),
        FORECAST.but(partial(made.Rolled, 2.2), optimizer=sgd(3e-3)),
        ("bad_init", "nonfinite_gradient"),
    ),
    FAMILY.sick(
        "summed_neighbours",
        "exploding_gradient",
        "a graph net of five layers adds up some fifteen neighbours at each, instead of averaging them",
        NAMED,
        NODES.but(partial(made.Messages, 5)),
        NODES.but(partial(made.Messages, 5, mean=False)),
        ("bad_init", "lr_too_high"),
    ),
    # --- numbers that are none -----------------------------------------------------------------------------------------
    FAMILY.sick(
        "angle_to_itself",
        "nonfinite_gradient",
        "triplets by angle: arccos has no slope at 1, the cosine of every picture with itself",
        Goal("accuracy", at_least=0.9),
        ANGLES,
        ANGLES.but(objective=losses.triplets(reach=1.0)),
    ),
    FAMILY.sick(
        "logarithm_of_no_density",
        "nonfinite_gradient",
        "a mixture density's likelihood by exp, sum and log: all are 0 for values that are far from every mean",
        FORESEEN,
        MIXED,
        MIXED.but(loss=losses.mixture(stable=False)),
    ),
    FAMILY.sick(
        "flat_windows",
        "nonfinite_gradient",
        "windows are standardised by their own deviation, which is 0 where the sensor was at its end",
        FORESEEN,
        FORECAST.but(lambda: made.OwnScale(1e-3, made.Dilated(2)), real.overexposed),
        FORECAST.but(lambda: made.OwnScale(0.0, made.Dilated(2)), real.overexposed),
    ),
    FAMILY.sick(
        "logarithm_of_dark",
        "nonfinite_data",
        "inputs are logarithms of brightness, and a few pixels are black",
        FORESEEN,
        FORECAST.but(partial(made.Dilated, 3), partial(real.logs, 0.02)),
        FORECAST.but(partial(made.Dilated, 3), partial(real.logs, 0.0)),
    ),
    FAMILY.sick(
        "gaps_times_zero",
        "nonfinite_data",
        "values that were never measured are NaN, and the loss multiplies them by a mask of 0",
        FORESEEN,
        FORECAST.but(loss=losses.times_mask),
        FORECAST.but(data=lambda: real.with_gaps(real.scans()), loss=losses.times_mask),
        ("nonfinite_gradient",),
    ),
    # --- activations -------------------------------------------------------------------------------------------------------------
    FAMILY.sick(
        "threshold",
        "dying_relu",
        "biases of the net that sees every point begin at -4, to have few active units: none ever is",
        Goal("accuracy", at_least=0.6),
        CLOUDS,
        CLOUDS.but(partial(made.Points, bias=-4.0)),
        ("bad_init",),
    ),
    FAMILY.sick(
        "hard_codes_at_once",
        "saturated_activation",
        "hash codes by tanh(200 x) from the first step on, which should have become sharp little by little",
        NAMED,
        ENCODED.but(partial(made.Hashing, 1.0), digits, loss=cross_entropy, optimizer=nesterov(0.05)),
        ENCODED.but(partial(made.Hashing, 200.0), digits, loss=cross_entropy, optimizer=nesterov(0.05)),
        ("vanishing_gradient", "exploding_gradient"),
    ),
    # --- starts ----------------------------------------------------------------------------------------------------------
    FAMILY.sick(
        "factors_from_zero",
        "bad_init",
        "both tables of a matrix factorisation begin at zero: neither has a gradient as long as the other has none",
        Goal("r2", at_least=0.5),
        RATED.but(partial(made.Factors, usual=False)),
        RATED.but(partial(made.Factors, usual=False, spread=0.0)),
        ("plateau",),
    ),
    FAMILY.sick(
        "centres_at_one_place",
        "bad_init",
        "all 40 centres of a radial basis network begin at the origin and stay together",
        Goal("accuracy", at_least=0.8),
        COMMITTEE.but(lambda: made.Radial(torch.randn(40, 64)), optimizer=using(ADAM, 0.03)),
        COMMITTEE.but(lambda: made.Radial(torch.zeros(40, 64)), optimizer=using(ADAM, 0.03)),
        ("plateau",),
    ),
    FAMILY.sick(
        "one_expert_six_times",
        "bad_init",
        "six experts are copies of one, and their gate begins at zero: they never become different",
        Goal("accuracy", at_least=0.85),
        COMMITTEE.but(partial(made.Committee, width=2), steps=300),
        COMMITTEE.but(partial(made.Committee, width=2, alike=True), steps=300),
        ("plateau",),
    ),
    FAMILY.sick(
        "sines_of_anything",
        "bad_init",
        "a net of sines of frequency 12 whose weights are drawn of deviation 1: it knows the pixels it has seen, and no others",
        FORESEEN,
        PLACES,
        PLACES.but(partial(made.Sine, careful=False)),
        ("overfitting",),
    ),
    # --- inputs ----------------------------------------------------------------------------------------------------------
    FAMILY.sick(
        "places_in_metres",
        "unnormalised_input",
        "a photograph as a function of place, which is given in metres of its map instead of -1 to 1",
        Goal("r2", at_least=0.4),
        PLACES.but(partial(mlp, 2, 1, 48, 3, nn.Tanh)),
        PLACES.but(partial(mlp, 2, 1, 48, 3, nn.Tanh), partial(real.places, unit=4000.0)),
        ("saturated_activation",),
    ),
    FAMILY.sick(
        "sensor_with_an_offset",
        "unnormalised_input",
        "a sensor's values lie around 3,000 and change by 1",
        FORESEEN,
        FORECAST.but(),
        FORECAST.but(data=partial(real.scans, base=750.0)),
        ("saturated_activation", "lr_too_high"),
    ),
    # --- rates -------------------------------------------------------------------------------------------------------------
    FAMILY.sick(
        "scattered_triplets",
        "lr_too_high",
        "a rate of 0.3 under Adam throws the places of pictures about",
        Goal("accuracy", at_least=0.9),
        TRIPLETS.but(partial(mlp, 64, 16, 64, 1)),
        TRIPLETS.but(partial(mlp, 64, 16, 64, 1), optimizer=using(ADAM, 0.3)),
        ("oscillating_loss",),
    ),
    FAMILY.sick(
        "lion_at_adams_rate",
        "lr_too_high",
        "Lion with a rate that Adam could have: every weight moves by 0.03 at each step",
        Goal("r2", at_least=0.5),
        DENOISED,
        DENOISED.but(optimizer=using(Lion, 0.03)),
        ("oscillating_loss",),
    ),
    FAMILY.sick(
        "one_action",
        "lr_too_high",
        "a policy that is sure of one action after a few steps of 0.3, and draws no other again",
        Goal("accuracy", at_least=0.75),
        GAMBLED,
        GAMBLED.but(optimizer=using(ADAM, 0.3)),
        ("plateau",),
    ),
    FAMILY.sick(
        "sign_of_the_error",
        "oscillating_loss",
        "a linear filter that follows the sign of its error: with a steady rate of 0.1 it jumps to and fro over what is best",
        FORESEEN,
        FILTER,
        FILTER.but(optimizer=sgd(0.1)),
        ("lr_too_high",),
    ),
    FAMILY.sick(
        "adadelta_of_another_library",
        "lr_too_low",
        "Adadelta with the rate of 0.001 that another library has as its default",
        Goal("r2", at_least=0.5),
        ENCODED.but(optimizer=using(torch.optim.Adadelta, 1.0)),
        ENCODED.but(optimizer=using(torch.optim.Adadelta, 0.001)),
        ("slow_convergence",),
    ),
    FAMILY.sick(
        "accumulator_of_a_thousand",
        "slow_convergence",
        "Adagrad whose sum of squares begins at 1,000, so that its steps are a thirtieth",
        Goal("r2", at_least=0.5),
        RATED.but(optimizer=using(torch.optim.Adagrad, 0.1)),
        RATED.but(optimizer=using(torch.optim.Adagrad, 0.1, initial_accumulator_value=1000.0)),
        ("lr_too_low",),
    ),
    FAMILY.sick(
        "decay_at_every_step",
        "lr_zero",
        "a decay by 0.7 that was meant for every epoch is made at every step",
        FORESEEN,
        FORECAST.but(schedule=lambda share: 0.7 ** (share * 200 // 70)),
        FORECAST.but(schedule=lambda share: 0.7 ** (share * 200)),
        ("slow_convergence", "lr_too_low"),
    ),
    FAMILY.sick(
        "whole_numbers",
        "lr_zero",
        "a warm-up of 500 steps, step // 500, is 0 until it is over, which this run never sees",
        Goal("concordance", at_least=0.7),
        SURVIVAL.but(schedule=lambda share: min(1.0, (share * 150 + 1) / 50)),
        SURVIVAL.but(schedule=lambda share: min(1.0, share * 150 // 500)),
        ("lr_too_low",),
    ),
    *around.CASES,
    *sound.CASES,
)
