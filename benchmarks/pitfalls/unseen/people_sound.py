"""Models, data and losses of the healthy cases of ``unseen_people``. B samples, D features, T frames, C classes, W width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.pitfalls.data import Pair, Split, breast_cancer, digits, wine
from benchmarks.pitfalls.models import ResidualBlock, mlp
from benchmarks.pitfalls.recipe import Optimize
from benchmarks.pitfalls.unseen.shared import each, trained_on

# --- models ------------------------------------------------------------------------------------------------------------


class Frames(nn.Module):
    """Pictures of a line (B, 1, 8, 16) -> (B, T, C), one of the classes being a blank, number 0."""

    def __init__(self, frames: int, width: int = 24) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d((4, frames)),
        )
        self.head = nn.Conv1d(4 * width, 11, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.body(x).flatten(1, 2))
        return found.transpose(1, 2)


class Angles(nn.Module):
    """Cosines with one direction a class, times ``scale``."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.body = mlp(64, 24, 64, 1, nn.PReLU)
        self.directions = nn.Parameter(torch.randn(10, 24))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        found = functional.normalize(self.body(x), dim=1) @ functional.normalize(self.directions, dim=1).T
        return self.scale * found


class ThreeHeads(nn.Module):
    """An answer after each of three blocks: (B, 3, C) while it trains, the last one's afterwards."""

    def __init__(self, width: int = 40) -> None:
        super().__init__()
        self.into = nn.Linear(64, width)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(3))
        self.heads = nn.ModuleList(nn.Linear(width, 10) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x, found = self.into(x), []
        for block, head in zip(self.blocks, self.heads, strict=True):
            x = block(x)
            found.append(head(x))
        return torch.stack(found, 1) if self.training else found[-1]


class Signs(nn.Linear):
    """Weights are -1 or 1 on the way forward, and as they are on the way back (Courbariaux et al. 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight + (self.weight.sign() - self.weight).detach()
        return functional.linear(x, weight, self.bias)


def of_signs() -> nn.Module:
    return nn.Sequential(
        Signs(64, 96),
        nn.BatchNorm1d(96),
        nn.Hardtanh(),
        Signs(96, 96),
        nn.BatchNorm1d(96),
        nn.Hardtanh(),
        nn.Linear(96, 10),
    )


class LeftOut(nn.Module):
    """Residual blocks, each of which is left out of half of the batches (Huang et al. 2016)."""

    def __init__(self, width: int = 32, blocks: int = 8) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(64, width), nn.Linear(width, 10)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        for block in self.blocks:
            if not self.training:
                x = (x + block(x)) / 2
            elif float(torch.rand(())) < 0.5:
                x = block(x)
        return self.out(x)  # type: ignore[no-any-return]


class Later(nn.Module):
    """A convolution that is held still until so many batches have gone by."""

    def __init__(self, until: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
        self.head = mlp(256, 10, 32, 1)
        self.until, self.passes = until, 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += self.training
        x = self.body(x)
        return self.head(x.detach() if self.passes <= self.until else x)  # type: ignore[no-any-return]


class Spectral(nn.Module):
    """Pictures (B, 1, 8, 8): their spectrum times complex weights (Li et al. 2021)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, 8, 5, 2) * 0.35)  # the last dimension: real and imaginary part
        self.head = nn.Sequential(nn.GELU(), nn.Flatten(), nn.Linear(64 * width, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.fft.irfft2(torch.fft.rfft2(x) * torch.view_as_complex(self.weight), s=(8, 8)))  # type: ignore[no-any-return]


class Maxout(nn.Module):
    """The largest of ``pieces`` linear answers (Goodfellow et al. 2013)."""

    def __init__(self, inputs: int, outputs: int, pieces: int) -> None:
        super().__init__()
        self.linear, self.pieces = nn.Linear(inputs, outputs * pieces), pieces

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).unflatten(1, (-1, self.pieces)).amax(2)  # type: ignore[no-any-return]


class Tree(nn.Module):
    """A tree of soft questions (Frosst and Hinton 2017): most leaves are next to nobody's."""

    def __init__(self, depth: int = 6) -> None:
        super().__init__()
        self.depth = depth
        self.questions = nn.Linear(64, 2**depth - 1)
        self.leaves = nn.Parameter(torch.randn(2**depth, 10))
        with torch.no_grad():
            self.questions.weight *= 3

    def forward(self, x: Tensor) -> Tensor:
        right = self.questions(x).sigmoid()
        reach = torch.ones(len(x), 1)
        for level in range(self.depth):
            own = right[:, 2**level - 1 : 2 ** (level + 1) - 1]
            reach = torch.stack([reach * (1 - own), reach * own], 2).flatten(1)
        return reach @ self.leaves


def bounded() -> nn.Module:
    """Every matrix but the last is divided by its largest singular value."""
    first, second = (nn.utils.parametrizations.spectral_norm(nn.Linear(inputs, 96)) for inputs in (64, 96))
    return nn.Sequential(first, nn.LeakyReLU(0.2), second, nn.LeakyReLU(0.2), nn.Linear(96, 10))


def rare_at_first() -> nn.Module:
    """Begins by holding every class for improbable, one in a hundred."""
    model = mlp(64, 10, 48, 2, nn.GELU)
    nn.init.constant_(model[-1].bias, -4.6)  # type: ignore[arg-type]
    return model


# --- data --------------------------------------------------------------------------------------------------------------


def lines() -> Pair:
    """Two digits beside each other (N, 1, 8, 16), and their numbers from 1 on (N, 2)."""

    def change(split: Split) -> Split:
        other = split.at(torch.randperm(len(split), generator=torch.Generator().manual_seed(6)))
        both = torch.cat([split.inputs.reshape(-1, 1, 8, 8), other.inputs.reshape(-1, 1, 8, 8)], 3)
        return Split(both, 1 + torch.stack([split.targets, other.targets], 1))

    return each(digits(), change)


def hardly_labelled(share: float = 0.25) -> Pair:
    """Most of what is trained on has the label -100, which the loss leaves out."""

    def change(split: Split) -> Split:
        known = torch.rand(len(split), generator=torch.Generator().manual_seed(7)) < share
        return replace(split, targets=torch.where(known, split.targets, -100))

    return trained_on(digits(), change)


def with_empty_columns(columns: int = 60) -> Pair:
    """Wines, and columns for marks that no wine has."""
    return each(wine(), lambda split: replace(split, inputs=functional.pad(split.inputs, (0, columns))))


def few_ill(share: float = 0.04) -> Pair:
    """Of one class of patients few are left to be trained on."""

    def change(split: Split) -> Split:
        lucky = torch.rand(len(split), generator=torch.Generator().manual_seed(3)) < share
        kept = split.at(torch.nonzero((split.targets == 1) | lucky).flatten())
        return kept

    return trained_on(breast_cancer(), change)


# --- losses and what happens besides -----------------------------------------------------------------------------------


def connectionist(output: Tensor, y: Tensor) -> Tensor:
    """Of all ways to put the labels into frames (Graves et al. 2006)."""
    frames = torch.full((len(y),), output.shape[1])
    return functional.ctc_loss(output.transpose(0, 1).log_softmax(2), y, frames, torch.full((len(y),), y.shape[1]))


def with_a_margin(model: nn.Module, x: Tensor, y: Tensor, margin: float = 0.4) -> Tensor:
    """The right answer's angle counts as larger by ``margin`` (Deng et al. 2019)."""
    assert isinstance(model, Angles)
    cosines = (model(x) / model.scale).clamp(-0.999, 0.999)
    right = functional.one_hot(y, 10).bool()
    return functional.cross_entropy(model.scale * torch.where(right, (cosines.acos() + margin).cos(), cosines), y)


def at_every_head(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return sum((functional.cross_entropy(found, y) for found in model(x).unbind(1)), torch.zeros(()))


def mixed(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Pictures and labels are means of two (Zhang et al. 2018)."""
    share, other = float(torch.rand(())), torch.randperm(len(x))
    labels = functional.one_hot(y, 10).float()
    return functional.cross_entropy(
        model(share * x + (1 - share) * x[other]), share * labels + (1 - share) * labels[other]
    )


def each_class_by_itself(output: Tensor, y: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(output, functional.one_hot(y, 10).float())


def correlation(output: Tensor, y: Tensor) -> Tensor:
    """From -1 to 1, whatever scale the output has."""
    output, y = output - output.mean(), y - y.mean()
    return (output * y).sum() / (output.norm() * y.norm())  # type: ignore[no-any-return]


def uncorrelated(output: Tensor, y: Tensor) -> Tensor:
    return -correlation(output, y)


def ever_harder(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Noise that grows with every step."""
    return x + step / 100 * torch.randn_like(x), y


def by_depth(rate: float, factor: float) -> Optimize:
    """Adam; each linear layer's rate is the next one's times ``factor``, the last one's is ``rate``."""

    def make(model: nn.Module) -> torch.optim.Optimizer:
        layers = [part for part in model.modules() if isinstance(part, nn.Linear)]
        groups = [
            {"params": part.parameters(), "lr": rate * factor**depth} for depth, part in enumerate(reversed(layers))
        ]
        return torch.optim.Adam(groups)

    return make


# --- measures ----------------------------------------------------------------------------------------------------------


def read(model: nn.Module, split: Split) -> Mapping[str, float]:
    """Lines of which all is right, when equal frames in a row count once and blanks not at all."""
    output = model(split.inputs)
    right = 0
    for frames, labels in zip(output.argmax(2), split.targets.tolist(), strict=True):
        once = frames.unique_consecutive()
        right += once[once > 0].tolist() == labels
    return {"accuracy": float("nan") if output.isnan().any() else right / len(split)}


def correlated(model: nn.Module, split: Split) -> Mapping[str, float]:
    return {"correlation": float(correlation(model(split.inputs), split.targets))}
