"""The first steps of a job on one worker, before its whole group is taken: what is known of it then and what its gradients show.

It is the training loop with nothing kept: no checkpoint is read or written, nothing is evaluated, no model is exported. The job's own training
begins in other processes, from the same seeds, and does not know of it.
"""

from __future__ import annotations

import time
from dataclasses import replace

from workers.reports import Outcome, ReasonCode
from workers.run_state import RunContext
from workers.spec import JobSpec
from workers.tasks import build_task
from workers.train import Run

STEPS = 20
SECONDS = 60.0  # after which fewer steps must do


def probe(spec: JobSpec, context: RunContext) -> Outcome:
    """``detail["health"]`` is the verdict. Raises what the job's own training would raise."""
    nowhere = context.model_folder.parent / "preflight"  # nothing is ever written there
    kept = replace(context, checkpoints=str(nowhere), model_folder=nowhere, artifacts_folder=None, healthy_before=0)
    run = Probe(build_task(spec.task, spec.training.seed, context.code), on_one_worker(spec), kept)
    try:
        return run.train()
    finally:
        run.close()


def on_one_worker(spec: JobSpec) -> JobSpec:
    """One of the group, with its share of the batch: what a worker holds in memory is then what it will hold."""
    training = spec.training
    share = max(training.batch_size // spec.workers.fewest, training.accumulate)
    one = spec.workers.model_copy(update={"count": 1, "min": None, "max": None, "strategy": "ddp"})
    health = spec.health.model_copy(update={"on_critical": "continue"})  # all that is found is told; the job acts on it
    return spec.model_copy(
        update={"training": training.model_copy(update={"batch_size": share}), "workers": one, "health": health}
    )


class Probe(Run):
    def resume(self) -> None:
        """It begins at the start, whatever has been saved."""

    def evaluate_when_due(self) -> Outcome | None:
        return None

    def save_when_due(self, *, last: bool) -> Outcome | None:
        return None

    def completed(self) -> Outcome | None:
        over = self.step >= min(STEPS, self.plan.steps) or time.monotonic() - self.started_at > SECONDS
        return Outcome(ReasonCode.PAUSED, f"{self.step} steps on one worker") if over and self.step else None
