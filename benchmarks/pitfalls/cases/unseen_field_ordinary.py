"""Clothes, X-rays, plays and proteins: ordinary jobs that are well. By somebody who has not read the rules."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional

from benchmarks.pitfalls.case import Goal
from benchmarks.pitfalls.cases.unseen_field import FAMILY
from benchmarks.pitfalls.faults import cosine, warmup_cosine
from benchmarks.pitfalls.models import Recurrent, Transformer, mlp
from benchmarks.pitfalls.recipe import adam, sgd
from benchmarks.pitfalls.unseen import field as made
from benchmarks.pitfalls.unseen import field_data as real
from benchmarks.pitfalls.unseen import field_losses as losses
from benchmarks.pitfalls.unseen.field_recipes import (
    ATTENDED,
    BENT,
    CHESTS,
    CLOTHES,
    CROWDED,
    DENOISED,
    DRAWN,
    FLAT,
    ILL,
    ITSELF,
    LETTERS,
    LOCATED,
    MEASURED,
    MEMORY,
    OUTLINED,
    PATH,
    READ,
    RESIDUAL,
    SHAPED,
    SPOKEN,
    TAGGED,
    TOLD,
    TOUCHED,
    TURNS,
    VIEWED,
    WORDS,
    WORN,
)
from benchmarks.pitfalls.unseen.shared import using

CASES = (
    FAMILY.healthy("clothes_by_layers", "two hidden layers and Adam", WORN, FLAT),
    FAMILY.healthy(
        "clothes_by_convolutions",
        "two convolutions, SGD with momentum and a cosine",
        WORN,
        CLOTHES.but(optimizer=sgd(0.03, 0.9), schedule=cosine),
    ),
    FAMILY.healthy("clothes_by_residuals", "a residual net with batch norm, as everybody has it", WORN, RESIDUAL),
    FAMILY.healthy(
        "norms_of_groups",
        "a residual net with group norm, AdamW with a decay of 0.05 and a warm-up",
        WORN,
        RESIDUAL.but(
            partial(made.resnet, groups=4), optimizer=adam(4e-3, decay=0.05), schedule=warmup_cosine(0.1), steps=200
        ),
    ),
    FAMILY.healthy("chests_by_convolutions", "ill or not, by binary cross-entropy", ILL, CHESTS),
    FAMILY.healthy(
        "chests_with_two_answers",
        "the same by cross-entropy, with a little drop-out",
        ILL,
        CHESTS.but(
            partial(made.convolutions, 2, dropout=0.3), real.named_chests, loss=functional.cross_entropy, measure=None
        ),
    ),
    FAMILY.healthy("chests_as_a_table", "32 columns and a small net", ILL, MEASURED),
    FAMILY.healthy(
        "one_layer_is_enough",
        "logistic regression by SGD",
        ILL,
        MEASURED.but(partial(nn.Linear, 32, 1), optimizer=sgd(0.1)),
    ),
    FAMILY.healthy("where_it_is", "centre and size of a piece of clothing", Goal("r2", at_least=0.6), LOCATED),
    FAMILY.healthy(
        "where_it_is_smoothly",
        "the same by a smooth absolute error and RMSprop",
        Goal("r2", at_least=0.55),
        LOCATED.but(loss=functional.smooth_l1_loss, optimizer=using(torch.optim.RMSprop, 2e-3)),
    ),
    FAMILY.healthy("outlines", "which pixels are of the clothing", Goal("overlap", at_least=0.75), OUTLINED),
    FAMILY.healthy("through_sixteen_numbers", "an autoencoder", Goal("r2", at_least=0.7), ITSELF),
    FAMILY.healthy("drawn_from_a_posterior", "a variational autoencoder", Goal("r2", at_least=0.65), DRAWN),
    FAMILY.healthy("what_is_noise", "a diffusion model of clothes", Goal("r2", at_least=0.5), DENOISED),
    FAMILY.healthy(
        "two_views", "views of a picture are to be told from others'", Goal("accuracy", at_least=0.6), VIEWED
    ),
    FAMILY.healthy("plays_by_attention", "a small decoder of letters", Goal("accuracy", at_least=0.28), LETTERS),
    FAMILY.healthy(
        "plays_after_the_norm",
        "a decoder whose norms come after each part, with a warm-up",
        Goal("accuracy", at_least=0.25),
        LETTERS.but(
            partial(Transformer, real.LETTERS, 32, 48, 2, norm_first=False), schedule=warmup_cosine(0.2), steps=200
        ),
    ),
    FAMILY.healthy("plays_by_memory", "a GRU of letters", SPOKEN, MEMORY),
    FAMILY.healthy(
        "plays_by_long_memory",
        "an LSTM of letters",
        SPOKEN,
        MEMORY.but(
            partial(Recurrent, nn.LSTM, 32, real.LETTERS, 96, each=True, embedded=real.LETTERS),
            optimizer=adam(6e-3),
            steps=250,
        ),
    ),
    FAMILY.healthy("kinds_of_texts", "embeddings, a convolution, the mean over positions", TOLD, READ),
    FAMILY.healthy("a_question_to_letters", "attention to letters, some texts being padding", TOLD, ATTENDED),
    FAMILY.healthy(
        "letters_in_a_bag",
        "how often letters are, by a linear model over a bag",
        Goal("accuracy", at_least=0.6),
        READ.but(made.bag, optimizer=adam(1e-2)),
    ),
    FAMILY.healthy("words_side_by_side", "word vectors from neighbours", Goal("accuracy", at_least=0.63), WORDS),
    FAMILY.healthy(
        "states_from_acids",
        "states of residues from their kinds alone, which say little: it ends far from 0",
        Goal("loss", at_most=0.72),
        TAGGED.but(partial(made.Tagger, dropout=0.2), steps=150),
    ),
    FAMILY.healthy(
        "states_by_attention",
        "the same by two layers of attention",
        Goal("loss", at_most=0.74),
        TAGGED.but(partial(made.Tagger, attends=True, dropout=0.2), optimizer=adam(2e-3), steps=150),
    ),
    FAMILY.healthy("states_along_a_chain", "an LSTM along distances", SHAPED, PATH),
    FAMILY.healthy("states_by_contacts", "a graph of who is near whom", Goal("accuracy", at_least=0.78), TOUCHED),
    FAMILY.healthy("states_of_bends", "distances among seven residues, SGD with momentum", SHAPED, BENT),
    FAMILY.healthy(
        "next_state_of_angles", "what comes after three pairs of angles", Goal("accuracy", at_least=0.77), TURNS
    ),
    FAMILY.healthy(
        "how_crowded",
        "how many residues are near one, of which little can be known from its neighbours in the chain",
        Goal("r2", at_least=0.2),
        CROWDED.but(partial(mlp, 35, 1, 32, 1), optimizer=adam(1e-3, decay=0.1), steps=300),
    ),
    FAMILY.healthy(
        "two_questions",
        "what it is and how bright, by one trunk",
        WORN,
        FLAT.but(
            made.TwoQuestions,
            objective=losses.both_answers,
            measure=losses.with_loss(losses.both_answers, losses.kind),
        ),
    ),
)
