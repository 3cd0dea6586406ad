"""Data of ``unseen_field``: clothes, X-rays and plays of the folder ``shared`` beside the project.

Its proteins are in ``field_chains``. N samples, T positions, H pixels a side. Splits do not depend on a run's seed.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.pitfalls.data import Pair, Split, english
from benchmarks.pitfalls.unseen.shared import MODULES, documentation, each

FOLDER = Path(__file__).parents[4] / "shared" / "data"


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- pictures ----------------------------------------------------------------------------------------------------------


@cache
def _clothes() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pictures of 14 x 14 pixels, 0 to 1, and their classes: shuffled, 4,000 to train and 1,000 to validate."""
    with np.load(FOLDER / "fashion-mnist" / "fashion-mnist-12k-2k.npz") as stored:
        found = []
        for part, count in (("train", 4000), ("test", 1000)):
            order = torch.randperm(len(stored[f"y_{part}"]), generator=generator(20))[:count]
            pictures = torch.tensor(stored[f"x_{part}"])[order, None].float() / 255
            found += [functional.avg_pool2d(pictures, 2), torch.tensor(stored[f"y_{part}"]).long()[order]]
    return found[0], found[1], found[2], found[3]


def clothes(count: int = 4000, raw: bool = False) -> Pair:
    """Ten kinds of clothes: (N, 1, 14, 14), 0 to 1 when ``raw``, else of mean 0 and deviation 1 over all."""
    train, classes, validation, truth = _clothes()
    pair = Pair(Split(train[:count], classes[:count]), Split(validation, truth))
    return pair if raw else pair.mapped(1 / 0.33, -0.286 / 0.33)


def flat(count: int = 4000, raw: bool = False) -> Pair:
    """The same as (N, 196)."""
    return clothes(count, raw).shaped(196)


def itself(count: int = 4000) -> Pair:
    """Pictures of 0 to 1 are their own targets: (N, 196)."""
    return each(flat(count, raw=True), lambda split: Split(split.inputs, split.inputs))


def itself_standardised() -> Pair:
    """Pictures of mean 0 and deviation 1 are their own targets: (N, 196)."""
    return each(flat(), lambda split: Split(split.inputs, split.inputs))


def by_pixel(least: float, count: int = 100) -> Pair:
    """Every pixel standardised by its own deviation, or by ``least``: some never change in the first ``count`` pictures. (N, 196)"""
    pair = flat(raw=True)
    mean, deviation = pair.train.inputs[:count].mean(0), pair.train.inputs[:count].std(0)
    return each(pair, lambda split: Split((split.inputs - mean) / deviation.clamp(min=least), split.targets))


def of_all_orders(pair: Pair) -> Pair:
    """Targets of what is trained on belong to other samples."""
    order = torch.randperm(len(pair.train), generator=generator(8))
    return Pair(Split(pair.train.inputs, pair.train.targets[order]), pair.validation)


def sorted_otherwise() -> Pair:
    """Kinds of clothes are numbered by the alphabet where they validate."""
    pair = clothes()
    numbers = torch.tensor([8, 9, 6, 3, 2, 5, 7, 4, 1, 0])
    return Pair(pair.train, Split(pair.validation.inputs, numbers[pair.validation.targets]))


def with_noise(share: float, count: int = 4000) -> Pair:
    """That share of what is trained on has any label."""
    pair = flat(count)
    lucky = torch.rand(count, generator=generator(9)) < share
    drawn = torch.randint(0, 10, (count,), generator=generator(10))
    return Pair(Split(pair.train.inputs, torch.where(lucky, drawn, pair.train.targets)), pair.validation)


def first_five() -> Pair:
    """Only the first five kinds of clothes."""
    return each(clothes(), lambda split: split.at(torch.nonzero(split.targets < 5).flatten()))


def few_named(count: int = 600) -> Pair:
    """Only the first ``count`` have a label, the others -1; (N, 196)."""
    pair = flat()
    known = torch.arange(len(pair.train)) < count
    return Pair(Split(pair.train.inputs, torch.where(known, pair.train.targets, -1)), pair.validation)


def two_kinds(rare: float = 1.0) -> Pair:
    """Coats, of which only a share is trained on, against dresses: (N, 1, 14, 14) and 0 or 1 (N,)."""

    def part(split: Split, share: float) -> Split:
        coat = split.targets == 4
        lucky = torch.rand(len(coat), generator=generator(4)) < share
        rows = torch.nonzero((split.targets == 3) | (coat & lucky)).flatten()
        return Split(split.inputs[rows], coat[rows].long())

    pair = clothes()
    return Pair(part(pair.train, rare), part(pair.validation, 1.0))


@cache
def placed_clothes() -> Pair:
    """A piece of clothing, 8 to 16 pixels wide, somewhere on (N, 1, 24, 24): its centre and size (N, 3), each about -1 to 1."""

    def part(split: Split) -> Split:
        canvas = 0.1 * torch.randn(len(split), 1, 24, 24, generator=generator(len(split)))
        draws = torch.rand(len(split), 3, generator=generator(5))
        targets = torch.empty(len(split), 3)
        for row, (picture, draw) in enumerate(zip(split.inputs, draws, strict=True)):
            size = 8 + int(9 * float(draw[0]))
            top, left = (int((25 - size) * float(place)) for place in draw[1:])
            small = functional.interpolate(picture[None], size=size, mode="bilinear")[0]
            canvas[row, :, top : top + size, left : left + size] += small
            targets[row] = torch.tensor([(left + size / 2) / 12 - 1, (top + size / 2) / 12 - 1, size / 4 - 3])
        return Split(canvas, targets)

    return each(clothes(2400, raw=True), part)


def sizes() -> Pair:
    """Only the size, of deviation 0.06: (N, 1)."""
    return each(placed_clothes(), lambda split: Split(split.inputs, split.targets[:, 2:] * 0.1))


def outlined(scale: float = 1.0) -> Pair:
    """Clothes under noise (N, 1, 14, 14), and where they are: the same shape, 0 or ``scale``."""

    def part(split: Split) -> Split:
        noise = 0.3 * torch.randn(split.inputs.shape, generator=generator(len(split)))
        return Split((split.inputs + noise - 0.29) / 0.45, scale * (split.inputs > 0.15).float())

    return each(clothes(2000, raw=True), part)


def bright_spots(scale: float = 1.0) -> Pair:
    """Clothes under noise, and their few brightest pixels, one in fifty: both (N, 1, 14, 14)."""

    def part(split: Split) -> Split:
        noise = 0.05 * torch.randn(split.inputs.shape, generator=generator(len(split)))
        return Split((split.inputs + noise - 0.29) / 0.33, scale * (split.inputs > 0.87).float())

    return each(clothes(2000, raw=True), part)


@cache
def _chests() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with np.load(FOLDER / "medical" / "pneumoniamnist-balanced.npz") as stored:
        found = []
        for part in ("train", "val"):
            labels = torch.tensor(stored[f"{part}_labels"]).float()
            order = torch.randperm(len(labels), generator=generator(20))
            found += [
                functional.avg_pool2d(torch.tensor(stored[f"{part}_images"])[order, None].float() / 255, 2),
                labels[order],
            ]
    return found[0], found[1], found[2], found[3]


def chests(count: int = 2428, raw: bool = False) -> Pair:
    """X-rays (N, 1, 14, 14), of mean 0 and deviation 1 or raw 0 to 1; pneumonia or not, 1 or 0 (N, 1)."""
    train, ill, validation, truth = _chests()
    pair = Pair(Split(train[:count], ill[:count]), Split(validation, truth))
    return pair if raw else pair.mapped(1 / 0.17, -0.57 / 0.17)


def named_chests(count: int = 2428) -> Pair:
    """Class numbers instead: (N,)."""
    return each(chests(count), lambda split: Split(split.inputs, split.targets[:, 0].long()))


def measured_chests(raw: bool = False) -> Pair:
    """X-rays as a table of 32 numbers: means and deviations of eight bands of rows and of columns. (N, 32) -> (N, 1)."""

    def part(split: Split) -> Split:
        bands = functional.pad(split.inputs[:, 0], (1, 1, 1, 1)).unfold(1, 2, 2)  # (N, 8, 16, 2)
        columns = functional.pad(split.inputs[:, 0], (1, 1, 1, 1)).unfold(2, 2, 2)  # (N, 16, 8, 2)
        parts = [bands.mean((2, 3)), bands.std((2, 3)), columns.mean((1, 3)), columns.std((1, 3))]
        return Split(torch.cat(parts, 1), split.targets)

    pair = each(chests(raw=True), part)
    mean, deviation = pair.train.inputs.mean(0), pair.train.inputs.std(0)
    return pair if raw else each(pair, lambda split: Split((split.inputs - mean) / deviation, split.targets))


def byte_chests() -> Pair:
    """The same table of pixels from 0 to 255, as means and variances."""
    means = torch.tensor([1.0, 0.0, 1.0, 0.0]).repeat_interleave(8).bool()

    def part(split: Split) -> Split:
        return Split(torch.where(means, split.inputs * 255, (split.inputs * 255).square()), split.targets)

    return each(measured_chests(raw=True), part)


def dated_chests(unit: float = 1.0) -> Pair:
    """One more column: when the X-ray was taken, in seconds since 1970 or of deviation 1. It does not matter."""

    def part(split: Split) -> Split:
        when = torch.rand(len(split), 1, generator=generator(len(split))) * 6e7 + 1.5e9
        column = when if unit == 1.0 else (when - 1.53e9) / unit
        return Split(torch.cat([split.inputs, column], 1), split.targets)

    return each(measured_chests(), part)


def bright_chests(least: float) -> Pair:
    """One more column: one over the number of bright pixels, or over ``least`` where that is more."""

    def part(split: Split, pictures: Split) -> Split:
        bright = (pictures.inputs > 0.9).float().sum((1, 2, 3))[:, None]
        return Split(torch.cat([split.inputs, 1 / bright.clamp(min=least)], 1), split.targets)

    table, pictures = measured_chests(), chests(raw=True)
    return Pair(part(table.train, pictures.train), part(table.validation, pictures.validation))


def few_ill(share: float = 0.035) -> Pair:
    """Of X-rays with pneumonia only that share is trained on, as in a screening."""
    pair = chests()
    lucky = torch.rand(len(pair.train), generator=generator(4)) < share
    return Pair(pair.train.at(torch.nonzero((pair.train.targets[:, 0] < 0.5) | lucky).flatten()), pair.validation)


# --- texts -------------------------------------------------------------------------------------------------------------


@cache
def plays() -> str:
    return (FOLDER / "tinyshakespeare" / "input.txt").read_text(encoding="ascii")


LETTERS = 65


@cache
def lines(length: int = 32) -> Pair:
    """Windows of plays, (N, T) character numbers, and each one's next (N, T). Other plays validate."""
    alphabet = {letter: number for number, letter in enumerate(sorted(set(plays())))}
    codes = torch.tensor([alphabet[letter] for letter in plays()])
    edge = int(0.9 * len(codes))
    windows = [part.unfold(0, length + 1, length) for part in (codes[:edge], codes[edge:])]
    chosen = [
        part[torch.randperm(len(part), generator=generator(20))[:count]]
        for part, count in zip(windows, (8000, 300), strict=True)
    ]
    return Pair(*(Split(part[:, :-1].clone(), part[:, 1:].clone()) for part in chosen))


SYMBOLS = 28  # of ``registers``: 0 pads


@cache
def registers(length: int = 64, count: int = 1200) -> Pair:
    """Windows of letters alone, (N, T) numbers from 1 on: of plays, of papers on data or of a manual (N,)."""
    texts = [plays()[:120_000], english() * 3, "\n".join(documentation(module) for module in MODULES)]
    windows, labels = [], []
    for label, text in enumerate(texts):
        letters = re.sub("[^a-z]+", " ", text.lower())
        codes = torch.tensor([1 + "abcdefghijklmnopqrstuvwxyz ".index(letter) for letter in letters])
        own = codes.unfold(0, length, max(7, len(codes) // 600))[:600]
        windows.append(own)
        labels += [label] * len(own)
    inputs, targets = torch.cat(windows), torch.tensor(labels)
    order = torch.randperm(len(inputs), generator=generator(20))
    whole = Split(inputs, targets).at(order)
    return Pair(whole.first(len(order) - 300).first(count), whole.at(torch.arange(len(order) - 300, len(order))))


WORDS = 400


@cache
def neighbours() -> Pair:
    """Pairs of frequent words, (N, 2) numbers, and whether they stand beside each other in a play (N, 1)."""
    words = re.findall("[a-z']+", plays().lower())
    known = {word: number for number, (word, _) in enumerate(Counter(words).most_common(WORDS))}
    codes = torch.tensor([known.get(word, -1) for word in words])
    beside = torch.stack([codes[:-1], codes[1:]], 1)
    beside = beside[(beside >= 0).all(1)]
    beside = beside[torch.randperm(len(beside), generator=generator(20))[:40_000]]
    apart = torch.stack([beside[:, 0], beside[torch.randperm(len(beside), generator=generator(21)), 1]], 1)
    pairs = torch.stack([beside, apart], 1).flatten(0, 1)
    truth = torch.tensor([1.0, 0.0]).repeat(len(beside))[:, None]
    return Pair(Split(pairs[4000:], truth[4000:]), Split(pairs[:4000], truth[:4000]))
