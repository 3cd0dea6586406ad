"""The files of a client: ``client.files.create("code.zip")``."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

UPLOAD_TIMEOUT = httpx.Timeout(30.0, read=300.0)  # the service reads all of a bundle before it answers
Document = dict[str, Any]


class Files:
    def __init__(self, request: Callable[..., Document]) -> None:
        self._request = request

    def create(self, path: str | Path, purpose: str = "bundle", idempotency_key: str | None = None) -> Document:
        """Uploads a file. It is safe to retry, and is retried, because the key makes the second one the same file."""
        path = Path(path)
        headers = {"idempotency-key": idempotency_key or uuid.uuid4().hex}
        with path.open("rb") as stream:
            return self._request(
                "POST",
                "/v1/files",
                files={"file": (path.name, stream)},
                data={"purpose": purpose},
                headers=headers,
                timeout=UPLOAD_TIMEOUT,
            )

    def list(self, *, limit: int = 20, after: str | None = None, purpose: str | None = None) -> Document:
        """One page, newest first."""
        return self._request("GET", "/v1/files", params={"limit": limit, "after": after, "purpose": purpose})

    def retrieve(self, file_id: str) -> Document:
        return self._request("GET", _file(file_id))

    def delete(self, file_id: str) -> Mapping[str, Any]:
        return self._request("DELETE", _file(file_id))


def _file(file_id: str) -> str:
    return f"/v1/files/{quote(file_id, safe='')}"
