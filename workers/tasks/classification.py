"""What tasks that sort samples into classes have in common: the weighted loss, and metrics of a whole set.

The tests hold the metrics to be torchmetrics' own. Its functions are not called here: importing it takes 3.5 s of a processor, which the first
evaluation of every job would pay, and loads pyplot, scipy.signal and transformers for three short formulas.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from workers.kinds.classes import ClassWeights
from workers.sources.problems import BadDataError


def weights_of(wanted: ClassWeights | None, labels: NDArray[np.int64], classes: int) -> Tensor | None:
    """(classes,) float32. Balanced: samples / (classes * samples of the class); 0 for a class without any."""
    if wanted is None:
        return None
    if wanted == "balanced":
        counts = np.bincount(labels, minlength=classes)
        weights = np.divide(len(labels) / classes, counts, out=np.zeros(classes), where=counts > 0)
        return torch.from_numpy(weights.astype(np.float32))
    if len(wanted) != classes:
        raise BadDataError("task.class_weights", f"there are {len(wanted)} weights for {classes} classes")
    return torch.tensor(wanted, dtype=torch.float32)


class WeighedByClass:
    """What ``tasks.base.Weighing`` asks for. ``_weights``: of the loss now."""

    _weights: Tensor | None = None
    _counts: list[int] | None = None

    def _begin_weighing(self, wanted: ClassWeights | None, labels: NDArray[np.int64], classes: int) -> None:
        """``wanted``: by the job. Raises BadDataError."""
        self._weights = weights_of(wanted, labels, classes)
        self._counts = np.bincount(labels, minlength=classes).tolist() if wanted is None else None

    def class_counts(self) -> Sequence[int] | None:
        return self._counts

    def weigh(self, weights: Sequence[float] | None) -> None:
        if self._counts is not None:
            self._weights = torch.tensor(weights, dtype=torch.float32) if weights is not None else None


def weighted_loss(logits: Tensor, labels: Tensor, weights: Tensor | None, smoothing: float) -> tuple[Tensor, Tensor]:
    """Of each sample: (loss, how much it counts), both (B,)."""
    losses = functional.cross_entropy(logits, labels, weight=weights, reduction="none", label_smoothing=smoothing)
    return losses, torch.ones_like(losses) if weights is None else weights[labels]


# --- evaluation -------------------------------------------------------------------------------------------------------


def answers(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Of each sample. The loss is the plain cross-entropy, whatever the training weighs and smooths."""
    logits = logits.float()
    return {
        "losses": functional.cross_entropy(logits, labels, reduction="none"),
        "probabilities": logits.softmax(1),
        "labels": labels,
    }


def sums(answers: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    labels, losses = answers["labels"], answers["losses"]
    count = torch.tensor(len(labels), device=labels.device)
    right = answers["probabilities"].argmax(1) == labels
    return {"loss": (losses.sum(), count), "accuracy": (right.sum(), count)}


def measure(answers: Mapping[str, Tensor]) -> dict[str, float]:
    """``auroc`` and ``f1``. Two classes: of class 1. More: the mean over the classes that occur, each against all others.

    NaN where it has no meaning: every sample of one class, or probabilities that are no numbers.
    """
    probabilities, labels = answers["probabilities"], answers["labels"]
    if not probabilities.isfinite().all():
        return {"auroc": math.nan, "f1": math.nan}
    return {"auroc": auroc(probabilities, labels), "f1": f1_score(confusion_matrix(answers))}


def confusion_matrix(answers: Mapping[str, Tensor]) -> NDArray[np.int64]:
    """(classes, classes): rows are true classes, columns predicted ones."""
    probabilities, labels = answers["probabilities"], answers["labels"]
    classes = probabilities.shape[1]
    pairs = labels * classes + probabilities.argmax(1)
    counts: NDArray[np.int64] = pairs.bincount(minlength=classes * classes).numpy().reshape(classes, classes)
    return counts


def f1_score(counts: NDArray[np.int64]) -> float:
    """Of a confusion matrix: 2 TP / (2 TP + FP + FN). Classes that neither occur nor are predicted have none."""
    right, asked = counts.diagonal(), counts.sum(axis=0) + counts.sum(axis=1)
    if len(counts) == 2:
        return float(2 * right[1] / asked[1]) if asked[1] else 0.0
    return float((2 * right[asked > 0] / asked[asked > 0]).mean())


def auroc(probabilities: Tensor, labels: Tensor) -> float:
    """``probabilities`` (N, classes), ``labels`` (N,)."""
    counts = labels.bincount(minlength=probabilities.shape[1])
    occurring = ((counts > 0) & (counts < len(labels))).nonzero().flatten().tolist()
    occurring = occurring[-1:] if probabilities.shape[1] == 2 else occurring
    areas = [_area(probabilities[:, label], labels == label) for label in occurring]
    return sum(areas) / len(areas) if areas else math.nan


def _area(scores: Tensor, positive: Tensor) -> float:
    """The chance that a positive sample scores higher than a negative one, ties counting half: from the sum of ranks (Hanley and McNeil 1982)."""
    _, places, counts = scores.unique(return_inverse=True, return_counts=True)
    mean_ranks = counts.cumsum(0) - (counts - 1) / 2.0
    positives, negatives = int(positive.sum()), int((~positive).sum())
    ranks = float(mean_ranks.double()[places[positive]].sum())
    return (ranks - positives * (positives + 1) / 2) / (positives * negatives)
