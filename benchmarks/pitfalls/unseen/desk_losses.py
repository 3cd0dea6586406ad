"""Losses, measures, and what happens to batches and ranks in ``unseen_desk``. B samples, T positions, C classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.pitfalls.case import Objective
from benchmarks.pitfalls.data import Pair, Split
from benchmarks.pitfalls.faults import Disturb, Tamper
from benchmarks.pitfalls.unseen.desk import Coded, Halves, Weighed
from benchmarks.pitfalls.unseen.field_losses import viewed

# --- measures ----------------------------------------------------------------------------------------------------------


def answers(model: nn.Module, split: Split) -> Mapping[str, float]:
    """Of many answers to yes or no (B, K), those on the right side of 0, and how much that is more than always the same."""
    right = ((model(split.inputs) > 0) == (split.targets > 0.5)).float().mean()
    return {"accuracy": float(right)}


def probabilities(model: nn.Module, split: Split) -> Mapping[str, float]:
    """The same of probabilities."""
    return {"accuracy": float(((model(split.inputs) > 0.5) == (split.targets > 0.5)).float().mean())}


def right_half(model: nn.Module, split: Split) -> Mapping[str, float]:
    """Among 50 lower halves, is the one that is nearest to an upper half its own?"""
    found = []
    for batch in range(0, len(split) - 49, 50):
        upper, lower = model(split.inputs[batch : batch + 50]).unbind(1)
        found.append(((upper @ lower.T).argmax(1) == torch.arange(50)).float().mean())
    return {"accuracy": float(torch.stack(found).mean())}


def letters_found(model: nn.Module, split: Split) -> Mapping[str, float]:
    """Of every seventh letter, which is hidden, how many are known."""
    hidden = torch.zeros_like(split.inputs, dtype=torch.bool)
    hidden[:, 3::7] = True
    output = model(split.inputs.masked_fill(hidden, 0))
    return {"accuracy": float((output.argmax(2) == split.targets)[hidden].float().mean())}


def first_kinds(model: nn.Module, split: Split) -> Mapping[str, float]:
    """Accuracy and cross-entropy of the first ten columns."""
    output = model(split.inputs)[:, :10].float()
    right = float((output.argmax(1) == split.targets).float().mean())
    return {"accuracy": right, "loss": float(functional.cross_entropy(output, split.targets))}


# --- losses ------------------------------------------------------------------------------------------------------------


def divided_again(output: Tensor, y: Tensor) -> Tensor:
    """A mean over the batch, which is divided by how many it is of once more."""
    return functional.cross_entropy(output, y) / len(y)


def of_logarithms(output: Tensor, y: Tensor) -> Tensor:
    return functional.nll_loss(output, y)


def thousandth(output: Tensor, y: Tensor) -> Tensor:
    return 1e-3 * functional.cross_entropy(output, y)


def times(factor: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda output, y: factor * functional.cross_entropy(output, y)


def surprise(factor: float) -> Objective:
    """Cross-entropy less ``factor`` times the entropy of what is answered."""

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        output = model(x)
        known = output.log_softmax(1)
        return functional.cross_entropy(output, y) + factor * (known.exp() * known).sum(1).mean()  # type: ignore[no-any-return]

    return objective


def price_of_codes(price: float) -> Objective:
    """Squared errors, and a price on the mean of all codes."""

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        assert isinstance(model, Coded)
        codes = model.encoder(x)
        return functional.mse_loss(model.decoder(codes), y) + price * codes.mean()  # type: ignore[no-any-return]

    return objective


def exponentials(temperature: float) -> Objective:
    """Each view is to be nearest to the other of the same picture: a softmax by exp and a sum, as its formula has it."""

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        both = torch.cat([model(viewed(x)), model(viewed(x))])
        alike = (both @ both.T / temperature).exp() * (1 - torch.eye(len(both)))
        own = alike[torch.arange(len(both)), torch.arange(len(both)).roll(len(x))]
        return -(own / alike.sum(1)).log().mean()

    return objective


def halves_matched(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Which lower half belongs to which upper one, and the other way round (CLIP)."""
    return _halves(model, x, torch.arange(len(x)))


def halves_of_the_first(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The same with labels of a loss that has the right one at place 0."""
    return _halves(model, x, torch.zeros(len(x), dtype=torch.long))


def _halves(model: nn.Module, x: Tensor, right: Tensor) -> Tensor:
    assert isinstance(model, Halves)
    upper, lower = model(x).unbind(1)
    alike = model.sharpness.exp() * upper @ lower.T
    return (functional.cross_entropy(alike, right) + functional.cross_entropy(alike.T, right)) / 2


def triplets(swapped: bool) -> Objective:
    """Pictures of a class are to be nearer than others by 1; or, with two arguments swapped, farther."""

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        places = model(x)
        apart = ((places[:, None] - places[None]).square().sum(2) + 1e-6).sqrt()
        same = y[:, None] == y
        own = torch.where(same, apart, 0.0).sum(1) / same.sum(1)
        other = torch.where(same, 0.0, apart).sum(1) / (~same).sum(1)
        return ((other - own if swapped else own - other) + 1).clamp(min=0).mean()

    return objective


def scaled_backwards(power: int) -> Objective:
    """Cross-entropy whose gradients are 2 ** ``power`` times as large on their way back, against underflow."""

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        output = model(x)
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient * 2.0**power)
        return functional.cross_entropy(output.float(), y)

    return objective


def both_weighed(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Kind and brightness, each divided by a doubt about it, whose logarithm is paid: may fall below 0."""
    assert isinstance(model, Weighed)
    output = model(x)
    parts = torch.stack(
        [functional.cross_entropy(output[:, :10], y), functional.mse_loss(output[:, 10], x.mean(1) * 3)]
    )
    return (parts * (-model.doubts).exp() + model.doubts / 2).sum()


def letters_hidden(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """One letter in six is hidden; only they count (BERT)."""
    hidden = torch.rand(x.shape) < 1 / 6
    return functional.cross_entropy(model(x.masked_fill(hidden, 0))[hidden], y[hidden])


def attacked(strength: float) -> Objective:
    """Pictures are first changed by ``strength`` towards what the model gets wrong (Goodfellow et al. 2015)."""

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return functional.cross_entropy(model(x), y)
        changed = x.clone().requires_grad_()
        slope = torch.autograd.grad(functional.cross_entropy(model(changed), y), changed)[0]
        return functional.cross_entropy(model(x + strength * slope.sign()), y)

    return objective


def over_all_answers(output: Tensor, y: Tensor) -> Tensor:
    """A mean over the batch, divided by the number of all answers once more."""
    return functional.binary_cross_entropy_with_logits(output.float(), y) / 40_000


def density(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Minus the logarithm of a density, per feature."""
    return -model(x).mean() / x.shape[1]  # type: ignore[no-any-return]


# --- batches -----------------------------------------------------------------------------------------------------------


def in_order(pair: Callable[[], Pair], batch: int) -> Disturb:
    """Batches come in the order of the classes, as files lie in folders: nobody shuffles."""

    @cache
    def ordered() -> Split:
        train = pair().train
        return train.at(train.targets.argsort(stable=True))

    def disturb(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        part = ordered().at(torch.arange((step - 1) * batch, step * batch) % len(ordered()))
        return part.inputs, part.targets

    return disturb


def odd_target(step_of: int, value: float) -> Disturb:
    """One target of that step's batch is ``value``."""

    def disturb(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if step == step_of:
            y = y.clone()
            y[3] = value
        return x, y

    return disturb


def first_kinds_first(until: int, kinds: int) -> Disturb:
    """Until that step a batch has only the first kinds of clothes."""

    def disturb(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if step > until:
            return x, y
        rows = torch.nonzero(y < kinds).flatten()
        rows = rows[torch.arange(len(x)) % len(rows)]
        return x[rows], y[rows]

    return disturb


def in_turn(pair: Callable[[], Pair], edge: int) -> Disturb:
    """Every other batch is of the kinds below ``edge``, those between of the others."""

    @cache
    def kinds(first: bool) -> Split:
        train = pair().train
        return train.at(torch.nonzero((train.targets < edge) == first).flatten())

    def disturb(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        own = kinds(step % 2 == 0)
        part = own.at(torch.randint(0, len(own), (len(x),)))
        return part.inputs, part.targets

    return disturb


# --- gradients and ranks -----------------------------------------------------------------------------------------------


def unscaled(power: int) -> Tamper:
    """Gradients divided by 2 ** ``power`` again."""

    def tamper(step: int, replicas: list[nn.Module]) -> None:
        for parameter in (p for model in replicas for p in model.parameters() if p.grad is not None):
            assert parameter.grad is not None
            parameter.grad.mul_(2.0**-power)

    return tamper


def noise_that_fades(spread: float) -> Tamper:
    """Noise on all gradients, ever less of it (Neelakantan et al. 2015)."""

    def tamper(step: int, replicas: list[nn.Module]) -> None:
        for parameter in (p for model in replicas for p in model.parameters() if p.grad is not None):
            assert parameter.grad is not None
            parameter.grad.add_(torch.randn_like(parameter.grad), alpha=spread / (1 + step) ** 0.55)

    return tamper


class OwnRate:
    """One rank's steps are ``factor`` times as large as the others'."""

    def __init__(self, rank: int, factor: float) -> None:
        self.rank, self.factor = rank, factor
        self.before: list[Tensor] = []

    def __call__(self, step: int, replicas: list[nn.Module]) -> None:
        parameters = list(replicas[self.rank].parameters())
        with torch.no_grad():
            if step > 1:
                for parameter, before in zip(parameters, self.before, strict=True):
                    parameter.copy_(torch.lerp(before, parameter, self.factor))
        self.before = [parameter.detach().clone() for parameter in parameters]


def stuck_words(gradient: Tensor) -> Tensor:
    """One element in 97 reads 20, as from a chip whose memory is worn."""
    changed = gradient.clone()
    changed.view(-1)[::97] = 20.0
    return changed
