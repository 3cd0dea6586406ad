"""Data of ``unseen_desk``: clothes, X-rays, plays and proteins as those who ask for help have them.

N samples, T positions. Splits do not depend on a run's seed.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

import torch
from torch.nn import functional

from benchmarks.pitfalls.data import Pair, Split, binned, breast_cancer, thinned
from benchmarks.pitfalls.unseen import field_chains as chains
from benchmarks.pitfalls.unseen import field_data as real
from benchmarks.pitfalls.unseen.field_data import generator
from benchmarks.pitfalls.unseen.shared import each, trained_on

# --- pictures ----------------------------------------------------------------------------------------------------------


def rows() -> Pair:
    """Clothes from top to bottom: (N, 14, 14), a row at each of 14 positions."""
    return real.clothes().shaped(14, 14)


def image_net_bytes() -> Pair:
    """X-rays of 0 to 255, standardised by the mean and deviation of photographs of 0 to 1."""
    return real.chests(raw=True).mapped(255 / 0.229, -0.485 / 0.229)


def by_variance(power: int = 2) -> Pair:
    """The table of X-rays less its mean, over its deviation (1) or its variance (2)."""
    pair = real.measured_chests(raw=True)
    mean, deviation = pair.train.inputs.mean(0), pair.train.inputs.std(0)
    return each(pair, lambda split: Split((split.inputs - mean) / deviation**power, split.targets))


def logarithms(standardised: bool = False) -> Pair:
    """Logarithms of the table of X-rays, all of which are below 0: (N, 32)."""
    pair = each(real.measured_chests(raw=True), lambda split: Split((split.inputs + 1e-3).log(), split.targets))
    mean, deviation = pair.train.inputs.mean(0), pair.train.inputs.std(0)
    if not standardised:
        return pair
    return each(pair, lambda split: Split((split.inputs - mean) / deviation, split.targets))


def bright_spots(more: float) -> Pair:
    """X-rays, and the logarithm of how many bright pixels they have, ``more`` added: some have none."""
    raw = real.chests(raw=True)

    def part(split: Split, own: Split) -> Split:
        count = (own.inputs > 0.8).float().sum((1, 2, 3))[:, None]
        return Split(split.inputs, (count + more).log() - 2)

    pair = real.chests()
    return Pair(part(pair.train, raw.train), part(pair.validation, raw.validation))


def never_ill() -> Pair:
    """X-rays whose labels of training were all read as 0."""
    return trained_on(real.named_chests(), lambda split: Split(split.inputs, torch.zeros_like(split.targets)))


FIVE = (0, 1, 3, 5, 8)  # shirts, trousers, dresses, sandals, bags


def few_of(kind: int, share: float = 0.03) -> Pair:
    """Five kinds of clothes, of one of which, a number below five, only that share is trained on."""

    def part(split: Split) -> Split:
        rows_of = torch.nonzero(torch.isin(split.targets, torch.tensor(FIVE))).flatten()
        return Split(split.inputs[rows_of], torch.searchsorted(torch.tensor(FIVE), split.targets[rows_of]))

    return thinned(each(real.clothes(), part), [other for other in range(5) if other != kind], share)


def boots_and_trousers() -> Pair:
    """Trousers against boots, twelve to one: (N, 1, 14, 14) and 0 or 1 (N,)."""

    def part(split: Split) -> Split:
        rows_of = torch.nonzero((split.targets == 1) | (split.targets == 9)).flatten()
        return Split(split.inputs[rows_of], (split.targets[rows_of] == 9).long())

    return thinned(each(real.clothes(), part), (0,), 1 / 12)


def overlaid() -> Pair:
    """Two pieces of clothing on one picture (N, 196), and which kinds they are of (N, 10)."""

    def part(split: Split) -> Split:
        order = torch.randperm(len(split), generator=generator(6))
        kinds = functional.one_hot(split.targets, 10) + functional.one_hot(split.targets[order], 10)
        return Split(torch.maximum(split.inputs, split.inputs[order]), kinds.clamp(max=1).float())

    return each(real.flat(), part)


@cache
def several() -> Pair:
    """None to four small pieces of clothing on (N, 1, 24, 24), and how many they are (N, 1)."""

    def part(split: Split) -> Split:
        small = functional.avg_pool2d(split.inputs, 2)[:, 0]
        drawn = generator(len(split))
        canvas = 0.05 * torch.randn(len(split), 24, 24, generator=drawn)
        counts = torch.randint(0, 5, (len(split),), generator=drawn)
        places = torch.randint(0, 18, (len(split), 4, 2), generator=drawn)
        which = torch.randint(0, len(split), (len(split), 4), generator=drawn)
        for row, count in enumerate(counts.tolist()):
            for piece in range(count):
                top, left = places[row, piece].tolist()
                field = canvas[row, top : top + 7, left : left + 7]
                canvas[row, top : top + 7, left : left + 7] = torch.maximum(field, small[which[row, piece]])
        return Split(canvas[:, None] * 3, counts[:, None].float())

    return each(real.clothes(2400, raw=True), part)


def cells() -> Pair:
    """A piece of clothing somewhere on (N, 1, 24, 24), and in which of nine fields its centre is (N,)."""

    def part(split: Split) -> Split:
        across, down = ((split.targets[:, place] * 2.6 + 1.5).clamp(0, 2.99).long() for place in (0, 1))
        return Split(split.inputs, 3 * down + across)

    return each(real.placed_clothes(), part)


def between_minus_one_and_one() -> Pair:
    """Pictures of -1 to 1 are their own targets: (N, 196)."""
    return each(real.itself(), lambda split: Split(2 * split.inputs - 1, 2 * split.targets - 1))


def clothes_and_chests() -> Pair:
    """Twelve kinds of pictures: clothes (0 to 9), X-rays (10 and 11)."""
    clothes, chests = real.clothes(2400), real.named_chests(2400)

    def both(one: Split, other: Split) -> Split:
        return Split(torch.cat([one.inputs, other.inputs]), torch.cat([one.targets, other.targets + 10]))

    return Pair(both(clothes.train, chests.train), both(clothes.validation, chests.validation))


def few_to_validate() -> Pair:
    """Thirty pictures are all that validates."""
    pair = real.flat()
    return Pair(pair.train, pair.validation.first(30))


# --- texts -------------------------------------------------------------------------------------------------------------


@cache
def sentences(words: int = 300, known: int = 4) -> Pair:
    """Numbers of four words of a play (N, 4), 0 for a rare one, and the next one's, which is frequent (N,)."""
    spoken = re.findall("[a-z']+", real.plays().lower())
    numbers = {word: number for number, (word, _) in enumerate(Counter(spoken).most_common(words), 1)}
    windows = torch.tensor([numbers.get(word, 0) for word in spoken]).unfold(0, known + 1, 1)
    windows = windows[windows[:, -1] > 0]
    windows = windows[torch.randperm(len(windows), generator=generator(20))[:24_000]]
    whole = Split(windows[:, :-1].clone(), windows[:, -1].clone() - 1)
    rest = torch.arange(2000, len(windows))
    return Pair(whole.at(rest), whole.first(2000))


def hidden_letters() -> Pair:
    """Windows of letters (N, 64) and the same again."""
    return each(real.registers(count=900), lambda split: Split(split.inputs, split.inputs))


@cache
def to_be_sorted(length: int = 8, symbols: int = 10) -> Pair:
    """Numbers below ten (N, T), and the same in order (N, T)."""
    numbers = torch.randint(0, symbols, (5000, length), generator=generator(7))
    whole = Split(numbers, numbers.sort(1).values)
    return Pair(whole.first(4500), whole.at(torch.arange(4500, 5000)))


HASHES = 4000


def hashed() -> Pair:
    """Pairs of words by a hash of each, of which there are ten times as many as words."""
    return each(real.neighbours(), lambda split: Split(split.inputs * 7919 % HASHES, split.targets))


def scene(windows: int = 40) -> Pair:
    """A few lines to train on, and other plays to validate."""
    return real.lines().small(windows)


# --- proteins and tables -----------------------------------------------------------------------------------------------


def helices() -> Pair:
    """Stretches of chains (N, 32, 4), and how much of each is a helix, about -1 to 1 (N, 1)."""

    def part(split: Split) -> Split:
        share = (split.targets == 0).float().mean(1, keepdim=True)
        return Split(split.inputs, 2 * share - 1)

    return each(chains.folded(), part)


def levels() -> Pair:
    """Distances and an amino acid (N, 35), and whether more than 12, 16 and 20 residues are near it (N, 3)."""
    bounds = torch.tensor([12.0, 16.0, 20.0])
    return each(chains.crowding(raw=True), lambda split: Split(split.inputs, (split.targets > bounds).float()))


def joined(missing: float) -> Pair:
    """Patients of whom another table gives ten of the thirty columns; ``missing`` where it does not know them."""

    def part(split: Split) -> Split:
        unknown = torch.rand(len(split), generator=generator(len(split))) < 0.1
        inputs = split.inputs.clone()
        inputs[unknown, 20:] = missing
        return Split(inputs, split.targets)

    return each(breast_cancer(), part)


def measured_and_binned() -> Pair:
    """Thirty numbers of each patient and their quantiles' numbers: (N, 60)."""
    plain, ids = breast_cancer(), binned(breast_cancer(), 8)

    def part(one: Split, other: Split) -> Split:
        return Split(torch.cat([one.inputs, other.inputs.float()], 1), one.targets)

    return Pair(part(plain.train, ids.train), part(plain.validation, ids.validation))
