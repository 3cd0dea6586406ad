"""Rows of numbers into a class or a number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from workers.kinds.tables import BreastCancerData, TabularTask
from workers.models import builtin
from workers.sources import tables
from workers.sources.problems import BadDataError
from workers.tasks.base import Batch, Datasets, ModelFacts


class Tabular:
    def __init__(self, spec: TabularTask, *, seed: int) -> None:
        self._spec = spec
        self._facts: ModelFacts | None = None

    def datasets(self) -> Datasets:
        data = self._spec.data
        found = (
            tables.read_breast_cancer(data)
            if isinstance(data, BreastCancerData)
            else tables.read_table(data, self._spec.objective)
        )
        mean, deviation = _statistics(found.train.features)
        preprocessing: dict[str, Any] = {"features": list(found.feature_names), "mean": mean, "deviation": deviation}
        if not found.class_names:
            target_mean, target_deviation = _statistics(found.train.targets[:, np.newaxis])
            preprocessing |= {"target_mean": target_mean[0], "target_deviation": target_deviation[0]}
        self._facts = ModelFacts((len(found.feature_names),), found.class_names, preprocessing)
        return Datasets(TableRows(found.train, self._facts), TableRows(found.evaluation, self._facts))

    def model(self) -> nn.Module:
        return build_model(self._spec, self.facts())

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        outputs, targets = model(batch["features"]).float(), batch["targets"]
        return self._loss(outputs, targets), torch.tensor(len(targets), device=targets.device)

    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self._spec.objective == "classification":
            return functional.cross_entropy(outputs, targets, reduction="sum")
        return functional.mse_loss(outputs.squeeze(1), targets, reduction="sum")

    def evaluate(self, model: nn.Module, batch: Batch) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Regression: ``mse`` and ``mae`` are in the target's own unit, ``loss`` in its standard deviations."""
        outputs, targets = model(batch["features"]).float(), batch["targets"]
        count = torch.tensor(len(targets), device=targets.device)
        found = {"loss": (self._loss(outputs, targets), count)}
        if self._spec.objective == "classification":
            return found | {"accuracy": ((outputs.argmax(1) == targets).sum(), count)}
        unit: Any = self.facts().preprocessing["target_deviation"]
        errors = (outputs.squeeze(1) - targets).double() * unit
        return found | {"mse": (errors.square().sum(), count), "mae": (errors.abs().sum(), count)}

    def facts(self) -> ModelFacts:
        assert self._facts is not None, "datasets() comes first"
        return self._facts


def _statistics(values: NDArray[Any]) -> tuple[list[float], list[float]]:
    mean, deviation = values.mean(axis=0, dtype=np.float64), values.std(axis=0, dtype=np.float64)
    return mean.tolist(), np.where(deviation > 1e-12, deviation, 1.0).tolist()


def standardised(features: NDArray[Any], facts: ModelFacts) -> Tensor:
    preprocessing: Any = facts.preprocessing
    values = (np.asarray(features, dtype=np.float64) - preprocessing["mean"]) / preprocessing["deviation"]
    return torch.from_numpy(values.astype(np.float32))


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
    return builtin.mlp(spec.model, facts.input_shape[0], len(facts.class_names) or 1)


def predict(model: nn.Module, spec: TabularTask, facts: ModelFacts, inputs: NDArray[Any]) -> dict[str, Any]:
    """``inputs``: (N, features) in the units of the training file. Gives class, label and probabilities, or value."""
    if np.ndim(inputs) != 2 or np.shape(inputs)[1] != facts.input_shape[0]:
        raise BadDataError("inputs", f"shape {np.shape(inputs)} does not fit rows of {facts.input_shape[0]} features")
    with torch.no_grad():
        outputs = model(standardised(inputs, facts))
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
