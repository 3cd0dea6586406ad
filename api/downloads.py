"""Files of a job on the wire. Only what a listing names is given, as a download: nothing of a job is a page of this site."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from starlette.responses import FileResponse, Response, StreamingResponse
from upath import UPath

from service.errors import NotFound
from workers import storage

BINARY = "application/octet-stream"
# Beside `nosniff`, which every answer has: whatever type a file says it is, no script in it runs when somebody opens it.
HARMLESS = {"Content-Security-Policy": "default-src 'none'; sandbox"}


def local_file(folder: Path, path: str, listed: Collection[str], media_type: str = BINARY) -> Response:
    """``path`` must be listed word for word, and lie inside ``folder`` after every link is followed: a listing comes from
    a file that a worker wrote."""
    if path in listed:
        root = folder.resolve()
        target = (root / path).resolve()
        if target.is_relative_to(root) and target.is_file():
            return FileResponse(target, filename=target.name, media_type=media_type, headers=HARMLESS)
    raise NotFound("There is no such file here.", param="path")


def stored_file(folder: UPath, path: str, listed: Collection[str]) -> Response:
    """From an object store. That listed names lie in ``folder`` is seen to when a manifest is read."""
    file = folder / path
    try:
        if path not in listed:
            raise FileNotFoundError
        size = file.stat().st_size
    except FileNotFoundError:
        raise NotFound("There is no such file here.", param="path") from None
    headers = {"Content-Length": str(size), "Content-Disposition": f'attachment; filename="{path}"', **HARMLESS}
    return StreamingResponse(storage.chunks(file), media_type=BINARY, headers=headers)
