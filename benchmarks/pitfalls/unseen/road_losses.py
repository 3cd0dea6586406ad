"""Losses, measures, schedules, and what happens to batches and ranks in ``unseen_road``. B samples, T positions, C classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.pitfalls.case import Objective
from benchmarks.pitfalls.data import Split
from benchmarks.pitfalls.faults import Disturb, Tamper
from benchmarks.pitfalls.unseen.road import Posterior

CE = functional.cross_entropy
BCE = functional.binary_cross_entropy_with_logits

# --- measures ----------------------------------------------------------------------------------------------------------


def kinds(model: nn.Module, split: Split) -> Mapping[str, float]:
    """Accuracy and cross-entropy of the first ten columns."""
    output = model(split.inputs)[:, :10]
    right = float((output.argmax(1) == split.targets).float().mean())
    return {"accuracy": math.nan if output.isnan().any() else right, "loss": float(CE(output, split.targets))}


def recalls(model: nn.Module, split: Split) -> Mapping[str, float]:
    """Accuracy, that of the class which is known worst, and cross-entropy without weights."""
    output = model(split.inputs)
    right = (output.argmax(-1) == split.targets).float()
    each = [float(right[split.targets == number].mean()) for number in split.targets.unique()]
    return {
        "accuracy": float(right.mean()),
        "worst_recall": math.nan if output.isnan().any() else min(each),
        "loss": float(CE(output, split.targets)),
    }


def sides(threshold: float = 0.0) -> Callable[[nn.Module, Split], Mapping[str, float]]:
    """Of answers to yes or no, those on the right side of ``threshold``."""

    def measure(model: nn.Module, split: Split) -> Mapping[str, float]:
        output = model(split.inputs)
        right = float(((output > threshold) == (split.targets > 0.5)).float().mean())
        return {"accuracy": math.nan if output.isnan().any() else right}

    return measure


def of_the_mean(model: nn.Module, split: Split) -> Mapping[str, float]:
    """How much of the variance of targets the first column explains, whatever is in the others."""
    output = model(split.inputs)[:, :1]
    return {"r2": float(1 - (output - split.targets).square().mean() / split.targets.var())}


def direction(model: nn.Module, split: Split) -> Mapping[str, float]:
    """The same of an angle, by points on the circle."""
    output = model(split.inputs)
    found = torch.atan2(output[:, 1], output[:, 0])[:, None]
    return {
        "r2": float(1 - (found - split.targets).square().mean() / split.targets.var()),
        "loss": float(between_points(output, split.targets)),
    }


def pixels(model: nn.Module, split: Split) -> Mapping[str, float]:
    """How much of the variance of pixels is explained by their probabilities."""
    output = model(split.inputs).sigmoid()
    return {"r2": float(1 - (output - split.targets).square().mean() / split.targets.var())}


def with_loss(
    objective: Objective, measure: Callable[[nn.Module, Split], Mapping[str, float]]
) -> Callable[[nn.Module, Split], Mapping[str, float]]:
    """A measure, and the objective on validation with draws that are the same each time."""

    def both(model: nn.Module, split: Split) -> Mapping[str, float]:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            loss = float(objective(model, split.inputs, split.targets))
        return {**measure(model, split), "loss": loss}

    return both


# --- losses ------------------------------------------------------------------------------------------------------------


def focal(power: float) -> Callable[[Tensor, Tensor], Tensor]:
    """-(1 - p) ** power * log p, written as its paper has it."""

    def loss(output: Tensor, y: Tensor) -> Tensor:
        p = output.softmax(1)[torch.arange(len(y)), y]
        return -((1 - p) ** power * (p + 1e-9).log()).mean()

    return loss


def between_points(output: Tensor, y: Tensor) -> Tensor:
    """One less the cosine of the angle between points on the circle (B, 2) and angles (B, 1)."""
    return (1 - (output * torch.cat([y.cos(), y.sin()], 1)).sum(1)).mean()


def between_angles(output: Tensor, y: Tensor) -> Tensor:
    """That angle's own size, by arccos."""
    cosine = (output * torch.cat([y.cos(), y.sin()], 1)).sum(1)
    return cosine.clamp(-1, 1).acos().mean()


def over_the_batch(output: Tensor, y: Tensor) -> Tensor:
    """A softmax of logits (B, C) over the samples of the batch, not over their classes."""
    return functional.nll_loss(output.log_softmax(0), y)


def to_class_numbers(output: Tensor, y: Tensor) -> Tensor:
    """Squared errors of all answers (B, C) and the number of the class (B, 1)."""
    return (output - y[:, None]).square().mean()


def a_millionth(output: Tensor, y: Tensor) -> Tensor:
    return 1e-6 * CE(output, y)


def overlap(one_less: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """Twice what is in both over what is in either; it should be one less that."""

    def loss(output: Tensor, y: Tensor) -> Tensor:
        found = output.sigmoid()
        share = (2 * (found * y).sum() + 1) / (found.sum() + y.sum() + 1)
        return 1 - share if one_less else share

    return loss


def all_but(ignored: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy that takes ``ignored`` for padding."""
    return partial(CE, ignore_index=ignored)


def contrastive(same_far: bool, margin: float = 2.0) -> Objective:
    """Pictures of a kind near each other, others by ``margin`` apart (Hadsell 2006); or 0 and 1 swapped."""

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        places = model(x)
        apart = ((places - places.roll(1, 0)).square().sum(1) + 1e-6).sqrt()
        same = (y == y.roll(1, 0)) != same_far
        return torch.where(same, 3 * apart.square(), (margin - apart).clamp(min=0).square()).mean()

    return objective


def nearest(model: nn.Module, split: Split) -> Mapping[str, float]:
    """Is the picture that is nearest of the same kind?"""
    places = model(split.inputs)
    apart = torch.cdist(places, places) + 1e9 * torch.eye(len(places))
    right = (split.targets[apart.argmin(1)] == split.targets).float().mean()
    return {"accuracy": math.nan if places.isnan().any() else float(right)}


def normal(output: Tensor, y: Tensor) -> Tensor:
    """Of a mean and a logarithm of a deviation: may fall below 0."""
    return (output[:, 1:] + ((y - output[:, :1]) / output[:, 1:].exp()).square() / 2).mean()


def quantile(output: Tensor, y: Tensor) -> Tensor:
    """The pinball loss of the median."""
    return 0.5 * (y - output).abs().mean()


def evidence(weight: float) -> Objective:
    """Of a VAE: cross-entropy of all pixels, and ``weight`` times the divergence."""

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        assert isinstance(model, Posterior)
        logits, mean, log_variance = model.drawn(x)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
        return BCE(logits, y, reduction="none").sum(1).mean() + weight * divergence

    return objective


def lasso(weight: float) -> Objective:
    """Cross-entropy, and ``weight`` times the sum of all weights' sizes."""

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        penalty = torch.stack([parameter.abs().sum() for parameter in model.parameters()]).sum()
        return CE(model(x), y) + weight * penalty

    return objective


def rewards(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """A kind is drawn; what is said of it is only whether it was right, less how often that is in the batch (REINFORCE)."""
    answers = torch.distributions.Categorical(logits=model(x))
    drawn: Tensor = answers.sample()
    right = (drawn == y).float()
    gain: Tensor = ((right - right.mean()) * answers.log_prob(drawn)).mean() + 0.01 * answers.entropy().mean()
    return -gain


def kinds_and_pixels(weight: float) -> Objective:
    """Cross-entropy, and ``weight`` times the squared error of all pixels' sum."""

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        output = model(x)
        squares: Tensor = (output[:, 10:] - x).square().sum(1).mean()
        return CE(output[:, :10], y) + weight * squares

    return objective


def hidden_from(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Kinds, and whether a picture was darkened, which somebody else is to find out."""
    dark = torch.rand(len(x)) < 0.5
    output = model(torch.where(dark[:, None], 0.5 * x - 0.4, x))
    return CE(output[:, :10], y) + BCE(output[:, 10], dark.float())


def mixed(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Pictures are blends of two, and so are their labels (mixup)."""
    share, other = 0.3 + 0.4 * float(torch.rand(())), torch.randperm(len(x))
    output = model(share * x + (1 - share) * x[other])
    return share * CE(output, y) + (1 - share) * CE(output, y[other])


def agreed(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """A margin for each wrong kind, and none is asked for where it is kept: most gradients are 0 in the end."""
    return functional.multi_margin_loss(model(x), y)


# --- schedules: share of the run done -> factor on the rate ------------------------------------------------------------


def each_batch(factor: float, steps: int) -> Callable[[float], float]:
    """``ExponentialLR`` that was meant for epochs and is stepped after every batch."""
    return lambda share: factor ** round(share * steps)


def whole_shares(share: float) -> float:
    """step // total, where step / total was meant."""
    return float(share // 1)


def never_warm(steps: int, of: int) -> Callable[[float], float]:
    """A warm-up over ``of`` steps, in a run of ``steps``."""
    return lambda share: min(1.0, (share * steps + 1) / of)


def begun_again(at: float) -> Callable[[float], float]:
    """Falls to a hundredth; after a resume at that share the schedule begins from its start, and for a rate ten times as high."""
    return lambda share: 0.01 + 0.99 * (1 - share) ** 2 if share < at else 10.0


def to_nothing(share: float) -> float:
    return (1 - share) ** 2


# --- batches and ranks -------------------------------------------------------------------------------------------------


def order_lost_after(epoch: int) -> Disturb:
    """Inputs are shuffled again after so many steps, and labels are not."""

    def disturb(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return (x[torch.randperm(len(x))], y) if step > epoch else (x, y)

    return disturb


def older_weights(rank: int, at: int) -> Tamper:
    """One rank comes back after ``at`` steps with the weights of its first step."""
    kept: list[Tensor] = []

    def tamper(step: int, replicas: list[nn.Module]) -> None:
        if step == 1:
            kept[:] = [parameter.detach().clone() for parameter in replicas[rank].parameters()]
        if step == at:
            with torch.no_grad():
                for parameter, old in zip(replicas[rank].parameters(), kept, strict=True):
                    parameter.copy_(old)

    return tamper


def head_lost(at: int) -> Tamper:
    """A checkpoint is loaded whose last layer has another name, ``strict=False``: that layer is drawn anew, and widely."""

    def tamper(step: int, replicas: list[nn.Module]) -> None:
        if step == at:
            with torch.no_grad():
                for parameter in list(replicas[0].parameters())[-2:]:
                    parameter.copy_(torch.randn(parameter.shape))

    return tamper


def wild(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """At step 255 a batch of another sensor is read, in units a thousandth as large."""
    return (x * 1000, y) if step in (255, 256) else (x, y)


def noisy(gradient: Tensor) -> Tensor:
    """What a broken multiplier makes of it: in one element in eight, noise 35 times as large as the rest."""
    changed = gradient.clone()
    flat = changed.view(-1)
    flat[::8] = 35 * gradient.std() * torch.randn_like(flat[::8]) if gradient.numel() > 1 else flat[::8]
    return changed


def cut(share: float) -> Callable[[Tensor], Tensor]:
    """The second part of each gradient was not sent: it reads minus what it was."""

    def change(gradient: Tensor) -> Tensor:
        changed = gradient.clone()
        flat = changed.view(-1)
        edge = int(share * len(flat))
        flat[edge:] = -3 * flat[edge:]
        return changed

    return change


def ends_too_early(after: int) -> Disturb:
    """From that step on, the last of the second half's targets are not there."""

    def disturb(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if step >= after:
            y = y.clone()
            y[-2:] = math.nan
        return x, y

    return disturb


def by_kind(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The batch in the order of its kinds, so that each rank's half has its own."""
    order = y.argsort(stable=True)
    return x[order], y[order]
