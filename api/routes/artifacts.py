"""What a job's task showed of the model after evaluations: texts, pictures, structures."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi import Path as PathParameter
from pydantic import Field
from starlette.responses import FileResponse, Response

from api import examples, schemas
from api.auth import Viewer
from api.dependencies import JobId, Provided
from api.documented import files, of_job, success
from api.downloads import BINARY, local_file
from api.errors import ApiError
from api.pagination import PLAIN_INTEGER, Order, page
from api.pagination import Query as QueryModel
from api.responses import json_response
from service import jobs
from workers import artifacts
from workers.artifacts import Artifact

router = APIRouter(prefix="/v1/jobs/{job_id}/artifacts", tags=["files"])

ArtifactPath = Annotated[str, PathParameter(description="as listed", examples=["step-0000000100/samples.txt"])]
Step = Annotated[int, Field(ge=0, lt=10**10), PLAIN_INTEGER]


class ArtifactsQuery(QueryModel):
    after: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        None, description="id of the last one of the page before", examples=["step-0000000100/samples.txt"]
    )
    limit: Annotated[int, Field(ge=1, le=1000, description="files of a page"), PLAIN_INTEGER] = 100
    order: Annotated[Order, Field(description="by step, then by name: desc is newest first")] = "asc"
    step: Annotated[Step | None, Field(description="only those after this step")] = None


@router.get(
    "",
    summary="List artifacts",
    responses={**success(schemas.ListOf[schemas.Artifact], examples.listed(examples.ARTIFACT)), **of_job(400)},
)
def list_artifacts(
    caller: Viewer, services: Provided, job_id: JobId, query: Annotated[ArtifactsQuery, Query()]
) -> Response:
    """Files in which the task showed what its model did after an evaluation; each is there as soon as it is listed. MLflow has them
    too, under ``artifacts/`` of the job's run."""
    job = jobs.get_job(services.store, caller, job_id)
    position = _position(query.after)
    newest_first = query.order == "desc"
    found = (
        each
        for each in artifacts.every(services.folder(job.id).artifacts_path, newest_first=newest_first, step=query.step)
        if position is None
        or ((each.step, each.name) < position if newest_first else (each.step, each.name) > position)
    )
    some = list(islice(found, query.limit + 1))
    return json_response(page([_item(job.id, each) for each in some[: query.limit]], has_more=len(some) > query.limit))


@router.get(
    "/files/{path:path}",
    summary="Download an artifact",
    response_class=FileResponse,
    responses={**files("text/plain", "image/png", "application/json"), **of_job()},
)
def download_artifact(caller: Viewer, services: Provided, job_id: JobId, path: ArtifactPath) -> Response:
    """The bytes of one file, under its own media type."""
    job = jobs.get_job(services.store, caller, job_id)
    folder = services.folder(job.id).artifacts_path
    place = artifacts.parse_path(path)
    listed = {each.path: each.media_type for each in artifacts.of_step(folder, place[0])} if place else {}
    return local_file(folder, path, listed, listed.get(path, BINARY))


def _position(after: str | None) -> tuple[int, str] | None:
    if after is None:
        return None
    place = artifacts.parse_path(after)
    if place is None:
        raise ApiError(400, "invalid_parameter", "after: is no id of an artifact", param="after")
    return place


def _item(job_id: str, artifact: Artifact) -> dict[str, object]:
    return dict(
        schemas.Artifact(
            id=artifact.path,
            job_id=job_id,
            path=artifact.path,
            step=artifact.step,
            name=artifact.name,
            bytes=artifact.bytes,
            media_type=artifact.media_type,
            created_at=datetime.fromtimestamp(artifact.created_at, UTC),
        )
    )
