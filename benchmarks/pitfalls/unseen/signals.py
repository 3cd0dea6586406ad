"""Models of ``unseen_signals``. B samples, T positions, W width, K latents, components or quantities, N nodes."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.pitfalls.models import Activation, mlp
from benchmarks.pitfalls.unseen.signals_data import AHEAD, PAST, PICTURES, PIXELS, neighbours


def two_values(weights: Tensor) -> Tensor:
    """Only their signs are kept, and how large they are in the mean, as an export to one bit does."""
    return weights.sign() * weights.abs().mean()


class Dilated(nn.Module):
    """Forecasts from (B, T, 1) by gated, dilated convolutions, as WaveNet does; without ``around`` nothing goes round a layer."""

    def __init__(self, layers: int = 4, width: int = 12, around: bool = True) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, width, 1)
        self.layers = nn.ModuleList(
            nn.Conv1d(width, 2 * width, 3, padding=2 ** (index % 3), dilation=2 ** (index % 3))
            for index in range(layers)
        )
        self.head, self.around = nn.Linear(width, AHEAD), around

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.mT)
        for layer in self.layers:
            new, gate = layer(x).chunk(2, 1)
            new = new.tanh() * gate.sigmoid()
            x = x + new if self.around else new
        return self.head(x[..., -1])  # type: ignore[no-any-return]


class Spots(nn.Module):
    """An answer at every position of (B, T, 1), by two convolutions: (B, T)."""

    def __init__(self, width: int = 16, last: nn.Module | None = None) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(1, width, 5, padding=2), nn.ReLU(), nn.Conv1d(width, width, 3, padding=1), nn.ReLU()
        )
        self.head, self.last = nn.Conv1d(width, 1, 1), last or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.head(self.body(x.mT))[:, 0])  # type: ignore[no-any-return]


class Persisting(nn.Module):
    """What was seen last, plus what ``body`` adds; its head begins at zero."""

    def __init__(self, body: Dilated) -> None:
        super().__init__()
        self.body = body
        nn.init.zeros_(body.head.weight)
        nn.init.zeros_(body.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x[:, -1] + self.body(x)  # type: ignore[no-any-return]


class OwnScale(nn.Module):
    """Every window is standardised by itself, forecast, and put back (RevIN, Kim et al. 2022)."""

    def __init__(self, epsilon: float, body: nn.Module) -> None:
        super().__init__()
        self.epsilon, self.body = epsilon, body

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        spread = ((x - mean).square().mean(1, keepdim=True) + self.epsilon).sqrt()
        return self.body((x - mean) / spread) * spread[..., 0] + mean[..., 0]  # type: ignore[no-any-return]


class Energies(nn.Module):
    """Forecasts from the logarithms of how much of 48 learnt filters is in a window of bytes, as from a log-mel spectrogram, and the last."""

    def __init__(self) -> None:
        super().__init__()
        self.filters, self.norm, self.body = nn.Linear(PAST, 48), nn.LayerNorm(48), mlp(49, AHEAD, 64, 1)

    def forward(self, x: Tensor) -> Tensor:
        power = self.filters(x[..., 0]).square()
        level = (x[:, -1] / 255 - 0.56) * 4
        return self.body(torch.cat([self.norm((power + 1).log()), level], 1))  # type: ignore[no-any-return]


class Rolled(nn.Module):
    """A recurrent net without squashing, h = relu(A h + B x): its growth is that of A."""

    def __init__(self, growth: float, width: int = 32) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(1, width)
        nn.init.orthogonal_(self.inner.weight, growth)
        self.head = nn.Linear(width, AHEAD)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), self.inner.in_features)
        for position in range(x.shape[1]):
            h = torch.relu(self.inner(h) + self.outer(x[:, position]))
        return self.head(h)  # type: ignore[no-any-return]


def autoencoder(
    latents: int = 12, hidden: int = 1, activation: Activation = nn.ReLU, last: nn.Module | None = None
) -> nn.Module:
    """(B, 64) through ``latents`` numbers."""
    return nn.Sequential(
        *mlp(64, latents, 64, hidden, activation), *mlp(latents, 64, 64, hidden, activation, last=last)
    )


class Variational(nn.Module):
    """Mean reconstruction of (B, 64); ``sampled`` gives one at random and the posterior's mean and log variance (B, K)."""

    def __init__(self, latents: int = 8) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp(64, 2 * latents, 64, 1), mlp(latents, 64, 64, 1)
        self.passes: Tensor
        self.register_buffer("passes", torch.tensor(0.0))  # of training

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x).chunk(2, 1)[0])  # type: ignore[no-any-return]

    def sampled(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.passes += int(self.training)
        mean, log_variance = self.encoder(x).chunk(2, 1)
        return self.decoder(mean + (log_variance / 2).exp() * torch.randn_like(mean)), mean, log_variance


class Quantised(nn.Module):
    """An autoencoder through eight codes of four numbers, out of ``size`` (VQ-VAE); without ``through`` its encoder has no gradient."""

    def __init__(self, through: bool = True, size: int = 16) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp(64, 32, 64, 1), mlp(32, 64, 64, 1)
        self.codes = nn.Embedding(size, 4)
        nn.init.normal_(self.codes.weight, std=0.3)
        self.through = through

    def found(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 8, 4) as encoded, and the nearest codes."""
        encoded = self.encoder(x).reshape(len(x), 8, 4)
        nearest = torch.cdist(encoded.detach().flatten(0, 1), self.codes.weight.detach()).argmin(1)
        return encoded, self.codes(nearest).reshape(encoded.shape)

    def forward(self, x: Tensor) -> Tensor:
        encoded, codes = self.found(x)
        chosen = encoded + (codes - encoded).detach() if self.through else codes
        return self.decoder(chosen.flatten(1))  # type: ignore[no-any-return]


class Sparse(nn.Module):
    """A dictionary of 256 for pictures of 64 pixels: relu(E x + b) of which few are not 0, and what they make."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(64, 256), nn.Linear(256, 64)

    def codes(self, x: Tensor) -> Tensor:
        return torch.relu(self.encoder(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.codes(x))  # type: ignore[no-any-return]


class Denoiser(nn.Module):
    """The noise in (B, 64) at an angle between data and noise (B, 1), after Ho et al. 2020."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(72, 64, 96, 2, nn.SiLU)

    def forward(self, x: Tensor, angle: Tensor) -> Tensor:
        waves = angle * torch.tensor([1.0, 2.0, 4.0, 8.0])
        return self.body(torch.cat([x, waves.sin(), waves.cos()], 1))  # type: ignore[no-any-return]


class Factors(nn.Module):
    """Ratings (B, 2) as products of K factors of picture and pixel, plus what is usual for both: (B, 1)."""

    def __init__(self, rank: int = 8, spread: float = 0.1, sparse: bool = False, usual: bool = True) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(PICTURES, rank, sparse=sparse), nn.Embedding(PIXELS, rank, sparse=sparse)
        self.usual = nn.Embedding(PICTURES + PIXELS, 1, sparse=sparse) if usual else None
        for table in (self.users, self.items):
            nn.init.normal_(table.weight, std=spread)
        if self.usual is not None:
            nn.init.zeros_(self.usual.weight)

    def forward(self, ids: Tensor) -> Tensor:
        user, item = ids[:, 0], ids[:, 1]
        found = (self.users(user) * self.items(item)).sum(1, keepdim=True)
        return found if self.usual is None else found + self.usual(user) + self.usual(item + PICTURES)  # type: ignore[no-any-return]


class Messages(nn.Module):
    """Nodes (B,) -> classes: every layer adds up, or averages, what a node's neighbours say."""

    def __init__(self, layers: int = 2, width: int = 24, mean: bool = True) -> None:
        super().__init__()
        features, near = neighbours()
        self.register_buffer("features", features)
        self.register_buffer("near", near / near.sum(1, keepdim=True) if mean else near)
        self.layers = nn.ModuleList(nn.Linear(30 if index == 0 else width, width) for index in range(layers))
        self.head = nn.Linear(width, 2)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.features
        for layer in self.layers:
            x = torch.relu(layer(self.near @ x))  # type: ignore[operator]
        return self.head(x)[ids]  # type: ignore[no-any-return]


class Points(nn.Module):
    """Classes of point clouds (B, P, 3): the same net for every point, then the largest of each of its outputs (PointNet)."""

    def __init__(self, width: int = 48, bias: float | None = None) -> None:
        super().__init__()
        first, second = nn.Linear(3, width), nn.Linear(width, width)
        if bias is not None:
            for layer in (first, second):
                nn.init.constant_(layer.bias, bias)
        self.point = nn.Sequential(first, nn.ReLU(), second, nn.ReLU())
        self.head = mlp(width, 10, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.point(x).amax(1))  # type: ignore[no-any-return]


class Compared(nn.Module):
    """Places pictures (B, 64) on a sphere (B, 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(64, 16, 64, 1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(self.body(x), dim=1)


class Hashing(nn.Module):
    """Classes from 24 numbers that are pushed to -1 or 1 by tanh(sharpness x)."""

    def __init__(self, sharpness: float) -> None:
        super().__init__()
        self.sharpness = sharpness
        self.body, self.codes, self.head = mlp(64, 24, 48, 1), nn.Tanh(), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.codes(self.sharpness * self.body(x)))  # type: ignore[no-any-return]


class Radial(nn.Module):
    """Classes from how near (B, 64) is to 40 centres (RBF network)."""

    def __init__(self, centres: Tensor, width: float = 8.0) -> None:
        super().__init__()
        self.centres, self.width = nn.Parameter(centres.clone()), width
        self.head = nn.Linear(len(centres), 10)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        squares = (x[:, None] - self.centres).square().sum(2)
        return self.head(torch.exp(-squares / (2 * self.width**2)))  # type: ignore[no-any-return]


class Committee(nn.Module):
    """A mixture of experts for (B, 64): a gate weighs their outputs, or takes the ``best`` one's alone. ``hidden`` keeps the
    experts where PyTorch does not see them; ``alike`` ones are copies."""

    def __init__(
        self, count: int = 6, width: int = 8, hidden: bool = False, alike: bool = False, best: bool = False
    ) -> None:
        super().__init__()
        self.gate, self.best = nn.Linear(64, count), best
        experts = [mlp(64, 10, width, 1) for _ in range(count)]
        if alike:
            experts = [copy.deepcopy(experts[0]) for _ in range(count)]
            nn.init.zeros_(self.gate.weight)
            nn.init.zeros_(self.gate.bias)
        self.experts = (experts,) if hidden else nn.ModuleList(experts)

    def forward(self, x: Tensor) -> Tensor:
        experts = self.experts[0] if isinstance(self.experts, tuple) else self.experts
        answers = torch.stack([expert(x) for expert in experts], 1)  # (B, experts, 10)
        share = self.gate(x).softmax(1)
        if self.best:
            share = share * (share == share.amax(1, keepdim=True))
        return (share[..., None] * answers).sum(1)  # type: ignore[no-any-return]


class Sine(nn.Module):
    """A photograph as sines of sines of places (SIREN, Sitzmann et al. 2020). ``careful``: started as the paper asks."""

    def __init__(self, careful: bool = True, width: int = 48, frequency: float = 12.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, width), nn.Linear(width, width)])
        self.head, self.frequency = nn.Linear(width, 1), frequency
        for index, layer in enumerate([*self.layers, self.head]):
            if careful:
                bound = 0.5 if index == 0 else math.sqrt(6 / width) / frequency
                nn.init.uniform_(layer.weight, -bound, bound)
            else:
                nn.init.normal_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.sin(self.frequency * layer(x))
        return self.head(x)  # type: ignore[no-any-return]


class Distilled(nn.Module):
    """A pupil that names classes, and a teacher that is its running mean (Tarvainen & Valpola 2017), who is asked in the end."""

    def __init__(self, decay: float = 0.95) -> None:
        super().__init__()
        self.pupil = mlp(64, 10, 48, 1)
        self.teacher, self.decay = copy.deepcopy(self.pupil).requires_grad_(False), decay

    def forward(self, x: Tensor) -> Tensor:
        return self.teacher(x)  # type: ignore[no-any-return]

    @torch.no_grad()
    def follow(self) -> None:
        for slow, fast in zip(self.teacher.parameters(), self.pupil.parameters(), strict=True):
            slow.lerp_(fast, 1 - self.decay)


class Waves(nn.Module):
    """Sinusoids of a place (B, 1), whose frequencies are learnt: (B, 1)."""

    def __init__(self, frequencies: Tensor) -> None:
        super().__init__()
        self.frequencies, self.head = nn.Parameter(frequencies.clone()), nn.Linear(2 * len(frequencies), 1)

    def forward(self, x: Tensor) -> Tensor:
        angles = x * self.frequencies
        return self.head(torch.cat([angles.sin(), angles.cos()], 1))  # type: ignore[no-any-return]


class Reservoir(nn.Module):
    """An echo state network: a random recurrent part that is never trained, and a readout that is."""

    def __init__(self, width: int = 100, growth: float = 0.9) -> None:
        super().__init__()
        self.recurrent = nn.RNN(1, width, batch_first=True)
        nn.init.orthogonal_(self.recurrent.weight_hh_l0, growth)  # type: ignore[arg-type]
        self.recurrent.requires_grad_(False)
        self.head = nn.Linear(width, AHEAD)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0][:, -1])  # type: ignore[no-any-return]


class Reversed(torch.autograd.Function):
    """The same forward, minus backward (Ganin & Lempitsky 2015)."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return -gradient


class TwoTasks(nn.Module):
    """One trunk for two heads; ``adverse`` turns round what the second sends back."""

    def __init__(self, first: int, second: int, adverse: bool = False) -> None:
        super().__init__()
        self.trunk = nn.Sequential(*mlp(64, 48, 64, 1), nn.ReLU())
        self.first, self.second, self.adverse = nn.Linear(48, first), nn.Linear(48, second), adverse

    def forward(self, x: Tensor) -> Tensor:
        return self.first(self.trunk(x))  # type: ignore[no-any-return]

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = self.trunk(x)
        seen = Reversed.apply(found) if self.adverse else found  # type: ignore[no-untyped-call]
        return self.first(found), self.second(seen)
