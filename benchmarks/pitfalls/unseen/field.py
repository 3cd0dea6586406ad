"""Models of ``unseen_field``. B samples, T positions, H pixels a side, W width, C classes, K latents."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.pitfalls.data import Split
from benchmarks.pitfalls.models import Activation, mlp
from benchmarks.pitfalls.unseen.field_chains import STATES
from benchmarks.pitfalls.unseen.field_data import SYMBOLS, WORDS, clothes, flat

# --- pictures ----------------------------------------------------------------------------------------------------------


def convolutions(
    outputs: int = 10,
    width: int = 12,
    activation: Activation = nn.ReLU,
    norm: Callable[[int], nn.Module] | None = None,
    dropout: float = 0.0,
    last: nn.Module | None = None,
) -> nn.Sequential:
    """(B, 1, 14, 14) -> (B, outputs): two convolutions with pooling, one hidden layer."""
    parts: list[nn.Module] = []
    for inputs, found in ((1, width), (width, 2 * width)):
        parts += [nn.Conv2d(inputs, found, 3, padding=1), *([norm(found)] if norm else []), activation()]
        parts += [nn.MaxPool2d(2)]
    parts += [nn.Flatten(), nn.Linear(18 * width, 64), activation(), *([nn.Dropout(dropout)] if dropout else [])]
    return nn.Sequential(*parts, nn.Linear(64, outputs), *([last] if last is not None else []))


def tower(layers: int, activation: Activation, norm: bool, outputs: int = 10, width: int = 16) -> nn.Sequential:
    """Convolutions without end and nothing round them, on 7 x 7 fields."""
    parts: list[nn.Module] = []
    for index in range(layers):
        parts.append(nn.Conv2d(1 if index == 0 else width, width, 3, 2 if index == 0 else 1, 1))
        parts += [nn.BatchNorm2d(width)] if norm else []
        parts.append(activation())
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, outputs))


class Around(nn.Module):
    """x + scale * part(x)."""

    def __init__(self, part: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        self.part, self.scale = part, scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.part(x)  # type: ignore[no-any-return]


def resnet(blocks: int = 3, width: int = 16, zero: bool = False, groups: int = 0) -> nn.Sequential:
    """With batch norm, or group norm of ``groups``; ``zero``: the last scale of each block begins at 0."""

    def norm() -> nn.Module:
        return nn.GroupNorm(groups, width) if groups else nn.BatchNorm2d(width)

    def block() -> nn.Module:
        last = norm()
        if zero:
            nn.init.zeros_(last.weight)  # type: ignore[arg-type]
        convolution = partial(nn.Conv2d, width, width, 3, padding=1, bias=False)
        return nn.Sequential(Around(nn.Sequential(convolution(), norm(), nn.ReLU(), convolution(), last)), nn.ReLU())

    stem = [nn.Conv2d(1, width, 3, 2, 1, bias=False), norm(), nn.ReLU()]
    body = [block() for _ in range(blocks)]
    return nn.Sequential(*stem, *body, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 10))


def plain_sums(scale: float, blocks: int = 24, width: int = 64) -> nn.Sequential:
    """Residual blocks without a norm, drawn after He, that are added as they are or times ``scale``."""
    body = []
    for _ in range(blocks):
        part = mlp(width, width, width, 1)
        for layer in (part[0], part[2]):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # type: ignore[arg-type]
        body.append(Around(part, scale))
    return nn.Sequential(nn.Linear(196, width), *body, nn.Linear(width, 10))


class Located(nn.Module):
    """Centre and size (B, 3) of what is on (B, 1, 24, 24); the features may be made without a gradient, as for evaluation."""

    def __init__(self, without_gradient: bool = False, last: nn.Module | None = None, outputs: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 12, 3, 2, 1), nn.ReLU(), nn.Conv2d(12, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 4, 3, 2, 1),
            nn.Tanh(), nn.Flatten(),
        )  # fmt: skip
        self.head, self.last = nn.Linear(36, outputs), last or nn.Identity()
        self.without_gradient = without_gradient

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.without_gradient):
            found = self.body(x)
        return self.last(self.head(found))  # type: ignore[no-any-return]


class Scaled(nn.Module):
    """``unit`` times one more than it is given."""

    def __init__(self, unit: float) -> None:
        super().__init__()
        self.unit = unit

    def forward(self, x: Tensor) -> Tensor:
        return self.unit * (1 + x)


def outliner(width: int = 12, last: nn.Module | None = None) -> nn.Sequential:
    """(B, 1, H, H) -> the same: an answer for every pixel."""
    parts: list[nn.Module] = [nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)]
    return nn.Sequential(*parts, nn.ReLU(), nn.Conv2d(width, 1, 3, padding=1), *([last] if last is not None else []))


class TwoQuestions(nn.Module):
    """One trunk: classes (B, C), and a second answer (B, 1) as one more column."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(*mlp(196, 64, 96, 1), nn.ReLU())
        self.kind, self.brightness = nn.Linear(64, 10), nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        found = self.trunk(x)
        return torch.cat([self.kind(found), self.brightness(found)], 1)


class Experts(nn.Module):
    """A gate gives each picture (B, 196) to the best of ``count`` experts."""

    def __init__(self, count: int = 8) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(196, count), nn.ModuleList(mlp(196, 10, 24, 1) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        share, best = self.gate(x).softmax(1).max(1)
        found = torch.stack([expert(x) for expert in self.experts], 1)
        return 2 * share[:, None] * found[torch.arange(len(x)), best]  # type: ignore[no-any-return]


class Averaged(nn.Module):
    """A net, and a running mean of its weights that is asked in the end."""

    def __init__(self, net: nn.Module, decay: float = 0.97) -> None:
        super().__init__()
        self.net, self.mean, self.decay = net, copy.deepcopy(net).requires_grad_(False), decay

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                for slow, fast in zip(self.mean.parameters(), self.net.parameters(), strict=True):
                    slow.lerp_(fast, 1 - self.decay)
            return self.net(x)  # type: ignore[no-any-return]
        return self.mean(x)  # type: ignore[no-any-return]


# --- pictures of pictures ----------------------------------------------------------------------------------------------


def coder(latents: int = 16, last: Activation = nn.Sigmoid, tanh: bool = False) -> nn.Sequential:
    """(B, 196) through K numbers."""
    between = nn.Tanh if tanh else nn.ReLU
    return nn.Sequential(*mlp(196, latents, 96, 1, between), *mlp(latents, 196, 96, 1, between, last=last()))


class Variational(nn.Module):
    """Logits of (B, 196) from the mean of its posterior; ``drawn`` from a sample of it, with mean and log variance (B, K)."""

    def __init__(self, latents: int = 12) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp(196, 2 * latents, 96, 1), mlp(latents, 196, 96, 1)
        self.passes = 0  # of training

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x).chunk(2, 1)[0]).sigmoid()  # type: ignore[no-any-return]

    def drawn(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.passes += self.training
        mean, log_variance = self.encoder(x).chunk(2, 1)
        return self.decoder(mean + (log_variance / 2).exp() * torch.randn_like(mean)), mean, log_variance


class Denoiser(nn.Module):
    """What is noise in (B, 196), told how much there is (B, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(200, 196, 192, 2, nn.SiLU)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        known = torch.cat([level, level.square(), (4 * level).sin(), (4 * level).cos()], 1)
        return self.body(torch.cat([x, known], 1))  # type: ignore[no-any-return]


class Compared(nn.Module):
    """Pictures (B, 196) as directions (B, 24), and a predictor of one's view from another's (SimSiam)."""

    def __init__(self, predicts: bool = False) -> None:
        super().__init__()
        self.body = mlp(196, 24, 96, 1, norm=nn.BatchNorm1d if predicts else None)
        self.predictor = mlp(24, 24, 16, 1, norm=nn.BatchNorm1d) if predicts else None

    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(self.body(x), dim=1)


class LowRank(nn.Module):
    """A frozen layer and what two narrow matrices add to it (LoRA)."""

    def __init__(self, layer: nn.Linear, rank: int, spread: float) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Parameter(spread * torch.randn(rank, layer.in_features))
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x @ self.down.T @ self.up.T  # type: ignore[no-any-return]


def _learnt(net: Callable[[], nn.Module], split: Split, rate: float, steps: int) -> nn.Module:
    """Trained beforehand, without a trace in the run's own draws."""
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(11)
        found = net()
        optimizer = torch.optim.Adam(found.parameters(), rate)
        for step in range(steps):
            batch = split.at(torch.arange(64 * step, 64 * step + 64) % len(split))
            optimizer.zero_grad()
            functional.cross_entropy(found(batch.inputs), batch.targets).backward()
            optimizer.step()
    return found


@cache
def _trained(pictures: bool) -> nn.Module:
    """A net that has learnt the first five kinds of clothes, and answers about ten."""
    split = (clothes() if pictures else flat()).train
    split = split.at(torch.nonzero(split.targets < 5).flatten())
    return _learnt(convolutions if pictures else partial(mlp, 196, 10, 96, 2), split, 2e-3, 160)


def pretrained(pictures: bool = True, frozen: bool = False, new_head: bool = True) -> nn.Sequential:
    """That net; ``frozen`` but for its head."""
    net = copy.deepcopy(_trained(pictures))
    assert isinstance(net, nn.Sequential)
    if frozen:
        net.requires_grad_(False)
    if new_head:
        old = net[-1]
        assert isinstance(old, nn.Linear)
        net[-1] = nn.Linear(old.in_features, 10)
    return net.requires_grad_(True) if not frozen else net


@cache
def _whole() -> nn.Module:
    """A net that has learnt all ten kinds."""
    return _learnt(partial(mlp, 196, 10, 192, 2), flat().train, 1e-3, 400)


def pupil() -> nn.Sequential:
    """A smaller net that has learnt nothing; by then its teacher has."""
    _whole()
    return mlp(196, 10, 64, 1)


def teacher(x: Tensor) -> Tensor:
    """What it answers."""
    return _whole()(x)  # type: ignore[no-any-return]


def adapted(spread: float = 0.07, rank: int = 8) -> nn.Sequential:
    """That net for (B, 196), and LoRA on each of its layers."""
    net = pretrained(pictures=False, new_head=False)
    for index, part in enumerate(net):
        if isinstance(part, nn.Linear):
            net[index] = LowRank(part, rank, spread)
    return net


RINGS = (0.38, 0.5, 0.55, 0.62, 0.67, 0.8, 1.0)  # distances at which residues are looked for

# --- texts and proteins ------------------------------------------------------------------------------------------------


class Reader(nn.Module):
    """Kinds of texts from (B, T) letters: embeddings, their mean or sum over positions, layers of tanh."""

    def __init__(self, mean: bool = True, width: int = 32, last: nn.Module | None = None) -> None:
        super().__init__()
        self.letters, self.mean = nn.Embedding(SYMBOLS, width), mean
        self.near = nn.Conv1d(width, width, 5, padding=2)
        self.body, self.last = mlp(width, 3, width, 2, nn.Tanh), last or nn.Identity()

    def forward(self, ids: Tensor) -> Tensor:
        found = torch.relu(self.near(self.letters(ids).mT))
        return self.last(self.body(found.mean(2) if self.mean else found.sum(2)))  # type: ignore[no-any-return]


class Attentive(nn.Module):
    """Kinds of texts by attention of a learnt question to letters that are not 0; a text without any has nothing to attend to."""

    def __init__(self, careful: bool = True, width: int = 32) -> None:
        super().__init__()
        self.letters, self.near = nn.Embedding(SYMBOLS, width), nn.Conv1d(width, width, 5, padding=2)
        self.score, self.head, self.careful = nn.Linear(width, 1), nn.Linear(width, 3), careful

    def forward(self, ids: Tensor) -> Tensor:
        found = torch.relu(self.near(self.letters(ids).mT)).mT
        hidden = (ids == 0)[..., None]
        score = self.score(found).masked_fill(hidden, -1e4 if self.careful else -torch.inf)
        return self.head((score.softmax(1) * found).sum(1))  # type: ignore[no-any-return]


def bag(width: int = 24) -> nn.Module:
    """Kinds of texts from the mean of their letters' embeddings."""
    return nn.Sequential(nn.EmbeddingBag(SYMBOLS, width), nn.ReLU(), nn.Linear(width, 3))


class Pairs(nn.Module):
    """Are two words neighbours? The product of a vector of each, as in word2vec."""

    def __init__(self, spread: float = 0.3, width: int = 16, sparse: bool = False) -> None:
        super().__init__()
        self.first, self.second = (nn.Embedding(WORDS, width, sparse=sparse) for _ in range(2))
        for table in (self.first, self.second):
            nn.init.normal_(table.weight, std=spread)

    def forward(self, ids: Tensor) -> Tensor:
        return (self.first(ids[:, 0]) * self.second(ids[:, 1])).sum(1, keepdim=True)  # type: ignore[no-any-return]


class Tagger(nn.Module):
    """A state at every position of (B, T) amino acids: a recurrent net of both directions, or attention."""

    def __init__(self, width: int = 32, attends: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.acids, self.dropout = nn.Embedding(20, width), nn.Dropout(dropout)
        self.positions = nn.Embedding(64, width) if attends else None
        self.body: nn.Module = (
            nn.TransformerEncoder(
                nn.TransformerEncoderLayer(width, 4, 2 * width, dropout, batch_first=True, norm_first=True), 2,
                enable_nested_tensor=False,
            )
            if attends
            else nn.GRU(width, width // 2, batch_first=True, bidirectional=True)
        )  # fmt: skip
        self.head = nn.Linear(width, STATES)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.dropout(self.acids(ids))
        if self.positions is not None:
            x = x + self.positions(torch.arange(ids.shape[1]))
        x = self.body(x)
        return self.head(x[0] if isinstance(x, tuple) else x)  # type: ignore[no-any-return]


class Contacts(nn.Module):
    """Residues (B, T, 4) -> states (B, T, 3): layers over who is how near, and what kind of acid they are."""

    def __init__(self, layers: int = 2, width: int = 24, norm: bool = True) -> None:
        super().__init__()
        self.acids, self.near = nn.Embedding(20, width), nn.Linear(len(RINGS), width)
        self.layers = nn.ModuleList(nn.Linear((1 + len(RINGS)) * width, width) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) if norm else nn.Identity() for _ in range(layers))
        self.head = nn.Linear(width, STATES)

    def forward(self, x: Tensor) -> Tensor:
        apart = (x[..., None, :3] - x[..., None, :, :3]).norm(dim=3)
        near = torch.stack([torch.exp(-((apart - ring).square()) * 500) for ring in RINGS], 1)  # (B, R, T, T)
        h = self.acids(x[..., 3].long()) + self.near(near.sum(3).mT)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            h = h + torch.relu(layer(torch.cat([h, *(near @ norm(h)[:, None]).unbind(1)], 2)))
        return self.head(h)  # type: ignore[no-any-return]


class Path(nn.Module):
    """A recurrent net along a chain (B, T, 4), told how far each residue is from those that come two to five later."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.body = nn.LSTM(4, width, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, STATES)

    def forward(self, x: Tensor) -> Tensor:
        places = x[..., :3]
        steps = [(places - places.roll(-ahead, 1)).norm(dim=2) * 4 - 3 for ahead in (2, 3, 4, 5)]
        return self.head(self.body(torch.stack(steps, 2))[0])  # type: ignore[no-any-return]


class Squares(nn.Module):
    """Kinds of (B, 196) from products of what 96 filters find, which are large where pixels are bytes."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.one, self.other, self.norm = nn.Linear(196, width), nn.Linear(196, width), nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.one(x) * self.other(x))))  # type: ignore[no-any-return]


class Half(nn.Module):
    """A net whose weights themselves are in ``kind``, for inputs and answers of 32 bits."""

    def __init__(self, net: nn.Module, kind: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.net, self.kind = net.to(kind), kind

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.to(self.kind)).float()  # type: ignore[no-any-return]
