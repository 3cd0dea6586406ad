"""Series and texts under other models, losses and optimizers, by somebody who had not read the rules. Rules have been tuned on them since."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional

from benchmarks.pitfalls.case import Goal
from benchmarks.pitfalls.faults import cross_entropy, warmup, weights_of
from benchmarks.pitfalls.recipe import Family, adam, recipe
from benchmarks.pitfalls.unseen import sequences as made
from benchmarks.pitfalls.unseen.shared import Lion, nesterov, trained_on, using

FAMILY = Family("unseen_sequences")
GOOD = Goal("accuracy", at_least=0.7)  # the largest class has 0.56
WRITES = Goal("loss", at_most=2.55)  # a constant answer has 2.9
FORESEEN = Goal("r2", at_least=0.4)


def writer(**fields: object) -> nn.Module:
    return made.Causal(made.signs(), made.signs(), **fields)  # type: ignore[arg-type]


def sleepy(kind: type[nn.RNNBase], gain: float) -> nn.Module:
    return made.Memory(kind, 8, 2, 24, gain)


READER = recipe(
    made.Reader,
    made.spoken,
    loss=functional.cross_entropy,
    optimizer=using(torch.optim.NAdam, 1e-2),
    steps=220,
    batch=32,
)
MASKED = recipe(
    partial(made.Masked, True),
    made.spoken,
    loss=functional.cross_entropy,
    optimizer=using(torch.optim.RMSprop, 2e-3),
    steps=200,
    batch=48,
)
WRITER = recipe(
    writer,
    made.written,
    loss=cross_entropy,
    measure=made.measure_characters,
    optimizer=adam(5e-3, decay=0.01),
    steps=150,
)
SERIES = recipe(
    partial(made.Memory, nn.GRU, 1, 1),
    made.strips,
    loss=functional.mse_loss,
    optimizer=using(torch.optim.Adam, 1e-2),
    steps=200,
)
NARROW = recipe(
    partial(made.Causal, None, 1, last=True),
    made.strips,
    loss=functional.mse_loss,
    optimizer=nesterov(0.01),
    steps=200,
)
DEEP = NARROW.but(partial(made.Causal, None, 1, nn.Sigmoid, 12, last=True), optimizer=using(torch.optim.Adam, 3e-3))
ATTENDING = MASKED.but(partial(made.Attending, 32**-0.5), optimizer=using(torch.optim.Adam, 1e-2))

CASES = (
    FAMILY.sick(
        "sixty_steps_ago",
        "vanishing_gradient",
        "a tanh RNN is asked for what it read 60 steps ago",
        Goal("accuracy", at_least=0.75),
        recipe(
            partial(sleepy, nn.RNN, 1.0),
            partial(made.first_of_many, 0),
            loss=functional.cross_entropy,
            optimizer=nesterov(0.05),
            steps=200,
        ),
        recipe(
            partial(sleepy, nn.RNN, 1.0),
            partial(made.first_of_many, 60),
            loss=functional.cross_entropy,
            optimizer=nesterov(0.05),
            steps=200,
        ),
        ("plateau",),
    ),
    FAMILY.sick(
        "twelve_sigmoids",
        "vanishing_gradient",
        "twelve causal convolutions with sigmoids, and no way around them",
        FORESEEN,
        DEEP,
        DEEP.but(partial(made.Causal, None, 1, nn.Sigmoid, 12, last=True, residual=False)),
        ("saturated_activation",),
    ),
    FAMILY.sick(
        "growing_state",
        "exploding_gradient",
        "a ReLU RNN over eight steps whose recurrent weights enlarge the state fourfold",
        Goal("accuracy", at_least=0.7),
        recipe(
            partial(sleepy, partial(nn.RNN, nonlinearity="relu"), 0.9),  # type: ignore[arg-type]
            partial(made.first_of_many, 4),
            loss=functional.cross_entropy,
            optimizer=nesterov(0.03),
            steps=250,
        ),
        recipe(
            partial(sleepy, partial(nn.RNN, nonlinearity="relu"), 4.0),  # type: ignore[arg-type]
            partial(made.first_of_many, 4),
            loss=functional.cross_entropy,
            optimizer=nesterov(0.03),
            steps=250,
        ),
        ("bad_init", "nonfinite_gradient", "lr_too_high"),
    ),
    FAMILY.sick(
        "huge_weights",
        "saturated_activation",
        "convolutions with tanh whose weights begin thirty times too large",
        WRITES,
        WRITER.but(partial(writer, activation=nn.Tanh, residual=False)),
        WRITER.but(partial(writer, activation=nn.Tanh, residual=False, gain=30.0)),
        ("bad_init", "exploding_gradient"),
    ),
    FAMILY.sick(
        "lion_rate",
        "lr_too_high",
        "Lion with a rate of 0.3 on a text",
        GOOD,
        READER.but(optimizer=using(Lion, 3e-3)),
        READER.but(optimizer=using(Lion, 0.3)),
        ("oscillating_loss", "exploding_gradient", "saturated_activation"),
    ),
    FAMILY.sick(
        "momentum_typo",
        "oscillating_loss",
        "Nesterov's momentum is 0.999 in a forecast",
        FORESEEN,
        NARROW.but(optimizer=nesterov(0.03), clip_norm=5.0, steps=300),
        NARROW.but(optimizer=nesterov(0.03, 0.999), clip_norm=5.0, steps=300),
        ("lr_too_high", "exploding_gradient"),
    ),
    FAMILY.sick(
        "warm_up_in_samples",
        "lr_too_low",
        "a warm-up counted in samples: at the end of the run the rate is at a thousandth",
        GOOD,
        READER.but(schedule=warmup(0.1), warmup_steps=22),
        READER.but(schedule=warmup(1000.0), warmup_steps=220_000),
        ("slow_convergence", "lr_zero"),
    ),
    FAMILY.sick(
        "sgd_for_attention",
        "slow_convergence",
        "attention under SGD with a rate that Adam would want",
        GOOD,
        ATTENDING,
        ATTENDING.but(optimizer=using(torch.optim.SGD, 1e-2)),
        ("lr_too_low",),
    ),
    FAMILY.sick(
        "reshaped",
        "wrong_loss",
        "positions and classes are swapped by a reshape where it takes a transpose",
        WRITES,
        WRITER,
        WRITER.but(loss=made.reshaped),
        ("label_error", "plateau"),
    ),
    FAMILY.sick(
        "softmax_over_time",
        "output_activation",
        "a softmax over positions before cross-entropy",
        WRITES,
        WRITER,
        WRITER.but(partial(writer, softmax=1)),
        ("wrong_loss",),
    ),
    FAMILY.sick(
        "sorted_texts",
        "label_error",
        "the loader sorts a batch's texts, and not its labels",
        GOOD,
        READER,
        READER.but(disturb=made.sorted_by_length),
        ("plateau",),
    ),
    FAMILY.sick(
        "embedding_left_out",
        "frozen_params",
        "the embedding and the recurrent layer are in no optimizer",
        GOOD,
        READER,
        READER.but(optimizer=using(torch.optim.NAdam, 1e-2, only=lambda name: name.startswith(("pool", "head")))),
    ),
    FAMILY.sick(
        "detached_states",
        "frozen_params",
        "states of both directions are detached",
        GOOD,
        READER,
        READER.but(partial(made.Reader, detached=True)),
    ),
    FAMILY.sick(
        "never_cleared",
        "grad_accumulation",
        "a forecast whose gradients are never cleared",
        FORESEEN,
        NARROW,
        NARROW.but(clears=False),
        ("lr_too_high", "exploding_gradient", "oscillating_loss"),
    ),
    FAMILY.sick(
        "empty_texts",
        "nonfinite_gradient",
        "a text of nothing but padding: a softmax over no positions",
        GOOD,
        MASKED.but(data=partial(made.with_empty, 6)),
        MASKED.but(partial(made.Masked, False), data=partial(made.with_empty, 6)),
    ),
    FAMILY.sick(
        "change_from_zero",
        "nonfinite_data",
        "a series of relative changes, where some values before were 0",
        FORESEEN,
        SERIES.but(data=partial(made.changes, 1.0)),
        SERIES.but(data=partial(made.changes, 0.0)),
        ("nonfinite_gradient",),
    ),
    FAMILY.sick(
        "few_words",
        "class_imbalance",
        "two of three classes have a tenth of their texts left, without weights",
        Goal("worst_recall", at_least=0.2),
        READER.but(
            data=lambda: trained_on(made.spoken(), made.few_words), loss=made.balanced, measure=made.measure_recall
        ),
        READER.but(data=lambda: trained_on(made.spoken(), made.few_words), measure=made.measure_recall),
    ),
    FAMILY.sick(
        "thirty_texts",
        "overfitting",
        "thirty texts learnt by heart",
        Goal("loss", at_most=0.8),
        READER,
        READER.but(data=lambda: made.spoken().small(30)),
    ),
    FAMILY.sick(
        "almost_all_dropped",
        "over_regularised",
        "drop-out of 0.99 in place of 0.1",
        GOOD,
        READER.but(partial(made.Reader, drop=0.1)),
        READER.but(partial(made.Reader, drop=0.99)),
        ("plateau", "slow_convergence"),
    ),
    FAMILY.sick(
        "decay_of_lion",
        "over_regularised",
        "Lion with a weight decay of 100",
        GOOD,
        READER.but(optimizer=using(Lion, 3e-3)),
        READER.but(optimizer=using(Lion, 3e-3, weight_decay=100.0)),
    ),
    FAMILY.sick(
        "broken_shard",
        "loss_spike",
        "after three quarters of the run forty batches of one character with one label",
        GOOD,
        READER.but(optimizer=nesterov(0.1, 0.95), steps=200),
        READER.but(optimizer=nesterov(0.1, 0.95), steps=200, disturb=made.garbled(155, 195)),
        ("label_error", "nonfinite_data"),
    ),
    FAMILY.sick(
        "one_text_a_step",
        "batch_size",
        "one text a step at a rate for 48",
        GOOD,
        MASKED.but(optimizer=nesterov(0.2)),
        MASKED.but(optimizer=nesterov(0.2), batch=1),
        ("lr_too_high", "oscillating_loss"),
    ),
    FAMILY.sick(
        "drifting_rank",
        "rank_divergence",
        "from step 30 on one of two ranks adds noise to its own weights (drop-out written into the weights)",
        FORESEEN,
        NARROW.but(ranks=2),
        NARROW.but(ranks=2, tamper=weights_of(0, range(30, 200), lambda w: w + 0.05 * torch.randn_like(w))),
        ("silent_corruption",),
    ),
    # healthy
    FAMILY.healthy("reader", "a GRU in both directions, attention pooling", GOOD, READER),
    FAMILY.healthy(
        "long_memory",
        "an LSTM over 20 steps that is asked for the first four",
        Goal("accuracy", at_least=0.7),
        recipe(
            partial(made.Memory, nn.LSTM, 8, 2),
            partial(made.first_of_many, 16),
            loss=functional.cross_entropy,
            optimizer=using(torch.optim.RMSprop, 5e-3),
            steps=200,
        ),
    ),
    FAMILY.healthy(
        "tied",
        "a GRU whose embedding is its output too, with label smoothing",
        WRITES,
        WRITER.but(made.Tied, loss=made.smoothed),
    ),
    FAMILY.healthy(
        "sparse",
        "4,000 pairs of characters, of which a batch touches few",
        Goal("accuracy", at_least=0.7),
        MASKED.but(made.Bag, optimizer=using(torch.optim.Adagrad, 0.1)),
    ),
    FAMILY.healthy("causal", "dilated convolutions that write", WRITES, WRITER),
    FAMILY.healthy(
        "forgetful",
        "a quarter of all characters is replaced while it trains",
        Goal("accuracy", at_least=0.7),
        MASKED.but(disturb=made.forgetful, steps=300),
    ),
    FAMILY.healthy(
        "balanced",
        "two rare classes, weighted by 30",
        Goal("worst_recall", at_least=0.2),
        READER.but(
            data=lambda: trained_on(made.spoken(), made.few_words), loss=made.balanced, measure=made.measure_recall
        ),
    ),
    FAMILY.healthy("forecast", "a GRU foresees a series; noise is left", FORESEEN, SERIES),
    FAMILY.healthy(
        "large_series",
        "a series in thousands, and a rate that fits its loss of millions",
        FORESEEN,
        NARROW.but(data=partial(made.strips, 1000.0), optimizer=using(torch.optim.Adam, 1e-2)),
    ),
    FAMILY.healthy(
        "small_steps",
        "four texts a step: a noisy loss",
        GOOD,
        MASKED.but(batch=4, steps=600, optimizer=using(torch.optim.RMSprop, 1e-3)),
    ),
    FAMILY.healthy(
        "clipped",
        "Nesterov with gradients clipped at every step",
        FORESEEN,
        NARROW.but(optimizer=nesterov(0.05), clip_norm=0.2),
    ),
    FAMILY.healthy("bf16", "attention under bf16", GOOD, ATTENDING.but(autocast=torch.bfloat16)),
)
