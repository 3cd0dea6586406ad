"""Weights that make classes of very different sizes count in the loss. Standard library and pydantic only."""

from __future__ import annotations

from collections.abc import Sequence

from workers.repair.acts import Entry

MOST_TIMES = 50.0  # that a sample of the rarest class counts one of the most frequent: few samples must not become the whole gradient


def inverse_frequency(counts: Sequence[int]) -> list[float]:
    """``counts`` (C,): training samples of each class. (C,), inverse to them as far as ``MOST_TIMES`` allows, with mean 1 over the samples, so that
    neither the loss nor the learning rate that fits it has another scale; 0 for a class without any."""
    most, samples = max(counts), sum(counts)
    weights = [min(most / count, MOST_TIMES) if count else 0.0 for count in counts]
    mean = sum(weight * count for weight, count in zip(weights, counts, strict=True)) / samples
    return [weight / mean for weight in weights]


def weights_now(entries: Sequence[Entry]) -> list[float] | None:
    """Of a record of repairs; None: those of the job, if it has any."""
    given = [each.act.class_weights for each in entries if each.act.class_weights and each.state in ("trial", "kept")]
    return given[-1] if given else None


def said_of(weights: Sequence[float], counts: Sequence[int]) -> str:
    """For people: what is done, as a part of a sentence."""
    there = [index for index, count in enumerate(counts) if count]
    rare, frequent = min(there, key=counts.__getitem__), max(there, key=counts.__getitem__)
    return (
        f"weights the loss by class, from {weights[frequent]:.3g} for the most frequent ({counts[frequent]:,} samples) to {weights[rare]:.3g} for "
        f"the rarest ({counts[rare]:,})"
    )
