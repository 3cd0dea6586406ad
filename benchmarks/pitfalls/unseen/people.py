"""Models, data and losses of ``unseen_people``. B samples, D features, T positions, C classes, W width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.pitfalls.data import Pair, Split, breast_cancer, diabetes, digits
from benchmarks.pitfalls.faults import Disturb, Tamper
from benchmarks.pitfalls.models import mlp
from benchmarks.pitfalls.unseen.shared import each, spoken_of

# --- models ------------------------------------------------------------------------------------------------------------


class Rounded(nn.Module):
    """Shares to 0 or 1: flat wherever it has a slope."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sigmoid().round()


class Remade(nn.Module):
    """``anew``: the first layer is made in every forward pass, as part of what it computes."""

    def __init__(self, anew: bool) -> None:
        super().__init__()
        self.anew = anew
        self.hidden = nn.Linear(64, 48)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        if self.anew:
            self.hidden = nn.Linear(64, 48)
        return self.head(self.hidden(x).tanh())  # type: ignore[no-any-return]


class Counted(nn.Module):
    """Knows how many batches it has been trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(64, 10, 48, 2, nn.GELU)
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += self.training
        return self.net(x)  # type: ignore[no-any-return]


class Reader(nn.Module):
    """(B, T) ids, 0 for padding -> (B, C): attention with one question; ``shut`` is added to the scores of padding."""

    def __init__(self, vocabulary: int, shut: float, width: int = 24) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=0)
        self.mixed = nn.Conv1d(width, width, 3, padding=1)
        self.score, self.head = nn.Linear(width, 1), nn.Linear(width, 3)
        self.shut = shut

    def forward(self, ids: Tensor) -> Tensor:
        x = self.mixed(self.embedding(ids).transpose(1, 2)).relu().transpose(1, 2)  # (B, T, W)
        scores = self.score(x)[..., 0]
        scores = scores + (ids == 0).to(scores.dtype) * self.shut
        return self.head((scores.softmax(1)[..., None] * x).sum(1))  # type: ignore[no-any-return]


class Pooled(nn.Module):
    """(B, T) ids -> (B, C): the sum over positions, or their mean, into a tanh."""

    def __init__(self, vocabulary: int, mean: bool, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.body = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 3))
        self.mean = mean

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        return self.body(x.mean(1) if self.mean else x.sum(1))  # type: ignore[no-any-return]


class Flow(nn.Module):
    """An ordinary differential equation by Euler's steps of a size that is given, as a layer."""

    def __init__(self, size: float, steps: int = 30, width: int = 32) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(64, width), nn.Linear(width, 10)
        self.field = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.size, self.steps = size, steps

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        for _ in range(self.steps):
            x = x + self.size * self.field(x)
        return self.out(x)  # type: ignore[no-any-return]


class PowerMean(nn.Module):
    """(B, W, H, H) -> (B, W): a mean of powers with an exponent that is learnt (Radenovic et al. 2018)."""

    def __init__(self, least: float | None) -> None:
        super().__init__()
        self.power, self.least = nn.Parameter(torch.tensor(3.0)), least

    def forward(self, x: Tensor) -> Tensor:
        x = x.clamp(min=self.least) if self.least is not None else x
        return x.pow(self.power).mean((2, 3)).pow(1 / self.power)


def retrieval(least: float | None) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1),
        nn.BatchNorm2d(24),
        nn.SiLU(),
        nn.Conv2d(24, 32, 3, padding=1, stride=2),
        nn.BatchNorm2d(32),
        PowerMean(least),
        nn.Linear(32, 10),
    )


class Whitened(nn.Module):
    """Features of a batch made independent of each other; by eigenvectors or by Cholesky's factor. Without a memory."""

    def __init__(self, by_eigenvectors: bool) -> None:
        super().__init__()
        self.by_eigenvectors = by_eigenvectors

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(0)
        covariance = x.T @ x / len(x) + 0.1 * torch.eye(x.shape[1])
        if self.by_eigenvectors:
            values, vectors = torch.linalg.eigh(covariance)
            return x @ vectors / values.sqrt()  # type: ignore[no-any-return]
        factor = torch.linalg.cholesky(covariance)
        return torch.linalg.solve_triangular(factor, x.T, upper=False).T  # type: ignore[no-any-return]


class TwoSources(nn.Module):
    """Twenty-nine features and one: each source standardised over its own features, for each sample."""

    def __init__(self, unbiased: bool) -> None:
        super().__init__()
        self.correction = int(unbiased)
        self.net = mlp(30, 1, 24, 1, nn.GELU)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[:, :29], x[:, 29:]]
        return self.net(torch.cat([self.standard(part) for part in parts], 1))  # type: ignore[no-any-return]

    def standard(self, part: Tensor) -> Tensor:
        rest = part - part.mean(1, True)
        variance = rest.square().sum(1, True) / (part.shape[1] - self.correction)  # as std() does, without its warning
        return rest / (variance + 1e-4).sqrt()


class Numbered(nn.Module):
    """Ten features and the number of the row, which has an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(442, 64)
        self.net = mlp(74, 1, 48, 1, nn.GELU)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(torch.cat([x[:, :10], self.rows(x[:, 10].long())], 1))  # type: ignore[no-any-return]


def masks() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 1, 1)
    )


def scaled(model: nn.Module, weight: float) -> nn.Module:
    """Every batch norm begins with this scale, and with a shift of 0."""
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.constant_(part.weight, weight)
    return model


def unfilled(model: nn.Sequential, share: float = 0.03, size: float = 2e3) -> nn.Sequential:
    """The first weight as memory happened to be: zeros for the most part, and a few large numbers."""
    weight = next(model.parameters())
    with torch.no_grad():
        weight.copy_(torch.where(torch.rand_like(weight) < share, size * torch.randn_like(weight), 0.0))
    return model


# --- data --------------------------------------------------------------------------------------------------------------


def texts(length: int, padded: bool = False) -> tuple[Pair, int]:
    """Ids begin at 1. ``padded``: ends of texts are 0, and one text in forty is nothing but that."""
    pair, vocabulary = spoken_of(length)
    if not padded:
        return each(pair, lambda split: replace(split, inputs=split.inputs + 1)), vocabulary + 1

    def change(split: Split) -> Split:
        generator = torch.Generator().manual_seed(5)
        rows = len(split)
        kept = torch.randint(length // 2, length + 1, (rows, 1), generator=generator)
        kept[torch.rand(rows, generator=generator) < 1 / 40] = 0
        return replace(split, inputs=(split.inputs + 1) * (torch.arange(length) < kept))

    return each(pair, change), vocabulary + 1


def two_vocabularies(length: int) -> Pair:
    """Validation was made into numbers by a vocabulary of its own, in another order."""
    pair, vocabulary = texts(length)
    order = torch.randperm(vocabulary, generator=torch.Generator().manual_seed(8))
    return replace(pair, validation=replace(pair.validation, inputs=order[pair.validation.inputs]))


def series(size: float = 1.0, shift: float = 0.0, rolling: bool | None = None) -> Pair:
    """Days of sales with two seasons: windows (N, 24, D), and the day after each (N, 1). The last fifth is for validation.

    ``rolling``: beside it the mean of the last thirty days, which the first days do not have; False: they are left out.
    """
    days = torch.arange(1400.0)
    noise = 0.2 * torch.randn(1400, generator=torch.Generator().manual_seed(9))
    sold = (days * 2 * torch.pi / 30).sin() + 0.6 * (days * 2 * torch.pi / 7).sin() + noise
    columns = [sold * size + shift]
    if rolling is not None:
        columns.append(torch.cat([torch.full((29,), torch.nan), sold.unfold(0, 30, 1).mean(1)]))
    table, first = torch.stack(columns, 1), 0 if rolling is not False else 29
    inputs = table[first:].unfold(0, 24, 1)[:-1].transpose(1, 2).contiguous()
    targets = sold[first + 24 :, None]
    count = len(inputs) * 4 // 5
    return Pair(Split(inputs[:count], targets[:count]), Split(inputs[count:], targets[count:]))


def pictures() -> Pair:
    return digits().shaped(1, 8, 8)


def outlines() -> Pair:
    """Pictures with noise, and where there is ink (N, 1, 8, 8)."""

    def change(split: Split) -> Split:
        clean = split.inputs.reshape(-1, 1, 8, 8) / 16
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
        return Split(clean + 0.1 * noise, (clean > 0.5).float())

    return each(digits(raw=True), change)


def without_a_folder(gone: int = 3) -> Pair:
    """Validation has no pictures of one class, and the classes after it are counted without it."""
    pair = digits()
    rest = pair.validation.at(torch.nonzero(pair.validation.targets != gone).flatten())
    return replace(pair, validation=replace(rest, targets=rest.targets - (rest.targets > gone).long()))


def numbered(sick: bool) -> Pair:
    """Rows are numbered through both parts; those of the healthy table have the number 0."""
    pair = diabetes()
    count = len(pair.train)

    def change(split: Split, first: int) -> Split:
        numbers = torch.arange(first, first + len(split))[:, None].float() * sick
        return replace(split, inputs=torch.cat([split.inputs, numbers], 1))

    return Pair(change(pair.train, 0), change(pair.validation, count))


def areas(half: bool) -> Pair:
    """Logarithms of features, areas in other units; ``half``: they were kept in sixteen bits."""

    def change(split: Split) -> Split:
        values = 20 * split.inputs
        values = values.half().float() if half else values
        return Split(values.log1p() / 4 - 1, split.targets[:, None].float())

    return each(breast_cancer(raw=True), change)


def with_gaps(value: float) -> Pair:
    """In one cell in fifty of a standardised table stands the sign of a missing value."""

    def change(split: Split) -> Split:
        missing = torch.rand(split.inputs.shape, generator=torch.Generator().manual_seed(4)) < 0.02
        return Split(split.inputs.masked_fill(missing, value), split.targets[:, None].float())

    return each(breast_cancer(), change)


def raw_validation() -> Pair:
    """The transformation is only that of the training split."""
    part = breast_cancer(raw=True).validation
    return replace(floats(), validation=Split(part.inputs, part.targets[:, None].float()))


def floats() -> Pair:
    return each(breast_cancer(), lambda split: replace(split, targets=split.targets[:, None].float()))


def two_scales() -> Pair:
    return replace(diabetes(), validation=diabetes(raw_targets=True).validation)


def halved(pair: Pair) -> Pair:
    return each(pair, lambda split: replace(split, inputs=split.inputs.half()))


# --- losses ------------------------------------------------------------------------------------------------------------


def made_a_leaf(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The share of wrong answers, of which somebody was told that it needs a gradient."""
    return (model(x).argmax(-1) != y).float().mean().requires_grad_()  # type: ignore[no-any-return]


def margin(output: Tensor, y: Tensor, signs: bool) -> Tensor:
    return functional.soft_margin_loss(output, 2 * y - 1 if signs else y)


def percentage(output: Tensor, y: Tensor, at_least: float) -> Tensor:
    return ((output - y).abs() / y.abs().clamp(min=at_least)).mean()


def counts(output: Tensor, y: Tensor) -> Tensor:
    return functional.poisson_nll_loss(output, y, log_input=True)


def logarithm_of_shares(output: Tensor, y: Tensor, exact: bool) -> Tensor:
    shares = ((output.float() if exact else output.half()) / 0.1).softmax(-1)
    return -(shares.gather(1, y[:, None]) + 1e-8).log().float().mean()


def in_single(output: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(output.float(), y)


def with_lasso(model: nn.Module, x: Tensor, y: Tensor, price: float = 0.05) -> Tensor:
    return functional.cross_entropy(model(x), y) + price * sum(part.abs().sum() for part in model.parameters())


def head_cleared(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    assert isinstance(model, nn.Sequential)
    model[-1].zero_grad()
    return functional.cross_entropy(model(x), y)


def cleared_seldom(model: nn.Module, x: Tensor, y: Tensor, every: int = 44) -> Tensor:
    assert isinstance(model, Counted)
    if model.passes % every == 0:
        model.zero_grad()
    return functional.cross_entropy(model(x), y)


# --- what the loop does besides ----------------------------------------------------------------------------------------


def copied_back() -> Tamper:
    """What was to follow the model is copied into it."""
    kept: dict[str, Tensor] = {}

    @torch.no_grad()
    def tamper(step: int, replicas: list[nn.Module]) -> None:
        parameters = dict(replicas[0].named_parameters())
        if step == 1:
            kept.clear()
            kept.update({name: parameter.clone() for name, parameter in parameters.items()})
        for name, parameter in parameters.items():
            parameter.copy_(kept[name])

    return tamper


@torch.no_grad()
def clamped(step: int, replicas: list[nn.Module], limit: float = 0.01) -> None:
    for parameter in replicas[0].parameters():
        parameter.clamp_(-limit, limit)


def begun_again(at: int) -> Tamper:
    def tamper(step: int, replicas: list[nn.Module]) -> None:
        if step == at:
            for part in replicas[0].modules():
                if isinstance(part, nn.Linear):
                    part.reset_parameters()

    return tamper


def turned(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """A picture is turned by lot, what belongs to it is not."""
    return torch.stack([torch.rot90(one, int(torch.randint(4, ())), (1, 2)) for one in x]), y


def brightened(signed: bool, share: float = 0.04) -> Disturb:
    """Brightness to a power, in some of the batches."""

    def disturb(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if float(torch.rand(())) > share:
            return x, y
        power = 0.8 + 0.4 * float(torch.rand(()))
        return x.sign() * x.abs().pow(power) if signed else x.pow(power), y

    return disturb


def counted_backwards(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x, 9 - y


# --- measures ----------------------------------------------------------------------------------------------------------


def of_shares(model: nn.Module, split: Split) -> Mapping[str, float]:
    """Of outputs (N, 1) that are shares of the second class."""
    output = model(split.inputs)
    return {"accuracy": float(((output > 0.5) == (split.targets > 0.5)).float().mean())}


def of_logarithms(model: nn.Module, split: Split) -> Mapping[str, float]:
    found = model(split.inputs).exp()
    rest = (found - split.targets).square().mean() / (split.targets - split.targets.mean()).square().mean()
    return {"r2": float(1 - rest)}


def by_class(model: nn.Module, split: Split) -> Mapping[str, float]:
    """The share that is found of the class of which the least is found."""
    right = model(split.inputs).argmax(-1) == split.targets
    return {
        "worst_recall": min(float(right[split.targets == label].float().mean()) for label in split.targets.unique())
    }


def nothing_but_loss(model: nn.Module, split: Split) -> Mapping[str, float]:
    return {}
