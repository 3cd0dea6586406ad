"""Healthy jobs of ``unseen_desk``, which its cases change."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional

from benchmarks.pitfalls.case import Goal
from benchmarks.pitfalls.data import breast_cancer, diabetes, digits, wine
from benchmarks.pitfalls.faults import cosine, cross_entropy, warmup_cosine
from benchmarks.pitfalls.models import Recurrent, mlp
from benchmarks.pitfalls.recipe import adam, recipe, sgd
from benchmarks.pitfalls.unseen import desk as made
from benchmarks.pitfalls.unseen import desk_data as own
from benchmarks.pitfalls.unseen import desk_losses as losses
from benchmarks.pitfalls.unseen import field, field_losses
from benchmarks.pitfalls.unseen import field_chains as chains
from benchmarks.pitfalls.unseen import field_data as real
from benchmarks.pitfalls.unseen.shared import using

WORN = Goal("accuracy", at_least=0.72)  # of clothes, ten kinds
ILL = Goal("accuracy", at_least=0.85)  # of X-rays

BCE = functional.binary_cross_entropy_with_logits
CE = functional.cross_entropy

FLAT = recipe(partial(mlp, 196, 10, 96, 2), real.flat, loss=CE, optimizer=adam(1e-3), steps=300, batch=64)
CLOTHES = FLAT.but(field.convolutions, real.clothes, optimizer=adam(2e-3))
PATCHED = CLOTHES.but(
    made.Patches, optimizer=adam(3e-3, decay=0.05), schedule=warmup_cosine(0.1), warmup_steps=30, batch=48
)
SEPARATE = CLOTHES.but(made.separable, optimizer=sgd(0.1, 0.9, 1e-4), schedule=cosine, steps=150)
LINES = recipe(
    partial(Recurrent, nn.GRU, 14, 10, 48), own.rows, loss=CE, optimizer=adam(4e-3), steps=250, batch=64, clip_norm=1.0
)
SUMMED = LINES.but(partial(made.Summing, True), optimizer=adam(3e-3), clip_norm=None)
CLEANED = recipe(
    made.Hourglass,
    real.outlined,
    loss=BCE,
    measure=field_losses.overlap(),
    optimizer=adam(3e-3),
    steps=120,
)
FOLDED = recipe(made.folding, real.itself, loss=functional.mse_loss, optimizer=adam(4e-3), steps=300, batch=64)
CODED = recipe(
    made.Coded,
    real.itself,
    loss=functional.mse_loss,
    objective=losses.price_of_codes(1e-3),
    measure=field_losses.with_loss(losses.price_of_codes(1e-3), field_losses.explained),
    optimizer=adam(2e-3),
    steps=300,
    batch=64,
)
MATCHED = FLAT.but(
    made.Halves,
    objective=losses.halves_matched,
    measure=field_losses.with_loss(losses.halves_matched, losses.right_half),
    optimizer=adam(2e-3),
)
NEAREST = FLAT.but(
    partial(mlp, 196, 24, 96, 1),
    objective=losses.triplets(False),
    measure=field_losses.with_loss(losses.triplets(False), field_losses.nearest),
    optimizer=adam(2e-3),
)
COUNTED = recipe(made.counter, own.several, loss=functional.mse_loss, optimizer=adam(3e-3), steps=300, batch=64)
FOUND = COUNTED.but(made.finder, own.cells, loss=CE)
LOCATED = recipe(
    field.Located, real.placed_clothes, loss=functional.mse_loss, optimizer=sgd(0.1, 0.9), steps=300, batch=64
)
OVERLAID = FLAT.but(data=own.overlaid, loss=BCE, measure=losses.answers, optimizer=adam(2e-3))
CHESTS = recipe(
    partial(field.convolutions, 1),
    real.chests,
    loss=BCE,
    measure=field_losses.shares,
    optimizer=adam(1e-3),
    steps=200,
)
MEASURED = CHESTS.but(partial(mlp, 32, 1, 32, 2), real.measured_chests, optimizer=adam(3e-3))
LETTERS = recipe(
    partial(made.Causal, real.LETTERS), real.lines, loss=cross_entropy, optimizer=adam(4e-3), steps=250, clip_norm=1.0
)
CELL = LETTERS.but(partial(made.OwnCell, real.LETTERS), optimizer=adam(5e-3), steps=250)
HIDDEN = recipe(
    partial(made.Context, real.SYMBOLS),
    own.hidden_letters,
    loss=cross_entropy,
    objective=losses.letters_hidden,
    measure=field_losses.with_loss(losses.letters_hidden, losses.letters_found),
    optimizer=adam(4e-3),
    steps=150,
)
SORTED = recipe(
    partial(made.Encoder, 10, 10, 8), own.to_be_sorted, loss=cross_entropy, optimizer=adam(4e-3), steps=400, batch=64
)
SENTENCES = recipe(made.next_word, own.sentences, loss=CE, optimizer=adam(3e-3), steps=400, batch=128)
WORDS = recipe(
    field.Pairs,
    real.neighbours,
    loss=BCE,
    measure=field_losses.shares,
    optimizer=using(torch.optim.Adam, 0.01),
    steps=400,
    batch=512,
)
HELICES = recipe(
    partial(made.Along, False), own.helices, loss=functional.mse_loss, optimizer=adam(5e-3), steps=150, clip_norm=1.0
)
STATES = HELICES.but(partial(made.Along, True), chains.folded, loss=cross_entropy, optimizer=adam(3e-3))
CROWDED = recipe(
    partial(mlp, 35, 1, 48, 2), chains.crowding, loss=functional.mse_loss, optimizer=adam(2e-3), steps=250, batch=64
)
PATIENTS = recipe(partial(mlp, 30, 2, 32, 2), breast_cancer, loss=CE, optimizer=adam(3e-3), steps=150)
DIGITS = recipe(partial(mlp, 64, 10, 64, 2), digits, loss=CE, optimizer=adam(3e-3), steps=250)
WINES = recipe(partial(mlp, 13, 3, 24, 2), wine, loss=CE, optimizer=adam(5e-3), steps=150, batch=24)
ILLNESS = recipe(
    partial(mlp, 10, 1, 16, 1), diabetes, loss=functional.mse_loss, optimizer=sgd(0.02, 0.9), steps=200, batch=32
)
TUNED = CLOTHES.but(field.pretrained, optimizer=sgd(0.02, 0.9), steps=150, begins_trained=True)
