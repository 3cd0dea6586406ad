"""Rows of numbers into a class or a number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from workers import flops
from workers.kinds.tables import BreastCancerData, TabularTask
from workers.models import builtin
from workers.sources import tables
from workers.sources.problems import BadDataError
from workers.tasks import classification, illustrations
from workers.tasks.base import Batch, Datasets, ModelFacts


class Tabular(classification.WeighedByClass):
    def __init__(self, spec: TabularTask, *, seed: int) -> None:
        self._spec = spec
        self._facts: ModelFacts | None = None
        self._seen: Mapping[str, Tensor] | None = None  # answers of the newest evaluation

    def datasets(self) -> Datasets:
        data = self._spec.data
        found = (
            tables.read_breast_cancer(data)
            if isinstance(data, BreastCancerData)
            else tables.read_table(data, self._spec.objective)
        )
        mean, deviation = _statistics(found.train.features)
        preprocessing: dict[str, Any] = {"features": list(found.feature_names), "mean": mean, "deviation": deviation}
        if found.categories:
            preprocessing["categories"] = {name: list(values) for name, values in found.categories.items()}
        if not found.class_names:
            target_mean, target_deviation = _statistics(found.train.targets[:, np.newaxis])
            preprocessing |= {"target_mean": target_mean[0], "target_deviation": target_deviation[0]}
        else:
            classes = len(found.class_names)
            self._begin_weighing(self._spec.class_weights, found.train.targets, classes)
        self._facts = ModelFacts((len(found.feature_names),), found.class_names, preprocessing)
        return Datasets(TableRows(found.train, self._facts), TableRows(found.evaluation, self._facts))

    def model(self) -> nn.Module:
        return build_model(self._spec, self.facts())

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        outputs, targets = model(batch["features"]).float(), batch["targets"]
        if self._spec.objective == "classification":
            weights = self._weights.to(outputs.device) if self._weights is not None else None
            losses, counts = classification.weighted_loss(outputs, targets, weights, 0.0)
            return losses.sum(), counts.sum()
        losses = functional.mse_loss(outputs.squeeze(1), targets, reduction="none")
        return losses.sum(), torch.tensor(len(targets), device=targets.device)

    def flops_per_sample(self, model: nn.Module) -> float:
        return flops.of_passes(model, inputs_of(self.facts()))

    def evaluate(self, model: nn.Module, batch: Batch) -> Mapping[str, tuple[Tensor, Tensor]]:
        return self.sums(self.answers(model, batch))

    def answers(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        outputs, targets = model(batch["features"]).float(), batch["targets"]
        if self._spec.objective == "classification":
            return classification.answers(outputs, targets)
        return {"errors": outputs.squeeze(1) - targets, "targets": targets}

    def sums(self, answers: Mapping[str, Tensor]) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Regression: ``mse`` and ``mae`` are in the target's own unit, ``loss`` in its standard deviations."""
        if self._spec.objective == "classification":
            return classification.sums(answers)
        errors = answers["errors"].double()
        count = torch.tensor(len(errors), device=errors.device)
        unit: Any = self.facts().preprocessing["target_deviation"]
        return {
            "loss": (errors.square().sum(), count),
            "mse": ((errors * unit).square().sum(), count),
            "mae": ((errors * unit).abs().sum(), count),
        }

    def measure(self, answers: Mapping[str, Tensor]) -> Mapping[str, float]:
        self._seen = answers
        if self._spec.objective == "classification":
            return classification.measure(answers)
        return {"r2": r2_score(answers["errors"].double(), answers["targets"].double())}

    def illustrate(self, model: nn.Module, device: torch.device) -> Mapping[str, bytes]:
        """From the answers of the newest evaluation, so that the model need not run again. Nothing before the first one."""
        names = self.facts().class_names
        if self._seen is None or not 0 < len(names) <= illustrations.LARGEST_MATRIX:
            return {}
        counts = classification.confusion_matrix(self._seen)
        return {"confusion_matrix.png": illustrations.confusion_picture(counts, names)}

    def facts(self) -> ModelFacts:
        assert self._facts is not None, "datasets() comes first"
        return self._facts


def r2_score(errors: Tensor, targets: Tensor) -> float:
    """1 - unexplained / whole variance; NaN where the targets do not vary."""
    whole = (targets - targets.mean()).square().sum().item()
    return 1 - errors.square().sum().item() / whole if whole > 0 else math.nan


def _statistics(values: NDArray[Any]) -> tuple[list[float], list[float]]:
    there = ~np.isnan(values) if values.dtype.kind == "f" and np.isnan(values).any() else True  # missing: not counted
    mean, deviation = (
        values.mean(axis=0, dtype=np.float64, where=there),
        values.std(axis=0, dtype=np.float64, where=there),
    )
    return mean.tolist(), np.where(deviation > 1e-12, deviation, 1.0).tolist()


def standardised(features: NDArray[Any], facts: ModelFacts) -> Tensor:
    """(N, F) -> (N, inputs): numbers by mean and deviation, a missing one as the mean; then the one-hot of each category.

    A first layer on a one-hot vector is an embedding of the category. Its last place stands for whatever was not seen in training.
    """
    preprocessing: Any = facts.preprocessing
    values = (np.asarray(features, dtype=np.float64) - preprocessing["mean"]) / preprocessing["deviation"]
    categories = preprocessing.get("categories", {})
    kinds = [name in categories for name in preprocessing["features"]]
    parts = [np.nan_to_num(values[:, ~np.array(kinds)], nan=0.0)] if categories else [np.nan_to_num(values, nan=0.0)]
    for place, name in enumerate(preprocessing["features"]):
        if name in categories:
            parts.append(np.eye(len(categories[name]) + 1)[np.asarray(features)[:, place].astype(np.int64)])
    return torch.from_numpy(np.concatenate(parts, axis=1).astype(np.float32))


def inputs_of(facts: ModelFacts) -> int:
    """How wide ``standardised`` makes a row."""
    categories: Any = facts.preprocessing.get("categories", {})
    return facts.input_shape[0] + sum(len(values) for values in categories.values())


class TableRows:
    def __init__(self, rows: tables.Rows, facts: ModelFacts) -> None:
        self._features = standardised(rows.features, facts)
        preprocessing: Any = facts.preprocessing
        targets = rows.targets
        if not facts.class_names:
            targets = (targets - preprocessing["target_mean"]) / preprocessing["target_deviation"]
            targets = targets.astype(np.float32)
        self._targets = torch.from_numpy(targets)

    def __len__(self) -> int:
        return len(self._targets)

    def batch(self, indices: Sequence[int], *, seed: int) -> Batch:
        rows = torch.as_tensor(indices, dtype=torch.int64)
        return {"features": self._features[rows], "targets": self._targets[rows]}


# --- the model, also without its data ---------------------------------------------------------------------------------


def build_model(spec: TabularTask, facts: ModelFacts) -> nn.Module:
    return builtin.mlp(spec.model, inputs_of(facts), len(facts.class_names) or 1)


def predict(model: nn.Module, spec: TabularTask, facts: ModelFacts, inputs: NDArray[Any]) -> dict[str, Any]:
    """``inputs``: (N, features) in the units of the training file. Gives class, label and probabilities, or value."""
    if np.ndim(inputs) != 2 or np.shape(inputs)[1] != facts.input_shape[0]:
        raise BadDataError("inputs", f"shape {np.shape(inputs)} does not fit rows of {facts.input_shape[0]} features")
    with torch.no_grad():
        outputs = model(standardised(_as_numbers(inputs, facts), facts))
    if not facts.class_names:
        preprocessing: Any = facts.preprocessing
        values = outputs.squeeze(1).double().numpy() * preprocessing["target_deviation"] + preprocessing["target_mean"]
        return {"value": values}
    probabilities = outputs.softmax(1).numpy()
    classes = probabilities.argmax(1)
    return {
        "class": classes,
        "label": np.array([facts.class_names[index] for index in classes]),
        "probabilities": probabilities,
    }


def _as_numbers(inputs: NDArray[Any], facts: ModelFacts) -> NDArray[np.float64]:
    """Names of categories become codes. A missing number takes the mean, as in training."""
    preprocessing: Any = facts.preprocessing
    categories = preprocessing.get("categories", {})
    columns = []
    for place, name in enumerate(preprocessing["features"]):
        values = inputs[:, place]
        try:
            column = tables.codes_of(values, categories[name]) if name in categories else values.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise BadDataError("inputs", f"column {name!r} must be numbers: {error}") from error
        columns.append(column)
    return np.column_stack(columns)
