"""What the evaluations of a run have said so far, and whether it is time to stop."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from workers.reports import Outcome, ReasonCode
from workers.sources.problems import BadDataError
from workers.spec import Evaluation


class Score:
    """``metrics``: of the newest evaluation, by series key."""

    def __init__(self, spec: Evaluation) -> None:
        self._spec = spec
        self.metrics: dict[str, float] = {}
        self._best: float | None = None  # smaller is better: negated where a larger metric is
        self._without_gain = 0  # evaluations since then
        self.evaluations = self.best_at = 0  # how many there were in this process, and which was the best

    def take(self, metrics: Mapping[str, float]) -> None:
        """Raises BadDataError when the metric that decides is not among ``metrics``."""
        self.metrics = dict(metrics)
        self.evaluations += 1
        name, stopping = self._spec.best, self._spec.early_stopping
        if name not in metrics:
            raise BadDataError("evaluation.best", f"there is no metric {name!r}; there are: {', '.join(metrics)}")
        value = metrics[name] * (-1 if self._spec.mode == "max" else 1)
        target = math.inf if self._best is None else self._best - (stopping.min_delta if stopping else 0.0)
        if value < target:  # never true of NaN
            self._best, self._without_gain, self.best_at = value, 0, self.evaluations
        else:
            self._without_gain += 1

    def begin_anew(self) -> None:
        """Of another model: what the one before it reached is no measure of it."""
        self._best, self._without_gain = None, 0

    def without_gain(self, step: int) -> Outcome | None:
        stopping = self._spec.early_stopping
        if stopping is None or self._without_gain < stopping.patience:
            return None
        message = f"{self._spec.best} did not improve in {stopping.patience} evaluations; stopped after step {step}"
        return Outcome(ReasonCode.EARLY_STOPPED, message)

    def finite_metrics(self) -> dict[str, float]:
        return {name: value for name, value in self.metrics.items() if math.isfinite(value)}

    def document(self) -> dict[str, Any]:
        return {"metrics": self.metrics, "best": self._best, "without_gain": self._without_gain}

    def restore(self, document: Mapping[str, Any]) -> None:
        self.metrics = dict(document["metrics"])
        self._best, self._without_gain = document["best"], document["without_gain"]
