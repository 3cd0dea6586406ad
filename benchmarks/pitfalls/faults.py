"""Faults that a batch, a rank or a loss can have, and schedules, sick and sound."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

Disturb = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]
Tamper = Callable[[int, list[nn.Module]], None]


# --- batches -----------------------------------------------------------------------------------------------------------


def window(first: int, last: int, inputs: float = 1.0, shuffled: bool = False) -> Disturb:
    """From step ``first`` to ``last`` inputs are multiplied, or labels do not belong to them."""

    def disturb(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if not first <= step <= last:
            return x, y
        return x * inputs, y[torch.randperm(len(y))] if shuffled else y

    return disturb


def part_of_a_rank(rank: int, ranks: int, first: int, change: Disturb) -> Disturb:
    """What ``change`` does to the part of the batch of one rank, from step ``first`` on."""

    def disturb(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if step < first:
            return x, y
        xs, ys = list(x.chunk(ranks)), list(y.chunk(ranks))
        xs[rank], ys[rank] = change(step, xs[rank], ys[rank])
        return torch.cat(xs), torch.cat(ys)

    return disturb


# --- ranks -------------------------------------------------------------------------------------------------------------


def gradients_of(rank: int, first: int, change: Callable[[Tensor], Tensor], every: int = 1) -> Tamper:
    """One rank's own gradients changed, from step ``first`` on, at every ``every``-th step."""

    def tamper(step: int, replicas: list[nn.Module]) -> None:
        if step >= first and (step - first) % every == 0:
            for parameter in replicas[rank].parameters():
                if parameter.grad is not None:
                    parameter.grad = change(parameter.grad)

    return tamper


def weights_of(rank: int, steps: Sequence[int], change: Callable[[Tensor], Tensor]) -> Tamper:
    """One rank's weights changed at these steps."""

    def tamper(step: int, replicas: list[nn.Module]) -> None:
        if step in steps:
            with torch.no_grad():
                for parameter in replicas[rank].parameters():
                    parameter.copy_(change(parameter))

    return tamper


def flipped_bit(values: Tensor, bit: int = 28) -> Tensor:
    """One element (the first) with a bit of its exponent flipped, as a broken memory cell does."""
    changed = values.clone()
    bits = changed.view(-1)[:1].view(torch.int32)
    bits ^= 1 << bit
    return changed


# --- losses ------------------------------------------------------------------------------------------------------------


def cross_entropy(output: Tensor, targets: Tensor) -> Tensor:
    """Over (B, C), or over (B, T, C) at every position."""
    return functional.cross_entropy(output.flatten(0, -2), targets.flatten())


def summed(output: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(output, targets, reduction="sum")


def against(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Wrong sign: climbs where it should descend."""
    return lambda output, targets: -loss(output, targets)


def gaussian(output: Tensor, targets: Tensor) -> Tensor:
    """Negative log likelihood, without its constant, of a mean and a log variance; (B, 2) against (B, 1). May fall below 0."""
    mean, log_variance = output[:, :1], output[:, 1:]
    return (0.5 * (log_variance + (targets - mean).square() / log_variance.exp())).mean()


# --- schedules: share of the run done -> factor on the rate ------------------------------------------------------------


def cosine(share: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * share))


def warmup(part: float) -> Callable[[float], float]:
    return lambda share: min(1.0, (share + 1e-3) / part)


def warmup_cosine(part: float) -> Callable[[float], float]:
    return lambda share: warmup(part)(share) * cosine(share)


def restarts(times: int) -> Callable[[float], float]:
    return lambda share: cosine(share * times % 1.0)


def stepping(at: float, factor: float) -> Callable[[float], float]:
    """Multiplied by ``factor`` from that share on."""
    return lambda share: factor if share >= at else 1.0


def burst(first: float, last: float, factor: float) -> Callable[[float], float]:
    return lambda share: factor if first <= share < last else 1.0
