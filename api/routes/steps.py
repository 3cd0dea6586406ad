"""One step of a job: what came of it, and which samples formed it on which worker."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Path, Query
from pydantic import Field
from starlette.responses import Response

from api import examples, schemas
from api.auth import Viewer
from api.dependencies import JobId, Provided
from api.documented import of_job, success
from api.pagination import PLAIN_INTEGER
from api.pagination import Query as QueryModel
from api.responses import json_response
from service import steps

router = APIRouter(prefix="/v1/jobs/{job_id}/steps", tags=["telemetry"])

Step = Annotated[int, Path(ge=1, le=2**53, description="of the job, from 1 on", examples=[1])]


class StepQuery(QueryModel):
    max_samples: Annotated[
        int, Field(ge=1, le=10_000, description="most samples, over all workers; at least one a worker"), PLAIN_INTEGER
    ] = 1000


@router.get(
    "/{step}",
    summary="Read what formed a step, and what came of it",
    responses={**success(schemas.JobStep, examples.STEP), **of_job(400, 409)},
)
def read_step(
    caller: Viewer, services: Provided, job_id: JobId, step: Step, query: Annotated[StepQuery, Query()]
) -> Response:
    """Loss, norm of the gradient and learning rate of the step, how many workers made it, and for each of them its samples: their indices in
    the training set, in the order in which they were taken, and where the source can tell (folders of images, tables) the names of
    their files or rows. 404 for a step that was not made, 409 for a script."""
    found = steps.made(
        services.store, caller, job_id, step, services.folder(job_id), services.series.read, query.max_samples
    )
    at = datetime.fromtimestamp(found["recorded_at"], UTC)
    return json_response(schemas.JobStep.model_validate({**found, "recorded_at": at}))
