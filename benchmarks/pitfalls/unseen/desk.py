"""Models of ``unseen_desk``. B samples, T positions, H pixels a side, W width, C classes, D features."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.pitfalls.models import mlp
from benchmarks.pitfalls.unseen.desk_data import HASHES
from benchmarks.pitfalls.unseen.field import Around

# --- pictures ----------------------------------------------------------------------------------------------------------


class Patches(nn.Module):
    """(B, 1, 14, 14) -> (B, C) by attention among 16 patches of 5 x 5 pixels and one that answers."""

    def __init__(self, classes: int = 10, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        self.cut = nn.Conv2d(1, width, 5, 3)
        self.answer, self.places = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(0.02 * torch.randn(17, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.cut(x).flatten(2).mT
        x = torch.cat([self.answer.expand(len(x), -1, -1), patches], 1) + self.places
        return self.head(self.norm(self.body(x)[:, 0]))  # type: ignore[no-any-return]


def separable(width: int = 16) -> nn.Sequential:
    """Filters of each channel by itself, then mixtures of channels (MobileNet)."""

    def block(inputs: int, found: int, stride: int) -> list[nn.Module]:
        alone = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
        mixed = nn.Conv2d(inputs, found, 1, bias=False)
        return [alone, nn.BatchNorm2d(inputs), nn.ReLU6(), mixed, nn.BatchNorm2d(found), nn.ReLU6()]

    stem = [nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU6()]
    body = [*block(width, 2 * width, 2), *block(2 * width, 3 * width, 2)]
    return nn.Sequential(*stem, *body, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12 * width, 10))


class Dense(nn.Module):
    """Each layer is told what all before it have found (DenseNet)."""

    def __init__(self, layers: int = 4, growth: int = 8) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(4 + growth * index, growth, 3, padding=1) for index in range(layers))
        self.head = nn.Linear(4 * (4 + growth * layers), 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.pixel_unshuffle(x, 2)
        for layer in self.layers:
            x = torch.cat([x, torch.relu(layer(x))], 1)
        return self.head(functional.adaptive_avg_pool2d(x, 2).flatten(1))  # type: ignore[no-any-return]


class Hourglass(nn.Module):
    """(B, 1, 14, 14) -> the same: down, up, and past it (U-Net)."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.inside = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.joined, self.last = nn.Conv2d(2 * width, width, 3, padding=1), nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = torch.relu(self.fine(x))
        inside = torch.relu(self.inside(torch.relu(self.coarse(fine))))
        return self.last(torch.relu(self.joined(torch.cat([fine, self.up(inside)], 1))))  # type: ignore[no-any-return]


def folding() -> nn.Sequential:
    """(B, 196) through 24 numbers by convolutions, and back by transposed ones."""
    inward = [nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Flatten()]
    outward = [nn.Unflatten(1, (16, 4, 4)), nn.ConvTranspose2d(16, 8, 3, 2, 1), nn.ReLU()]
    last = [nn.ConvTranspose2d(8, 1, 4, 2, 1), nn.Flatten(), nn.Sigmoid()]
    return nn.Sequential(
        nn.Unflatten(1, (1, 14, 14)), *inward, nn.Linear(256, 24), nn.Linear(24, 256), nn.ReLU(), *outward, *last
    )


class Coded(nn.Module):
    """Pictures (B, 196) through 48 numbers that are not below 0."""

    def __init__(self, codes: int = 48) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*mlp(196, codes, 96, 1), nn.ReLU())
        self.decoder = mlp(codes, 196, 96, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))  # type: ignore[no-any-return]


class Halves(nn.Module):
    """The upper and the lower half of (B, 196), by a net each, as directions (B, 2, 24); how sharply they are told apart is learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.upper, self.lower = (mlp(98, 24, 96, 1) for _ in range(2))
        self.sharpness = nn.Parameter(torch.tensor(math.log(10.0)))

    def forward(self, x: Tensor) -> Tensor:
        upper, lower = x.chunk(2, 1)
        return functional.normalize(torch.stack([self.upper(upper), self.lower(lower)], 1), dim=2)


class Proxies(nn.Module):
    """Sixteen times the cosines of a picture and a direction for each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.kinds = mlp(196, 24, 96, 1), nn.Parameter(torch.randn(10, 24))

    def forward(self, x: Tensor) -> Tensor:
        return 16 * functional.normalize(self.body(x), dim=1) @ functional.normalize(self.kinds, dim=1).T


def counter(last: nn.Module | None = None) -> nn.Sequential:
    """(B, 1, 24, 24) -> (B, 1)."""
    parts: list[nn.Module] = []
    for inputs, found in ((1, 12), (12, 16), (16, 16)):
        parts += [nn.Conv2d(inputs, found, 3, 2, 1), nn.ReLU()]
    head = nn.Linear(144, 1)
    nn.init.ones_(head.bias)
    return nn.Sequential(*parts, nn.Flatten(), head, *([last] if last is not None else []))


def finder() -> nn.Sequential:
    """(B, 1, 24, 24) -> nine fields."""
    return nn.Sequential(*list(counter().children())[:-1], nn.Linear(144, 9))


def without_a_way_round(skips: bool, blocks: int = 16, width: int = 64) -> nn.Sequential:
    """Blocks whose last layers are damped by 0.2, with or without what came in added."""
    body: list[nn.Module] = []
    for _ in range(blocks):
        part = mlp(width, width, width, 1)
        with torch.no_grad():
            for index in (0, 2):
                nn.init.kaiming_normal_(part[index].weight, nonlinearity="relu")  # type: ignore[arg-type]
            part[2].weight.mul_(0.2)  # type: ignore[operator]
        body.append(Around(part) if skips else part)
    return nn.Sequential(nn.Linear(196, width), *body, nn.Linear(width, 10))


class Rezero(nn.Module):
    """x + a * part(x), where a begins at 0 (Bachlechner et al. 2020)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.part, self.share = nn.Sequential(nn.Linear(width, width), nn.ReLU()), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.share * self.part(x)  # type: ignore[no-any-return]


def of_shares(blocks: int = 16, width: int = 64) -> nn.Sequential:
    return nn.Sequential(nn.Linear(196, width), *(Rezero(width) for _ in range(blocks)), nn.Linear(width, 10))


class ByHand(nn.Module):
    """Each unit (B, W) less its mean over the batch and divided by its deviation, to whose square ``tiny`` is added."""

    def __init__(self, tiny: float) -> None:
        super().__init__()
        self.tiny = tiny

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)) / (x.var(0) + self.tiny).sqrt()


def normed_by_hand(tiny: float) -> nn.Sequential:
    hidden = [nn.Linear(196, 96), nn.ReLU(), ByHand(tiny), nn.Linear(96, 96), nn.ReLU(), ByHand(tiny)]
    return nn.Sequential(*hidden, nn.Linear(96, 10))


class Radial(nn.Module):
    """How near (B, 196) is to each of 64 pictures, and a linear layer on that."""

    def __init__(self, centres: Tensor, sharpness: float) -> None:
        super().__init__()
        self.centres, self.sharpness = nn.Parameter(centres.clone()), sharpness
        self.head = nn.Linear(len(centres), 10)

    def forward(self, x: Tensor) -> Tensor:
        apart = (x[:, None] - self.centres).square().sum(2)
        return self.head((-self.sharpness * apart).exp())  # type: ignore[no-any-return]


class Waves(nn.Module):
    """512 cosines of (B, 196) that were drawn once, and a linear layer on them (random Fourier features)."""

    def __init__(self, waves: int = 512, length: float = 20.0) -> None:
        super().__init__()
        self.register_buffer("directions", torch.randn(196, waves) / length)
        self.register_buffer("phases", 2 * math.pi * torch.rand(waves))
        self.head = nn.Linear(waves, 10)

    def forward(self, x: Tensor) -> Tensor:
        directions, phases = self.get_buffer("directions"), self.get_buffer("phases")
        return self.head((x @ directions + phases).cos())  # type: ignore[no-any-return]


class Mixture(nn.Module):
    """Logarithms of a mixture of four softmaxes (Yang et al. 2018)."""

    def __init__(self, count: int = 4) -> None:
        super().__init__()
        self.body, self.count = nn.Sequential(*mlp(196, 64, 96, 1), nn.Tanh()), count
        self.shares, self.kinds = nn.Linear(64, count), nn.Linear(64, 10 * count)

    def forward(self, x: Tensor) -> Tensor:
        found = self.body(x)
        kinds = self.kinds(found).reshape(-1, self.count, 10).softmax(2)
        return (self.shares(found).softmax(1)[..., None] * kinds).sum(1).log()  # type: ignore[no-any-return]


class Weighed(nn.Module):
    """Kind and brightness (B, 11) by one trunk, and how much each of the two losses is to count, which is learnt (Kendall 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.doubts = mlp(196, 11, 96, 2), nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.trunk(x)  # type: ignore[no-any-return]


def of_positive_weights() -> nn.Module:
    """A first layer whose weights are squares, so that more of a feature is never less of a unit."""
    return nn.Sequential(Squared(32, 48), nn.ReLU(), nn.Linear(48, 1))


class Squared(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.root = nn.Parameter(torch.rand(outputs, inputs) / inputs**0.25)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.root.square().T + self.bias


def orthogonal_tanh(layers: int = 20, width: int = 64) -> nn.Sequential:
    net = mlp(196, 10, width, layers, nn.Tanh)
    for part in list(net.children())[:-1]:
        if isinstance(part, nn.Linear):
            nn.init.orthogonal_(part.weight)
            nn.init.zeros_(part.bias)
    return net


# --- sequences ---------------------------------------------------------------------------------------------------------


class Summing(nn.Module):
    """(B, 14, 14) -> (B, 10): attention without a softmax, so that it can be summed up along a text; divided by what was summed or not."""

    def __init__(self, divided: bool, layers: int = 4, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Linear(14, width)
        self.asked = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(layers))
        self.told = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.head, self.divided = nn.Linear(width, 10), divided

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for asked, told in zip(self.asked, self.told, strict=True):
            question, key, value = asked(x).chunk(3, 2)
            if self.divided:
                question, key = question.softmax(2), key.softmax(1)
            x = x + told(question @ (key.mT @ value))
        return self.head(x.mean(1))  # type: ignore[no-any-return]


class OwnCell(nn.Module):
    """A gated recurrent cell of one's own over (B, T) letters, whose matrices are parameters as they are; cut every ``cut`` positions."""

    def __init__(self, letters: int, width: int = 96, cut: int = 0) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(letters, 32), nn.Linear(width, letters)
        spread = 1 / math.sqrt(width)
        self.inward = nn.Parameter(torch.empty(32, 2 * width).uniform_(-spread, spread))
        self.onward = nn.Parameter(torch.empty(width, 2 * width).uniform_(-spread, spread))
        self.width, self.cut = width, cut

    def forward(self, ids: Tensor) -> Tensor:
        steps = self.table(ids) @ self.inward
        state, found = ids.new_zeros(len(ids), self.width).float(), []
        for position, step in enumerate(steps.unbind(1)):
            if self.cut and position % self.cut == 0:
                state = state.detach()
            gate, new = (step + state @ self.onward).chunk(2, 1)
            state = torch.lerp(state, new.tanh(), gate.sigmoid())
            found.append(state)
        return self.head(torch.stack(found, 1))  # type: ignore[no-any-return]


class Causal(nn.Module):
    """Next letters of (B, T) by convolutions that look back only."""

    def __init__(self, letters: int, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        self.table = nn.Embedding(letters, width)
        self.layers = nn.ModuleList(nn.Conv1d(width, width, 3, dilation=2**index) for index in range(layers))
        self.head = nn.Linear(width, letters)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids).mT
        for index, layer in enumerate(self.layers):
            x = x + torch.relu(layer(functional.pad(x, (2 * 2**index, 0))))
        return self.head(x.mT)  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """An answer at every position of (B, T) ids by attention to all others."""

    def __init__(self, ids: int, outputs: int, length: int, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(ids, width), nn.Parameter(0.1 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, outputs)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.body(self.table(ids) + self.places)))  # type: ignore[no-any-return]


class Context(nn.Module):
    """A letter for every position of (B, T) from four before and four after it, and more in the next layers."""

    def __init__(self, letters: int, width: int = 48, layers: int = 3) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(letters, width), nn.Linear(width, letters)
        self.layers = nn.ModuleList(
            nn.Conv1d(width, width, 9 if index == 0 else 3, padding="same") for index in range(layers)
        )

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids).mT
        for layer in self.layers:
            x = x + torch.relu(layer(x))
        return self.head(x.mT)  # type: ignore[no-any-return]


def next_word(words: int = 300, width: int = 32) -> nn.Sequential:
    """Four words' vectors beside each other, a hidden layer, and a softmax over words (Bengio et al. 2003)."""
    return nn.Sequential(nn.Embedding(words + 1, width), nn.Flatten(), *mlp(4 * width, words, 96, 1, nn.Tanh))


class Hashed(nn.Module):
    """Are two hashed words neighbours?"""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first, self.second = (nn.Embedding(HASHES, width) for _ in range(2))
        for table in (self.first, self.second):
            nn.init.normal_(table.weight, std=0.3)

    def forward(self, ids: Tensor) -> Tensor:
        return (self.first(ids[:, 0]) * self.second(ids[:, 1])).sum(1, keepdim=True)  # type: ignore[no-any-return]


# --- proteins and tables -----------------------------------------------------------------------------------------------


class Along(nn.Module):
    """Residues (B, T, 4), told how far each is from those two to five later: one answer (B, 1), or a state at each by attention."""

    def __init__(self, attends: bool, width: int = 32) -> None:
        super().__init__()
        layer = partial(nn.TransformerEncoderLayer, width, 4, 2 * width, 0.0, batch_first=True, norm_first=True)
        self.stem = nn.Linear(4, width)
        body: Callable[[], nn.Module] = partial(nn.TransformerEncoder, layer(), 2, enable_nested_tensor=False)
        self.body = body() if attends else nn.LSTM(width, width, batch_first=True)
        self.head, self.attends = nn.Linear(width, 3 if attends else 1), attends

    def forward(self, x: Tensor) -> Tensor:
        places = x[..., :3]
        steps = [(places - places.roll(-ahead, 1)).norm(dim=2) * 4 - 3 for ahead in (2, 3, 4, 5)]
        h = self.stem(torch.stack(steps, 2))
        if self.attends:
            return self.head(self.body(h))  # type: ignore[no-any-return]
        return self.head(self.body(h)[0].mean(1))  # type: ignore[no-any-return]


class WideAndDeep(nn.Module):
    """Thirty numbers to a net, and their quantiles' numbers to a table of single weights (Cheng et al. 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.deep, self.wide = mlp(30, 2, 32, 2), nn.Embedding(240, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.deep(x[:, :30]) + self.wide(x[:, 30:].long()).sum(1)  # type: ignore[no-any-return]


class Coupled(nn.Module):
    """A density of (B, D): half of the features shift and stretch the other half, in turn (RealNVP). Its logarithm, without a constant."""

    def __init__(self, features: int, layers: int = 4) -> None:
        super().__init__()
        self.first = features // 2
        self.nets = nn.ModuleList(
            mlp(self.first, 2 * (features - self.first), 32, 1, nn.Tanh)
            if index % 2 == 0
            else mlp(features - self.first, 2 * self.first, 32, 1, nn.Tanh)
            for index in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        one, other = x[:, : self.first], x[:, self.first :]
        total = x.new_zeros(len(x))
        for net in self.nets:
            shift, stretch = net(one).chunk(2, 1)
            other = (other + shift) * stretch.tanh().exp()
            total = total + stretch.tanh().sum(1)
            one, other = other, one
        return total - 0.5 * (one.square().sum(1) + other.square().sum(1))
