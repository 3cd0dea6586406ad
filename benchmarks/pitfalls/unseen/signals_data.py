"""Data of ``unseen_signals``: what comes with scikit-learn as series, ratings, graphs, clouds of points, times and counts."""

from __future__ import annotations

import math
from functools import cache

import torch
from sklearn import datasets
from torch import Tensor
from torch.nn import functional

from benchmarks.pitfalls.data import Pair, Split, _parts, breast_cancer, diabetes, digits
from benchmarks.pitfalls.unseen.shared import each, trained_on

PAST, AHEAD = 24, 4  # positions of ``scans``
PICTURES, PIXELS = 300, 64  # users and items of ``ratings``


@cache
def photograph(name: str) -> Tensor:
    """Brightness of a photograph that comes with scikit-learn: (427, 640), 0 to 1."""
    return torch.tensor(datasets.load_sample_image(f"{name}.jpg")).float().mean(2) / 255


@cache
def _scans() -> Pair:
    lines = photograph("china")[::3]
    kept = torch.arange(len(lines)) % 4 > 0
    windows = [rows.unfold(1, PAST + AHEAD, 14).reshape(-1, PAST + AHEAD) for rows in (lines[kept], lines[~kept])]
    return Pair(*(Split(part[:, :PAST, None], part[:, PAST:]) for part in windows))


def scans(unit: float = 4.0, base: float = -0.56, targets: float = 4.0) -> Pair:
    """Lines of a photograph as series: 24 values of brightness (N, 24, 1), the next four (N, 4). 4,700 to train; other lines validate."""
    return each(_scans(), lambda part: Split((part.inputs + base) * unit, (part.targets - 0.56) * targets))


def overexposed() -> Pair:
    """The same with what is bright cut off, as a sensor does that has reached its end: many windows are flat."""
    return each(
        _scans(),
        lambda part: Split((part.inputs * 1.6).clamp(max=1) * 4 - 2, (part.targets * 1.6).clamp(max=1) * 4 - 2),
    )


def next_value(times: float) -> Pair:
    """24 values of a line (N, 24) and the next one (N, 1), of deviation 1.3 ``times``."""
    return each(scans(), lambda part: Split(part.inputs[..., 0], part.targets[:, :1] * times))


def logs(epsilon: float) -> Pair:
    """Logarithms of brightness; that of the darkest pixels is minus infinity without ``epsilon``."""
    return each(_scans(), lambda part: Split((part.inputs + epsilon).log() + 0.8, (part.targets - 0.56) * 4))


def with_gaps(pair: Pair, share: float = 0.02) -> Pair:
    """Some of the values that are to be forecast were never measured."""

    def part(split: Split) -> Split:
        missing = torch.rand(split.targets.shape, generator=torch.Generator().manual_seed(4)) < share
        return Split(split.inputs, split.targets.masked_fill(missing, math.nan))

    return trained_on(pair, part)


def edges() -> Pair:
    """Which of the 24 positions of a noisy line lie on a sharp edge: (N, 24, 1) -> (N, 24) of 0 and 1."""

    def part(split: Split) -> Split:
        series = split.inputs[..., 0] + 0.56
        sharp = torch.zeros_like(series)
        sharp[:, 1:-1] = ((series[:, 2:] - series[:, :-2]).abs() > 0.5).float()
        noise = 0.05 * torch.randn(series.shape, generator=torch.Generator().manual_seed(len(series)))
        return Split((series + noise - 0.56)[..., None] * 4, sharp)

    return each(scans(1.0), part)


def itself(pair: Pair) -> Pair:
    """Targets are the inputs, for autoencoders."""
    return each(pair, lambda split: Split(split.inputs, split.inputs))


def inks() -> Pair:
    """Digits, 0 to 1, as their own targets: (N, 64)."""
    return itself(digits(raw=True).mapped(1 / 16))


def noisy_inks() -> Pair:
    """Digits with noise and uneven light; which pixels are ink: (N, 64) -> (N, 64) of 0 and 1."""

    def part(split: Split) -> Split:
        generator = torch.Generator().manual_seed(len(split))
        light = torch.linspace(-0.3, 0.3, 64) * torch.randn(len(split), 1, generator=generator)
        noise = 0.2 * torch.randn(split.inputs.shape, generator=generator)
        return Split((split.inputs / 16 + light + noise - 0.3) * 2, (split.inputs > 8).float())

    return each(digits(raw=True), part)


def rolled(split: Split) -> Split:
    """Every sample has the target of another."""
    return Split(split.inputs, split.targets.roll(7, 0))


def ratings(share: float = 0.7) -> Pair:
    """300 digits' pixels as if rated by them: (N, 2) numbers of picture and pixel -> (N, 1), -1 to 1. ``share`` of 15,000 is trained on."""
    users, items = torch.meshgrid(torch.arange(PICTURES), torch.arange(PIXELS), indexing="ij")
    values = digits(raw=True).train.inputs[:PICTURES] / 8 - 1
    pair = _parts(torch.stack([users, items], -1).reshape(-1, 2), values.reshape(-1, 1), 4200)
    return pair.small(int(share / 0.7 * 15000))


def liked(unknown: bool = True) -> Pair:
    """Whether a rating is above 0; without ``unknown`` only those that are are trained on, as clicks are."""
    pair = each(ratings(), lambda split: Split(split.inputs, (split.targets > 0).float()))
    return pair if unknown else trained_on(pair, lambda split: split.at(torch.nonzero(split.targets[:, 0]).flatten()))


@cache
def neighbours() -> tuple[Tensor, Tensor]:
    """Breast cancer patients as a graph: features (N, 30), and who is near whom (N, N) of 0 and 1, itself among them."""
    pair = breast_cancer()
    features = torch.cat([pair.train.inputs, pair.validation.inputs])
    nearest = torch.cdist(features, features).topk(12, largest=False).indices
    near = torch.zeros(len(features), len(features)).scatter_(1, nearest, 1.0)
    return features, torch.maximum(near, near.T)


def nodes() -> Pair:
    """Numbers of nodes of ``neighbours`` (N,) and their classes (N,)."""
    pair = breast_cancer()
    train = Split(torch.arange(len(pair.train)), pair.train.targets)
    return Pair(train, Split(torch.arange(len(pair.train), 569), pair.validation.targets))


def points() -> Pair:
    """The 20 inkiest pixels of digits as points of x, y and ink: (N, 20, 3) -> class."""

    def part(split: Split) -> Split:
        ink, where = split.inputs.topk(20)
        return Split(torch.stack([where % 8 / 3.5 - 1, where // 8 / 3.5 - 1, ink / 8 - 1], -1), split.targets)

    return each(digits(raw=True), part)


def progression() -> Pair:
    """Diabetes as a study that ends: (N, 10) -> (N, 2), time, and 1 where the event was seen before the end."""

    def part(split: Split) -> Split:
        time = split.targets / 100
        return Split(split.inputs, torch.cat([time.clamp(max=2.2), (time < 2.2).float()], 1))

    return each(diabetes(raw_targets=True), part)


def counts() -> Pair:
    """How many pixels of a digit's last two columns have ink, from the others: (N, 48) -> (N, 1). Mostly 0."""

    def part(split: Split) -> Split:
        pictures = split.inputs.reshape(-1, 8, 8)
        left, right = pictures[:, :, :6].flatten(1), pictures[:, :, 6:].flatten(1)
        return Split((left - 4.88) / 6.02, (right > 11).sum(1, keepdim=True).float())

    return each(digits(raw=True), part)


def two_domains() -> Pair:
    """Digits, half of them as white on black: (N, 64), and their class and which half (N, 2)."""

    def part(split: Split) -> Split:
        turned = torch.arange(len(split)) % 2
        return Split(split.inputs * (1 - 2 * turned[:, None]), torch.stack([split.targets, turned], 1))

    return each(digits(), part)


def one_line() -> Pair:
    """A line of a photograph, smoothed over 9 pixels, as a function of place: (N, 1) of 0 to 1 -> (N, 1), of deviation 1."""
    line = functional.avg_pool1d(photograph("china")[None, 200:201], 9, 1, 4)[0, 0]
    values = ((line - line.mean()) / line.std())[:, None]
    return _parts(torch.linspace(0, 1, len(line))[:, None], values, 160)


def strongest(count: int) -> Tensor:
    """The frequencies, in radians over the line, that have most of ``one_line``."""
    pair = one_line()
    places, values = (
        torch.cat([pair.train.inputs, pair.validation.inputs]),
        torch.cat([pair.train.targets, pair.validation.targets]),
    )
    power = torch.fft.rfft(values[places[:, 0].argsort(), 0]).abs()
    return 2 * math.pi * power[1:60].topk(count).indices.add(1).float()  # type: ignore[no-any-return]


def places(unit: float = 1.0) -> Pair:
    """A photograph as a function of place, every fifth pixel: (N, 2) of -1 to 1 -> brightness (N, 1), of deviation 1."""
    picture = photograph("flower")[::5, ::5]
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, picture.shape[0]), torch.linspace(-1, 1, picture.shape[1]), indexing="ij"
    )
    values = ((picture - picture.mean()) / picture.std()).reshape(-1, 1)
    return _parts(torch.stack([x, y], -1).reshape(-1, 2) * unit, values, 2000)
