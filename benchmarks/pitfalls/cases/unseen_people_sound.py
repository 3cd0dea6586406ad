"""What people ask about, and nothing is wrong with it. By somebody who has not read the rules."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional

from benchmarks.pitfalls.case import Goal
from benchmarks.pitfalls.cases.unseen_people import DIABETES, DIGITS, FAMILY, GOOD, PICTURES
from benchmarks.pitfalls.cases.unseen_people_data import LINES, NORMED, SERIES, triangle
from benchmarks.pitfalls.models import Recurrent, mlp
from benchmarks.pitfalls.recipe import adam, sgd
from benchmarks.pitfalls.unseen import people as made
from benchmarks.pitfalls.unseen import people_sound as sound
from benchmarks.pitfalls.unseen.shared import using


def one_cycle(share: float) -> float:
    """Up for a third of the run, and down to nearly nothing (Smith and Topin 2019)."""
    return 0.04 + 0.96 * share / 0.3 if share < 0.3 else max(0.001, (1 - share) / 0.7)


def maxout() -> nn.Module:
    return nn.Sequential(sound.Maxout(64, 24, 12), sound.Maxout(24, 10, 4))


CASES = (
    FAMILY.healthy(
        "only_blanks_at_first",
        "CTC: whatever it is shown, it answers with blanks for a while",
        Goal("accuracy", at_least=0.8),
        LINES.but(optimizer=adam(4e-3)),
    ),
    FAMILY.healthy(
        "angular_margin",
        "cosines times 24 with a margin: the loss begins at 15, and what it trains on is answered wrongly for long",
        GOOD,
        DIGITS.but(partial(sound.Angles, 24.0), objective=sound.with_a_margin),
    ),
    FAMILY.healthy(
        "three_heads",
        "losses of three heads are added up: they begin at three times ln 10",
        GOOD,
        DIGITS.but(sound.ThreeHeads, objective=sound.at_every_head),
    ),
    FAMILY.healthy(
        "mixed_pictures",
        "pictures are mixed in pairs: the loss stays above 0.6",
        GOOD,
        PICTURES.but(objective=sound.mixed),
    ),
    FAMILY.healthy(
        "improbable_at_first",
        "ten questions a picture, biases of -4.6: a loss of 0.5 at first, far below ln 2, of which most is soon gone",
        GOOD,
        DIGITS.but(sound.rare_at_first, loss=sound.each_class_by_itself),
    ),
    FAMILY.healthy(
        "signs_of_weights",
        "weights are -1 or 1: a loss that jumps, and gradients of what is not there",
        GOOD,
        DIGITS.but(sound.of_signs),
    ),
    FAMILY.healthy(
        "blocks_left_out",
        "each of eight blocks is left out of half of the batches, and has no gradient then",
        GOOD,
        DIGITS.but(sound.LeftOut, optimizer=adam(3e-3)),
    ),
    FAMILY.healthy(
        "slower_with_depth",
        "rates by depth: the first of four layers has a sixty-fourth of the last one's",
        GOOD,
        DIGITS.but(partial(mlp, 64, 10, 64, 3, nn.SiLU), optimizer=sound.by_depth(1e-2, 0.25)),
    ),
    FAMILY.healthy(
        "released_later",
        "a convolution that is held still for sixty steps, and is in the optimizer all the time",
        GOOD,
        PICTURES.but(partial(sound.Later, 60), steps=150),
    ),
    FAMILY.healthy(
        "ever_harder",
        "noise is added to the pictures, more and more: the loss climbs from a third of the run on",
        GOOD,
        DIGITS.but(disturb=sound.ever_harder, optimizer=adam(3e-3), steps=150),
    ),
    FAMILY.healthy(
        "below_zero",
        "the negative of a correlation: a loss below 0, and soon flat",
        Goal("correlation", at_least=0.6),
        DIABETES.but(loss=sound.uncorrelated, measure=sound.correlated),
    ),
    FAMILY.healthy(
        "one_cycle",
        "a rate that climbs to 0.5 with momentum and comes back: in between the loss is as restless as can be",
        GOOD,
        NORMED.but(optimizer=sgd(0.5, 0.9), schedule=one_cycle),
    ),
    FAMILY.healthy(
        "weights_of_a_spectrum",
        "a spectrum is multiplied by complex weights: some frequencies have forty times the gradient of others",
        GOOD,
        PICTURES.but(sound.Spectral),
    ),
    FAMILY.healthy(
        "largest_of_twelve",
        "maxout: of twelve pieces of each unit one has a gradient for a sample",
        GOOD,
        DIGITS.but(maxout),
    ),
    FAMILY.healthy(
        "hardly_labelled",
        "three quarters of the labels are -100, which the loss leaves out",
        GOOD,
        DIGITS.but(data=sound.hardly_labelled),
    ),
    FAMILY.healthy(
        "empty_columns",
        "sixty of seventy-three columns are 0 for all: their weights have no gradient, ever",
        GOOD,
        DIGITS.but(partial(mlp, 73, 3, 24, 1, nn.ReLU), sound.with_empty_columns, batch=16, steps=100),
    ),
    FAMILY.healthy(
        "tree_of_questions",
        "a tree of soft questions: half of its leaves are nobody's, and have gradients of nothing",
        GOOD,
        DIGITS.but(sound.Tree, optimizer=adam(2e-2), steps=150),
    ),
    FAMILY.healthy(
        "bounded_matrices",
        "matrices of hidden layers are divided by their largest singular value: their weights may grow, what they do may not",
        GOOD,
        DIGITS.but(sound.bounded, optimizer=adam(2e-2), steps=200),
    ),
    FAMILY.healthy(
        "seasons_of_the_rate",
        "a GRU forecasts under a rate that goes up and down between 1 and 6 times",
        Goal("r2", at_least=0.7),
        SERIES.but(schedule=partial(triangle, 6.0), optimizer=using(torch.optim.RMSprop, 2e-3)),
    ),
    FAMILY.healthy(
        "first_days_left_out",
        "a forecast with two columns, the second of which hardly moves, under an absolute error",
        Goal("r2", at_least=0.7),
        SERIES.but(partial(Recurrent, nn.LSTM, 2, 1, 24), partial(made.series, rolling=False), loss=functional.l1_loss),
    ),
)
