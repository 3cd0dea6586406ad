"""Losses, measures and what happens to batches in ``unseen_field``. B samples, T positions, C classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.pitfalls.case import Measure, Objective
from benchmarks.pitfalls.data import Split
from benchmarks.pitfalls.faults import Disturb, Tamper
from benchmarks.pitfalls.unseen.field import Averaged, Compared, Denoiser, Variational

# --- measures ----------------------------------------------------------------------------------------------------------


def shares(model: nn.Module, split: Split) -> Mapping[str, float]:
    """Of answers to yes or no, those on the right side of 0."""
    output = model(split.inputs)
    right = ((output > 0) == (split.targets > 0.5)).float().mean()
    return {"accuracy": math.nan if output.isnan().any() else float(right)}


def recalls(model: nn.Module, split: Split) -> Mapping[str, float]:
    """Accuracy, that of the class which is known worst, and cross-entropy without weights."""
    output = model(split.inputs)
    right = (output.argmax(-1) == split.targets).float()
    of_class = [float(right[split.targets == number].mean()) for number in split.targets.unique()]
    return {
        "accuracy": float(right.mean()),
        "worst_recall": math.nan if output.isnan().any() else min(of_class),
        "loss": float(functional.cross_entropy(output, split.targets)),
    }


def overlap(threshold: float = 0.0) -> Measure:
    """Of masks: intersection over union."""

    def measure(model: nn.Module, split: Split) -> Mapping[str, float]:
        found, truth = model(split.inputs) > threshold, split.targets > 0.5
        return {"overlap": float((found & truth).sum() / (found | truth).sum().clamp(min=1))}

    return measure


def first(model: nn.Module, split: Split) -> Mapping[str, float]:
    """How much of the variance of targets (B, 1) the first column explains."""
    output = model(split.inputs)[:, :1]
    rest = (output - split.targets[:, :1]).square().mean() / split.targets[:, :1].var()
    return {"r2": float(1 - rest)}


def explained(model: nn.Module, split: Split) -> Mapping[str, float]:
    """The same of targets and answers of any equal number of values, whatever their shapes."""
    output, targets = model(split.inputs).flatten(), split.targets.flatten()
    return {"r2": float(1 - (output - targets).square().mean() / targets.var())}


def nearest(model: nn.Module, split: Split) -> Mapping[str, float]:
    """Is the picture that is nearest to each of the same class?"""
    places = functional.normalize(model(split.inputs), dim=1)
    alike = places @ places.T - 9 * torch.eye(len(places))
    right = (split.targets[alike.argmax(1)] == split.targets).float().mean()
    return {"accuracy": math.nan if places.isnan().any() else float(right)}


def kind(model: nn.Module, split: Split) -> Mapping[str, float]:
    """Accuracy of the first ten columns; targets (B,)."""
    return {"accuracy": float((model(split.inputs)[:, :10].argmax(1) == split.targets).float().mean())}


def with_loss(objective: Objective, *measures: Measure) -> Measure:
    """Measures, and the objective on validation, with draws that are the same each time."""

    def measure(model: nn.Module, split: Split) -> Mapping[str, float]:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            found = {"loss": float(objective(model, split.inputs, split.targets))}
        for each in measures:
            found |= each(model, split)
        return found

    return measure


def guessed(model: nn.Module, split: Split) -> Mapping[str, float]:
    """How much of the variance of hidden pixels is known from the others."""
    hidden = torch.rand(split.inputs.shape, generator=torch.Generator().manual_seed(3)) < 0.6
    rest = (model(split.inputs.masked_fill(hidden, 0.0)) - split.targets).square()[hidden].mean()
    return {"r2": float(1 - rest / split.targets.var())}


def both_sides(model: nn.Module, split: Split) -> Mapping[str, float]:
    """Of answers to yes or no: accuracy, and the lower one of the shares that are found of either side."""
    output, truth = model(split.inputs), split.targets > 0.5
    right = ((output > 0) == truth).float()
    worst = min(float(right[truth].mean()), float(right[~truth].mean()))
    return {
        "accuracy": float(right.mean()),
        "worst_recall": math.nan if output.isnan().any() else worst,
        "loss": float(functional.binary_cross_entropy_with_logits(output, split.targets)),
    }


# --- losses ------------------------------------------------------------------------------------------------------------


def normal(output: Tensor, y: Tensor, spread: Callable[[Tensor], Tensor]) -> Tensor:
    """Of a mean and a deviation, which ``spread`` makes from the second column; without its constant."""
    mean, deviation = output[:, :1], spread(output[:, 1:])
    return (deviation.log() + ((y - mean) / deviation).square() / 2).mean()


def positive(x: Tensor) -> Tensor:
    return functional.softplus(x) + 1e-3


def logarithms(output: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of probabilities, written by hand."""
    return -(y * output.log() + (1 - y) * (1 - output).log()).mean()


def picked(output: Tensor, y: Tensor) -> Tensor:
    """NLLLoss, which asks for logarithms of probabilities."""
    return functional.nll_loss(output.flatten(0, -2), y.flatten())


def against_row(output: Tensor, y: Tensor) -> Tensor:
    """Squared differences of (B, 1) and (B,), which PyTorch makes a table of B x B of."""
    return (output - y).square().mean()


def row_by_row(output: Tensor, y: Tensor) -> Tensor:
    """What was meant."""
    return functional.mse_loss(output[:, 0], y)


def of_the_named(least: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy of those whose label is not -1, over how many they are, or over ``least`` if that is more."""

    def loss(output: Tensor, y: Tensor) -> Tensor:
        named = (y >= 0).float()
        each = functional.cross_entropy(output, y.clamp(min=0), reduction="none")
        return (each * named).sum() / named.sum().clamp(min=least)

    return loss


def thousandth(output: Tensor, y: Tensor) -> Tensor:
    """A squared error that was given a small weight, when there still was another loss beside it."""
    return 1e-3 * functional.mse_loss(output, y)


def spots_count_twice(output: Tensor, y: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(output, y, pos_weight=torch.tensor(2.0))


def dice(output: Tensor, y: Tensor) -> Tensor:
    """One minus twice what is in both, over what is in either."""
    found = output.sigmoid()
    both, either = (found * y).sum((1, 2, 3)), (found + y).sum((1, 2, 3))
    return (1 - (2 * both + 1) / (either + 1)).mean()


def evidence(weight: float, rise: int = 0) -> Objective:
    """Of a VAE: cross-entropy of every pixel, and ``weight`` times the divergence, which may be reached after ``rise`` passes."""

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        assert isinstance(model, Variational)
        logits, mean, log_variance = model.drawn(x)
        share = min(1.0, model.passes / rise) if rise else 1.0
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
        pixels = functional.binary_cross_entropy_with_logits(logits, y, reduction="none").sum(1).mean()
        return pixels + share * weight * divergence

    return objective


def noise_found(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The mean squared error of a guess at the noise, at levels drawn evenly (Ho et al. 2020)."""
    assert isinstance(model, Denoiser)
    level = torch.rand(len(x), 1)
    noise, angle = torch.randn_like(x), level * math.pi / 2
    return functional.mse_loss(model(angle.cos() * x + angle.sin() * noise, level), noise)


def cleaned(model: nn.Module, split: Split) -> Mapping[str, float]:
    """How much of the noise at half the level is found."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        noise = torch.randn_like(split.inputs)
    x = (split.inputs + noise) / math.sqrt(2)
    return {"r2": float(1 - (model(x, torch.full((len(x), 1), 0.5)) - noise).square().mean())}


def viewed(x: Tensor) -> Tensor:
    """Another view of pictures (B, 196): shifted by a pixel, darker or brighter, with noise and a square missing."""
    pictures = x.reshape(-1, 14, 14)
    shift = torch.randint(-1, 2, (2,))
    pictures = pictures.roll((int(shift[0]), int(shift[1])), (1, 2)) * (0.8 + 0.4 * torch.rand(len(x), 1, 1))
    kept = torch.ones_like(pictures)
    top, left = (int(place) for place in torch.randint(0, 10, (2,)))
    kept[:, top : top + 4, left : left + 4] = 0
    return (pictures * kept + 0.3 * torch.randn_like(pictures)).flatten(1)


def views(temperature: float) -> Objective:
    """Each view is to be nearest to the other of the same picture (SimCLR)."""

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        both = torch.cat([model(viewed(x)), model(viewed(x))])
        alike = both @ both.T / temperature - 1e4 * torch.eye(len(both))
        return functional.cross_entropy(alike, torch.arange(len(both)).roll(len(x)))

    return objective


def predicted(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Minus the cosine of one view's prediction and the other view, which is held still (SimSiam)."""
    assert isinstance(model, Compared)
    assert model.predictor is not None
    one, other = model.body(viewed(x)), model.body(viewed(x))
    found = [(model.predictor(one), other), (model.predictor(other), one)]
    return -torch.stack([functional.cosine_similarity(guess, truth.detach()).mean() for guess, truth in found]).mean()


def pairwise(margin: float | None) -> Objective:
    """Pictures beside each other in the batch: equal ones together, others apart, by ``margin`` or without an end."""

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        places = model(x)
        apart, same = (places - places.roll(1, 0)).square().sum(1), y == y.roll(1, 0)
        pushed = -apart if margin is None else (margin - (apart + 1e-6).sqrt()).clamp(min=0).square()
        return torch.where(same, 3 * apart, pushed).mean()

    return objective


def triplets(tiny: float) -> Objective:
    """Pictures of a class are to be nearer than others are in the mean, by 1; a distance is the root of squares and ``tiny``."""

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        places = model(x)
        apart = ((places[:, None] - places[None]).square().sum(2) + tiny).sqrt()
        same = y[:, None] == y
        own = torch.where(same, apart, 0.0).sum(1) / same.sum(1)
        other = torch.where(same, 0.0, apart).sum(1) / (~same).sum(1)
        return (own - other + 1).clamp(min=0).mean()

    return objective


def softened(teacher: Callable[[Tensor], Tensor], temperature: float = 4.0) -> Objective:
    """A pupil is to answer as a teacher does, as softly as ``temperature`` makes it."""

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            told = (teacher(x) / temperature).softmax(1)
        own = (model(x) / temperature).log_softmax(1)
        return temperature**2 * functional.kl_div(own, told, reduction="batchmean")

    return objective


def both_answers(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Class, and brightness in units of its own."""
    output = model(x)
    return functional.cross_entropy(output[:, :10], y) + functional.mse_loss(output[:, 10], x.mean(1) * 3)


def taught(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Few have a label, which is not -1; all are to be answered as the running mean answers another view (Tarvainen & Valpola)."""
    assert isinstance(model, Averaged)
    known = y >= 0
    output = model(viewed(x))
    named = functional.cross_entropy(output[known], y[known]) if known.any() else output.sum() * 0
    with torch.no_grad():
        told = model.mean(x).softmax(1)
    agreed = (output.softmax(1) - told).square().sum(1).mean()
    return named + 0.5 * agreed if model.training else named


def filled_in(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Six in ten pixels are hidden; only they count (masked autoencoder)."""
    hidden = torch.rand_like(x) < 0.6
    return functional.mse_loss(model(x.masked_fill(hidden, 0.0))[hidden], y[hidden])


# --- batches, ranks and weights ----------------------------------------------------------------------------------------


def in_bytes(first: int, last: int, factor: float) -> Disturb:
    """From step ``first`` to ``last`` pictures come in units of 0 to 255."""

    def disturb(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return (x * factor, y) if first <= step <= last else (x, y)

    return disturb


def torn(at: int) -> Disturb:
    """One picture of that step's batch comes from a file that ends too early: half of it is not a number."""

    def disturb(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if step == at:
            x = x.clone()
            x[3, :, 7:] = math.nan
        return x, y

    return disturb


def other_letters(first: int, last: int, letters: int) -> Disturb:
    """A part of the texts that was encoded by another table: all letters are others."""

    def disturb(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return ((x * 7 + 3) % letters, (y * 11 + 5) % letters) if first <= step <= last else (x, y)

    return disturb


def sharper(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """A curriculum: pictures are blurred at first, and ever less for 100 steps."""
    share = max(0.0, 1 - step / 100)
    return (1 - share) * x + share * functional.avg_pool2d(x, 5, 1, 2), y


def longer(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """A curriculum: texts of 8 letters at first, and of all in the end."""
    length = min(x.shape[1], 8 + step // 10 * 2)
    return x[:, :length], y[:, :length]


def erased(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Now and then a text of the batch is empty, nothing but padding."""
    if step % 9 == 0:
        x = x.clone()
        x[0] = 0
    return x, y


def turned(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures of both halves are mirrored at random."""
    mirrored = (torch.rand(len(x)) < 0.5)[:, None, None, None]
    return torch.where(mirrored, x.flip(3), x), y


def held_within(bound: float, first: int = 1) -> Tamper:
    """No gradient has a value beyond ``bound``."""

    def tamper(step: int, replicas: list[nn.Module]) -> None:
        for parameter in (p for model in replicas for p in model.parameters() if p.grad is not None):
            assert parameter.grad is not None
            parameter.grad.clamp_(-bound, bound)

    return tamper


def own_starts(step: int, replicas: list[nn.Module]) -> None:
    """Each rank but the first has drawn weights of its own, because nobody sent it the first one's."""
    if step == 1:
        with torch.no_grad():
            for rank, model in enumerate(replicas[1:], 1):
                generator = torch.Generator().manual_seed(rank)
                for parameter in model.parameters():
                    drawn = torch.randn(parameter.shape, generator=generator)
                    parameter.copy_(drawn * parameter.std() if parameter.numel() > 1 else drawn)


smoothed = partial(functional.cross_entropy, label_smoothing=0.2)
