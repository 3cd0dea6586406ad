"""What is around the models of ``unseen_signals``: losses, data, parameters that do not train, precision, machines."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional

from benchmarks.pitfalls.case import Goal
from benchmarks.pitfalls.faults import (
    cosine,
    gradients_of,
    weights_of,
)
from benchmarks.pitfalls.models import mlp
from benchmarks.pitfalls.recipe import Family, adam, sgd
from benchmarks.pitfalls.unseen import signals as made
from benchmarks.pitfalls.unseen import signals_data as real
from benchmarks.pitfalls.unseen import signals_losses as losses
from benchmarks.pitfalls.unseen.shared import nesterov, trained_on
from benchmarks.pitfalls.unseen.signals_recipes import (
    CERTAIN,
    CODED,
    COMMITTEE,
    COMPARED,
    COUNTS,
    ENCODED,
    FORECAST,
    INKED,
    LIKED,
    NEXT,
    POWERS,
    RATED,
    SPOTS,
    VARIED,
    WAVES,
)

FAMILY = Family("unseen_signals")
FORESEEN = Goal("r2", at_least=0.7)
NAMED = Goal("accuracy", at_least=0.85)
CASES = (
    # --- losses ------------------------------------------------------------------------------------------------------------
    FAMILY.sick(
        "rewarded_divergence",
        "wrong_loss",
        "an autoencoder's divergence from its prior has the wrong sign: it grows without end",
        Goal("r2", at_least=0.45),
        VARIED,
        VARIED.but(objective=losses.elbo(sign=-1.0), measure=losses.with_loss(losses.elbo(sign=-1.0))),
        ("exploding_gradient", "nonfinite_gradient"),
    ),
    FAMILY.sick(
        "standardised_probabilities",
        "wrong_loss",
        "binary cross-entropy against pixels that have been standardised: below 0 and above 1",
        Goal("r2", at_least=0.5),
        INKED.but(loss=functional.binary_cross_entropy_with_logits, measure=losses.of_mean(torch.sigmoid)),
        ENCODED.but(loss=functional.binary_cross_entropy_with_logits, measure=losses.of_mean(torch.sigmoid)),
    ),
    FAMILY.sick(
        "overlap_made_small",
        "wrong_loss",
        "Dice's coefficient is returned where 1 minus it should be",
        NAMED,
        ENCODED.but(data=real.noisy_inks, loss=losses.dice, measure=losses.balanced),
        ENCODED.but(data=real.noisy_inks, loss=losses.overlap, measure=losses.balanced),
        ("label_error",),
    ),
    FAMILY.sick(
        "sigmoid_for_what_is_standardised",
        "output_activation",
        "a decoder that ends in a sigmoid for pixels of mean 0",
        Goal("r2", at_least=0.5),
        ENCODED,
        ENCODED.but(partial(made.autoencoder, last=nn.Sigmoid())),
        ("wrong_loss",),
    ),
    FAMILY.sick(
        "rates_of_rates",
        "output_activation",
        "a softplus before a Poisson loss that expects logarithms of rates",
        Goal("r2", at_least=0.25),
        COUNTS,
        COUNTS.but(partial(mlp, 48, 1, 48, 2, nn.ELU, last=nn.Softplus())),
        ("wrong_loss",),
    ),
    FAMILY.sick(
        "everything_is_an_edge",
        "output_activation",
        "a sigmoid before a loss that has one: whatever it is asked, its answer is above 0",
        Goal("accuracy", at_least=0.8),
        SPOTS,
        SPOTS.but(lambda: made.Spots(last=nn.Sigmoid())),
        ("wrong_loss",),
    ),
    # --- data --------------------------------------------------------------------------------------------------------------
    FAMILY.sick(
        "masks_in_another_order",
        "label_error",
        "pictures are sorted by name, their masks by number: each has another's",
        NAMED,
        ENCODED.but(data=real.noisy_inks, loss=losses.weighted(2.0), measure=losses.balanced),
        ENCODED.but(
            data=lambda: trained_on(real.noisy_inks(), real.rolled), loss=losses.weighted(2.0), measure=losses.balanced
        ),
        ("plateau", "overfitting"),
    ),
    FAMILY.sick(
        "views_of_others",
        "label_error",
        "the second views come from a loader that shuffles for itself: no two belong together",
        Goal("accuracy", at_least=0.7),
        COMPARED,
        COMPARED.but(
            objective=losses.contrasted(mixed=True),
            measure=losses.with_loss(losses.contrasted(mixed=True), losses.found_again),
        ),
        ("plateau", "wrong_loss"),
    ),
    FAMILY.sick(
        "rare_edges",
        "class_imbalance",
        "one position in sixty is an edge, and a miss costs as much as a false alarm",
        Goal("accuracy", at_least=0.8),
        SPOTS.but(steps=90),
        SPOTS.but(loss=functional.binary_cross_entropy_with_logits, steps=90),
    ),
    FAMILY.sick(
        "only_clicks",
        "class_imbalance",
        "a recommender is trained on what was clicked alone: everything is liked",
        Goal("accuracy", at_least=0.75),
        LIKED,
        LIKED.but(data=partial(real.liked, unknown=False)),
        ("label_error",),
    ),
    # --- parameters ----------------------------------------------------------------------------------------------------------
    FAMILY.sick(
        "no_way_through_codes",
        "frozen_params",
        "the decoder is given the nearest codes as they are: no gradient passes to the encoder",
        Goal("r2", at_least=0.5),
        CODED,
        CODED.but(partial(made.Quantised, through=False)),
    ),
    FAMILY.sick(
        "experts_in_a_list",
        "frozen_params",
        "experts are kept in a tuple that PyTorch does not look into: only their gate is trained",
        NAMED,
        COMMITTEE,
        COMMITTEE.but(partial(made.Committee, hidden=True)),
    ),
    FAMILY.sick(
        "gradients_of_all_steps",
        "grad_accumulation",
        "gradients of a variational autoencoder are never cleared",
        Goal("r2", at_least=0.45),
        VARIED.but(optimizer=nesterov(2e-3)),
        VARIED.but(optimizer=nesterov(2e-3), clears=False),
        ("oscillating_loss", "exploding_gradient"),
    ),
    # --- too much of it --------------------------------------------------------------------------------------------------------
    FAMILY.sick(
        "a_factor_for_every_rating",
        "overfitting",
        "32 factors a picture of which nine ratings are known, and no decay",
        Goal("r2", at_least=0.4),
        RATED.but(partial(made.Factors, 3), partial(real.ratings, 0.2), optimizer=adam(0.02, decay=1.0)),
        RATED.but(partial(made.Factors, 32), partial(real.ratings, 0.2)),
    ),
    FAMILY.sick(
        "sure_of_what_it_knows",
        "overfitting",
        "a mean and a variance for 120 patients by a net of 40,000 weights: where it has seen the truth it is ever more certain",
        Goal("loss", at_most=0.7),
        CERTAIN,
        CERTAIN.but(partial(mlp, 10, 2, 200, 2, nn.Tanh), optimizer=adam(3e-3), steps=400),
    ),
    FAMILY.sick(
        "price_of_all_tables",
        "over_regularised",
        "squares of whole embedding tables are added to each batch's loss as if they were those of its rows",
        Goal("r2", at_least=0.4),
        RATED.but(objective=losses.penalised(1e-5), measure=losses.with_loss(losses.penalised(1e-5))),
        RATED.but(objective=losses.penalised(0.02), measure=losses.with_loss(losses.penalised(0.02))),
        ("plateau",),
    ),
    FAMILY.sick(
        "prior_above_all",
        "over_regularised",
        "the divergence counts forty times: every picture's code is the prior's, and all pictures come out alike",
        Goal("r2", at_least=0.45),
        VARIED,
        VARIED.but(objective=losses.elbo(40.0), measure=losses.with_loss(losses.elbo(40.0))),
        ("plateau",),
    ),
    # --- precision -----------------------------------------------------------------------------------------------------------
    FAMILY.sick(
        "power_in_half",
        "precision_overflow",
        "squares of filters' answers to bytes do not fit half precision",
        Goal("r2", at_least=0.5),
        POWERS,
        POWERS.but(autocast=torch.float16),
        ("nonfinite_gradient",),
    ),
    FAMILY.sick(
        "no_scaler",
        "precision_underflow",
        "half precision without a scaler for squares of errors that are given in square kilometres",
        FORESEEN,
        NEXT.but(loss=losses.in_square_kilometres, batch=256, autocast=torch.float16, scaler=True),
        NEXT.but(loss=losses.in_square_kilometres, batch=256, autocast=torch.float16),
        ("vanishing_gradient",),
    ),
    # --- machines --------------------------------------------------------------------------------------------------------------
    FAMILY.sick(
        "stuck_sign",
        "silent_corruption",
        "from step 60 on the sign bit of one of four ranks' gradients is stuck, and an exponent's last",
        Goal("r2", at_least=0.82),
        NEXT.but(ranks=4, batch=64, optimizer=sgd(0.1)),
        NEXT.but(
            ranks=4, batch=64, optimizer=sgd(0.1), tamper=gradients_of(2, 60, lambda gradient: -2 * gradient.abs())
        ),
        ("rank_divergence",),
    ),
    FAMILY.sick(
        "decay_that_grows",
        "rank_divergence",
        "on one of two ranks weights grow by a fiftieth at each step where they should decay",
        FORESEEN,
        NEXT.but(ranks=2, optimizer=sgd(0.05)),
        NEXT.but(ranks=2, optimizer=sgd(0.05), tamper=weights_of(1, range(1, 301), lambda weights: weights * 1.02)),
        ("silent_corruption",),
    ),
    FAMILY.sick(
        "exported_in_place",
        "loss_spike",
        "at step 196 of 200 an export rounds the weights themselves to one bit, and the rate is nearly 0 by then",
        FORESEEN,
        FORECAST.but(schedule=cosine),
        FORECAST.but(schedule=cosine, tamper=weights_of(0, (196,), made.two_values)),
    ),
    FAMILY.sick(
        "far_frequencies",
        "plateau",
        "sinusoids whose frequencies begin far above what the line has: there is no slope that leads there",
        Goal("r2", at_least=0.6),
        WAVES,
        WAVES.but(lambda: made.Waves(real.strongest(12) + 1000)),
        ("bad_init",),
    ),
    FAMILY.sick(
        "spectra_on_the_way",
        "data_starvation",
        "the loader makes features while the model waits",
        Goal("wait_share", at_most=0.3),
        FORECAST.but(steps=150),
        FORECAST.but(steps=150, stall=0.02),
    ),
    FAMILY.sick(
        "two_pictures",
        "batch_size",
        "contrastive learning with two pictures a batch: there is but one other to be told from",
        Goal("accuracy", at_least=0.7),
        COMPARED,
        COMPARED.but(batch=2),
        ("plateau",),
    ),
)
