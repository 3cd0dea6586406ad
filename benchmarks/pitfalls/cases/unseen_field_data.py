"""Clothes, X-rays, plays and proteins: data, losses, rates and machines as people get them wrong. By somebody who has not read the rules."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional

from benchmarks.pitfalls.case import Goal
from benchmarks.pitfalls.cases.unseen_field import FAMILY
from benchmarks.pitfalls.faults import gradients_of
from benchmarks.pitfalls.models import mlp
from benchmarks.pitfalls.recipe import adam, sgd
from benchmarks.pitfalls.unseen import field as made
from benchmarks.pitfalls.unseen import field_chains as chains
from benchmarks.pitfalls.unseen import field_data as real
from benchmarks.pitfalls.unseen import field_losses as losses
from benchmarks.pitfalls.unseen.field_recipes import (
    BENT,
    CHESTS,
    CLOTHES,
    CROWDED,
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
    SHAPED,
    SPOKEN,
    TOLD,
    VIEWED,
    WORN,
)
from benchmarks.pitfalls.unseen.shared import nesterov, using

TUNED = CLOTHES.but(made.pretrained, optimizer=sgd(0.02, 0.9), steps=150, begins_trained=True)
APART = VIEWED.but(
    partial(mlp, 196, 24, 96, 1),
    objective=losses.pairwise(2.0),
    measure=losses.with_loss(losses.pairwise(2.0), losses.nearest),
)
COATS = CLOTHES.but(
    partial(made.convolutions, 2, dropout=0.3),
    partial(real.two_kinds, 0.035),
    loss=partial(functional.cross_entropy, weight=torch.tensor([1.0, 30.0])),
    measure=losses.recalls,
    steps=40,
)
SCREENED = CHESTS.but(
    partial(made.convolutions, 1, dropout=0.3),
    real.few_ill,
    loss=partial(functional.binary_cross_entropy_with_logits, pos_weight=torch.tensor(25.0)),
    measure=losses.both_sides,
    steps=120,
)
BY_HEART = FLAT.but(partial(mlp, 196, 10, 128, 2), steps=400, optimizer=adam(1e-3))


def spoken() -> nn.Module:
    return MEMORY.model()


CASES = (
    # --- rates ---------------------------------------------------------------------------------------------------------
    FAMILY.sick(
        "transformer_at_a_tenth",
        "lr_too_high",
        "Adam at 0.1 for a transformer: it knows how frequent letters are, and nothing else",
        SPOKEN,
        LETTERS.but(steps=200),
        LETTERS.but(optimizer=adam(0.1), steps=200),
        ("oscillating_loss",),
    ),
    FAMILY.sick(
        "tuned_as_from_scratch",
        "lr_too_high",
        "a net that has learnt is tuned at a rate of 1 with momentum: what it knew is gone after a few steps",
        WORN,
        TUNED,
        TUNED.but(optimizer=sgd(1.0, 0.9)),
        ("exploding_gradient", "dying_relu"),
    ),
    FAMILY.sick(
        "rate_of_a_thousand_at_once",
        "lr_too_high",
        "the rate of a recipe for batches of 1,024, and batches of 16",
        WORN,
        CLOTHES.but(partial(made.convolutions, norm=nn.BatchNorm2d), optimizer=sgd(0.01, 0.9), batch=16, steps=300),
        CLOTHES.but(partial(made.convolutions, norm=nn.BatchNorm2d), optimizer=sgd(1.6, 0.9), batch=16, steps=300),
        ("oscillating_loss",),
    ),
    FAMILY.sick(
        "boxes_in_pixels",
        "lr_too_high",
        "places in pixels of a photograph of 1,200, under a rate that was made for -1 to 1",
        Goal("r2", at_least=0.5),
        LOCATED.but(optimizer=sgd(0.1, 0.9)),
        LOCATED.but(
            data=lambda: real.placed_clothes().mapped(targets=600.0, targets_shift=600.0), optimizer=sgd(0.1, 0.9)
        ),
        ("exploding_gradient", "oscillating_loss", "saturated_activation"),
    ),
    FAMILY.sick(
        "momentum_of_0999",
        "oscillating_loss",
        "momentum of 0.999 where 0.9 was meant: the weights swing past what is best and back",
        Goal("loss", at_most=0.35),
        MEASURED.but(partial(nn.Linear, 32, 1), optimizer=sgd(0.1, 0.9)),
        MEASURED.but(partial(nn.Linear, 32, 1), optimizer=sgd(0.1, 0.999)),
        ("lr_too_high",),
    ),
    FAMILY.sick(
        "well_until_it_swings",
        "oscillating_loss",
        "momentum of 0.995: a small net learns a table well for a third of the run, and swings ever wider",
        Goal("loss", at_most=0.35),
        MEASURED.but(optimizer=sgd(0.03, 0.9)),
        MEASURED.but(optimizer=sgd(0.03, 0.995)),
        ("lr_too_high",),
    ),
    FAMILY.sick(
        "two_millionths",
        "lr_too_low",
        "a rate of 2e-6, from a paper on tuning large models, for a small one that is new",
        WORN,
        CLOTHES,
        CLOTHES.but(optimizer=adam(2e-6)),
        ("slow_convergence",),
    ),
    FAMILY.sick(
        "sgd_at_adams_rate",
        "lr_too_low",
        "Adam was replaced by SGD with momentum, and its rate of 0.0003 was kept",
        Goal("accuracy", at_least=0.7),
        CLOTHES.but(optimizer=sgd(0.03, 0.9)),
        CLOTHES.but(optimizer=sgd(3e-4, 0.9)),
        ("slow_convergence",),
    ),
    FAMILY.sick(
        "clipped_to_nothing",
        "slow_convergence",
        "gradients are clipped to a norm of 0.0002, and SGD takes them as they are",
        Goal("accuracy", at_least=0.9),
        BENT.but(clip_norm=1.0),
        BENT.but(clip_norm=0.0002),
        ("lr_too_low",),
    ),
    FAMILY.sick(
        "longer_than_the_run",
        "lr_too_low",
        "a warm-up of 10,000 steps, and a run of 300",
        WORN,
        CLOTHES.but(optimizer=sgd(0.03, 0.9), schedule=lambda share: min(1.0, 10 * share + 0.01)),
        CLOTHES.but(optimizer=sgd(0.03, 0.9), schedule=lambda share: 0.03 * share),
        ("slow_convergence",),
    ),
    FAMILY.sick(
        "adagrad_at_a_thousandth",
        "slow_convergence",
        "Adagrad, whose steps become smaller by themselves, at Adam's usual rate of 0.001",
        TOLD,
        READ.but(optimizer=using(torch.optim.Adagrad, 0.05), steps=400),
        READ.but(optimizer=using(torch.optim.Adagrad, 0.001), steps=400),
        ("lr_too_low",),
    ),
    FAMILY.sick(
        "decayed_within_an_epoch",
        "lr_zero",
        "a linear decay was told the steps of one epoch, and is at 0 after a fifteenth of the run",
        SHAPED,
        PATH.but(schedule=lambda share: 1 - share),
        PATH.but(schedule=lambda share: max(0.0, 1 - 15 * share)),
        ("slow_convergence", "lr_too_low"),
    ),
    FAMILY.sick(
        "never_left_the_start",
        "lr_zero",
        "a warm-up from 0 whose scheduler is never stepped",
        SPOKEN,
        MEMORY,
        MEMORY.but(schedule=lambda share: 0.0),
    ),
    # --- losses and outputs --------------------------------------------------------------------------------------------
    FAMILY.sick(
        "nll_of_logits",
        "wrong_loss",
        "NLLLoss without a log-softmax before it: it falls without end",
        TOLD,
        READ,
        READ.but(loss=losses.picked),
        ("output_activation",),
    ),
    FAMILY.sick(
        "masks_in_bytes",
        "wrong_loss",
        "masks were read as 0 and 255 and never divided: binary cross-entropy is far below 0",
        Goal("overlap", at_least=0.75),
        OUTLINED,
        OUTLINED.but(data=partial(real.outlined, 255.0)),
    ),
    FAMILY.sick(
        "column_against_row",
        "wrong_loss",
        "answers are a column and targets a row: every answer is compared with every target",
        Goal("r2", at_least=0.2),
        CROWDED.but(data=chains.crowding_row, loss=losses.row_by_row, measure=losses.explained),
        CROWDED.but(data=chains.crowding_row, loss=losses.against_row, measure=losses.explained),
        ("label_error",),
    ),
    FAMILY.sick(
        "apart_without_end",
        "wrong_loss",
        "a contrastive loss without its margin: pushing pictures apart pays for ever",
        Goal("accuracy", at_least=0.65),
        APART,
        APART.but(objective=losses.pairwise(None), measure=losses.with_loss(losses.pairwise(None), losses.nearest)),
        ("exploding_gradient",),
    ),
    FAMILY.sick(
        "softmax_of_letters",
        "output_activation",
        "a softmax at the end of a recurrent net, and cross-entropy after it",
        SPOKEN,
        MEMORY,
        MEMORY.but(lambda: nn.Sequential(spoken(), nn.Softmax(-1))),
        ("wrong_loss",),
    ),
    FAMILY.sick(
        "sigmoid_twice",
        "output_activation",
        "a sigmoid at the end, and a loss that has one too",
        Goal("loss", at_most=0.4),
        CHESTS,
        CHESTS.but(partial(made.convolutions, 1, last=nn.Sigmoid())),
        ("wrong_loss",),
    ),
    FAMILY.sick(
        "decoder_of_zero_to_one",
        "output_activation",
        "a decoder that ends in a sigmoid, for pixels of mean 0 and deviation 1",
        Goal("r2", at_least=0.7),
        ITSELF.but(partial(made.coder, last=nn.Identity), real.itself_standardised),
        ITSELF.but(data=real.itself_standardised),
    ),
    FAMILY.sick(
        "relu_of_places",
        "output_activation",
        "a ReLU after the last layer, for targets of which half are below 0",
        Goal("r2", at_least=0.55),
        LOCATED,
        LOCATED.but(partial(made.Located, last=nn.ReLU())),
    ),
    FAMILY.sick(
        "a_torn_file",
        "nonfinite_data",
        "one X-ray's file ends too early: from the step on that reads it nothing is a number",
        ILL,
        CHESTS,
        CHESTS.but(disturb=losses.torn(90)),
    ),
    # --- labels and classes --------------------------------------------------------------------------------------------
    FAMILY.sick(
        "labels_of_another_order",
        "label_error",
        "pictures were shuffled, and their labels were not",
        WORN,
        CLOTHES,
        CLOTHES.but(data=lambda: real.of_all_orders(real.clothes())),
    ),
    FAMILY.sick(
        "states_of_another_chain",
        "label_error",
        "residues and states were read from two lists of files that are sorted differently",
        SHAPED,
        PATH,
        PATH.but(data=lambda: real.of_all_orders(chains.folded())),
    ),
    FAMILY.sick(
        "sorted_otherwise",
        "label_error",
        "kinds of clothes are numbered by the alphabet where they validate",
        WORN,
        CLOTHES,
        CLOTHES.but(data=real.sorted_otherwise),
    ),
    FAMILY.sick(
        "few_coats",
        "class_imbalance",
        "of coats and dresses only one in thirty is a coat, and nothing makes up for it",
        Goal("worst_recall", at_least=0.8),
        COATS,
        COATS.but(loss=functional.cross_entropy),
    ),
    FAMILY.sick(
        "a_screening",
        "class_imbalance",
        "of the X-rays one in thirty shows pneumonia: it pays to find none",
        Goal("worst_recall", at_least=0.6),
        SCREENED,
        SCREENED.but(loss=functional.binary_cross_entropy_with_logits),
    ),
    # --- fit -----------------------------------------------------------------------------------------------------------
    FAMILY.sick(
        "two_hundred_by_heart",
        "overfitting",
        "a wide net and two hundred pictures, which it knows by heart after a few epochs",
        Goal("loss", at_most=0.8),
        BY_HEART,
        BY_HEART.but(data=partial(real.flat, 200)),
    ),
    FAMILY.sick(
        "sixty_texts",
        "overfitting",
        "a recurrent net and sixty texts: it can say of each what it is, and of no other",
        Goal("loss", at_most=0.7),
        READ,
        READ.but(data=partial(real.registers, count=60)),
    ),
    FAMILY.sick(
        "decay_of_a_half",
        "over_regularised",
        "a weight decay of 0.5 in an SGD that couples it with the rate: 5e-4 was meant",
        WORN,
        CLOTHES.but(optimizer=nesterov(0.03, decay=5e-4)),
        CLOTHES.but(optimizer=nesterov(0.03, decay=0.5)),
    ),
    FAMILY.sick(
        "divergence_times_fifty",
        "over_regularised",
        "a variational autoencoder that pays fifty times for every bit: it says the same of every picture",
        Goal("r2", at_least=0.5),
        DRAWN,
        DRAWN.but(objective=losses.evidence(50.0), measure=losses.with_loss(losses.evidence(50.0), losses.explained)),
        ("plateau",),
    ),
    FAMILY.sick(
        "all_but_dropped",
        "over_regularised",
        "the share to keep was given as the share to drop: 0.97",
        WORN,
        FLAT.but(partial(mlp, 196, 10, 96, 2, dropout=0.03)),
        FLAT.but(partial(mlp, 196, 10, 96, 2, dropout=0.97)),
    ),
    # --- spikes --------------------------------------------------------------------------------------------------------
    FAMILY.sick(
        "a_shard_in_bytes",
        "loss_spike",
        "one shard of the pictures was never divided by 255: four steps near the end of the run",
        Goal("accuracy", at_least=0.7),
        CLOTHES.but(optimizer=sgd(0.03, 0.9)),
        CLOTHES.but(optimizer=sgd(0.03, 0.9), disturb=losses.in_bytes(275, 278, 80.0)),
    ),
    FAMILY.sick(
        "other_table_of_letters",
        "loss_spike",
        "a part of the plays was encoded by another table of letters: eight steps near the end",
        Goal("accuracy", at_least=0.36),
        MEMORY.but(optimizer=adam(1e-2)),
        MEMORY.but(optimizer=adam(1e-2), disturb=losses.other_letters(192, 199, real.LETTERS)),
    ),
    # --- numbers of few bits -------------------------------------------------------------------------------------------
    FAMILY.sick(
        "squares_in_half",
        "precision_overflow",
        "products of filters over pixels of 0 to 255, in float16: some are beyond 65,504",
        Goal("accuracy", at_least=0.7),
        FLAT.but(made.Squares, lambda: real.flat(raw=True).mapped(255.0)),
        FLAT.but(made.Squares, lambda: real.flat(raw=True).mapped(255.0), autocast=torch.float16),
        ("nonfinite_gradient",),
    ),
    FAMILY.sick(
        "weights_in_bfloat16",
        "precision_underflow",
        "the whole net is in bfloat16, its weights too: steps are smaller than what a weight can be changed by",
        Goal("accuracy", at_least=0.65),
        FLAT.but(lambda: made.Half(mlp(196, 10, 96, 2), torch.float32), optimizer=adam(5e-5), steps=800),
        FLAT.but(lambda: made.Half(mlp(196, 10, 96, 2)), optimizer=adam(5e-5), steps=800),
        ("lr_too_low",),
    ),
    FAMILY.sick(
        "half_without_a_scale",
        "precision_underflow",
        "float16 and a loss that counts a thousandth, without a loss scale: most gradients are exactly 0",
        Goal("r2", at_least=0.6),
        ITSELF.but(loss=losses.thousandth, autocast=torch.float16, scaler=True),
        ITSELF.but(loss=losses.thousandth, autocast=torch.float16),
    ),
    # --- machines ------------------------------------------------------------------------------------------------------
    FAMILY.sick(
        "one_card_is_wrong",
        "silent_corruption",
        "from the middle on one of four cards has gradients of the wrong sign, ten times as large",
        WORN,
        FLAT.but(ranks=4),
        FLAT.but(ranks=4, tamper=gradients_of(2, 150, lambda gradient: -10 * gradient)),
        ("rank_divergence",),
    ),
    FAMILY.sick(
        "starts_of_their_own",
        "rank_divergence",
        "nobody sent the first rank's weights to the others: every rank has drawn its own",
        Goal("accuracy", at_least=0.75),
        CLOTHES.but(ranks=4),
        CLOTHES.but(ranks=4, tamper=losses.own_starts),
    ),
    FAMILY.sick(
        "read_from_afar",
        "data_starvation",
        "every batch of X-rays is read from a folder on the network: 40 ms for a step of 3",
        Goal("wait_share", at_most=0.2),
        CHESTS.but(steps=60),
        CHESTS.but(steps=60, stall=0.04),
    ),
    FAMILY.sick(
        "one_picture_at_a_time",
        "batch_size",
        "batches of one picture, and the rate of batches of 64",
        WORN,
        CLOTHES.but(optimizer=adam(5e-3)),
        CLOTHES.but(optimizer=adam(5e-3), batch=1, steps=400),
        ("oscillating_loss", "lr_too_high"),
    ),
)
