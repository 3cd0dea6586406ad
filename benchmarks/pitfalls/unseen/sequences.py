"""Models, data and losses of ``unseen_sequences``. B samples, T positions, C classes, W width."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.pitfalls.data import Pair, Split, characters, digits
from benchmarks.pitfalls.models import mlp
from benchmarks.pitfalls.unseen.shared import AttentionPooling, documentation, each, spoken_of, trained_on

LENGTH = 24

# --- data --------------------------------------------------------------------------------------------------------------


@cache
def spoken() -> Pair:
    """Which module's documentation a window of 24 characters is of: (N, 24) ids -> (N,), three classes."""
    return spoken_of(LENGTH)[0]


@cache
def letters() -> int:
    return spoken_of(LENGTH)[1]


@cache
def written() -> Pair:
    """The documentation of ``textwrap``, each window's next characters: (N, 12) -> (N, 12)."""
    return characters(12, documentation(textwrap))[0]


@cache
def signs() -> int:
    return characters(12, documentation(textwrap))[1]


def strips(scale: float = 1.0) -> Pair:
    """Digits as a series of 16 columns' sums and the next one's: (N, 15, 1) -> (N, 1), of deviation ``scale``."""

    def part(split: Split) -> Split:
        pictures = split.inputs.reshape(-1, 8, 8)
        series = torch.cat([pictures.sum(1), pictures.sum(2)], 1) / 4.0  # columns, then rows: (N, 16)
        return Split(series[:, :-1, None] * scale, series[:, -1:] * scale)

    return each(digits(), part)


def changes(epsilon: float) -> Pair:
    """The same of raw pixels as relative changes from one position to the next; some that were 0 have none without ``epsilon``."""

    def part(split: Split) -> Split:
        pictures = split.inputs.reshape(-1, 8, 8)
        series = torch.cat([pictures.sum(1), pictures.sum(2)], 1) / 16  # (N, 16)
        relative = (series[:, 1:-1] + epsilon) / (series[:, :-2] + epsilon) - 1
        return Split(torch.cat([series[:, :1], relative], 1)[:, :, None], (series[:, -1:] - 2.1) / 1.2)

    return each(digits(raw=True), part)


def first_of_many(steps: int = 60) -> Pair:
    """A digit's four middle rows, then noise: (N, 4 + steps, 8) -> class."""

    def part(split: Split) -> Split:
        rows = split.inputs.reshape(-1, 8, 8)[:, 2:6]
        noise = 0.3 * torch.randn(len(rows), steps, 8, generator=torch.Generator().manual_seed(len(rows)))
        return Split(torch.cat([rows, noise], 1), (split.targets >= 5).long())

    return each(digits(), part)


def with_empty(count: int) -> Pair:
    """Some texts that are trained on are empty: nothing but padding, which has the last number."""

    def empty(split: Split) -> Split:
        inputs = split.inputs.clone()
        inputs[torch.arange(count) * 53 % len(inputs)] = letters()
        return replace(split, inputs=inputs)

    return trained_on(spoken(), empty)


def few_words(split: Split, share: float = 0.1) -> Split:
    """Of all but the largest class that share."""
    lucky = torch.rand(len(split), generator=torch.Generator().manual_seed(2)) < share
    return split.at(torch.nonzero((split.targets == 1) | lucky).flatten())


def sorted_by_length(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """A batch's texts are sorted by how many letters they have, its labels are not."""
    return x[(x > 10).sum(1).argsort()], y


def forgetful(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Every fourth character is replaced by any other."""
    return torch.where(torch.rand(x.shape) < 0.25, torch.randint_like(x, letters()), x), y


def garbled(first: int, last: int) -> Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A broken shard: one character over and over, and any label."""

    def disturb(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if not first <= step <= last:
            return x, y
        return torch.zeros_like(x), torch.zeros_like(y)

    return disturb


# --- models ------------------------------------------------------------------------------------------------------------


class Reader(nn.Module):
    """Embeds characters, reads them in both directions, pools by attention, names a class. The last id is padding."""

    def __init__(
        self, kind: type[nn.RNNBase] = nn.GRU, width: int = 16, detached: bool = False, drop: float = 0.0
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(letters() + 1, 12)
        self.recurrent = kind(12, width, batch_first=True, bidirectional=True)  # type: ignore[call-arg,arg-type]
        self.drop, self.pool, self.head = nn.Dropout(drop), AttentionPooling(2 * width), nn.Linear(2 * width, 3)
        self.detached = detached

    def forward(self, ids: Tensor) -> Tensor:
        states = self.recurrent(self.embedding(ids))[0]
        states = states.detach() if self.detached else states
        return self.head(self.drop(self.pool(states)))  # type: ignore[no-any-return]


class Masked(nn.Module):
    """One question over the characters that are not padding; a text of nothing else has no answer: 0 / 0."""

    def __init__(self, safe: bool, width: int = 24) -> None:
        super().__init__()
        self.embedding = nn.Embedding(letters() + 1, width)
        self.mix = nn.Conv1d(width, width, 5, padding=2)
        self.score, self.head, self.safe = nn.Linear(width, 1), nn.Linear(width, 3), safe

    def forward(self, ids: Tensor) -> Tensor:
        x = functional.gelu(self.mix(self.embedding(ids).transpose(1, 2)).transpose(1, 2))
        padding = (ids == letters())[:, :, None]
        scores = self.score(x).masked_fill(padding, -1e9 if self.safe else -torch.inf)
        return self.head((scores.softmax(1) * x).sum(1))  # type: ignore[no-any-return]


class Causal(nn.Module):
    """Dilated causal convolutions (van den Oord et al. 2016) over (B, T) ids or (B, T, 1): an answer at every position, or at the last."""

    def __init__(
        self,
        ids: int | None,
        outputs: int,
        activation: Callable[[], nn.Module] = nn.ReLU,
        layers: int = 3,
        width: int = 24,
        last: bool = False,
        residual: bool = True,
        softmax: int | None = None,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(ids, width) if ids else nn.Linear(1, width)
        self.layers = nn.ModuleList(nn.Conv1d(width, width, 2, dilation=2 ** (i % 3)) for i in range(layers))
        self.activations = nn.ModuleList(activation() for _ in range(layers))
        self.head = nn.Linear(width, outputs)
        self.last, self.residual, self.softmax = last, residual, softmax
        with torch.no_grad():
            for part in (self.embedding, *self.layers):
                part.weight.mul_(gain)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x).transpose(1, 2)  # (B, W, T)
        for layer, activation in zip(self.layers, self.activations, strict=True):
            shift = layer.dilation[0]  # type: ignore[index]
            found = activation(layer(functional.pad(x, (shift, 0))))  # type: ignore[arg-type]
            x = x + found if self.residual else found
        answer = self.head(x.transpose(1, 2))
        if self.softmax is not None:
            answer = answer.softmax(self.softmax)
        return answer[:, -1] if self.last else answer  # type: ignore[no-any-return]


class Bag(nn.Module):
    """A mean of embeddings of pairs of characters, nearly all of which have no gradient in a step, and an MLP."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.embedding = nn.Embedding(letters() * letters(), width)
        self.head = mlp(width, 3, 24, 1, nn.ELU)

    def forward(self, ids: Tensor) -> Tensor:
        pairs = ids[:, :-1].clamp(max=letters() - 1) * letters() + ids[:, 1:].clamp(max=letters() - 1)
        return self.head(self.embedding(pairs).mean(1))  # type: ignore[no-any-return]


class Tied(nn.Module):
    """A GRU that writes: embedding and output share a weight."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(signs(), width)
        self.recurrent = nn.GRU(width, width, batch_first=True)
        nn.init.normal_(self.embedding.weight, std=0.1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.recurrent(self.embedding(ids))[0] @ self.embedding.weight.T * 4  # type: ignore[no-any-return]


class Memory(nn.Module):
    """Reads (B, T, D) and answers from its last state."""

    def __init__(
        self, kind: type[nn.RNNBase], inputs: int, outputs: int, width: int = 24, gain: float | None = None
    ) -> None:
        super().__init__()
        self.recurrent, self.head = kind(inputs, width, batch_first=True), nn.Linear(width, outputs)  # type: ignore[call-arg,arg-type]
        if gain is not None:
            nn.init.orthogonal_(self.recurrent.weight_hh_l0, gain)  # type: ignore[arg-type]
        if kind is nn.LSTM:  # remembers at first (Jozefowicz et al. 2015)
            for name in ("bias_ih_l0", "bias_hh_l0"):
                getattr(self.recurrent, name).data[width : 2 * width] = 1.5

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0][:, -1])  # type: ignore[no-any-return]


class Attending(nn.Module):
    """Self-attention by hand, scores not divided by the root of the width when ``scale`` is 1; autocast has them in half precision."""

    def __init__(self, scale: float, width: int = 32, size: float = 1.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(letters() + 1, width)
        self.mix = nn.Conv1d(width, width, 3, padding=1)
        self.asks, self.keys, self.values = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.norm, self.head, self.scale = nn.LayerNorm(width), nn.Linear(width, 3), scale
        with torch.no_grad():
            self.embedding.weight.mul_(size)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.mix(self.embedding(ids).transpose(1, 2)).transpose(1, 2)
        scores = self.asks(x) @ self.keys(x).transpose(1, 2) * self.scale
        return self.head(self.norm(scores.float().softmax(-1) @ self.values(x).float()).mean(1))  # type: ignore[no-any-return]


# --- losses ------------------------------------------------------------------------------------------------------------


def reshaped(output: Tensor, targets: Tensor) -> Tensor:
    """(B, T, C) is brought to (B, C, T) by a reshape where it wants a transpose: positions and classes are stirred."""
    batch, length, classes = output.shape
    return functional.cross_entropy(output.reshape(batch, classes, length), targets)


def smoothed(output: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(output.flatten(0, -2), targets.flatten(), label_smoothing=0.1)


def balanced(output: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(output, targets, torch.tensor([30.0, 1.0, 30.0]))


def measure_recall(model: nn.Module, split: Split) -> dict[str, float]:
    """Of the class that is recognised least."""
    answers = model(split.inputs).argmax(-1)
    shares = [(answers[split.targets == kind] == kind).float().mean() for kind in range(3)]
    return {"worst_recall": float(torch.stack(shares).min())}


def measure_characters(model: nn.Module, split: Split) -> dict[str, float]:
    """Share of next characters that are right, and their cross-entropy."""
    output = model(split.inputs)
    loss = functional.cross_entropy(output.flatten(0, 1), split.targets.flatten())
    return {"accuracy": float((output.argmax(-1) == split.targets).float().mean()), "loss": float(loss)}
