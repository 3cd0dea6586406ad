"""What is met most often: what was left out, too much of what helps, and too few to learn from. By somebody who has not read the rules."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from benchmarks.pitfalls.case import Goal
from benchmarks.pitfalls.cases.unseen_road import FAMILY
from benchmarks.pitfalls.models import Recurrent, mlp
from benchmarks.pitfalls.recipe import adam, sgd
from benchmarks.pitfalls.unseen import field, road, road_data
from benchmarks.pitfalls.unseen import field_data as real
from benchmarks.pitfalls.unseen import road_losses as losses
from benchmarks.pitfalls.unseen.road_recipes import (
    CHESTS,
    CROWDED,
    DRAWN,
    FLAT,
    MET,
    NORMED,
    PICTURES,
    READ,
    SEEN,
    SPEAKING,
    TOLD,
    TUNED,
    WORN,
)
from benchmarks.pitfalls.unseen.shared import using

sick = FAMILY.sick
R2 = partial(Goal, "r2")
IN_TIME = Goal("wait_share", at_most=0.2)


def new_head() -> nn.Module:
    return road.known(fresh_head=10, frozen=True)


def of_the_old_head(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(nn.Linear(96, 10).parameters(), 5e-3)


CASES = (
    # --- what was left out
    sick(
        "graph_lost_in_between",
        "frozen_params",
        "features are passed on as .data: the convolutions never have a gradient",
        SEEN,
        PICTURES.but(partial(road.Passed, False), optimizer=adam(5e-3), steps=350),
        PICTURES.but(partial(road.Passed, True), optimizer=adam(5e-3), steps=350),
    ),
    sick(
        "only_what_answers",
        "frozen_params",
        "the optimizer was made of model.head only, when there was nothing else to train",
        TOLD,
        READ,
        READ.but(optimizer=adam(3e-3, only=lambda name: name.startswith("head"))),
    ),
    sick(
        "a_new_head_after_the_optimizer",
        "frozen_params",
        "only a new last layer is to be trained, and it was made after the optimizer had its parameters",
        WORN,
        TUNED.but(new_head, optimizer=adam(5e-3)),
        TUNED.but(new_head, optimizer=of_the_old_head),
    ),
    sick(
        "sums_of_all_steps",
        "grad_accumulation",
        "zero_grad is left out, and SGD with momentum adds all steps up",
        SEEN,
        PICTURES.but(optimizer=sgd(0.03, 0.9)),
        PICTURES.but(optimizer=sgd(0.03, 0.9), clears=False),
        ("lr_too_high",),
    ),
    sick(
        "sums_of_all_letters",
        "grad_accumulation",
        "zero_grad stands behind a condition that is never true, in a transformer of texts",
        TOLD,
        READ,
        READ.but(clears=False),
    ),
    # --- too few
    sick(
        "sixty_x_rays",
        "overfitting",
        "sixty X-rays, and a net that knows all of them by heart",
        Goal("loss", at_most=0.45),
        CHESTS.but(optimizer=adam(1e-3), steps=200),
        CHESTS.but(partial(road.picture_net, 1, 24), partial(road_data.few_rays, 60), optimizer=adam(3e-3), steps=300),
    ),
    sick(
        "few_residues",
        "overfitting",
        "48 residues for 4,000 weights",
        MET,
        CROWDED,
        CROWDED.but(partial(mlp, 35, 1, 96, 2), road_data.crowded_twenty, optimizer=adam(5e-3), batch=16, steps=400),
    ),
    sick(
        "sixty_lines",
        "overfitting",
        "sixty lines of plays, again and again",
        Goal("loss", at_most=2.7),
        SPEAKING,
        SPEAKING.but(
            partial(Recurrent, nn.GRU, 32, real.LETTERS, 96, each=True, embedded=real.LETTERS),
            partial(road_data.few_lines, 60),
            steps=400,
        ),
    ),
    # --- too much of what helps
    sick(
        "decay_of_one",
        "over_regularised",
        "weight_decay=1.0 in SGD, which is no share of the rate there",
        SEEN,
        PICTURES.but(optimizer=sgd(0.03, 0.9, 5e-4)),
        PICTURES.but(optimizer=sgd(0.03, 0.9, 1.0)),
    ),
    sick(
        "lasso_of_sums",
        "over_regularised",
        "0.01 times the sum of all weights' sizes, 28,000 of them",
        WORN,
        FLAT.but(objective=losses.lasso(1e-6), measure=losses.kinds),
        FLAT.but(objective=losses.lasso(1e-2), measure=losses.kinds),
    ),
    sick(
        "divergence_counts_fifty",
        "over_regularised",
        "a VAE whose divergence counts fifty times: nothing is told of a picture",
        R2(at_least=0.4),
        DRAWN,
        DRAWN.but(objective=losses.evidence(50.0), measure=losses.with_loss(losses.evidence(50.0), losses.pixels)),
        ("plateau",),
    ),
    sick(
        "nineteen_in_twenty_dropped",
        "over_regularised",
        "dropout's argument is what is dropped; 0.95 of three layers are",
        WORN,
        FLAT.but(partial(mlp, 196, 10, 96, 3, dropout=0.05)),
        FLAT.but(partial(mlp, 196, 10, 96, 3, dropout=0.95)),
    ),
    sick(
        "all_the_other_penalty",
        "over_regularised",
        "Adam's own weight_decay of 0.5, which is added to gradients",
        TOLD,
        READ,
        READ.but(optimizer=using(torch.optim.Adam, 3e-3, weight_decay=0.5)),
    ),
    # --- batches
    sick(
        "two_to_a_norm",
        "batch_size",
        "two pictures a batch, and batch norms of them",
        Goal("accuracy", at_least=0.7),
        NORMED.but(partial(field.resnet), optimizer=sgd(0.05, 0.9), steps=250),
        NORMED.but(partial(field.resnet), optimizer=sgd(0.05, 0.9), steps=250, batch=2),
        ("lr_too_high", "oscillating_loss"),
    ),
    sick(
        "all_at_once",
        "batch_size",
        "all 4,000 pictures are one batch, and there are fifteen steps",
        WORN,
        FLAT.but(optimizer=sgd(0.05, 0.9), batch=64, steps=310),
        FLAT.but(optimizer=sgd(0.05, 0.9), batch=4000, steps=15),
        ("slow_convergence", "lr_too_low"),
    ),
    # --- loaders
    sick(
        "decoded_while_it_waits",
        "data_starvation",
        "pictures are decoded between steps, by the process that trains",
        IN_TIME,
        PICTURES.but(steps=80),
        PICTURES.but(steps=80, stall=0.008),
    ),
    sick(
        "table_read_again",
        "data_starvation",
        "rows are read from a file at each step, and a step is short",
        IN_TIME,
        CROWDED.but(partial(mlp, 35, 1, 256, 3), steps=120, batch=256),
        CROWDED.but(partial(mlp, 35, 1, 256, 3), steps=120, batch=256, stall=0.006),
    ),
)
