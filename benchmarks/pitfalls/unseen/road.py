"""Models of ``unseen_road``, as people write them. B samples, T positions, H pixels a side, W width, C classes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.pitfalls.models import Activation, mlp, started
from benchmarks.pitfalls.unseen.field_data import LETTERS, SYMBOLS, flat
from benchmarks.pitfalls.unseen.road_data import TOGETHER

# --- layers upon layers ------------------------------------------------------------------------------------------------


def ten_of_gelu(spread: float | None) -> nn.Module:
    """(B, 196) -> (B, 10) through ten layers; all weights drawn with one deviation, as language models do it, or after He."""
    net = mlp(196, 10, 96, 10, nn.GELU)
    if spread is None:
        return started(net, lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"))
    return started(net, lambda weight: nn.init.normal_(weight, std=spread))


class Gated(nn.Module):
    """Half of what a layer finds times what the other half lets through; and what came in beside it, or not."""

    def __init__(self, width: int, beside: bool) -> None:
        super().__init__()
        self.layer, self.beside = nn.Linear(width, 2 * width), beside

    def forward(self, x: Tensor) -> Tensor:
        found = functional.glu(self.layer(x), 1)
        return x + found if self.beside else found


def gates(beside: bool, blocks: int = 9, width: int = 64) -> nn.Sequential:
    return nn.Sequential(nn.Linear(196, width), *(Gated(width, beside) for _ in range(blocks)), nn.Linear(width, 10))


class Cube(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x**3


def by_randn(scaled: bool, layers: int = 4, width: int = 128) -> nn.Module:
    """Weights as in a first tutorial, ``torch.randn(inputs, outputs)``, over the root of how many come in or not."""

    def draw(weight: Tensor) -> None:
        nn.init.normal_(weight, std=weight.shape[1] ** -0.5 if scaled else 1.0)

    return started(mlp(196, 10, width, layers, nn.Tanh), draw)


def of_sigmoids(spread: float) -> nn.Module:
    return started(mlp(196, 10, 96, 2, nn.Sigmoid), lambda weight: nn.init.normal_(weight, std=spread))


def all_alike(value: float | None) -> nn.Module:
    """Convolutions over (B, 1, 14, 14); all weights are ``value``."""
    net = picture_net()
    return net if value is None else started(net, lambda weight: nn.init.constant_(weight, value))


def with_biases(value: float) -> nn.Module:
    """A bias for rare kinds that was meant for the last layer, and all have it."""
    net = picture_net()
    for part in net.modules():
        if isinstance(part, nn.Conv2d | nn.Linear) and part.bias is not None:
            nn.init.constant_(part.bias, value)
    return net


def picture_net(
    outputs: int = 10,
    width: int = 12,
    activation: Activation = nn.ReLU,
    norm: bool = False,
    last: nn.Module | None = None,
) -> nn.Sequential:
    """(B, 1, 14, 14) -> (B, outputs): three convolutions with strides, the mean over 2 x 2 fields, two layers."""
    parts: list[nn.Module] = []
    for inputs, found, stride in ((1, width, 1), (width, 2 * width, 2), (2 * width, 2 * width, 2)):
        parts += [nn.Conv2d(inputs, found, 3, stride, 1), *([nn.BatchNorm2d(found)] if norm else []), activation()]
    parts += [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8 * width, 48), activation(), nn.Linear(48, outputs)]
    return nn.Sequential(*parts, *([last] if last is not None else []))


class Scaled(nn.Module):
    """x + s * part(norm(x)), where s is learnt and begins next to 0 (CaiT)."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.norm, self.part = nn.LayerNorm(width), mlp(width, width, 2 * width, 1, nn.GELU)
        self.scale = nn.Parameter(torch.full((width,), start))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.part(self.norm(x))  # type: ignore[no-any-return]


def layer_scaled(start: float = 1e-5, blocks: int = 8, width: int = 48) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(196, width), *(Scaled(width, start) for _ in range(blocks)), nn.LayerNorm(width), nn.Linear(width, 10)
    )


# --- pictures ----------------------------------------------------------------------------------------------------------


class Spread(nn.Module):
    """(B, 1, 14, 14) -> (B, 10) by the mean and the deviation of each channel, whose square has ``tiny`` added."""

    def __init__(self, tiny: float, width: int = 24) -> None:
        super().__init__()
        convolution = partial(nn.Conv2d, kernel_size=3, padding=1, padding_mode="replicate")
        self.body = nn.Sequential(convolution(1, width), nn.Tanh(), convolution(width, width, stride=2))
        self.head, self.tiny = mlp(18 * width, 10, 48, 1), tiny

    def forward(self, x: Tensor) -> Tensor:
        fields = self.body(x)[:, :, :6, :6].unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)  # (B, W, 3, 3, 4)
        mean = fields.mean(4)
        deviation = ((fields - mean[..., None]).square().mean(4) + self.tiny).sqrt()
        return self.head(torch.cat([mean.flatten(1), deviation.flatten(1)], 1))  # type: ignore[no-any-return]


class Direction(nn.Module):
    """A point on the circle (B, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = picture_net(2)

    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(self.body(x), dim=1)


class Unit(nn.Module):
    """(B, 196) over its own length, by hand, between two layers; ``scale`` times as large at first."""

    def __init__(self, scale: float, width: int = 96) -> None:
        super().__init__()
        self.first, self.rest, self.scale = nn.Linear(196, width), mlp(width, 10, 64, 1), scale

    def forward(self, x: Tensor) -> Tensor:
        found = self.first(x) * self.scale
        return self.rest(8 * found / (found * found).sum(1, keepdim=True).sqrt())  # type: ignore[no-any-return]


class Passed(nn.Module):
    """Features of (B, 1, 14, 14), and a net on them; on the way they may lose their graph, as ``.data`` makes it."""

    def __init__(self, lost: bool) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 5, 2, 2), nn.Tanh(), nn.Conv2d(4, 4, 5, 2, 2), nn.Tanh(), nn.Conv2d(4, 6, 4), nn.Tanh()
        )
        self.head, self.lost = mlp(6, 10, 24, 1), lost

    def forward(self, x: Tensor) -> Tensor:
        found = self.features(x).flatten(1)
        return self.head(found.data if self.lost else found)  # type: ignore[no-any-return]


class Twins(nn.Module):
    """How near two pictures (B, 2, 196) are, by one net for both: (B, 1)."""

    def __init__(self, last: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.head, self.last = mlp(196, 32, 96, 1), nn.Linear(32, 1), last or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.body(x[:, 0]), self.body(x[:, 1])
        return self.last(self.head((one - other).abs()))  # type: ignore[no-any-return]


class TwoHeads(nn.Module):
    """One trunk for (B, 196): kinds (B, 10), and the pictures themselves (B, 196) beside them."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.trunk = nn.Sequential(*mlp(196, width, 96, 1), nn.ReLU())
        self.kind, self.pixels = nn.Linear(width, 10), nn.Linear(width, 196)

    def forward(self, x: Tensor) -> Tensor:
        found = self.trunk(x)
        return torch.cat([self.kind(found), self.pixels(found)], 1)


class _Against(torch.autograd.Function):
    @staticmethod
    def forward(context: object, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(context: object, *gradients: Tensor) -> Tensor:
        return -0.3 * gradients[0]


class Adversary(nn.Module):
    """Kinds (B, 10), and whether a picture was darkened (B, 1), which the trunk learns to hide (Ganin 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(*mlp(196, 64, 96, 1), nn.ReLU())
        self.kind, self.dark = nn.Linear(64, 10), mlp(64, 1, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        found = self.trunk(x)
        return torch.cat([self.kind(found), self.dark(_Against.apply(found))], 1)  # type: ignore[no-untyped-call]


class Slow(nn.Module):
    """A net, and the mean of its weights that validates."""

    def __init__(self, net: nn.Module, decay: float = 0.98) -> None:
        super().__init__()
        self.net, self.slow, self.decay = net, copy.deepcopy(net).requires_grad_(False), decay

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.slow(x)  # type: ignore[no-any-return]
        with torch.no_grad():
            for mean, now in zip(self.slow.parameters(), self.net.parameters(), strict=True):
                mean.lerp_(now, 1 - self.decay)
        return self.net(x)  # type: ignore[no-any-return]


class Posterior(nn.Module):
    """(B, 196), 0 to 1, through K numbers that are drawn (VAE)."""

    def __init__(self, latents: int = 10) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp(196, 2 * latents, 96, 1), mlp(latents, 196, 96, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x).chunk(2, 1)[0])  # type: ignore[no-any-return]

    def drawn(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(x).chunk(2, 1)
        return self.decoder(mean + (log_variance / 2).exp() * torch.randn_like(mean)), mean, log_variance


@cache
def _known(count: int) -> nn.Module:
    """A net that has learnt ten kinds of clothes for ``count`` steps, without a trace in the run's own draws."""
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(5)
        split, net = flat().train, mlp(196, 10, 96, 2)
        optimizer = torch.optim.Adam(net.parameters(), 2e-3)
        for step in range(count):
            batch = split.at(torch.arange(64 * step, 64 * step + 64) % len(split))
            optimizer.zero_grad()
            functional.cross_entropy(net(batch.inputs), batch.targets).backward()
            optimizer.step()
    return net


def known(count: int = 250, fresh_head: int | None = None, frozen: bool = False) -> nn.Sequential:
    """That net, which may be ``frozen``; with a new last layer for so many kinds."""
    net = copy.deepcopy(_known(count)).requires_grad_(not frozen)
    assert isinstance(net, nn.Sequential)
    if fresh_head:
        net[-1] = nn.Linear(96, fresh_head)
    return net


# --- texts and other sequences -----------------------------------------------------------------------------------------


class PlainCell(nn.Module):
    """(B, T, D) -> (B, 10) by a recurrent layer of one's own; its matrix is orthogonal times ``gain``."""

    def __init__(self, gain: float, activation: Callable[[Tensor], Tensor] = torch.relu, width: int = 64) -> None:
        super().__init__()
        self.inputs, self.states = nn.Linear(14, width), nn.Linear(width, width, bias=False)
        nn.init.orthogonal_(self.states.weight, gain)
        self.head, self.activation = nn.Linear(width, 10), activation

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), self.states.in_features)
        for row in self.inputs(x).unbind(1):
            state = self.activation(row + self.states(state))
        return self.head(state)  # type: ignore[no-any-return]


class Lines(nn.Module):
    """(B, 14, 14) -> (B, 10) by an LSTM, which wants time first: the axes are swapped, or the numbers only poured into another shape."""

    def __init__(self, poured: bool, width: int = 48) -> None:
        super().__init__()
        self.body, self.head, self.poured = nn.LSTM(14, width), nn.Linear(width, 10), poured

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(x.shape[1], x.shape[0], -1) if self.poured else x.transpose(0, 1)
        return self.head(self.body(rows)[0][-1])  # type: ignore[no-any-return]


class Speaker(nn.Module):
    """Next letters of (B, T), by a GRU whose letters and answers are one table, drawn with ``spread``."""

    def __init__(self, spread: float, width: int = 64) -> None:
        super().__init__()
        self.letters, self.body = nn.Embedding(LETTERS, width), nn.GRU(width, width, batch_first=True)
        nn.init.normal_(self.letters.weight, std=spread)

    def forward(self, ids: Tensor) -> Tensor:
        return self.body(self.letters(ids))[0] @ self.letters.weight.T  # type: ignore[no-any-return]


class Forecast(nn.Module):
    """The next of each row (B, T, 14)."""

    def __init__(self, width: int = 48, last: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.head = nn.GRU(14, width, batch_first=True), nn.Linear(width, 14)
        self.last = last or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.head(self.body(x)[0]))  # type: ignore[no-any-return]


class Counts(nn.Module):
    """How often are two words together? The product of a vector of each, and a number of each or none (GloVe)."""

    def __init__(self, spread: float = 0.3, width: int = 12, own: bool = True, sparse: bool = False) -> None:
        super().__init__()
        self.vectors = nn.ModuleList(nn.Embedding(TOGETHER, width, sparse=sparse) for _ in range(2))
        self.numbers = nn.ModuleList(nn.Embedding(TOGETHER, 1, sparse=sparse) for _ in range(2 if own else 0))
        for tables, deviation in ((self.vectors, spread), (self.numbers, 0.1)):
            for table in tables:
                nn.init.normal_(table.weight, std=deviation)  # type: ignore[arg-type]

    def forward(self, ids: Tensor) -> Tensor:
        one, other = (table(ids[:, place]) for place, table in enumerate(self.vectors))
        numbers = [table(ids[:, place]) for place, table in enumerate(self.numbers)]
        return torch.cat([one * other, *numbers], 1).sum(1, keepdim=True)


class Kinds(nn.Module):
    """Kinds of texts (B, T) by a transformer and the mean over positions."""

    def __init__(self, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        self.letters, self.near = nn.Embedding(SYMBOLS, width), nn.Conv1d(width, width, 5, padding=2)
        self.blocks = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True, norm_first=True), layers,
            enable_nested_tensor=False,
        )  # fmt: skip
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, ids: Tensor) -> Tensor:
        found = torch.relu(self.near(self.letters(ids).mT)).mT
        return self.head(self.norm(self.blocks(found)).mean(1))  # type: ignore[no-any-return]
