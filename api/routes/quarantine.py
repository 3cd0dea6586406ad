"""Samples that a job leaves out."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from api import examples, health_schemas
from api.auth import Member, Viewer
from api.changes import QuarantineChange, parse
from api.dependencies import Document, JobId, Provided
from api.documented import of_job, success
from api.responses import json_response
from service import quarantine

router = APIRouter(prefix="/v1/jobs/{job_id}/quarantine", tags=["health"])


@router.get(
    "",
    summary="List the samples that a job leaves out",
    responses={**success(health_schemas.Quarantine, examples.QUARANTINE), **of_job(409)},
)
def list_quarantine(caller: Viewer, services: Provided, job_id: JobId) -> Response:
    """Those of the job itself (``training.leave_out``), and those that a repair or somebody has left out since, by their index in the
    training set; another job begins with the same list as its ``training.leave_out``. 409 for a script."""
    found = quarantine.listed(services.store, caller, job_id, services.folder(job_id))
    return json_response(health_schemas.Quarantine.model_validate(found))


@router.post(
    "",
    status_code=202,
    summary="Leave samples out, or take them in again",
    openapi_extra=examples.QUARANTINE_BODY,
    responses={
        **success(health_schemas.Asked, examples.STEERED, status=202, description="Asked; done after a step."),
        **of_job(400, 409, 413, 415, 422),
    },
)
def change_quarantine(caller: Member, services: Provided, job_id: JobId, document: Document) -> Response:
    """Of a job that runs, in any ``health.mode``. Samples are named by their index in the training set, or as a step shows them. All workers
    do it after the same step, it is listed among the job's repairs and undone like one. Every later attempt leaves them out too."""
    wanted = parse(QuarantineChange, document)
    folder = services.folder(job_id)
    request = quarantine.change(
        services.store, caller, job_id, folder, folder.requests_path,
        leave_out=wanted.leave_out or (), take_in=wanted.take_in or (),
    )  # fmt: skip
    asked = health_schemas.Asked(id=request.id, job_id=job_id, kind=request.kind, number=request.number)
    return json_response(asked, 202)
