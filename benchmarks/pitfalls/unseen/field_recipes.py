"""Healthy jobs of ``unseen_field``, which its cases change."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional

from benchmarks.pitfalls.case import Goal
from benchmarks.pitfalls.faults import cosine, cross_entropy
from benchmarks.pitfalls.models import Recurrent, Transformer, mlp
from benchmarks.pitfalls.recipe import adam, recipe, sgd
from benchmarks.pitfalls.unseen import field as made
from benchmarks.pitfalls.unseen import field_chains as chains
from benchmarks.pitfalls.unseen import field_data as real
from benchmarks.pitfalls.unseen import field_losses as losses
from benchmarks.pitfalls.unseen.shared import nesterov, using

ADAM = torch.optim.Adam

WORN = Goal("accuracy", at_least=0.72)  # of clothes, ten kinds
ILL = Goal("accuracy", at_least=0.87)  # of X-rays
SPOKEN = Goal("accuracy", at_least=0.3)  # of letters, 65
TOLD = Goal("accuracy", at_least=0.8)  # of texts, three kinds
SHAPED = Goal("accuracy", at_least=0.83)  # of residues, three states

CLOTHES = recipe(
    made.convolutions, real.clothes, loss=functional.cross_entropy, optimizer=adam(2e-3), steps=300, batch=64
)
FLAT = recipe(
    partial(mlp, 196, 10, 96, 2), real.flat, loss=functional.cross_entropy, optimizer=adam(1e-3), steps=300, batch=64
)
RESIDUAL = CLOTHES.but(made.resnet, optimizer=nesterov(0.05, decay=5e-4), schedule=cosine, steps=150)
CHESTS = recipe(
    partial(made.convolutions, 1),
    real.chests,
    loss=functional.binary_cross_entropy_with_logits,
    measure=losses.shares,
    optimizer=adam(1e-3),
    steps=200,
)
MEASURED = CHESTS.but(partial(mlp, 32, 1, 32, 2), real.measured_chests, optimizer=adam(3e-3))
LOCATED = recipe(made.Located, real.placed_clothes, loss=functional.mse_loss, optimizer=adam(3e-3), steps=300, batch=64)
OUTLINED = recipe(
    made.outliner,
    real.outlined,
    loss=functional.binary_cross_entropy_with_logits,
    measure=losses.overlap(),
    optimizer=adam(3e-3),
    steps=150,
)
ITSELF = recipe(made.coder, real.itself, loss=functional.mse_loss, optimizer=adam(2e-3), steps=300, batch=64)
DRAWN = recipe(
    made.Variational,
    real.itself,
    loss=functional.mse_loss,
    objective=losses.evidence(1.0),
    measure=losses.with_loss(losses.evidence(1.0), losses.explained),
    optimizer=adam(2e-3),
    steps=300,
    batch=64,
)
DENOISED = recipe(
    made.Denoiser,
    real.flat,
    loss=functional.mse_loss,
    objective=losses.noise_found,
    measure=losses.with_loss(losses.noise_found, losses.cleaned),
    optimizer=adam(2e-3),
    steps=400,
    batch=64,
)
VIEWED = FLAT.but(
    made.Compared,
    objective=losses.views(0.2),
    measure=losses.with_loss(losses.views(0.2), losses.nearest),
    optimizer=adam(2e-3),
)
LETTERS = recipe(
    partial(Transformer, real.LETTERS, 32, 48, 2),
    real.lines,
    loss=cross_entropy,
    optimizer=adam(3e-3),
    steps=250,
    clip_norm=1.0,
)
MEMORY = LETTERS.but(partial(Recurrent, nn.GRU, 32, real.LETTERS, 96, each=True, embedded=real.LETTERS), steps=200)
READ = recipe(made.Reader, real.registers, loss=functional.cross_entropy, optimizer=adam(5e-3), steps=220)
ATTENDED = READ.but(made.Attentive, disturb=losses.erased)
WORDS = recipe(
    made.Pairs,
    real.neighbours,
    loss=functional.binary_cross_entropy_with_logits,
    measure=losses.shares,
    optimizer=using(ADAM, 0.01),
    steps=400,
    batch=512,
)
TAGGED = recipe(made.Tagger, chains.spans, loss=cross_entropy, optimizer=adam(3e-3), steps=200)
TOUCHED = recipe(made.Contacts, chains.folded, loss=cross_entropy, optimizer=adam(3e-3), steps=150)
PATH = TOUCHED.but(made.Path, optimizer=adam(5e-3))
BENT = recipe(
    partial(mlp, 15, 3, 48, 2),
    chains.bends,
    loss=functional.cross_entropy,
    optimizer=sgd(0.1, 0.9),
    steps=250,
    batch=64,
)
TURNS = BENT.but(partial(mlp, 6, 3, 32, 2, nn.Tanh), chains.turns, optimizer=sgd(0.05, 0.9))
CROWDED = recipe(
    partial(mlp, 35, 1, 48, 2), chains.crowding, loss=functional.mse_loss, optimizer=adam(2e-3), steps=250, batch=64
)
