"""What people ask for help with, and need none: ordinary jobs that are well. By somebody who has not read the rules."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional

from benchmarks.pitfalls.case import Goal
from benchmarks.pitfalls.cases.unseen_desk import FAMILY
from benchmarks.pitfalls.models import mlp
from benchmarks.pitfalls.recipe import adam
from benchmarks.pitfalls.unseen import desk as made
from benchmarks.pitfalls.unseen import desk_data as own
from benchmarks.pitfalls.unseen import desk_losses as losses
from benchmarks.pitfalls.unseen import field_losses
from benchmarks.pitfalls.unseen.desk_recipes import (
    BCE,
    CELL,
    CLEANED,
    CLOTHES,
    CODED,
    COUNTED,
    CROWDED,
    DIGITS,
    FLAT,
    FOLDED,
    FOUND,
    HELICES,
    HIDDEN,
    ILLNESS,
    LETTERS,
    LINES,
    MATCHED,
    OVERLAID,
    PATCHED,
    PATIENTS,
    SENTENCES,
    SEPARATE,
    SORTED,
    STATES,
    WINES,
    WORN,
)
from benchmarks.pitfalls.unseen.shared import using

R2 = partial(Goal, "r2")

CASES = (
    FAMILY.healthy(
        "patches", "a vision transformer with a warm-up and a cosine", Goal("accuracy", at_least=0.7), PATCHED
    ),
    FAMILY.healthy("channels_by_themselves", "separable convolutions with batch norm", WORN, SEPARATE),
    FAMILY.healthy(
        "told_of_all_before",
        "four densely connected convolutions",
        Goal("accuracy", at_least=0.68),
        CLOTHES.but(made.Dense, optimizer=adam(4e-3)),
    ),
    FAMILY.healthy("line_by_line", "a GRU reads pictures from top to bottom", WORN, LINES),
    FAMILY.healthy("up_and_down_again", "outlines by a small U-Net", Goal("overlap", at_least=0.75), CLEANED),
    FAMILY.healthy(
        "folded_and_unfolded", "an autoencoder of convolutions and transposed ones", R2(at_least=0.7), FOLDED
    ),
    FAMILY.healthy("few_codes", "an autoencoder with a small price on its codes", R2(at_least=0.6), CODED),
    FAMILY.healthy(
        "halves_that_belong_together",
        "two encoders are to match the halves of pictures, as sharply as they learn to",
        Goal("accuracy", at_least=0.5),
        MATCHED,
    ),
    FAMILY.healthy(
        "directions_of_kinds",
        "cosines with a direction for each kind",
        WORN,
        FLAT.but(made.Proxies, optimizer=adam(2e-3)),
    ),
    FAMILY.healthy("how_many", "how many pieces of clothing are on a picture", R2(at_least=0.6), COUNTED),
    FAMILY.healthy("in_which_field", "in which of nine fields something is", Goal("accuracy", at_least=0.75), FOUND),
    FAMILY.healthy(
        "which_two", "ten questions about pictures of two things", Goal("accuracy", at_least=0.85), OVERLAID
    ),
    FAMILY.healthy(
        "two_losses_weighed",
        "kind and brightness, and how much each loss counts is learnt: the sum falls below 0",
        WORN,
        FLAT.but(
            made.Weighed,
            objective=losses.both_weighed,
            measure=field_losses.with_loss(losses.both_weighed, field_losses.kind),
        ),
    ),
    FAMILY.healthy("letters_by_convolutions", "convolutions that look back", Goal("accuracy", at_least=0.33), LETTERS),
    FAMILY.healthy("letters_by_a_cell", "a recurrent cell of one's own", Goal("accuracy", at_least=0.34), CELL),
    FAMILY.healthy("hidden_letters", "one letter in six is to be guessed", Goal("accuracy", at_least=0.4), HIDDEN),
    FAMILY.healthy("in_order", "numbers are to be sorted by attention", Goal("accuracy", at_least=0.8), SORTED),
    FAMILY.healthy("a_fifth_word", "the word after four", Goal("loss", at_most=4.9), SENTENCES),
    FAMILY.healthy("how_much_is_helix", "a share, by an LSTM along distances", R2(at_least=0.6), HELICES),
    FAMILY.healthy(
        "states_among_all", "states of residues by attention to distances", Goal("accuracy", at_least=0.78), STATES
    ),
    FAMILY.healthy(
        "levels_of_crowding",
        "more than 12, 16, 20 neighbours? Three questions in order",
        Goal("accuracy", at_least=0.68),
        CROWDED.but(partial(mlp, 35, 3, 32, 1), own.levels, loss=BCE, measure=losses.answers),
    ),
    FAMILY.healthy(
        "wide_and_deep",
        "a table of single weights beside a net",
        Goal("accuracy", at_least=0.92),
        PATIENTS.but(made.WideAndDeep, own.measured_and_binned),
    ),
    FAMILY.healthy(
        "progress_of_an_illness",
        "ten numbers, 332 patients, Huber's loss",
        R2(at_least=0.35),
        ILLNESS.but(loss=functional.huber_loss),
    ),
    FAMILY.healthy(
        "digits_by_themselves_normal",
        "SELUs and their drop-out",
        Goal("accuracy", at_least=0.9),
        DIGITS.but(
            lambda: nn.Sequential(
                nn.Linear(64, 64), nn.SELU(), nn.AlphaDropout(0.05), nn.Linear(64, 64), nn.SELU(), nn.Linear(64, 10)
            )
        ),
    ),
    FAMILY.healthy(
        "wines",
        "178 wines and NAdam",
        Goal("accuracy", at_least=0.9),
        WINES.but(optimizer=using(torch.optim.NAdam, 5e-3)),
    ),
)
