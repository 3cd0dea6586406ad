"""What tasks that sort samples into classes have in common: the weighted loss, and metrics of a whole set, by torchmetrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

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
    from torchmetrics.functional.classification import binary_f1_score, multiclass_f1_score

    probabilities, labels = answers["probabilities"], answers["labels"]
    if not probabilities.isfinite().all():
        return {"auroc": math.nan, "f1": math.nan}
    classes, predicted = probabilities.shape[1], probabilities.argmax(1)
    if classes == 2:
        f1 = binary_f1_score(predicted, labels, validate_args=False)
    else:
        f1 = multiclass_f1_score(predicted, labels, classes, average="macro", validate_args=False)
    return {"auroc": _auroc(probabilities, labels), "f1": float(f1)}


def _auroc(probabilities: Tensor, labels: Tensor) -> float:
    from torchmetrics.functional.classification import binary_auroc

    counts = labels.bincount(minlength=probabilities.shape[1])
    occurring = ((counts > 0) & (counts < len(labels))).nonzero().flatten().tolist()
    occurring = occurring[-1:] if probabilities.shape[1] == 2 else occurring
    areas = [binary_auroc(probabilities[:, c], (labels == c).long(), validate_args=False) for c in occurring]
    return float(torch.stack(areas).mean()) if areas else math.nan


def confusion_matrix(answers: Mapping[str, Tensor]) -> NDArray[np.int64]:
    """(classes, classes): rows are true classes, columns predicted ones."""
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    probabilities = answers["probabilities"]
    found: Any = multiclass_confusion_matrix(
        probabilities.argmax(1), answers["labels"], probabilities.shape[1], validate_args=False
    )
    matrix: NDArray[np.int64] = found.numpy()
    return matrix
