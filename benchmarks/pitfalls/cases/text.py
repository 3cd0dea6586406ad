"""Characters of English text: transformers, GRUs and a bag of characters."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.pitfalls.case import Goal
from benchmarks.pitfalls.data import Pair, characters
from benchmarks.pitfalls.faults import burst, cross_entropy, warmup, warmup_cosine
from benchmarks.pitfalls.models import Recurrent, Transformer, mlp
from benchmarks.pitfalls.recipe import Family, adam, recipe, sgd

FAMILY = Family("text")
LENGTH = 16
RIGHT = Goal("accuracy", at_least=0.3)
GOOD = Goal("loss", at_most=2.7)  # a constant answer has 3.3
LEARNS = Goal("loss", at_most=2.9)


@cache
def text() -> Pair:
    return characters(LENGTH)[0]


@cache
def letters() -> int:
    return characters(LENGTH)[1]


def transformer(tied: bool = False) -> nn.Module:
    return Transformer(letters(), LENGTH, tied=tied)


def gru(scale: float = 1.0) -> nn.Module:
    """Embeddings ``scale`` times as large as they should be."""
    model = Recurrent(nn.GRU, 16, letters(), each=True, embedded=letters())
    model.embedding.weight.data.mul_(scale)  # type: ignore[union-attr]
    return model


def frozen_embedding() -> nn.Module:
    model = transformer()
    model.tokens.weight.requires_grad_(False)  # type: ignore[union-attr]
    return model


class Probabilities(nn.Module):
    """A transformer that ends in a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.body = transformer()

    def forward(self, ids: Tensor) -> Tensor:
        return self.body(ids).softmax(-1)  # type: ignore[no-any-return]


class Context(nn.Module):
    """The last four characters' embeddings side by side, into an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(letters(), 12)
        self.head = mlp(48, letters(), 64, 1)

    def forward(self, ids: Tensor) -> Tensor:  # (B, T) -> (B, T, C)
        padded = functional.pad(ids, (3, 0))
        windows = padded.unfold(1, 4, 1)  # (B, T, 4)
        return self.head(self.embedding(windows).flatten(2))  # type: ignore[no-any-return]


def shuffled_targets() -> Pair:
    """Next characters of other windows."""
    pair = text()
    return replace(pair, train=replace(pair.train, targets=pair.train.targets.roll(7, 0)))


def negative_likelihood(output: Tensor, targets: Tensor) -> Tensor:
    """nll_loss of logits that never were log-probabilities: it has no floor."""
    return functional.nll_loss(output.flatten(0, 1), targets.flatten())


def tiny_loss(output: Tensor, targets: Tensor) -> Tensor:
    """Divided by a constant: half-precision gradients fall below what the format can hold."""
    return cross_entropy(output, targets) * 1e-6


def hot(output: Tensor, targets: Tensor) -> Tensor:
    """Logits are masked with infinities on both sides: infinity minus infinity."""
    masked = output.masked_fill(output > 2.5, torch.inf)
    return cross_entropy(masked, targets)


GPT = recipe(transformer, text, loss=cross_entropy, optimizer=adam(5e-3), steps=150, batch=24)
GRUS = recipe(gru, text, loss=cross_entropy, optimizer=adam(1e-2), steps=150, batch=24)
BAG = recipe(Context, text, loss=cross_entropy, optimizer=adam(1e-2), steps=200, batch=24)
CASES = (
    FAMILY.sick(
        "gpt_rate",
        "lr_too_high",
        "a transformer under Adam with a rate of 0.5",
        GOOD,
        GPT,
        GPT.but(optimizer=adam(0.5)),
        ("oscillating_loss",),
    ),
    FAMILY.sick(
        "gpt_rate_tiny",
        "lr_too_low",
        "a transformer under Adam with a rate of 1e-6",
        GOOD,
        GPT,
        GPT.but(optimizer=adam(1e-6)),
        ("slow_convergence",),
    ),
    FAMILY.sick(
        "gru_slow",
        "slow_convergence",
        "a GRU under SGD with a rate of 0.003",
        GOOD,
        GRUS.but(optimizer=sgd(1.0, 0.5)),
        GRUS.but(optimizer=sgd(0.003, 0.5)),
        ("lr_too_low",),
    ),
    FAMILY.sick(
        "warmup_endless",
        "lr_zero",
        "a warm-up that takes ten thousand times the run",
        GOOD,
        GPT,
        GPT.but(schedule=warmup(1e4)),
        ("lr_too_low",),
    ),
    FAMILY.sick(
        "softmax_twice",
        "output_activation",
        "softmax before cross-entropy",
        GOOD,
        GPT,
        GPT.but(Probabilities),
    ),
    FAMILY.sick(
        "nll_of_logits",
        "wrong_loss",
        "nll_loss is given logits",
        RIGHT,
        BAG,
        BAG.but(loss=negative_likelihood),
        ("output_activation",),
    ),
    FAMILY.sick(
        "wrong_text",
        "label_error",
        "the next characters are those of other places",
        GOOD,
        BAG,
        BAG.but(data=shuffled_targets),
    ),
    FAMILY.sick(
        "embedding_huge",
        "bad_init",
        "embeddings that begin three thousand times too large",
        GOOD,
        GRUS,
        GRUS.but(partial(gru, 3000.0)),
        ("saturated_activation",),
    ),
    FAMILY.sick(
        "fp16_underflow",
        "precision_underflow",
        "a loss scaled down, gradients in fp16 without loss scaling",
        RIGHT,
        BAG.but(loss=tiny_loss),
        BAG.but(loss=tiny_loss, autocast=torch.float16),
    ),
    FAMILY.sick(
        "infinite_mask",
        "nonfinite_gradient",
        "a mask that makes infinity minus infinity once logits grow",
        GOOD,
        BAG,
        BAG.but(loss=hot),
    ),
    FAMILY.sick(
        "decay",
        "over_regularised",
        "weight decay 60 under AdamW",
        GOOD,
        GPT,
        GPT.but(optimizer=adam(5e-3, decay=60.0)),
    ),
    FAMILY.sick(
        "by_heart",
        "overfitting",
        "24 windows learnt by heart",
        Goal("loss", at_most=3.0),
        GRUS.but(steps=250),
        GRUS.but(data=lambda: text().small(24), steps=250),
    ),
    FAMILY.sick(
        "burst",
        "loss_spike",
        "the rate is a hundredfold for 10 % of the run, after 60 %",
        GOOD,
        GPT,
        GPT.but(schedule=burst(0.6, 0.7, 100.0)),
        ("lr_too_high",),
    ),
    # healthy
    FAMILY.healthy(
        "gpt",
        "a small transformer with warm-up and cosine",
        LEARNS,
        GPT.but(schedule=warmup_cosine(0.1), warmup_steps=15),
    ),
    FAMILY.healthy("gpt_tied", "embedding and head share a weight", LEARNS, GPT.but(partial(transformer, tied=True))),
    FAMILY.healthy("gru", "a GRU on characters: rare characters' embeddings hardly move", GOOD, GRUS),
    FAMILY.healthy("frozen_embedding", "the embedding is frozen on purpose", LEARNS, GPT.but(frozen_embedding)),
    FAMILY.healthy("bf16", "autocast to bf16", GOOD, BAG.but(autocast=torch.bfloat16)),
    FAMILY.healthy(
        "fp16_scaled",
        "fp16 with loss scaling: the scaler skips its first steps",
        GOOD,
        BAG.but(autocast=torch.float16, scaler=True),
    ),
    FAMILY.healthy("accumulated", "four microbatches a step", GOOD, BAG.but(accumulate=4)),
)
