"""Uploaded files: bundles of code. The shapes are OpenAI's, whose clients post files here too."""

from __future__ import annotations

import re
from functools import partial
from typing import Annotated
from urllib.parse import quote

from anyio import to_thread
from fastapi import APIRouter, Depends, Path, Query
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from api import examples, schemas
from api.auth import Member, Viewer
from api.dependencies import Provided
from api.documented import binary, protected, success
from api.errors import of_a_parameter
from api.pagination import FilesQuery, page
from api.responses import json_response
from api.routes.jobs import IdempotencyKey
from api.uploads import receive
from service import files
from service.errors import NotFound, StorageFull
from workers.storage import no_room

router = APIRouter(prefix="/v1/files", tags=["files"])

FILE_ID = re.compile(r"file-[A-Za-z0-9]{1,60}", re.ASCII)


async def _file_id(
    file_id: Annotated[str, Path(description="id of the file", examples=[examples.FILE_ID])],
) -> str:
    if not FILE_ID.fullmatch(file_id):
        raise NotFound("There is no such file.", param="file_id")
    return file_id


FileId = Annotated[str, Depends(_file_id)]


@router.post(
    "",
    status_code=201,
    summary="Upload a file",
    openapi_extra=examples.FILE_BODY,
    responses={
        **success(schemas.File, examples.FILE, status=201, description="The file. Location has its address."),
        **protected(400, 409, 413, 415, 422),
    },
)
async def create_file(
    request: Request, caller: Member, services: Provided, idempotency_key: IdempotencyKey = None
) -> Response:
    """Takes a form with `file` and `purpose`. Purpose `bundle`: a zip or tar of code, whose id a job names as `task.code.file`; it is
    refused when it could not be unpacked."""
    limit = services.settings.max_file_bytes
    try:
        place = await to_thread.run_sync(services.files.new_partial)
        upload = await receive(request, place, limit)
        add = partial(files.add_file, services.store, caller, services.files, upload, idempotency_key=idempotency_key)
        file = await to_thread.run_sync(add, limiter=services.admissions)
    except OSError as error:
        if not no_room(error):
            raise
        raise StorageFull("the disk of the storage folder is full") from error
    return json_response(schemas.File.of(file), 201, {"location": f"/v1/files/{file.id}"})


@router.get(
    "",
    summary="List files",
    responses={**success(schemas.ListOf[schemas.File], examples.listed(examples.FILE)), **protected(400)},
)
def list_files(caller: Viewer, services: Provided, query: Annotated[FilesQuery, Query()]) -> Response:
    """Files of the key's project, newest first."""
    with of_a_parameter():
        found = files.list_files(services.store, caller, **query.model_dump())
    return json_response(page([dict(schemas.File.of(file)) for file in found.data], has_more=found.has_more))


@router.get("/{file_id}", summary="Get a file", responses={**success(schemas.File, examples.FILE), **protected(404)})
def get_file(caller: Viewer, services: Provided, file_id: FileId) -> Response:
    """What is known of the file; its bytes are at `/content`."""
    return json_response(schemas.File.of(files.get_file(services.store, caller, file_id)))


@router.get(
    "/{file_id}/content",
    summary="Download a file",
    response_class=FileResponse,
    responses={**binary("The file's bytes."), **protected(404)},
)
def download_file(caller: Member, services: Provided, file_id: FileId) -> Response:
    """The bytes as they were uploaded; compare them with `sha256`."""
    file = files.get_file(services.store, caller, file_id)
    disposition = f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}"
    return FileResponse(
        services.files.path(file.id),
        media_type="application/octet-stream",
        headers={"content-disposition": disposition, "etag": f'"{file.sha256}"'},
    )


@router.delete(
    "/{file_id}",
    summary="Delete a file",
    responses={**success(schemas.DeletedFile, examples.DELETED_FILE), **protected(404, 409)},
)
def delete_file(caller: Member, services: Provided, file_id: FileId) -> Response:
    """Removes the file for good. 409 while a job that has not ended has its code in it."""
    file = files.delete_file(services.store, caller, services.files, file_id)
    return json_response(schemas.DeletedFile(id=file.id, deleted=True))
