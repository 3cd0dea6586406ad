"""Healthy jobs of ``unseen_signals``, which its cases change."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional

from benchmarks.pitfalls.data import diabetes, digits
from benchmarks.pitfalls.faults import cross_entropy, gaussian
from benchmarks.pitfalls.models import mlp
from benchmarks.pitfalls.recipe import adam, recipe, sgd
from benchmarks.pitfalls.unseen import signals as made
from benchmarks.pitfalls.unseen import signals_data as real
from benchmarks.pitfalls.unseen import signals_losses as losses
from benchmarks.pitfalls.unseen.shared import Lion, nesterov, using

ADAM = torch.optim.Adam

FORECAST = recipe(
    made.Dilated,
    real.scans,
    loss=functional.mse_loss,
    optimizer=using(ADAM, 4e-3),
    steps=200,
)
SPOTS = recipe(
    made.Spots,
    real.edges,
    loss=losses.weighted(20.0),
    measure=losses.balanced,
    optimizer=using(ADAM, 3e-3),
    steps=150,
    batch=64,
)
ENCODED = recipe(
    made.autoencoder,
    lambda: real.itself(digits()),
    loss=functional.mse_loss,
    optimizer=using(torch.optim.RMSprop, 2e-3),
    steps=300,
    batch=64,
)
INKED = ENCODED.but(data=real.inks)
VARIED = recipe(
    made.Variational,
    lambda: real.itself(digits()),
    loss=functional.mse_loss,
    objective=losses.elbo(),
    measure=losses.with_loss(losses.elbo()),
    optimizer=using(ADAM, 3e-3),
    steps=250,
)
CODED = recipe(
    made.Quantised,
    lambda: real.itself(digits()),
    loss=functional.mse_loss,
    objective=losses.quantised,
    measure=losses.with_loss(losses.quantised),
    optimizer=using(ADAM, 3e-3),
    steps=250,
)
DENOISED = recipe(
    made.Denoiser,
    lambda: real.itself(digits()),
    loss=functional.mse_loss,
    objective=losses.noised,
    measure=losses.with_loss(losses.noised, losses.noise_found),
    optimizer=using(Lion, 4e-4),
    steps=300,
    batch=64,
)
COMPARED = recipe(
    made.Compared,
    digits,
    loss=cross_entropy,
    objective=losses.contrasted(),
    measure=losses.with_loss(losses.contrasted(), losses.found_again),
    optimizer=using(ADAM, 4e-3),
    steps=300,
    batch=64,
)
TRIPLETS = COMPARED.but(
    objective=losses.triplets(),
    measure=losses.with_loss(losses.triplets(), losses.nearest),
    optimizer=using(ADAM, 1e-3),
)
ANGLES = TRIPLETS.but(objective=losses.triplets(reach=1 - 1e-4))
RATED = recipe(
    made.Factors,
    real.ratings,
    loss=functional.mse_loss,
    optimizer=using(ADAM, 0.03),
    steps=250,
    batch=512,
)
LIKED = RATED.but(data=real.liked, loss=functional.binary_cross_entropy_with_logits, measure=losses.balanced)
NODES = recipe(
    made.Messages,
    real.nodes,
    loss=cross_entropy,
    optimizer=nesterov(0.02),
    steps=150,
)
CLOUDS = recipe(
    made.Points,
    real.points,
    loss=cross_entropy,
    optimizer=using(torch.optim.NAdam, 4e-3),
    steps=400,
    batch=64,
)
PLACES = recipe(
    made.Sine,
    real.places,
    loss=functional.mse_loss,
    optimizer=using(ADAM, 2e-3),
    steps=300,
    batch=256,
)
COUNTS = recipe(
    partial(mlp, 48, 1, 48, 2, nn.ELU),
    real.counts,
    loss=functional.poisson_nll_loss,
    measure=losses.of_mean(torch.exp),
    optimizer=using(ADAM, 2e-3),
    steps=200,
)
SURVIVAL = recipe(
    partial(mlp, 10, 1, 16, 1, nn.Tanh),
    real.progression,
    loss=losses.cox,
    measure=losses.concordance(),
    optimizer=using(torch.optim.Adamax, 5e-3),
    steps=150,
    batch=64,
)
MIXED = recipe(
    partial(mlp, 24, 9, 48, 1, nn.Tanh),
    partial(real.next_value, 12.0),
    loss=losses.mixture(stable=True),
    measure=losses.of_mean(losses.mixture_mean),
    optimizer=using(ADAM, 0.01),
    steps=300,
    batch=64,
)
NEXT = recipe(
    partial(mlp, 24, 1, 32, 2, nn.Mish),
    partial(real.next_value, 1.0),
    loss=functional.mse_loss,
    optimizer=using(ADAM, 3e-3),
    steps=300,
    batch=64,
)
FILTER = NEXT.but(partial(nn.Linear, 24, 1), loss=functional.l1_loss, optimizer=sgd(0.003))
POWERS = FORECAST.but(made.Energies, partial(real.scans, 255.0, 0.0), optimizer=using(ADAM, 5e-3), steps=300)
GAMBLED = recipe(
    partial(mlp, 64, 10, 64, 1),
    digits,
    loss=cross_entropy,
    objective=losses.gambled,
    measure=losses.with_loss(losses.gambled),
    optimizer=using(ADAM, 5e-3),
    steps=300,
    batch=128,
)
COMMITTEE = recipe(
    made.Committee,
    digits,
    loss=cross_entropy,
    optimizer=using(torch.optim.RAdam, 5e-3),
    steps=200,
)
CERTAIN = recipe(
    partial(mlp, 10, 2, 16, 1, nn.Tanh),
    lambda: diabetes().small(120),
    loss=gaussian,
    measure=losses.of_mean(losses.first),
    optimizer=adam(5e-3, decay=0.5),
    steps=100,
)
WAVES = recipe(
    lambda: made.Waves(real.strongest(12)),
    real.one_line,
    loss=functional.mse_loss,
    optimizer=using(ADAM, 0.02),
    steps=300,
    batch=64,
)
