"""What was done to a job that failed, and undoing it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from starlette.responses import Response

from api import examples, health_schemas
from api.auth import Member, Viewer
from api.dependencies import JobId, Provided
from api.documented import of_job, success
from api.responses import json_response
from service import findings, jobs, repairs, usage
from workers.repair.told import NONE, SKIPPED

router = APIRouter(prefix="/v1/jobs/{job_id}/repairs", tags=["health"])

Number = Annotated[int, Path(ge=1, le=1_000_000, description="of the repair, from 1 on")]


@router.get(
    "",
    summary="List what was repaired while the job ran",
    responses={**success(health_schemas.JobRepairs, examples.REPAIRS), **of_job()},
)
def list_repairs(caller: Viewer, services: Provided, job_id: JobId) -> Response:
    """Every change that was made to the run, by itself (``health.mode: repair``) or because people asked: what it answers, what was
    done, what the run showed before and after, and whether it holds. Also what was found and is not repaired, and why."""
    job = jobs.get_job(services.store, caller, job_id)
    told = repairs.history(services.store, caller, job_id)
    health = job.spec.get("health") or {}
    changes = findings.history(services.store, caller, job_id)
    spent = usage.of_job(job.spec, services.folder(job.id), [*changes, *told])
    still = {finding["code"] for finding in job.health.get("findings", ())}
    found = health_schemas.JobRepairs(
        job_id=job.id,
        mode=health.get("mode", "advise"),
        allow=list(health.get("allow") or ()) if health.get("mode") == "repair" else [],
        repairs=[health_schemas.Repair.of(each) for each in repairs.done(told)],
        skipped_updates=max((event.data.get("skipped", 0) for event in told if event.type == SKIPPED), default=0),
        lost_steps=spent.lost_steps,
        lost_worker_hours=spent.lost_seconds / 3600,
        saved_worker_hours=spent.saved_seconds / 3600,
        not_repaired=[event.message for event in told if event.type == NONE and event.data.get("code") in still],
    )
    return json_response(found)


@router.post(
    "/{number}/undo",
    status_code=202,
    summary="Undo a repair",
    responses={
        **success(health_schemas.Asked, examples.ASKED, status=202, description="Asked; done after a step."),
        **of_job(409),
    },
)
def undo_repair(caller: Member, services: Provided, job_id: JobId, number: Number) -> Response:
    """Brings weights, buffers and moments back to what they were before it, bit by bit, and takes back what it changed of learning rate
    and clipping (of a script these alone: its weights stay as they are). What it answers is not repaired again. The newest repair that
    holds comes first. Answers at once: all workers do it after the same step, and ``repair.undone`` or, where the state before is not in
    memory any more, ``repair.refused`` tells it."""
    request = repairs.undo(services.store, caller, job_id, number, services.folder(job_id).requests_path)
    asked = health_schemas.Asked(id=request.id, job_id=job_id, kind=request.kind, number=request.number)
    return json_response(asked, 202)
