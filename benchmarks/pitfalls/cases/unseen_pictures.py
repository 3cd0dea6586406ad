"""Pictures under other models, losses and optimizers, by somebody who had not read the rules. Rules have been tuned on them since."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.pitfalls.case import Goal
from benchmarks.pitfalls.data import digits
from benchmarks.pitfalls.faults import burst, flipped_bit, gradients_of, part_of_a_rank, warmup, weights_of
from benchmarks.pitfalls.models import mlp, started
from benchmarks.pitfalls.recipe import Family, adam, recipe, sgd
from benchmarks.pitfalls.unseen import pictures as made
from benchmarks.pitfalls.unseen.shared import Lion, Residual, each, enlarged, nesterov, trained_on, using

FAMILY = Family("unseen_pictures")
GOOD = Goal("accuracy", at_least=0.85)
VIEWED = Goal("accuracy", at_least=0.75)
SAME = Goal("accuracy", at_least=0.75)  # of pairs or triples, of which chance has a half


def body(inputs: int, outputs: int) -> nn.Module:
    return mlp(inputs, outputs, 48, 1, nn.ReLU)


def embedding(gain: float = 1.0) -> nn.Module:
    """Eight numbers for a picture; ``gain`` on its first weights."""
    model = nn.Sequential(*mlp(64, 8, 48, 2, nn.Tanh))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(gain)
    return model


def blocks(damping: float) -> nn.Module:
    """24 residual blocks without normalisation, branches times ``damping``."""
    made_of = [Residual(nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 40)) for _ in range(24)]
    for block in made_of:
        for layer in (block.part[0], block.part[2]):
            nn.init.kaiming_normal_(layer.weight)  # type: ignore[arg-type]
        block.part[2].weight.data.mul_(damping)  # type: ignore[operator]
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 40), *made_of, nn.Linear(40, 10))


def uniform(low: float, high: float) -> nn.Module:
    """Kernels drawn from an interval, in shares of the root of the fan-in."""

    def fill(weight: Tensor) -> None:
        bound = (3.0 / weight[0].numel()) ** 0.5
        nn.init.uniform_(weight, low * bound, high * bound)

    return started(made.stack(nn.ReLU(), 4), fill)


def six(activation: nn.Module) -> nn.Module:
    return started(made.stack(activation, 6), nn.init.kaiming_normal_)


def equal_filters(equal: bool) -> nn.Module:
    """A mixer whose hidden layers all hold one number."""

    def fill(weight: Tensor) -> None:
        nn.init.constant_(weight, weight[0].numel() ** -0.5)

    model = made.mixer()
    return started(model, fill) if equal else model


def old_head(model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer has the head that the model had before it was given another one."""
    return torch.optim.SGD(nn.Linear(64, 2).parameters(), lr=0.1)


def no_batch_norm(model: nn.Module) -> nn.Module:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(("weight" in name and parameter.dim() == 1) or "bias" in name)
    return model


def zeroed(gradient: Tensor) -> Tensor:
    return torch.zeros_like(gradient)


def as_bytes(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x * 255, y


CNN = recipe(
    made.separable, enlarged, loss=functional.cross_entropy, optimizer=nesterov(0.05, decay=5e-4), steps=120, batch=64
)
VIT = recipe(
    made.Patches,
    enlarged,
    loss=functional.cross_entropy,
    optimizer=adam(5e-3, decay=0.05),
    steps=200,
    batch=32,
    schedule=warmup(0.15),
    warmup_steps=30,
)
MIXER = recipe(
    made.mixer,
    enlarged,
    loss=functional.cross_entropy,
    optimizer=using(torch.optim.RMSprop, 1e-3),
    steps=200,
    batch=64,
)
STACK = recipe(
    partial(made.stack, nn.ReLU(), 4), enlarged, loss=functional.cross_entropy, optimizer=nesterov(0.03), steps=200
)
PAIRS = recipe(
    embedding,
    made.pairs,
    loss=functional.mse_loss,
    objective=made.contrastive,
    measure=made.measure_pairs,
    optimizer=using(torch.optim.RMSprop, 1e-3),
    steps=300,
    batch=48,
)
TRIPLES = PAIRS.but(data=made.triples, objective=made.triplet, measure=made.measure_triples)
VAE = recipe(
    made.Variational,
    lambda: each(made.unit(digits(raw=True)), made.autoencoded),
    loss=functional.mse_loss,
    objective=lambda model, x, _: model.bound(x),
    measure=made.measure_drawn,
    optimizer=using(torch.optim.Adamax, 5e-3),
    steps=300,
    batch=64,
)
PUPIL = recipe(
    partial(mlp, 64, 10, 32, 1, nn.GELU),
    made.taught,
    loss=made.distilled,
    measure=made.measure_taught,
    optimizer=using(torch.optim.NAdam, 3e-3),
    steps=200,
    batch=64,
)
RANKS = recipe(
    partial(mlp, 64, 10, 48, 2, nn.SiLU),
    lambda: made.unit(digits(raw=True)),
    loss=functional.cross_entropy,
    optimizer=using(torch.optim.Adam, 3e-3),
    steps=200,
    batch=48,
    ranks=3,
)
CENTRES = recipe(
    partial(made.Prototypes, 255.0),
    lambda: digits(raw=True).mapped(255 / 16),
    loss=functional.cross_entropy,
    optimizer=using(torch.optim.Adam, 1e-2),
    steps=150,
)

CASES = (
    FAMILY.sick(
        "wrong_axis",
        "output_activation",
        "softmax over the batch before cross-entropy",
        Goal("accuracy", at_least=0.95),
        CNN,
        CNN.but(partial(made.separable, nn.Softmax(0))),
        ("wrong_loss",),
    ),
    FAMILY.sick(
        "rate_typo",
        "lr_too_high",
        "RMSprop with 1 in place of 1e-3",
        GOOD,
        MIXER,
        MIXER.but(optimizer=using(torch.optim.RMSprop, 1.0)),
        ("oscillating_loss", "exploding_gradient"),
    ),
    FAMILY.sick(
        "momentum_999",
        "oscillating_loss",
        "Nesterov's momentum is 0.999 in place of 0.9",
        GOOD,
        STACK,
        STACK.but(optimizer=nesterov(0.03, 0.999)),
        ("lr_too_high", "exploding_gradient", "dying_relu"),
    ),
    FAMILY.sick(
        "lion_at_adams_rate",
        "lr_too_high",
        "Lion with thirty times the rate that it wants",
        VIEWED,
        VIT.but(optimizer=using(Lion, 1e-3)),
        VIT.but(optimizer=using(Lion, 3e-2)),
        ("oscillating_loss", "exploding_gradient"),
    ),
    FAMILY.sick(
        "old_head",
        "frozen_params",
        "fine-tuning: the optimizer was made before the head was replaced, and has the old one",
        GOOD,
        CNN,
        CNN.but(optimizer=old_head),
    ),
    FAMILY.sick(
        "zeroed_too_late",
        "frozen_params",
        "gradients are cleared between backward and step",
        GOOD,
        STACK,
        STACK.but(tamper=gradients_of(0, 1, zeroed)),
        ("vanishing_gradient",),
    ),
    FAMILY.sick(
        "detached",
        "frozen_params",
        "a vision transformer's body is detached from its head",
        VIEWED,
        VIT,
        VIT.but(partial(made.Patches, detached=True)),
    ),
    FAMILY.sick(
        "blank_pictures",
        "nonfinite_data",
        "pictures are divided by their own deviation, and three are blank",
        GOOD,
        CNN.but(data=partial(made.standardised_one_by_one, 1e-3)),
        CNN.but(data=partial(made.standardised_one_by_one, 0.0)),
        ("nonfinite_gradient",),
    ),
    FAMILY.sick(
        "root_of_no_distance",
        "nonfinite_gradient",
        "a siamese net is given a picture with itself: the root of a distance of 0",
        SAME,
        PAIRS.but(data=made.repeated_pairs),
        PAIRS.but(data=made.repeated_pairs, objective=partial(made.contrastive, epsilon=0.0)),
    ),
    FAMILY.sick(
        "fp16_unscaled",
        "precision_underflow",
        "fp16 without loss scaling, and a loss that is a mean over many pixels",
        GOOD,
        RANKS.but(ranks=1, loss=made.faint, optimizer=sgd(2e5, 0.9), autocast=torch.float16, scaler=True),
        RANKS.but(ranks=1, loss=made.faint, optimizer=sgd(2e5, 0.9), autocast=torch.float16),
        ("lr_too_low", "slow_convergence"),
    ),
    FAMILY.sick(
        "fp16_distances",
        "precision_overflow",
        "squared distances of pictures of 0 to 255 under fp16",
        GOOD,
        CENTRES,
        CENTRES.but(autocast=torch.float16),
        ("nonfinite_gradient",),
    ),
    FAMILY.sick(
        "negative_weights",
        "dying_relu",
        "kernels drawn from below 0 only, pixels from above",
        GOOD,
        STACK.but(partial(uniform, -1.0, 1.0)),
        STACK.but(partial(uniform, -1.0, 0.0)),
        ("bad_init",),
    ),
    FAMILY.sick(
        "one_number",
        "bad_init",
        "a mixer all of whose weights are one number",
        GOOD,
        MIXER,
        MIXER.but(partial(equal_filters, True)),
    ),
    FAMILY.sick(
        "bytes",
        "unnormalised_input",
        "pixels of 0 to 255 under momentum",
        GOOD,
        STACK,
        STACK.but(data=lambda: enlarged().mapped(255.0)),
        ("exploding_gradient", "lr_too_high", "nonfinite_gradient", "dying_relu"),
    ),
    FAMILY.sick(
        "off_by_one",
        "label_error",
        "labels that are trained on count from 1, those of validation from 0",
        GOOD,
        CNN,
        CNN.but(data=lambda: trained_on(enlarged(), made.off_by_one)),
    ),
    FAMILY.sick(
        "few_pictures",
        "overfitting",
        "forty pictures for a vision transformer, and 200 steps",
        Goal("loss", at_most=1.0),
        VIT,
        VIT.but(data=lambda: enlarged().small(40)),
    ),
    FAMILY.sick(
        "collapsed",
        "over_regularised",
        "a variational autoencoder with its KL times 300: the latent values say nothing",
        Goal("r2", at_least=0.3),
        VAE,
        VAE.but(partial(made.Variational, 300.0)),
        ("plateau",),
    ),
    FAMILY.sick(
        "same_for_all",
        "plateau",
        "a triplet loss whose weights begin a hundred times too small: all distances are equal, at a saddle",
        SAME,
        TRIPLES.but(optimizer=sgd(0.05)),
        TRIPLES.but(partial(embedding, 0.01), optimizer=sgd(0.05)),
        ("bad_init", "vanishing_gradient"),
    ),
    FAMILY.sick(
        "undamped_blocks",
        "exploding_gradient",
        "24 residual blocks, neither normalised nor damped",
        GOOD,
        STACK.but(partial(blocks, 0.1), data=lambda: digits().shaped(1, 8, 8), optimizer=sgd(0.02)),
        STACK.but(partial(blocks, 1.0), data=lambda: digits().shaped(1, 8, 8), optimizer=sgd(0.02)),
        ("bad_init", "lr_too_high", "nonfinite_gradient"),
    ),
    FAMILY.sick(
        "hard_sigmoids",
        "vanishing_gradient",
        "six convolutions with hard sigmoids, whose slope is a sixth",
        GOOD,
        STACK.but(partial(six, nn.ReLU())),
        STACK.but(partial(six, nn.Hardsigmoid())),
        ("saturated_activation",),
    ),
    FAMILY.sick(
        "no_logarithm",
        "wrong_loss",
        "kl_div is given a pupil's probabilities, not their logarithms: it falls below 0",
        Goal("apart", at_most=0.25),
        PUPIL,
        PUPIL.but(loss=made.distilled_without_log),
        ("output_activation",),
    ),
    FAMILY.sick(
        "late_restart",
        "loss_spike",
        "a restart after 75 % of the run, to 300 times the rate, that comes back at once",
        GOOD,
        STACK,
        STACK.but(schedule=burst(0.75, 0.8, 300.0)),
        ("lr_too_high", "exploding_gradient", "nonfinite_gradient", "dying_relu"),
    ),
    FAMILY.sick(
        "two_a_step",
        "batch_size",
        "two pictures a step in front of batch norms, at a rate for 64",
        GOOD,
        CNN.but(optimizer=nesterov(0.1)),
        CNN.but(optimizer=nesterov(0.1), batch=2),
        ("lr_too_high", "oscillating_loss"),
    ),
    FAMILY.sick(
        "slow_decoder",
        "data_starvation",
        "pictures are decoded in the loop, for longer than the step takes",
        Goal("wait_share", at_most=0.2),
        STACK.but(steps=100),
        STACK.but(steps=100, stall=0.025),
    ),
    FAMILY.sick(
        "one_rank_in_bytes",
        "silent_corruption",
        "from step 20 on one of three ranks reads pixels of 0 to 255, the others of 0 to 1",
        GOOD,
        RANKS.but(optimizer=nesterov(0.1)),
        RANKS.but(optimizer=nesterov(0.1), disturb=part_of_a_rank(1, 3, 20, as_bytes)),
        ("rank_divergence", "loss_spike", "exploding_gradient"),
    ),
    FAMILY.sick(
        "broken_device",
        "silent_corruption",
        "a bit of one rank's gradients flips at every tenth step",
        GOOD,
        RANKS.but(optimizer=nesterov(0.1)),
        RANKS.but(optimizer=nesterov(0.1), tamper=gradients_of(2, 40, partial(flipped_bit, bit=30), every=10)),
        ("loss_spike", "exploding_gradient", "nonfinite_gradient"),
    ),
    FAMILY.sick(
        "own_weights",
        "rank_divergence",
        "one of three ranks begins with weights of its own, of deviation 1",
        GOOD,
        RANKS.but(optimizer=nesterov(0.1)),
        RANKS.but(optimizer=nesterov(0.1), tamper=weights_of(1, [1], torch.randn_like)),
        ("silent_corruption",),
    ),
    # healthy
    FAMILY.healthy("attention_pooling", "a vision transformer with attention pooling and warm-up", VIEWED, VIT),
    FAMILY.healthy("siamese", "a contrastive loss: small from the start, and never 0", SAME, PAIRS),
    FAMILY.healthy("triplets", "a triplet loss that begins flat at its margin", SAME, TRIPLES),
    FAMILY.healthy("variational", "a variational autoencoder whose KL begins near 0", Goal("r2", at_least=0.3), VAE),
    FAMILY.healthy(
        "adversaries",
        "a generator and its critic, in turn: losses ring, every second step half of the gradients are missing",
        Goal("apart", at_most=0.7),
        recipe(
            made.Adversaries,
            made.planes,
            loss=functional.mse_loss,
            objective=lambda model, x, _: model.objective(x),
            measure=made.measure_made,
            optimizer=using(torch.optim.Adam, 2e-3, betas=(0.5, 0.9)),
            steps=600,
            batch=64,
        ),
    ),
    FAMILY.healthy("pupil", "a pupil learns a teacher's softened answers", GOOD, PUPIL),
    FAMILY.healthy(
        "fine_tuned",
        "trained weights go on with a rate of 1e-5: nothing seems to move",
        GOOD,
        RANKS.but(made.pupil, digits, ranks=1, optimizer=adam(1e-5), begins_trained=True),
    ),
    FAMILY.healthy(
        "norms_only",
        "only batch norms and biases train, kernels are frozen on purpose",
        Goal("accuracy", at_least=0.6),
        CNN.but(lambda: no_batch_norm(made.separable()), optimizer=using(torch.optim.RMSprop, 1e-2), steps=200),
    ),
    FAMILY.healthy(
        "augmented",
        "heavy augmentation and label smoothing: the training loss stays high",
        VIEWED,
        CNN.but(disturb=made.mixed_up, loss=made.smoothed, steps=250),
    ),
    FAMILY.healthy(
        "adagrad",
        "Adagrad with a rate of 0.05: large steps at first, ever smaller ones then",
        GOOD,
        STACK.but(optimizer=using(torch.optim.Adagrad, 0.03)),
    ),
    FAMILY.healthy("lion", "Lion: every step is as large as the rate", GOOD, MIXER.but(optimizer=using(Lion, 5e-4))),
)
