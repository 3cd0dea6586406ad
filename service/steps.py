"""The use-case around single steps: which samples formed one, on which worker, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from service.database import Store
from service.errors import Conflict, NotFound
from service.jobs import get_job
from service.values import Caller
from workers.jobfolder import JobFolder
from workers.metric_series import Series
from workers.step_ledger import SERIES, NoSuchStepError, StepLedger, UnknownStepError, ranks_of

ReadSeries = Callable[[JobFolder, Collection[str]], Mapping[str, Series]]


def made(
    store: Store, caller: Caller, job_id: str, number: int, folder: JobFolder, read: ReadSeries, most: int
) -> dict[str, Any]:
    """The step as a document. ``most``: samples that are named, over all workers, at least one a worker.

    Raises NotFound for a step that was not made, Conflict where nobody can tell what it was made of, as of a script.
    """
    job = get_job(store, caller, job_id)
    if job.spec["task"]["kind"] == "script":
        raise Conflict(f"{job_id} is a script, whose own loop decides which samples form a step", param="job_id")
    if folder.read_document("job.json") is None:
        raise NotFound(f"{job_id} has no step {number}: it has made none yet", param="step")
    try:
        ledger = StepLedger(folder, read(folder, SERIES))
        step = ledger.step(number)
    except NoSuchStepError as error:
        raise NotFound(f"{job_id}: {error}", param="step") from error
    except UnknownStepError as error:
        raise Conflict(f"{job_id}, step {number}: {error}", param="step") from error
    return {
        "job_id": job.id,
        "step": number,
        "epoch": step.epoch,
        "attempt": step.group.attempt,
        "recorded_at": step.recorded.at,
        "loss": step.recorded.loss,
        "gradient_norm": step.recorded.norm,
        "learning_rate": step.recorded.learning_rate,
        "samples": step.samples,
        "workers": step.group.world_size,
        "accumulate": step.group.accumulate,
        "quarantined": list(step.plan.left_out),
        "ranks": ranks_of(ledger.spec, step, max(1, most // step.group.world_size)),
    }
