"""Healthy jobs of ``unseen_road``, which its cases change."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.nn import functional

from benchmarks.pitfalls.case import Goal
from benchmarks.pitfalls.faults import cosine, cross_entropy
from benchmarks.pitfalls.models import Recurrent, Transformer, mlp
from benchmarks.pitfalls.recipe import adam, recipe, sgd
from benchmarks.pitfalls.unseen import field, road
from benchmarks.pitfalls.unseen import field_chains as chains
from benchmarks.pitfalls.unseen import field_data as real
from benchmarks.pitfalls.unseen import road_data as own
from benchmarks.pitfalls.unseen import road_losses as losses
from benchmarks.pitfalls.unseen.shared import nesterov

WORN = Goal("accuracy", at_least=0.72)  # of clothes, ten kinds
SEEN = Goal("accuracy", at_least=0.64)  # by convolutions and by recurrent nets
TOLD = Goal("accuracy", at_least=0.73)  # of texts, three kinds
MET = Goal("r2", at_least=0.15)  # of how crowded residues are
ILL = Goal("accuracy", at_least=0.85)  # of X-rays
LEANS = Goal("r2", at_least=0.7)  # of angles
SPOKEN = Goal("accuracy", at_least=0.3)  # of letters, 65

FLAT = recipe(partial(mlp, 196, 10, 96, 2), real.flat, loss=losses.CE, optimizer=adam(1e-3), steps=300, batch=64)
PICTURES = FLAT.but(road.picture_net, real.clothes, optimizer=adam(2e-3), steps=250)
NORMED = PICTURES.but(partial(road.picture_net, norm=True), optimizer=sgd(0.05, 0.9))
RESIDUAL = PICTURES.but(
    partial(field.resnet, groups=4), optimizer=nesterov(0.05, decay=5e-4), schedule=cosine, steps=150
)
CHESTS = recipe(
    partial(road.picture_net, 1), real.chests, loss=losses.BCE, measure=losses.sides(), optimizer=adam(2e-3), steps=250
)
NAMED_CHESTS = CHESTS.but(partial(road.picture_net, 2), real.named_chests, loss=losses.CE, measure=None)
MEASURED = CHESTS.but(partial(mlp, 32, 1, 32, 2), real.measured_chests, optimizer=adam(3e-3))
LEANING = recipe(
    partial(road.picture_net, 1), own.leaning, loss=functional.mse_loss, optimizer=adam(3e-3), steps=300, batch=64
)
POINTING = LEANING.but(road.Direction, loss=losses.between_points, measure=losses.direction)
TWINS = CHESTS.but(road.Twins, own.in_pairs, optimizer=adam(2e-3), batch=64, steps=400)
ROWS = recipe(
    partial(Recurrent, nn.LSTM, 14, 10, 48), own.rows, loss=losses.CE, optimizer=adam(5e-3), steps=250, batch=64
)
LINES = ROWS.but(partial(road.Lines, False))
FORECAST = recipe(road.Forecast, own.next_rows, loss=functional.mse_loss, optimizer=adam(4e-3), steps=250)
SPEAKING = recipe(
    partial(road.Speaker, 0.05), real.lines, loss=cross_entropy, optimizer=adam(5e-3), steps=200, clip_norm=1.0
)
LETTERS = SPEAKING.but(partial(Transformer, real.LETTERS, 32, 48, 2), optimizer=adam(3e-3), steps=250)
READ = recipe(road.Kinds, real.registers, loss=losses.CE, optimizer=adam(3e-3), steps=150)
COUNTS = recipe(road.Counts, own.together, loss=functional.mse_loss, optimizer=adam(0.01), steps=300, batch=512)
CROWDED = recipe(
    partial(mlp, 35, 1, 48, 2), chains.crowding, loss=functional.mse_loss, optimizer=adam(2e-3), steps=250, batch=64
)
TAGGED = recipe(field.Tagger, chains.spans, loss=cross_entropy, optimizer=adam(3e-3), steps=200)
DRAWN = recipe(
    road.Posterior,
    real.itself,
    loss=functional.mse_loss,
    objective=losses.evidence(1.0),
    measure=losses.with_loss(losses.evidence(1.0), losses.pixels),
    optimizer=adam(2e-3),
    steps=300,
    batch=64,
)
PLACED = FLAT.but(
    partial(mlp, 196, 16, 96, 1),
    objective=losses.contrastive(False),
    measure=losses.with_loss(losses.contrastive(False), losses.nearest),
    optimizer=adam(2e-3),
)
BOTH = FLAT.but(
    road.TwoHeads,
    objective=losses.kinds_and_pixels(0.005),
    measure=losses.with_loss(losses.kinds_and_pixels(0.005), losses.kinds),
)
TUNED = FLAT.but(road.known, optimizer=adam(3e-5), steps=150, begins_trained=True)
OUTLINED = recipe(
    field.outliner, real.outlined, loss=losses.BCE, optimizer=adam(3e-3), steps=150, measure=losses.sides()
)
