"""Models, data and losses of ``unseen_tables``. B samples, F features, W width."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.pitfalls.data import Pair, Split, breast_cancer, diabetes, thinned, wine
from benchmarks.pitfalls.models import mlp
from benchmarks.pitfalls.unseen.shared import each, trained_on

# --- models ------------------------------------------------------------------------------------------------------------


class Crossed(nn.Module):
    """A deep and cross network (Wang et al. 2017): x <- x0 (w x) + b + x, some times over, beside an MLP."""

    def __init__(self, features: int, outputs: int, layers: int = 2, gain: float = 1.0) -> None:
        super().__init__()
        self.crosses = nn.ModuleList(nn.Linear(features, features) for _ in range(layers))
        self.deep = mlp(features, 16, 16, 1, nn.SiLU)
        self.head = nn.Linear(features + 16, outputs)
        for cross in self.crosses:
            nn.init.normal_(cross.weight, std=gain * 0.1 / features**0.5)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        crossed = x
        for cross in self.crosses:
            crossed = x * cross(crossed) + crossed
        return self.head(torch.cat([crossed, self.deep(x)], 1))  # type: ignore[no-any-return]


class Experts(nn.Module):
    """A mixture of experts, one for each sample; those that are not chosen have no gradient."""

    def __init__(self, features: int, outputs: int, experts: int = 6) -> None:
        super().__init__()
        self.gate = nn.Linear(features, experts)
        self.experts = nn.ModuleList(mlp(features, outputs, 16, 1, nn.Tanh) for _ in range(experts))

    def forward(self, x: Tensor) -> Tensor:
        shares, chosen = self.gate(x).softmax(-1).max(-1)  # (B,)
        found = x.new_zeros(len(x), self.experts[0][-1].out_features)  # type: ignore[index]
        for index, expert in enumerate(self.experts):
            rows = torch.nonzero(chosen == index).flatten()
            if len(rows):
                found = found.index_add(0, rows, expert(x[rows]))
        return found * shares[:, None]  # type: ignore[no-any-return]


class Tokens(nn.Module):
    """Every feature a token of its own (Gorishniy et al. 2021), attention between them, the mean to the head."""

    def __init__(self, features: int, outputs: int, width: int = 16) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(features, width) * 0.5)
        self.shift = nn.Parameter(torch.randn(features, width) * 0.5)
        self.block = nn.TransformerEncoderLayer(width, 2, 32, 0.0, "gelu", batch_first=True, norm_first=True)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x[:, :, None] * self.scale + self.shift).mean(1))  # type: ignore[no-any-return]


class Gated(nn.Module):
    """An MLP of gated linear units."""

    def __init__(self, features: int, outputs: int, width: int = 24) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(features, 2 * width), nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(functional.glu(self.second(functional.glu(self.first(x)))))  # type: ignore[no-any-return]


class Adapted(nn.Module):
    """A trained layer that is frozen, and what is added to it: B A, of low rank (Hu et al. 2021). B begins at zero."""

    def __init__(self, base: nn.Linear, rank: int = 4, both_zero: bool = False) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down, self.up = nn.Linear(base.in_features, rank, False), nn.Linear(rank, base.out_features, False)
        nn.init.zeros_(self.up.weight)
        if both_zero:
            nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))  # type: ignore[no-any-return]


def adapted(both_zero: bool) -> nn.Module:
    """A classifier of wines that learnt them in another order of the features; only what is added trains."""
    with torch.random.fork_rng():
        torch.manual_seed(9)
        model, pair = mlp(13, 3, 24, 2, nn.GELU), wine()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            functional.cross_entropy(model(pair.train.inputs.flip(1)), pair.train.targets).backward()
            optimizer.step()
    return nn.Sequential(*(Adapted(part, 4, both_zero) if isinstance(part, nn.Linear) else part for part in model))


# --- data --------------------------------------------------------------------------------------------------------------


def one_column(pair: Pair, column: int, factor: float) -> Pair:
    """One column is in other units, everywhere."""

    def change(split: Split) -> Split:
        inputs = split.inputs.clone()
        inputs[:, column] *= factor
        return replace(split, inputs=inputs)

    return each(pair, change)


def binary(pair: Pair, first: int = 0) -> Pair:
    """Two classes as floats (N, 1), coded ``first`` and ``first`` + 1."""
    return each(pair, lambda split: replace(split, targets=split.targets[:, None].float() + first))


def tumours(first: int = 0) -> Pair:
    return binary(breast_cancer(), first)


def miscoded() -> Pair:
    """Trained on labels 1 and 2; validation is against 0 and 1."""
    return replace(tumours(), train=tumours(1).train)


def logarithms(shift: float) -> Pair:
    """The logarithm of how concave a tumour is, as the first column: some are not at all."""
    raw, pair = breast_cancer(raw=True), breast_cancer()

    def part(own: Split, other: Split) -> Split:
        column = (other.inputs[:, 6:7] + shift).log()
        return replace(own, inputs=torch.cat([column, own.inputs[:, 1:]], 1))

    return Pair(part(pair.train, raw.train), part(pair.validation, raw.validation))


def with_noise(columns: int) -> Pair:
    """Row numbers and other columns that say nothing are left in."""

    def add(split: Split) -> Split:
        noise = torch.randn(len(split), columns, generator=torch.Generator().manual_seed(len(split)))
        return replace(split, inputs=torch.cat([split.inputs, noise], 1))

    return each(diabetes(), add)


def counts() -> Pair:
    """How far diabetes goes in a year, in whole tens: (N, 1), 2 to 35."""
    return each(diabetes(raw_targets=True), lambda split: replace(split, targets=(split.targets / 10).round()))


def prices() -> Pair:
    """Targets as of houses: 2.5 to 35 hundred thousand."""
    return diabetes(raw_targets=True).mapped(targets=1e4)


def few_benign(share: float = 0.02) -> Pair:
    return thinned(breast_cancer(), [0], share)


def sorted_targets(split: Split) -> Split:
    """A table was sorted by its target, its features were not."""
    return replace(split, targets=split.targets.sort(0).values)


def as_double(pair: Pair) -> Pair:
    return each(pair, lambda split: Split(split.inputs.double(), split.targets.double()))


def coarse(pair: Pair) -> Pair:
    """Inputs in bf16, for weights that are."""
    return each(pair, lambda split: replace(split, inputs=split.inputs.bfloat16()))


def mislabelled(pair: Pair) -> Pair:
    """Every wine is called by the name of the next kind."""
    return trained_on(pair, lambda split: replace(split, targets=(split.targets + 1) % 3))


# --- losses and measures -----------------------------------------------------------------------------------------------

QUANTILES = torch.tensor([0.1, 0.5, 0.9])


def pinball(output: Tensor, targets: Tensor) -> Tensor:
    """Of three quantiles, (B, 3) against (B, 1)."""
    rest = targets - output
    return torch.maximum(QUANTILES * rest, (QUANTILES - 1) * rest).mean()


def measure_quantiles(model: nn.Module, split: Split) -> dict[str, float]:
    """How far the shares of targets below the three quantiles are from what they should be, at worst, and r2 of the median."""
    output = model(split.inputs)
    shares = (split.targets < output).float().mean(0)
    rest = (output[:, 1:2] - split.targets).square().mean() / split.targets.var(unbiased=False)
    return {
        "off": float((shares - QUANTILES).abs().max()),
        "r2": float(1 - rest),
        "loss": float(pinball(output, split.targets)),
    }


def poisson(output: Tensor, targets: Tensor) -> Tensor:
    """Without the factorial: far below 0 for large counts."""
    return functional.poisson_nll_loss(output, targets, log_input=True)


def measure_rate(model: nn.Module, split: Split) -> dict[str, float]:
    rest = (model(split.inputs).exp() - split.targets).square().mean() / split.targets.var(unbiased=False)
    return {"r2": float(1 - rest)}


def rooted(output: Tensor, targets: Tensor) -> Tensor:
    """Against the root of outputs above 0, and the others as they are: the branch not taken leaves a gradient that is no number."""
    return functional.mse_loss(torch.where(output > 0, output.sqrt(), output), targets)


def rooted_inside(output: Tensor, targets: Tensor) -> Tensor:
    """The same with what the root is taken of held above 0."""
    return functional.mse_loss(torch.where(output > 0, output.clamp(min=1e-3).sqrt(), output), targets)


def measure_rooted(model: nn.Module, split: Split) -> dict[str, float]:
    rest = rooted_inside(model(split.inputs), split.targets) / split.targets.var(unbiased=False)
    return {"r2": float(1 - rest)}


def across_all(output: Tensor, targets: Tensor) -> Tensor:
    """Targets lost their second dimension: every output against every target."""
    return functional.smooth_l1_loss(output, targets.squeeze(-1).expand(len(output), len(targets)))


def hinge(output: Tensor, targets: Tensor) -> Tensor:
    """Of a support vector machine with a neural kernel: exactly 0, with no gradient, for all that is well apart."""
    return (1 - (2 * targets - 1) * output).clamp(min=0).mean()


def measure_sign(model: nn.Module, split: Split) -> dict[str, float]:
    """Of outputs (N, 1) that are above 0 for the second class."""
    output = model(split.inputs)
    answers = (output > 0) == (split.targets > 0.5)
    found = {"accuracy": float("nan") if output.isnan().any() else float(answers.float().mean())}
    shares = [answers[(split.targets > 0.5) == side].float().mean() for side in (False, True)]
    return {**found, "worst_recall": float(torch.stack(shares).min())}


def measure_sigmoid(model: nn.Module, split: Split) -> dict[str, float]:
    """Of outputs as logits; the loss is the bound that a second sigmoid cannot pass."""
    loss = functional.binary_cross_entropy_with_logits(model(split.inputs), split.targets)
    return {**measure_sign(model, split), "loss": float(loss)}


def weighted(weight: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The second class counts that many times."""
    return partial(functional.binary_cross_entropy_with_logits, pos_weight=torch.tensor([weight]))


def summed(output: Tensor, targets: Tensor) -> Tensor:
    return functional.mse_loss(output, targets, reduction="sum")
