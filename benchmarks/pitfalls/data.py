"""The suite's data: what comes with scikit-learn. Tensors, split by a seed of their own.

Splits do not depend on a run's seed: runs of a case differ in weights and in the order of samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from sklearn import datasets
from torch import Tensor

SPLIT_SEED = 20


@dataclass(frozen=True)
class Split:
    inputs: Tensor  # (N, ...)
    targets: Tensor  # (N,) class numbers, or (N, K) floats

    def __len__(self) -> int:
        return len(self.inputs)

    def first(self, count: int) -> Split:
        return Split(self.inputs[:count], self.targets[:count])

    def at(self, rows: Tensor) -> Split:
        return Split(self.inputs[rows], self.targets[rows])


@dataclass(frozen=True)
class Pair:
    """Two parts of a data set."""

    train: Split
    validation: Split

    def mapped(self, inputs: float = 1.0, shift: float = 0.0, targets: float = 1.0, targets_shift: float = 0.0) -> Pair:
        """Inputs (and targets that are floats) scaled, then shifted."""

        def part(split: Split) -> Split:
            values = split.targets
            if values.is_floating_point():
                values = values * targets + targets_shift
            return Split(split.inputs * inputs + shift, values)

        return Pair(part(self.train), part(self.validation))

    def shaped(self, *shape: int) -> Pair:
        return Pair(*(replace(part, inputs=part.inputs.reshape(-1, *shape)) for part in (self.train, self.validation)))

    def small(self, count: int) -> Pair:
        """Only the first training samples."""
        return replace(self, train=self.train.first(count))


def _parts(inputs: Tensor, targets: Tensor, validation: int) -> Pair:
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(SPLIT_SEED))
    whole = Split(inputs, targets).at(order)
    return Pair(whole.first(len(order) - validation), whole.at(torch.arange(len(order) - validation, len(order))))


@cache
def _table(name: str, classification: bool) -> tuple[Tensor, Tensor]:
    inputs, targets = getattr(datasets, f"load_{name}")(return_X_y=True)
    labels = torch.tensor(targets, dtype=torch.int64 if classification else torch.float32)
    return torch.tensor(inputs, dtype=torch.float32), labels if classification else labels[:, None]


def digits(raw: bool = False) -> Pair:
    """1,797 pictures of 8 x 8 pixels, 10 classes. (N, 64), 0 to 16 when raw, else of mean 0 and deviation 1 over all."""
    inputs, targets = _table("digits", True)
    return _parts(inputs if raw else (inputs - 4.88) / 6.02, targets, 360)


def breast_cancer(raw: bool = False) -> Pair:
    """569 patients, 30 features (raw: up to 4,254), 2 classes."""
    inputs, targets = _table("breast_cancer", True)
    return _standardised(_parts(inputs, targets, 140), raw)


def wine(raw: bool = False) -> Pair:
    """178 wines, 13 features (raw: up to 1,680), 3 classes."""
    inputs, targets = _table("wine", True)
    return _standardised(_parts(inputs, targets, 50), raw)


def iris() -> Pair:
    """150 flowers, 4 features, 3 classes."""
    return _standardised(_parts(*_table("iris", True), 45), False)


def diabetes(raw_targets: bool = False) -> Pair:
    """442 patients, 10 features, one target (N, 1): raw 25 to 346, else of mean 0 and deviation 1."""
    inputs, targets = _table("diabetes", False)
    pair = _standardised(_parts(inputs, targets, 110), False)
    return pair if raw_targets else pair.mapped(targets=1 / 77.1, targets_shift=-152.1 / 77.1)


def _standardised(pair: Pair, raw: bool) -> Pair:
    """By the training split."""
    if raw:
        return pair
    mean, deviation = pair.train.inputs.mean(0), pair.train.inputs.std(0)
    return Pair(*(replace(part, inputs=(part.inputs - mean) / deviation) for part in (pair.train, pair.validation)))


@cache
def english() -> str:
    """15,000 characters: how scikit-learn describes its data sets."""
    names = ("digits", "breast_cancer", "wine", "diabetes", "iris", "linnerud")
    return "\n".join(getattr(datasets, f"load_{name}")().DESCR for name in names)


def characters(length: int = 16, text: str | None = None) -> tuple[Pair, int]:
    """Windows of a text, (N, T) character numbers, and each one's next characters (N, T); and the number of different ones."""
    text = text or english()
    alphabet = sorted(set(text))
    codes = torch.tensor([alphabet.index(character) for character in text])
    starts = torch.arange(0, len(codes) - length - 1, max(1, length // 4))
    windows = codes[starts[:, None] + torch.arange(length + 1)]
    return _parts(windows[:, :-1], windows[:, 1:], len(windows) // 8), len(alphabet)


def binned(pair: Pair, bins: int = 16) -> Pair:
    """Every feature's value as the number of its quantile, counted on over the features: (N, F) ids below F x bins."""
    edges = torch.quantile(pair.train.inputs, torch.linspace(0, 1, bins + 1)[1:-1], dim=0)  # (bins - 1, F)

    def ids(inputs: Tensor) -> Tensor:
        within = (inputs[:, None, :] > edges[None]).sum(1)  # (N, F)
        return within + bins * torch.arange(inputs.shape[1])

    return Pair(*(replace(part, inputs=ids(part.inputs)) for part in (pair.train, pair.validation)))


def thinned(pair: Pair, keep: Sequence[int], share: float, seed: int = 3) -> Pair:
    """Training samples of classes that are not in ``keep`` are left out, but for a share of them."""
    wanted = torch.isin(pair.train.targets, torch.tensor(list(keep)))
    lucky = torch.rand(len(wanted), generator=torch.Generator().manual_seed(seed)) < share
    return replace(pair, train=pair.train.at(torch.nonzero(wanted | lucky).flatten()))
