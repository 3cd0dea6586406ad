"""What a worker remembers of a run so that it can be judged at any time: each step at first, later a thinner and thinner part of them."""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from workers.watch.record import Evaluations, Floats, Series

BEGINNING = 32  # first steps of the run, against which later ones are judged: always kept
KEPT = 4096  # judging needs the shape of the run, not each of its steps
PASSED_ON = 160  # in a checkpoint, and to another worker
EVALUATED = "eval/"


class StepValues(NamedTuple):
    """Of one step; NaN what is not known."""

    loss: float
    learning_rate: float = math.nan
    clip_factor: float = math.nan
    seconds: float = math.nan
    wait_seconds: float = math.nan


def median_loss(losses: Sequence[float]) -> float | None:
    """None: there are none, or it is not finite."""
    found = float(np.median(losses)) if losses else math.nan
    return found if math.isfinite(found) else None


@dataclass
class RunMemory:
    """Of the run as a whole, over restarts: what came before is taken over with ``restore``."""

    layers: tuple[str, ...]
    _steps: list[int] = field(default_factory=list)
    _values: list[StepValues] = field(default_factory=list)
    _norms: list[Floats] = field(default_factory=list)  # (L,) each
    _evaluated: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """The newest; 0: none."""
        return self._steps[-1] if self._steps else 0

    def add(self, step: int, measured: StepValues, norms: Floats) -> None:
        self._steps.append(step)
        self._values.append(measured)
        self._norms.append(norms)
        if len(self._steps) > KEPT:
            self._keep(range(len(self._steps))[BEGINNING::2])

    def evaluated(self, step: int, values: Mapping[str, float]) -> None:
        """Those of ``values`` that are of an evaluation."""
        found = {name.removeprefix(EVALUATED): value for name, value in values.items() if name.startswith(EVALUATED)}
        if not found:
            return
        self._evaluated.append((step, found))
        if len(self._evaluated) > KEPT:
            self._evaluated = self._evaluated[:BEGINNING] + self._evaluated[BEGINNING::2]

    def forget(self, after: int, through: int) -> None:
        """Steps that the run has left behind: it went back to what it was before them."""
        rows = [row for row, step in enumerate(self._steps) if not after < step <= through]
        self._steps = [self._steps[row] for row in rows]
        self._values = [self._values[row] for row in rows]
        self._norms = [self._norms[row] for row in rows]
        self._evaluated = [(step, values) for step, values in self._evaluated if not after < step <= through]

    def loss_of(self, steps: range) -> float | None:
        """Median of the training loss of these. None: there are none, or it is not finite."""
        return median_loss(
            [each.loss for number, each in zip(self._steps, self._values, strict=True) if number in steps]
        )

    def series(self) -> Series:
        measured = np.array(self._values, dtype=np.float64).reshape(-1, len(StepValues._fields))
        losses, rates, factors, seconds, waits = measured.T
        norms = np.array(self._norms, dtype=np.float64).reshape(len(self._norms), len(self.layers))
        steps = np.array(self._steps, dtype=np.int64)
        return Series(self.layers, steps, losses, norms, rates, factors, seconds, waits)

    def evaluations(self) -> Evaluations:
        if not self._evaluated:
            return Evaluations()
        names = dict.fromkeys(name for _, values in self._evaluated for name in values)
        return Evaluations(
            np.array([step for step, _ in self._evaluated], dtype=np.int64),
            {name: np.array([values.get(name, math.nan) for _, values in self._evaluated]) for name in names},
        )

    def document(self) -> dict[str, Any]:
        """JSON values, some 100 bytes a layer at most."""
        kept = self._passed_on()
        norms = np.array([self._norms[row] for row in kept], dtype="<f4").reshape(len(kept), len(self.layers))
        return {
            "layers": self.layers,
            "steps": [self._steps[row] for row in kept],
            "measured": [self._values[row] for row in kept],
            "norms": base64.b64encode(zlib.compress(norms.tobytes())).decode(),
            "evaluated": self._evaluated[-PASSED_ON:],
        }

    def restore(self, document: Mapping[str, Any]) -> None:
        """What a model with other layers left is passed over."""
        self._steps, self._values, self._norms, self._evaluated = [], [], [], []
        if tuple(document["layers"]) != self.layers:
            return
        self._steps = list(document["steps"])
        self._values = [StepValues(*row) for row in document["measured"]]
        content = zlib.decompress(base64.b64decode(document["norms"]))
        self._norms = list(np.frombuffer(content, dtype="<f4").astype(np.float64).reshape(-1, len(self.layers)))
        self._evaluated = [(step, dict(values)) for step, values in document["evaluated"]]

    def _passed_on(self) -> list[int]:
        """Rows: the first ones, and as many of all the later ones, evenly."""
        rows = list(range(len(self._steps)))
        later = rows[BEGINNING:]
        most = PASSED_ON - BEGINNING
        if len(later) > most:
            later = [later[index] for index in np.linspace(0, len(later) - 1, most).round().astype(int)]
        return rows[:BEGINNING] + later

    def _keep(self, later: range) -> None:
        rows = [*range(BEGINNING), *later]
        self._steps = [self._steps[row] for row in rows]
        self._values = [self._values[row] for row in rows]
        self._norms = [self._norms[row] for row in rows]
