"""A job of any length in a home, without training it: a row in the database, and a folder with what its workers would have told.

Reports go through the worker's outbox and the controller's ledger, the way that those of a running job take.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from service import jobs
from service.database import database_now, open_store
from service.keys import authenticate, ensure_admin_key
from service.settings import Settings
from service.states import locked_job, transition
from service.values import Reason, Status
from workers.jobfolder import JobFolder
from workers.ledger import Ledger
from workers.outbox import Outbox
from workers.recording import ROWS
from workers.reports import Progress, ReasonCode
from workers.worker_link import Activity, Poll

REPORTED_ROWS = ROWS  # a worker tells at most so many steps at once
EVALUATED_EVERY = 1000  # steps
SECONDS_PER_STEP = 0.1


class LongRun:
    """A job that has been claimed to run. ``steps``: of the whole run; ``layers``: of its network."""

    def __init__(self, home: Path, steps: int, layers: int) -> None:
        settings = Settings(home=home)
        self._store = open_store(settings.database_url)
        self.key = ensure_admin_key(self._store, settings.admin_key_file)
        caller = authenticate(self._store, self.key)
        assert caller is not None
        job = jobs.create_job(self._store, caller, _document(steps, layers))
        self.job_id, self.steps, self.step = job.id, steps, 0
        self._become(Status.STARTING, Status.RUNNING)
        self.folder = JobFolder(settings.storage, job.id)
        self._layers = (*(f"linear{index}" for index in range(1, layers)), "output")
        self._ledger, self._outbox, self._random = Ledger(self.folder, 1), Outbox(), np.random.default_rng(0)

    def train(self, steps: int) -> None:
        """Records the next ``steps`` steps."""
        last = self.step + steps
        while self.step < last:
            self._report(min(REPORTED_ROWS, last - self.step))
        with self._store.write() as session:
            row = locked_job(session, self.job_id)
            assert row is not None
            row.progress = asdict(Progress(self.step, self.steps, self.step / 100, 640.0, 0.0))
            row.latest, row.health = dict(self._ledger.latest), dict(self._ledger.health)

    def finish(self) -> None:
        with self._store.write() as session:
            row = locked_job(session, self.job_id)
            assert row is not None
            row.health = {"verdict": "healthy", "sentence": "", "findings": []}
        self._become(Status.SUCCEEDED)
        self._store.close()

    def _become(self, *statuses: Status) -> None:
        with self._store.write() as session:
            row = locked_job(session, self.job_id)
            assert row is not None
            for status in statuses:
                reason = Reason(ReasonCode.COMPLETED, f"all {self.step} steps done", {}) if status.ended else None
                transition(session, row, status, database_now(session), status.value, reason=reason)

    def _report(self, steps: int) -> None:
        """One telling of a worker, as ``workers.recording`` makes it, and the controller's taking."""
        at = np.arange(self.step + 1, self.step + steps + 1)
        depth = np.linspace(2.0, 0.0, len(self._layers))  # decades between the layers: gradients fade towards the input
        noise = self._random.normal(0.0, 0.15, (steps, len(self._layers)))
        norms = 10.0 ** (noise - depth - 2.0 * at[:, None] / self.steps)
        self._outbox.gradients(self._layers, list(zip(at.tolist(), norms.tolist(), strict=True)))
        for step, row in zip(at.tolist(), norms, strict=True):
            moment = time.time() + (step - self.steps) * SECONDS_PER_STEP
            for values in self._values(step, row):
                self._outbox.metrics(step, values, moment)
        reports = self._outbox.after(self._ledger.acknowledged("worker"))
        self._ledger.take(
            "worker", 0, Poll("running", 1, None, None, Activity(0, 0, 0.0), None, reports, None, version=1)
        )
        self.step += steps

    def _values(self, step: int, norms: np.ndarray) -> Iterator[dict[str, float]]:
        """What ``workers.recording.Recorder`` makes of a step, and what an evaluation adds."""
        loss = float(2.3 * np.exp(-4 * step / self.steps) + abs(self._random.normal(0.0, 0.05)))
        norm = float(np.sqrt(np.square(norms).sum()))
        seconds = float(self._random.gamma(100.0, SECONDS_PER_STEP / 100))
        yield {
            "train/loss": loss,
            "train/learning_rate": 1e-3 * (1 - step / (self.steps + 1)),
            "train/epoch": step / 100,
            "train/step_seconds": seconds,
            "train/data_wait_seconds": seconds / 50,
            "train/samples_per_second": 64 / seconds,
            "gradient/norm": norm,
            "gradient/norm_clipped": min(norm, 1.0),
            "gradient/clipped": float(norm > 1.0),
            "gradient/largest_layer_norm": float(norms.max()),
            "gradient/smallest_layer_norm": float(norms.min()),
            "gradient/first_to_last_ratio": float(norms[0] / norms[-1]),
            "gradient/nonfinite_layers": 0.0,
        }
        if step % EVALUATED_EVERY == 0:
            yield {"eval/loss": loss * 1.1, "eval/accuracy": 1 - loss / 3}


def _document(steps: int, layers: int) -> dict[str, Any]:
    return {
        "name": "long-run",
        "task": {
            "kind": "image_classification",
            "data": {"source": "digits"},
            "model": {"architecture": "mlp", "hidden": [32] * (layers - 1), "activation": "tanh"},
        },
        "training": {"steps": steps, "batch_size": 64},
    }
