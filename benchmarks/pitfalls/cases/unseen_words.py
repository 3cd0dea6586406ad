"""Texts, language models and fine-tuning, by somebody who has not read the rules."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional

from benchmarks.pitfalls.case import Goal
from benchmarks.pitfalls.faults import (
    cross_entropy,
    restarts,
)
from benchmarks.pitfalls.models import Recurrent, mlp
from benchmarks.pitfalls.recipe import Family, adam, recipe, sgd
from benchmarks.pitfalls.unseen import words as made
from benchmarks.pitfalls.unseen import words_models as models
from benchmarks.pitfalls.unseen.shared import nesterov, trained_on, using

FAMILY = Family("unseen_words")


WRITER = recipe(models.Writer, made.following, loss=cross_entropy, optimizer=adam(5e-3), steps=200, batch=16)
GRAMS = recipe(models.Grams, made.next_letter, loss=cross_entropy, optimizer=nesterov(0.1), steps=300)
WAVES = recipe(
    partial(models.GatedConvolutions, 3), made.following, loss=cross_entropy, optimizer=adam(5e-3), steps=200, batch=16
)
GATED = recipe(models.MinimalGated, made.following, loss=cross_entropy, optimizer=adam(1e-2), steps=200, batch=16)
DECAYING = recipe(models.Decaying, made.following, loss=cross_entropy, optimizer=sgd(0.1, 0.9), steps=200, batch=16)
WORDS = recipe(
    partial(Recurrent, nn.LSTM, 32, made.WORDS, 48, 1, True, made.WORDS),
    made.next_word,
    loss=cross_entropy,
    optimizer=adam(1e-2),
    steps=200,
    batch=16,
)
CHAPTERS = recipe(models.bag, made.chapters, loss=cross_entropy, optimizer=adam(5e-3), steps=200)
COUNTS = recipe(
    partial(mlp, made.WORDS, 6, 48, 1),
    lambda: made.counted(made.chapters()),
    loss=cross_entropy,
    optimizer=nesterov(0.02),
    steps=200,
)
OF_ALL = COUNTS.but(
    loss=made.of_all, optimizer=using(torch.optim.Adam, 2e-3, eps=1e-16), autocast=torch.float16, scaler=True
)
LAST = recipe(partial(models.last_state, 0), made.chapters, loss=cross_entropy, optimizer=adam(3e-3), steps=300)
SEGMENTS = recipe(models.Tagger, made.run_together, loss=cross_entropy, optimizer=adam(1e-2), steps=200, batch=16)
MASKED = recipe(
    partial(models.Tagger, 32, made.LETTERS),
    made.hidden,
    loss=made.asked,
    measure=made.measure_asked,
    optimizer=adam(1e-2),
    steps=300,
    batch=16,
)
NUMBERS = recipe(models.Translator, made.said, loss=cross_entropy, optimizer=adam(5e-3), steps=250)
BACKWARDS = recipe(
    partial(models.Writer, layers=1, causal=False, std=0.3),
    made.backwards,
    loss=cross_entropy,
    optimizer=adam(3e-3),
    steps=250,
)
PAIRS = recipe(
    models.Towers,
    made.mistyped,
    loss=made.contrasted,
    measure=made.measure_found,
    optimizer=adam(3e-3),
    steps=300,
    batch=64,
)
SPELT = recipe(
    models.Variational,
    made.spelt,
    loss=cross_entropy,
    objective=models.read_again(0.02),
    optimizer=adam(3e-3),
    steps=300,
)
UNITS = recipe(
    partial(mlp, 32, 32, 192, 1), models.understood, loss=functional.mse_loss, optimizer=adam(3e-3), steps=200
)
TAUGHT = recipe(
    models.Grams,
    models.taught,
    loss=made.taught_at(2.0),
    measure=made.measure_taught,
    optimizer=nesterov(0.1),
    steps=300,
)
TUNED = recipe(
    models.reader, made.described, loss=cross_entropy, optimizer=adam(1e-3), steps=120, batch=16, begins_trained=True
)
ADAPTED = TUNED.but(models.adapted, optimizer=adam(5e-3))

CASES = (
    FAMILY.sick(
        "own_letter",
        "label_error",
        "a language model's targets are not shifted: it is to say what it is told, and what follows is asked for",
        Goal("accuracy", at_least=0.4),
        WAVES,
        WAVES.but(data=lambda: trained_on(made.following(), made.own_letters)),
    ),
    FAMILY.sick(
        "marks_too_late",
        "label_error",
        "where words end is marked a letter too late where it trains",
        Goal("accuracy", at_least=0.88),
        SEGMENTS,
        SEGMENTS.but(data=lambda: trained_on(made.run_together(), made.marks_too_late)),
    ),
    FAMILY.sick(
        "two_orders",
        "label_error",
        "one of two files of pairs was sorted",
        Goal("found", at_least=0.7),
        PAIRS,
        PAIRS.but(data=lambda: trained_on(made.mistyped(), made.of_two_orders)),
    ),
    FAMILY.sick(
        "divergence_of_shares",
        "wrong_loss",
        "a student's probabilities in a divergence that asks for their logarithms",
        Goal("divergence", at_most=0.7),
        TAUGHT,
        TAUGHT.but(loss=made.without_logarithm),
        ("output_activation",),
    ),
    FAMILY.sick(
        "likelihood_of_logits",
        "wrong_loss",
        "logits in a likelihood that asks for their logarithms: it falls below 0 without end",
        Goal("accuracy", at_least=0.25),
        GRAMS,
        GRAMS.but(loss=made.likelihood),
        ("output_activation",),
    ),
    FAMILY.sick(
        "tight_cap",
        "output_activation",
        "logits are held between -0.5 and 0.5",
        Goal("loss", at_most=2.7),
        WRITER,
        WRITER.but(partial(models.Writer, cap=0.5)),
        ("saturated_activation",),
    ),
    FAMILY.sick(
        "nothing_masked",
        "nonfinite_gradient",
        "short windows, few a batch: where no letter is masked it is a mean over nothing",
        Goal("accuracy", at_least=0.17),
        MASKED.but(data=partial(made.hidden, 0.15, 5), batch=4),
        MASKED.but(data=partial(made.hidden, 0.15, 5), batch=4, loss=made.asked_without_guard),
    ),
    FAMILY.sick(
        "ten_likeliest",
        "nonfinite_gradient",
        "a teacher's answers but the ten likeliest are 0, of which the loss takes the logarithm",
        Goal("divergence", at_most=0.7),
        TAUGHT,
        TAUGHT.but(loss=made.by_hand),
        ("wrong_loss",),
    ),
    FAMILY.sick(
        "no_word_left",
        "nonfinite_data",
        "shares of the words that are not common, in texts of common words only",
        Goal("accuracy", at_least=0.5),
        COUNTS.but(partial(mlp, made.WORDS - 150, 6, 48, 1), partial(made.without_common_words, True)),
        COUNTS.but(partial(mlp, made.WORDS - 150, 6, 48, 1), partial(made.without_common_words, False)),
    ),
    FAMILY.sick(
        "mean_over_all",
        "precision_underflow",
        "a loss divided by the number of all words, in fp16 and not scaled: most gradients are 0",
        Goal("accuracy", at_least=0.8),
        OF_ALL,
        OF_ALL.but(scaler=False),
    ),
    FAMILY.sick(
        "never_cleared",
        "grad_accumulation",
        "a language model of words whose gradients are never cleared",
        Goal("loss", at_most=4.5),
        WORDS,
        WORDS.but(clears=False),
    ),
    FAMILY.sick(
        "resized",
        "frozen_params",
        "the embedding, which is the output too, was made larger after the optimizer had been made",
        Goal("loss", at_most=2.75),
        WRITER.but(partial(models.Writer, tied=True, std=0.05)),
        WRITER.but(
            partial(models.Writer, tied=True, std=0.05),
            optimizer=adam(3e-3, only=lambda name: "tokens" not in name and "head" not in name),
        ),
    ),
    FAMILY.sick(
        "encoder_without_gradients",
        "frozen_params",
        "the encoder of numbers in words is run without gradients",
        Goal("accuracy", at_least=0.9),
        NUMBERS,
        NUMBERS.but(partial(models.Translator, unlearnt=True)),
    ),
    FAMILY.sick(
        "both_zero",
        "bad_init",
        "both parts of every adapter begin at zero",
        Goal("loss", at_most=2.5),
        ADAPTED,
        ADAPTED.but(partial(models.adapted, still=True)),
        ("plateau", "vanishing_gradient"),
    ),
    FAMILY.sick(
        "not_divided",
        "bad_init",
        "weights of the normal distribution, not divided by the root of their number",
        Goal("loss", at_most=2.9),
        GRAMS,
        GRAMS.but(partial(models.Grams, std=1.0)),
        ("saturated_activation",),
    ),
    FAMILY.sick(
        "no_question",
        "bad_init",
        "questions and keys begin at zero: attention stays even",
        Goal("accuracy", at_least=0.9),
        BACKWARDS,
        BACKWARDS.but(partial(models.Writer, layers=1, causal=False, std=0.3, still=True)),
        ("plateau",),
    ),
    FAMILY.sick(
        "forgetting",
        "lr_too_high",
        "a model that has learnt is trained further at a rate a hundred times too large",
        Goal("loss", at_most=2.45),
        TUNED,
        TUNED.but(optimizer=adam(0.1)),
        ("exploding_gradient",),
    ),
    FAMILY.sick(
        "ringing",
        "oscillating_loss",
        "counts of words, momentum of 0.995",
        Goal("accuracy", at_least=0.85),
        COUNTS,
        COUNTS.but(optimizer=sgd(0.5, 0.995)),
        ("lr_too_high",),
    ),
    FAMILY.sick(
        "unsquared",
        "lr_too_low",
        "a teacher softened by a temperature of 20, whose square is forgotten: gradients are four hundred times smaller",
        Goal("divergence", at_most=0.7),
        TAUGHT.but(loss=made.taught_at(20.0)),
        TAUGHT.but(loss=made.taught_at(20.0, False)),
        ("slow_convergence",),
    ),
    FAMILY.sick(
        "end_of_schedule",
        "lr_zero",
        "a schedule for one of eight devices ends after an eighth of the run",
        Goal("accuracy", at_least=0.9),
        NUMBERS.but(schedule=lambda share: 1 - share),
        NUMBERS.but(schedule=lambda share: max(0.0, 1 - 8 * share)),
    ),
    FAMILY.sick(
        "accumulators",
        "slow_convergence",
        "Adagrad whose sums of squares begin at 100",
        Goal("accuracy", at_least=0.65),
        CHAPTERS.but(optimizer=using(torch.optim.Adagrad, 0.05)),
        CHAPTERS.but(optimizer=using(torch.optim.Adagrad, 0.05, initial_accumulator_value=100.0)),
        ("lr_too_low",),
    ),
    FAMILY.sick(
        "growing_factors",
        "exploding_gradient",
        "a linear recurrence whose factors are not held below 1",
        Goal("accuracy", at_least=0.33),
        DECAYING,
        DECAYING.but(partial(models.Decaying, bounded=False, first=1.4)),
        ("bad_init",),
    ),
    FAMILY.sick(
        "read_after_fillers",
        "vanishing_gradient",
        "the last state of an RNN, after eighty positions of filler",
        Goal("accuracy", at_least=0.5),
        LAST,
        LAST.but(partial(models.last_state, 80)),
    ),
    FAMILY.sick(
        "silent_units",
        "dying_relu",
        "units that are to be sparse begin with biases of -5",
        Goal("r2", at_least=0.8),
        UNITS,
        UNITS.but(partial(models.biased, -5.0)),
        ("bad_init",),
    ),
    FAMILY.sick(
        "shut_gates",
        "saturated_activation",
        "gates of a recurrence begin so far shut that nothing enters the state",
        Goal("accuracy", at_least=0.36),
        GATED,
        GATED.but(partial(models.MinimalGated, bias=-14.0)),
        ("bad_init", "vanishing_gradient"),
    ),
    FAMILY.sick(
        "empty_code",
        "over_regularised",
        "a variational autoencoder's divergence is summed where the rest is a mean: nothing is told through the code",
        Goal("accuracy", at_least=0.55),
        SPELT,
        SPELT.but(objective=models.read_again(1.0)),
        ("plateau",),
    ),
    FAMILY.sick(
        "two_pairs",
        "batch_size",
        "two pairs a batch to tell apart",
        Goal("found", at_least=0.7),
        PAIRS,
        PAIRS.but(batch=2),
        ("slow_convergence",),
    ),
    FAMILY.sick(
        "split_as_it_goes",
        "data_starvation",
        "texts are split into words while the model waits",
        Goal("wait_share", at_most=0.2),
        WORDS,
        WORDS.but(stall=0.02),
    ),
    FAMILY.sick(
        "place_in_file",
        "unnormalised_input",
        "beside counts of words a feature of up to 60,000",
        Goal("accuracy", at_least=0.8),
        COUNTS.but(partial(mlp, made.WORDS + 1, 6, 48, 1), partial(made.with_place, 1e-5)),
        COUNTS.but(partial(mlp, made.WORDS + 1, 6, 48, 1), partial(made.with_place, 1.0)),
        ("exploding_gradient", "lr_too_high"),
    ),
    FAMILY.healthy(
        "head_only",
        "only the output of a model that has learnt is trained further",
        Goal("loss", at_most=2.6),
        TUNED.but(models.head_only, optimizer=adam(1e-2)),
    ),
    FAMILY.healthy(
        "nothing_new",
        "a model that has learnt goes on with the text that it knows, at a small rate: its loss stays",
        Goal("loss", at_most=2.3),
        TUNED.but(data=made.following, optimizer=adam(2e-5)),
    ),
    FAMILY.healthy(
        "taught_softly",
        "a student of a teacher softened by a temperature of four",
        Goal("divergence", at_most=0.7),
        TAUGHT.but(loss=made.taught_at(4.0)),
    ),
    FAMILY.healthy(
        "numbers",
        "numbers in words to digits, by Adafactor",
        Goal("accuracy", at_least=0.85),
        NUMBERS.but(optimizer=using(torch.optim.Adafactor, 0.03)),
    ),
    FAMILY.healthy(
        "backwards",
        "for long the order is not found, and then at once",
        Goal("accuracy", at_least=0.9),
        BACKWARDS.but(partial(models.Writer, layers=1, causal=False, std=0.1)),
    ),
    FAMILY.healthy(
        "sparse",
        "sparse gradients of 600 words' vectors, and a rate that looks far too large",
        Goal("accuracy", at_least=0.58),
        CHAPTERS.but(partial(models.bag, sparse=True), optimizer=sgd(1.5), steps=400),
    ),
    FAMILY.healthy(
        "scaled_fp16",
        "fp16 with a scale that is too large for the first steps",
        Goal("accuracy", at_least=0.8),
        COUNTS.but(autocast=torch.float16, scaler=True),
    ),
    FAMILY.healthy(
        "restarts",
        "a cosine that begins anew three times",
        Goal("accuracy", at_least=0.4),
        WAVES.but(schedule=restarts(3)),
    ),
    FAMILY.healthy(
        "some_wrong",
        "a tenth of the labels was drawn by lot",
        Goal("accuracy", at_least=0.8),
        COUNTS.but(data=lambda: trained_on(made.counted(made.chapters()), made.some_wrong)),
    ),
    FAMILY.healthy(
        "sparse_units",
        "units that are to be sparse: nine in ten are silent at first",
        Goal("r2", at_least=0.8),
        UNITS.but(partial(models.biased, -0.7)),
    ),
    FAMILY.healthy("code", "a variational autoencoder of words", Goal("accuracy", at_least=0.55), SPELT),
    FAMILY.healthy("few_at_once", "four windows a step", Goal("accuracy", at_least=0.38), WAVES.but(batch=4)),
    FAMILY.healthy(
        "often_clipped",
        "words, with gradients clipped at every step",
        Goal("loss", at_most=4.6),
        WORDS.but(clip_norm=0.1),
    ),
)
