"""Jobs of ``unseen_signals`` that are well and may not look it."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from benchmarks.pitfalls.case import Goal
from benchmarks.pitfalls.cases.unseen_signals_around import FAMILY, FORESEEN, NAMED
from benchmarks.pitfalls.faults import gaussian, restarts, warmup_cosine
from benchmarks.pitfalls.models import mlp
from benchmarks.pitfalls.recipe import sgd
from benchmarks.pitfalls.unseen import signals as made
from benchmarks.pitfalls.unseen import signals_data as real
from benchmarks.pitfalls.unseen import signals_losses as losses
from benchmarks.pitfalls.unseen.shared import using
from benchmarks.pitfalls.unseen.signals_recipes import (
    ADAM,
    ANGLES,
    CODED,
    COMMITTEE,
    COMPARED,
    DENOISED,
    ENCODED,
    FORECAST,
    GAMBLED,
    NEXT,
    PLACES,
    RATED,
    SPOTS,
    SURVIVAL,
    VARIED,
)

CASES = (
    FAMILY.healthy(
        "rising_divergence",
        "a variational autoencoder whose divergence counts more and more over 200 steps: its loss climbs by design",
        Goal("r2", at_least=0.45),
        VARIED.but(objective=losses.elbo(2.0, rise=200), measure=losses.with_loss(losses.elbo(2.0))),
    ),
    FAMILY.healthy(
        "adversary",
        "a trunk that is to hide which half of the data a picture is of: the second loss stays at ln 2 and its gradient is turned round",
        Goal("accuracy", at_least=0.8),
        ENCODED.but(
            lambda: made.TwoTasks(10, 2, adverse=True),
            real.two_domains,
            objective=losses.two_tasks,
            measure=losses.with_loss(losses.two_tasks, losses.first_task),
            optimizer=using(ADAM, 3e-3),
        ),
    ),
    FAMILY.healthy(
        "noise_that_cannot_be_known",
        "a diffusion model: its loss stays above 0.4, because little noise cannot be told from a picture",
        Goal("r2", at_least=0.5),
        DENOISED.but(schedule=warmup_cosine(0.3), optimizer=using(ADAM, 4e-3)),
    ),
    FAMILY.healthy(
        "narrow_densities",
        "a mean and a variance for values of deviation 0.06: the likelihood's logarithm is above 0 and the loss below",
        FORESEEN,
        NEXT.but(
            partial(mlp, 24, 2, 32, 1, nn.Tanh),
            partial(real.next_value, 0.05),
            loss=gaussian,
            measure=losses.of_mean(losses.first),
            clip_norm=1.0,
        ),
    ),
    FAMILY.healthy(
        "won_and_lost",
        "a policy's loss lies around 0 with either sign, and what it wins does not show in it",
        Goal("accuracy", at_least=0.75),
        GAMBLED,
    ),
    FAMILY.healthy(
        "idle_experts",
        "of 12 experts the gate asks one for each picture, and some never: they have no gradient",
        NAMED,
        COMMITTEE.but(partial(made.Committee, 12, width=16, best=True)),
    ),
    FAMILY.healthy(
        "sparse_tables",
        "embedding tables with sparse gradients under SparseAdam: most rows have none at a step",
        Goal("r2", at_least=0.5),
        RATED.but(partial(made.Factors, sparse=True), optimizer=using(torch.optim.SparseAdam, 0.03), batch=256),
    ),
    FAMILY.healthy(
        "pupil_and_teacher",
        "half of the weights, the teacher's, is in no optimizer and has no gradient: it follows the pupil",
        NAMED,
        COMPARED.but(made.Distilled, objective=losses.taught, measure=losses.with_loss(losses.taught)),
    ),
    FAMILY.healthy(
        "echoes",
        "an echo state network: nine tenths of its weights are random and stay so",
        FORESEEN,
        FORECAST.but(made.Reservoir, optimizer=using(ADAM, 0.01)),
    ),
    FAMILY.healthy(
        "quantiles_in_raw_units",
        "three quantiles of values around 0 of deviation 250: losses of a hundred, and gradients that know only signs",
        FORESEEN,
        NEXT.but(
            partial(mlp, 24, 3, 48, 1),
            partial(real.next_value, 200.0),
            loss=losses.pinball,
            measure=losses.of_mean(losses.middle),
            optimizer=using(ADAM, 0.05),
        ),
    ),
    FAMILY.healthy(
        "sparse_dictionary",
        "a dictionary of 256 for pictures of 64 pixels: of a picture's codes nearly all are 0, because that is paid for",
        Goal("r2", at_least=0.5),
        ENCODED.but(
            made.Sparse,
            objective=losses.sparse(1.0),
            measure=losses.with_loss(losses.sparse(1.0)),
            optimizer=using(ADAM, 3e-3),
        ),
    ),
    FAMILY.healthy(
        "who_is_first",
        "a partial likelihood falls by an eighth, from 4.2 to 3.7, and ranks four in five pairs rightly",
        Goal("concordance", at_least=0.72),
        SURVIVAL,
    ),
    FAMILY.healthy(
        "time_to_event",
        "a Weibull likelihood with patients who had no event before the study's end",
        Goal("concordance", at_least=0.72),
        SURVIVAL.but(
            partial(mlp, 10, 2, 16, 1, nn.Tanh),
            loss=losses.weibull,
            measure=losses.concordance(-1.0),
            steps=200,
            optimizer=using(torch.optim.Adamax, 0.01),
        ),
    ),
    FAMILY.healthy(
        "easy_positions",
        "focal loss for one edge in sixty positions: nearly all of it is of the few, and small from the start",
        Goal("accuracy", at_least=0.8),
        SPOTS.but(loss=losses.focal, optimizer=using(ADAM, 0.01), steps=300),
    ),
    FAMILY.healthy(
        "restarted_sines",
        "a net of sines under a rate that comes back four times",
        FORESEEN,
        PLACES.but(schedule=restarts(4), optimizer=using(ADAM, 4e-3)),
    ),
    FAMILY.healthy(
        "as_it_was",
        "a forecast that begins at what was seen last, with a head of zeros: little is left to learn, and nothing passes the head at first",
        Goal("r2", at_least=0.85),
        FORECAST.but(lambda: made.Persisting(made.Dilated(3))),
    ),
    FAMILY.healthy(
        "sum_over_pixels",
        "squared errors of 64 pictures and 64 pixels are added up: every gradient is clipped to a thousandth",
        Goal("r2", at_least=0.5),
        ENCODED.but(loss=partial(nn.functional.mse_loss, reduction="sum"), clip_norm=1.0, optimizer=using(ADAM, 3e-3)),
    ),
    FAMILY.healthy(
        "codes_without_use",
        "most of 512 codes are nobody's nearest in a batch: their rows have a gradient of 0",
        Goal("r2", at_least=0.5),
        CODED.but(partial(made.Quantised, size=512)),
    ),
    FAMILY.healthy(
        "clipped_memory",
        "a recurrent net of ReLUs whose state grows by a tenth at each position, clipped",
        FORESEEN,
        FORECAST.but(partial(made.Rolled, 1.1), optimizer=sgd(0.02), clip_norm=0.5),
    ),
    FAMILY.healthy(
        "hardest_of_the_batch",
        "triplets of the hardest by angle: the loss stays near its margin for long, and ends above it",
        Goal("accuracy", at_least=0.9),
        ANGLES,
    ),
)
