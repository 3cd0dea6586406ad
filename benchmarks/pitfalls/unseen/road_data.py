"""Data of ``unseen_road``: clothes, X-rays, plays and proteins, with what goes wrong with them on the way. N samples, T positions."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.pitfalls.data import Pair, Split
from benchmarks.pitfalls.unseen.field_chains import crowding
from benchmarks.pitfalls.unseen.field_data import chests, clothes, flat, generator, lines, measured_chests, plays
from benchmarks.pitfalls.unseen.shared import each

# --- pictures ----------------------------------------------------------------------------------------------------------


def rotated(pictures: Tensor, angles: Tensor) -> Tensor:
    """(N, 1, H, H) turned by (N,) radians."""
    cos, sin, none = angles.cos(), angles.sin(), torch.zeros_like(angles)
    turns = torch.stack([torch.stack([cos, -sin, none], 1), torch.stack([sin, cos, none], 1)], 1)
    return functional.grid_sample(
        pictures, functional.affine_grid(turns, list(pictures.shape), False), align_corners=False
    )


@cache
def leaning(unit: float = 1.0) -> Pair:
    """Trousers, dresses and shoes (N, 1, 14, 14), turned by up to a radian to either side: by how much (N, 1), times ``unit``."""

    def part(split: Split) -> Split:
        split = split.at(torch.nonzero(torch.isin(split.targets, torch.tensor([1, 3, 7, 9]))).flatten())
        angles = 2 * torch.rand(len(split), generator=generator(len(split))) - 1
        return Split((rotated(split.inputs, angles) - 0.286) / 0.33, unit * angles[:, None])

    return each(clothes(raw=True), part)


def in_pairs() -> Pair:
    """Two pictures each (N, 2, 196), and whether they are of a kind (N, 1)."""

    def part(split: Split) -> Split:
        by_kind = split.at(split.targets.argsort(stable=True))
        order = torch.randperm(len(split), generator=generator(3))
        same = torch.arange(len(split)) % 2 == 0
        one, other = by_kind.at(order), by_kind.at(torch.where(same, (order + 1) % len(split), order.roll(1)))
        truth = (one.targets == other.targets).float()[:, None]
        return Split(torch.stack([one.inputs, other.inputs], 1), truth)

    return each(flat(), part)


def rows(unit: float = 1.0) -> Pair:
    """Clothes from top to bottom (N, 14, 14), of mean 0 and deviation 1; or from 0 to ``unit``."""
    return (clothes() if unit == 1.0 else clothes(raw=True).mapped(unit)).shaped(14, 14)


def next_rows() -> Pair:
    """X-rays from top to bottom but for the last row (N, 13, 14), and each one's next (N, 13, 14)."""
    pair = chests().shaped(14, 14)
    return each(pair, lambda split: Split(split.inputs[:, :-1].clone(), split.inputs[:, 1:].clone()))


def each_by_its_own(least: float, blank: int = 12) -> Pair:
    """X-rays less their own mean and over their own deviation, or ``least`` if that is more; some of the files are black."""

    def part(split: Split) -> Split:
        pictures = split.inputs.clone()
        if len(split) > 1000:
            pictures[:: len(split) // blank] = 0
        deviation = pictures.std((1, 2, 3), keepdim=True)
        return Split((pictures - pictures.mean((1, 2, 3), keepdim=True)) / deviation.clamp(min=least), split.targets)

    return each(chests(raw=True), part)


def mirrored_but_not_told(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Half of the pictures are mirrored at random; that they lean to the other side now is forgotten."""
    lucky = (torch.rand(len(x)) < 0.5)[:, None, None, None]
    return torch.where(lucky, x.flip(3), x), y


def mirrored_and_told(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    lucky = torch.rand(len(x)) < 0.5
    return torch.where(lucky[:, None, None, None], x.flip(3), x), torch.where(lucky[:, None], -y, y)


def rare_bags(share: float = 0.02) -> Pair:
    """Is it a shirt? Coats and pullovers, and of shirts only that share to train on: (N, 196), 0 or 1 (N,)."""

    def part(split: Split, of_shirts: float) -> Split:
        shirt = split.targets == 6
        lucky = torch.rand(len(shirt), generator=generator(6)) < of_shirts
        rest = torch.isin(split.targets, torch.tensor([2, 4]))
        found = split.at(torch.nonzero(rest | (shirt & lucky)).flatten())
        return Split(found.inputs, (found.targets == 6).long())

    pair = flat()
    return Pair(part(pair.train, share), part(pair.validation, 1.0))


def from_one_on() -> Pair:
    """X-rays whose labels are 1 and 2, as the table of the hospital has them, where they are trained on."""
    pair = chests()
    return Pair(Split(pair.train.inputs, pair.train.targets + 1), pair.validation)


def of_kinds(*kinds: int) -> Pair:
    """Only these kinds of clothes (N, 196), numbered from 0 on."""

    def part(split: Split) -> Split:
        found = split.at(torch.nonzero(torch.isin(split.targets, torch.tensor(kinds))).flatten())
        return Split(found.inputs, (found.targets[:, None] == torch.tensor(kinds)).long().argmax(1))

    return each(flat(), part)


# --- tables ------------------------------------------------------------------------------------------------------------


def admitted(since: float) -> Pair:
    """The table of X-rays, and the years, 2009 to 2023, in which each was born, admitted, seen and paid: less ``since``. (N, 36)"""

    def part(split: Split) -> Split:
        years = 2016 + 8 * (torch.rand(len(split), 4, generator=generator(len(split))) - 0.5)
        return Split(torch.cat([split.inputs, years - since], 1), split.targets)

    return each(measured_chests(), part)


def not_measured(value: float) -> Pair:
    """How crowded residues are, of which three were not measured: ``value`` stands there."""
    pair = crowding()
    targets = pair.train.targets.clone()
    targets[torch.tensor([40, 900, 1700])] = value
    return Pair(Split(pair.train.inputs, targets), pair.validation)


def crowded_twenty(count: int = 48) -> Pair:
    """Only the first few residues are trained on."""
    return crowding().small(count)


# --- texts -------------------------------------------------------------------------------------------------------------

TOGETHER = 250


@cache
def together() -> Pair:
    """Pairs of frequent words, (N, 2) numbers, and the logarithm of how often they are within three words, of deviation 1 (N, 1)."""
    words = re.findall("[a-z']+", plays().lower())
    known = {word: number for number, (word, _) in enumerate(Counter(words).most_common(TOGETHER))}
    codes = torch.tensor([known.get(word, -1) for word in words])
    table = torch.zeros(TOGETHER * TOGETHER)
    for apart in (1, 2, 3):
        one, other = codes[:-apart], codes[apart:]
        both = (one >= 0) & (other >= 0)
        table += torch.bincount(one[both] * TOGETHER + other[both], minlength=TOGETHER * TOGETHER)
    cells = torch.nonzero(table > 2).flatten()
    cells = cells[torch.randperm(len(cells), generator=generator(20))]
    targets = table[cells].log()[:, None]
    targets = (targets - targets.mean()) / targets.std()
    whole = Split(torch.stack([cells // TOGETHER, cells % TOGETHER], 1), targets)
    return Pair(whole.at(torch.arange(2000, len(whole))), whole.first(2000))


def not_shifted() -> Pair:
    """Letters of plays whose targets are the letters themselves where they are trained on, not the next ones."""
    pair = lines()
    return Pair(Split(pair.train.inputs, pair.train.inputs.clone()), pair.validation)


def few_lines(count: int) -> Pair:
    return lines().small(count)


def degrees() -> Pair:
    return leaning(180 / math.pi)


def table_of_few(share: float) -> Callable[[], Pair]:
    """The table of X-rays with class numbers; of the ill only that share is trained on."""

    def pair() -> Pair:
        found = each(measured_chests(), lambda split: Split(split.inputs, split.targets[:, 0].long()))
        lucky = torch.rand(len(found.train), generator=generator(4)) < share
        return Pair(found.train.at(torch.nonzero((found.train.targets == 0) | lucky).flatten()), found.validation)

    return pair


def few_rays(count: int) -> Pair:
    return chests().small(count)
