"""Who worked for a job: each start of it on the cluster, and the worker processes of all of them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.responses import Response

from api import examples, schemas
from api.auth import Viewer
from api.dependencies import JobId, Provided
from api.documented import of_job, success
from api.pagination import PLAIN_INTEGER, page
from api.pagination import Query as QueryModel
from api.responses import json_response
from service import jobs

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["jobs"])


class WorkersQuery(QueryModel):
    attempt: Annotated[
        Annotated[int, Field(ge=1, le=2**31 - 1), PLAIN_INTEGER] | None, Field(description="only those of this attempt")
    ] = None
    state: Annotated[schemas.WorkerState | None, Field(description="only those in this state")] = None


@router.get(
    "/attempts",
    summary="List a job's attempts",
    responses={**success(schemas.ListOf[schemas.Attempt], examples.listed(examples.ATTEMPT)), **of_job()},
)
def list_attempts(caller: Viewer, services: Provided, job_id: JobId) -> Response:
    """Each start of the job on the cluster, oldest first: how it ended, and each time that workers were lost and replaced
    meanwhile, with the seconds from the loss to the next step."""
    attempts = jobs.list_attempts(services.store, caller, job_id)
    return json_response(page([dict(schemas.Attempt.of(attempt)) for attempt in attempts]))


@router.get(
    "/workers",
    summary="List a job's workers",
    responses={**success(schemas.ListOf[schemas.Worker], examples.listed(examples.WORKER)), **of_job(400)},
)
def list_workers(
    caller: Viewer, services: Provided, job_id: JobId, query: Annotated[WorkersQuery, Query()]
) -> Response:
    """All worker processes of all attempts, oldest attempt first: who ran where, since when, and why it ended. ``lost``: it
    died or hung; ``left``: it was no longer needed, or moved to another node."""
    workers = [
        schemas.Worker.of(attempt, worker)
        for attempt in jobs.list_attempts(services.store, caller, job_id)
        for worker in attempt.workers
        if query.attempt in (None, attempt.number) and query.state in (None, worker["state"])
    ]
    return json_response(page([dict(worker) for worker in workers]))
