"""Files of a job: its checkpoints and the finished model. Only files that a listing names can be downloaded."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter
from fastapi import Path as PathParameter
from starlette.responses import FileResponse, Response

from api import examples, schemas
from api.auth import Member, Viewer
from api.dependencies import JobId, Provided
from api.documented import files, of_job, success
from api.downloads import local_file, stored_file
from api.pagination import page
from api.responses import json_response
from service import jobs
from service.errors import NotFound
from workers import storage
from workers.checkpoint_folders import Manifest

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["files"])

CheckpointId = Annotated[str, PathParameter(description="id of the checkpoint", examples=["ckpt-0000000100"])]
FilePath = Annotated[str, PathParameter(description="path of a file as listed", examples=["model.safetensors"])]


@router.get(
    "/checkpoints",
    summary="List checkpoints",
    responses={**success(schemas.ListOf[schemas.Checkpoint], examples.listed(examples.CHECKPOINT)), **of_job()},
)
def list_checkpoints(caller: Viewer, services: Provided, job_id: JobId) -> Response:
    """Complete checkpoints, oldest first, with size and SHA-256 of each file."""
    job = jobs.get_job(services.store, caller, job_id)
    return json_response(page([_checkpoint(job.id, found) for found in services.folder(job.id).checkpoints()]))


@router.get(
    "/checkpoints/{checkpoint_id}/files/{path:path}",
    summary="Download a file of a checkpoint",
    response_class=FileResponse,
    responses={**files(), **of_job()},
)
def download_checkpoint_file(
    caller: Member, services: Provided, job_id: JobId, checkpoint_id: CheckpointId, path: FilePath
) -> Response:
    """The bytes of one file; compare them with its SHA-256."""
    job = jobs.get_job(services.store, caller, job_id)
    for checkpoint in services.folder(job.id).checkpoints():
        if _id(checkpoint) == checkpoint_id:
            names = [file.path for file in checkpoint.files]
            if storage.is_local(checkpoint.folder):
                return local_file(storage.local_path(checkpoint.folder), path, names)
            return stored_file(checkpoint.folder, path, names)
    raise NotFound("There is no such checkpoint; it may have been replaced by a newer one.", param="checkpoint_id")


@router.get(
    "/model",
    summary="List the finished model's files",
    responses={**success(schemas.ListOf[schemas.ModelFile], examples.listed(examples.MODEL_FILE)), **of_job()},
)
def list_model_files(caller: Viewer, services: Provided, job_id: JobId) -> Response:
    """Weights as safetensors, and what MLflow needs to load them. Empty until the job has succeeded."""
    job = jobs.get_job(services.store, caller, job_id)
    found = services.folder(job.id).model_files()
    items = [schemas.ModelFile(id=path, path=path, bytes=size) for path, size in found]
    return json_response(page([dict(item) for item in items]))


@router.get(
    "/model/files/{path:path}",
    summary="Download a file of the model",
    response_class=FileResponse,
    responses={**files(), **of_job()},
)
def download_model_file(caller: Member, services: Provided, job_id: JobId, path: FilePath) -> Response:
    """The bytes of one file of the finished model."""
    job = jobs.get_job(services.store, caller, job_id)
    folder = services.folder(job.id)
    return local_file(folder.model_path, path, [listed for listed, _ in folder.model_files()])


def _id(checkpoint: Manifest) -> str:
    return f"ckpt-{checkpoint.step:010d}"


def _checkpoint(job_id: str, checkpoint: Manifest) -> dict[str, object]:
    return dict(
        schemas.Checkpoint(
            id=_id(checkpoint),
            job_id=job_id,
            step=checkpoint.step,
            created_at=datetime.fromtimestamp(checkpoint.created_at, UTC),
            bytes=checkpoint.bytes,
            metrics=dict(checkpoint.metrics),
            verdict=checkpoint.verdict,
            files=[
                schemas.StoredFile(path=file.path, bytes=file.bytes, sha256=file.sha256) for file in checkpoint.files
            ],
        )
    )
