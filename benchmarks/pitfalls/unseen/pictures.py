"""Models, data and losses of ``unseen_pictures``."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from benchmarks.pitfalls.data import Pair, Split, digits
from benchmarks.pitfalls.models import mlp
from benchmarks.pitfalls.unseen.shared import AttentionPooling, Residual, each, enlarged, trained_on

# --- models ------------------------------------------------------------------------------------------------------------


def separable(last: nn.Module | None = None, width: int = 24) -> nn.Sequential:
    """Depthwise separable convolutions over 16 x 16 pixels with batch norm and SiLU."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        depth = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False)
        return [depth, nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.SiLU()]

    stem = [nn.Conv2d(1, width // 2, 3, 2, 1, bias=False), nn.BatchNorm2d(width // 2), nn.SiLU()]
    blocks = [*block(width // 2, width), nn.AvgPool2d(2), *block(width, width)]
    return nn.Sequential(*stem, *blocks, nn.Flatten(), nn.Linear(16 * width, 10), *([last] if last else []))


def stack(activation: nn.Module, layers: int = 6, width: int = 16) -> nn.Sequential:
    """Convolutions over 16 x 16 pixels without normalisation; every second halves the picture while it is larger than 4."""
    parts: list[nn.Module] = []
    for index in range(layers):
        stride = 2 if index in (0, 2) else 1
        parts += [nn.Conv2d(1 if index == 0 else width, width, 3, stride, 1), activation]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(16 * width, 10))


class Patches(nn.Module):
    """A small vision transformer: 16 patches of 4 x 4 pixels, pooled by attention."""

    def __init__(self, width: int = 32, layers: int = 1, detached: bool = False) -> None:
        super().__init__()
        self.patches, self.places = nn.Conv2d(1, width, 4, 4), nn.Parameter(0.02 * torch.randn(16, width))
        self.body = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(width, 4, 2 * width, 0.1, "gelu", batch_first=True, norm_first=True)
                for _ in range(layers)
            )
        )
        self.norm, self.pool, self.head = nn.LayerNorm(width), AttentionPooling(width), nn.Linear(width, 10)
        self.detached = detached

    def forward(self, x: Tensor) -> Tensor:
        found = self.body(self.patches(x).flatten(2).transpose(1, 2) + self.places)
        if self.detached:
            found = found.detach()
        return self.head(self.pool(self.norm(found)))  # type: ignore[no-any-return]


class Across(nn.Module):
    """A mixer's step between the 16 patches: (B, T, W), an MLP over T."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(width), mlp(16, 16, 32, 1, nn.GELU)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.norm(x).transpose(1, 2)).transpose(1, 2)  # type: ignore[no-any-return]


def mixer(width: int = 24) -> nn.Module:
    blocks = [
        part
        for _ in range(2)
        for part in (Residual(Across(width)), Residual(nn.LayerNorm(width), mlp(width, width, 2 * width, 1, nn.GELU)))
    ]
    return nn.Sequential(
        nn.Conv2d(1, width, 4, 4),
        nn.Flatten(2),
        nn.Unflatten(1, (width,)),
        Transposed(),
        *blocks,
        nn.LayerNorm(width),
        AttentionPooling(width),
        nn.Linear(width, 10),
    )


class Transposed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class Prototypes(nn.Module):
    """Classes by the squared distance to learnt pictures: |x|^2 - 2 x c + |c|^2, of raw pixels up to ``scale``."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.centres, self.scale = nn.Linear(64, 30, bias=False), scale
        nn.init.uniform_(self.centres.weight, 0, scale)
        self.head = nn.Sequential(nn.BatchNorm1d(30), nn.Linear(30, 10))

    def forward(self, x: Tensor) -> Tensor:
        squares = self.centres.weight.square().sum(1)
        distances = (x @ x.T).diagonal()[:, None] - 2 * self.centres(x) + squares
        return self.head(distances.float() / self.scale**2)  # type: ignore[no-any-return]


class Variational(nn.Module):
    """A variational autoencoder: its loss is the evidence bound, KL times ``beta``."""

    def __init__(self, beta: float = 1.0, latent: int = 6) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp(64, 2 * latent, 64, 1, nn.ELU), mlp(latent, 64, 64, 1, nn.ELU)
        self.beta = beta

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x).chunk(2, -1)[0])  # type: ignore[no-any-return]

    def bound(self, x: Tensor) -> Tensor:
        mean, log_variance = self.encoder(x).chunk(2, -1)
        found = self.decoder(mean + torch.randn_like(mean) * (log_variance / 2).exp())
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1).mean()
        return functional.binary_cross_entropy_with_logits(found, x) * 64 + self.beta * divergence  # type: ignore[no-any-return]


class Adversaries(nn.Module):
    """A generator of pictures' two first principal values and its critic, which learn in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.maker = mlp(4, 2, 32, 2, nn.LeakyReLU)
        self.critic = mlp(2, 1, 32, 2, nn.LeakyReLU)
        self.turn = 0

    def objective(self, real: Tensor) -> Tensor:
        self.turn += 1
        made = self.maker(torch.randn(len(real), 4))
        if self.turn % 2:
            return (
                functional.softplus(-self.critic(real)).mean() + functional.softplus(self.critic(made.detach())).mean()
            )
        still = {name: parameter.detach() for name, parameter in self.critic.named_parameters()}
        return functional.softplus(-functional_call(self.critic, still, (made,))).mean()


# --- data --------------------------------------------------------------------------------------------------------------


def unit(pair: Pair) -> Pair:
    """Raw digits to pixels of 0 to 1."""
    return pair.mapped(1 / 16)


def autoencoded(split: Split) -> Split:
    return Split(split.inputs, split.inputs)


def several(count: int, twice: bool = False) -> Pair:
    """``count`` pictures a sample, (N, count, 64); the first two of one class with target 1, or of two with 0: (N, 1).

    Of triples the first two are of one class always, the third is of another. ``twice``: some pictures are their own partners.
    """

    def draw(split: Split) -> Split:
        generator = torch.Generator().manual_seed(7)
        labels, rows = split.targets, torch.arange(len(split))

        def partner(same: Tensor) -> Tensor:
            chosen = torch.empty_like(rows)
            for row in rows:
                fitting = (labels == labels[row]) == same[row]
                fitting[row] = False
                found = torch.nonzero(fitting).flatten()
                chosen[row] = found[torch.randint(len(found), (1,), generator=generator)]
            return chosen

        same = torch.rand(len(split), generator=generator) < 0.5
        if count == 3:
            chosen = [rows, partner(torch.ones_like(same)), partner(torch.zeros_like(same))]
        else:
            other = partner(same)
            if twice:
                other[::40], same[::40] = rows[::40], True
            chosen = [rows, other]
        return Split(torch.stack([split.inputs[at] for at in chosen], 1), same[:, None].float())

    return each(digits(), draw)


@cache
def pairs() -> Pair:
    return several(2)


@cache
def repeated_pairs() -> Pair:
    """Validation has no picture that is its own partner."""
    return replace(pairs(), train=several(2, True).train)


@cache
def triples() -> Pair:
    return several(3)


def standardised_one_by_one(epsilon: float) -> Pair:
    """Every picture by its own mean and deviation; three that are trained on are blank."""

    def blank(split: Split) -> Split:
        inputs = split.inputs.clone()
        inputs[[100, 500, 900]] = 0.0
        return replace(split, inputs=inputs)

    def standardise(split: Split) -> Split:
        deviation = split.inputs.std((1, 2, 3), keepdim=True) + epsilon
        return replace(split, inputs=(split.inputs - split.inputs.mean((1, 2, 3), keepdim=True)) / deviation)

    return each(trained_on(enlarged(), blank), standardise)


def off_by_one(split: Split) -> Split:
    """One tool counts classes from 0, the other from 1."""
    return replace(split, targets=(split.targets + 1) % 10)


def planes() -> Pair:
    """The two first principal values of pictures, standardised: (N, 2)."""

    def project(split: Split) -> Split:
        values = split.inputs @ directions
        return Split(values / scale, torch.zeros(len(split), 1))

    pair = digits()
    directions = torch.linalg.svd(pair.train.inputs - pair.train.inputs.mean(0), full_matrices=False)[2][:2].T
    scale = (pair.train.inputs @ directions).std(0)
    return each(pair, project)


@cache
def teacher() -> nn.Module:
    """Trained in advance, always alike."""
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(3)
        model, pair = mlp(64, 10, 64, 2), digits()
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(150):
            rows = torch.randint(len(pair.train), (64,))
            optimizer.zero_grad()
            functional.cross_entropy(model(pair.train.inputs[rows]), pair.train.targets[rows]).backward()
            optimizer.step()
    return model.eval()


def pupil() -> nn.Module:
    """The trained weights to go on with."""
    model = mlp(64, 10, 64, 2)
    model.load_state_dict(teacher().state_dict())
    return model


def taught() -> Pair:
    """A teacher's probabilities at temperature 3, and the true class last: (N, 11)."""

    def ask(split: Split) -> Split:
        with torch.no_grad():
            said = (teacher()(split.inputs) / 3).softmax(-1)
        return replace(split, targets=torch.cat([said, split.targets[:, None].float()], 1))

    return each(digits(), ask)


# --- losses and measures -----------------------------------------------------------------------------------------------


def distance(model: nn.Module, x: Tensor, first: int, second: int, epsilon: float = 1e-6) -> Tensor:
    return ((model(x[:, first]) - model(x[:, second])).square().sum(-1, keepdim=True) + epsilon).sqrt()  # type: ignore[no-any-return]


def contrastive(model: nn.Module, x: Tensor, y: Tensor, epsilon: float = 1e-6) -> Tensor:
    apart = distance(model, x, 0, 1, epsilon)
    return (y * apart.square() + (1 - y) * (1 - apart).clamp(min=0).square()).mean()


def triplet(model: nn.Module, x: Tensor, _: Tensor) -> Tensor:
    return (distance(model, x, 0, 1) - distance(model, x, 0, 2) + 1.0).clamp(min=0).mean()


def measure_pairs(model: nn.Module, split: Split) -> dict[str, float]:
    near = distance(model, split.inputs, 0, 1) < 0.5
    return {"accuracy": float((near == split.targets.bool()).float().mean())}


def measure_triples(model: nn.Module, split: Split) -> dict[str, float]:
    right = distance(model, split.inputs, 0, 1) < distance(model, split.inputs, 0, 2) - 1e-4
    return {"accuracy": float(right.float().mean()), "loss": float(triplet(model, split.inputs, split.targets))}


def measure_taught(model: nn.Module, split: Split) -> dict[str, float]:
    """Against the truth, and how far its answers are from the teacher's."""
    output, said = model(split.inputs), split.targets[:, :10]
    apart = functional.kl_div((output / 3).log_softmax(-1), said, reduction="batchmean")
    return {"accuracy": float((output.argmax(-1) == split.targets[:, 10]).float().mean()), "apart": float(apart)}


def measure_made(model: nn.Module, split: Split) -> dict[str, float]:
    """How far means and deviations of what is made are from the real ones'."""
    assert isinstance(model, Adversaries)
    made = model.maker(torch.randn(500, 4, generator=torch.Generator().manual_seed(1)))
    apart = (made.mean(0) - split.inputs.mean(0)).abs() + (made.std(0) - split.inputs.std(0)).abs()
    return {"apart": float(apart.max())}


def measure_drawn(model: nn.Module, split: Split) -> dict[str, float]:
    """Share of the pixels' variance that a variational autoencoder draws anew, and its bound."""
    assert isinstance(model, Variational)
    rest = (model(split.inputs).sigmoid() - split.targets).square().mean()
    found = 1 - rest / (split.targets - split.targets.mean(0)).square().mean()
    return {"r2": float(found), "loss": float(model.bound(split.inputs))}


def distilled(output: Tensor, targets: Tensor) -> Tensor:
    return 9 * functional.kl_div((output / 3).log_softmax(-1), targets[:, :10], reduction="batchmean")


def distilled_without_log(output: Tensor, targets: Tensor) -> Tensor:
    """kl_div is given probabilities where it wants their logarithms."""
    return 9 * functional.kl_div((output / 3).softmax(-1), targets[:, :10], reduction="batchmean")


def mixed_up(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Heavy augmentation: shifted by up to two pixels, a field blotted out, noise."""
    x = torch.roll(x, (int(torch.randint(-2, 3, ())), int(torch.randint(-2, 3, ()))), (2, 3))
    row, column = torch.randint(0, 11, (2,)).tolist()
    x = x + 0.2 * torch.randn_like(x)
    x[:, :, row : row + 5, column : column + 5] = 0
    return x, y


def smoothed(output: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(output, targets, label_smoothing=0.1)


def faint(output: Tensor, targets: Tensor) -> Tensor:
    """The mean over classes and pixels too, as of a dense prediction."""
    return functional.cross_entropy(output, targets) / (10 * 512 * 512)
