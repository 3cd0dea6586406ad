"""The dashboard's way to the REST API: requests with the viewer's own key, through everything that any other client passes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

Document = dict[str, Any]
TIMEOUT_SECONDS = 30.0


class RefusedError(Exception):
    """The API said no. ``problems``: every problem of a refused job."""

    def __init__(self, status: int, message: str, problems: list[Document]) -> None:
        super().__init__(message)
        self.status, self.problems = status, problems


class AwayError(Exception):
    """The API, or its database, does not answer just now."""


class Gateway:
    def __init__(self, api: ASGIApp, key: str) -> None:
        self._http = httpx.AsyncClient(
            transport=httpx.ASGITransport(api, raise_app_exceptions=False),
            base_url="http://localhost",
            headers={"authorization": f"Bearer {key}"},
            timeout=TIMEOUT_SECONDS,
        )

    async def get(self, path: str, **query: Any) -> Document:
        """Raises RefusedError, AwayError."""
        return await self._ask("GET", path, params={name: value for name, value in query.items() if value is not None})

    async def text(self, path: str) -> str:
        """A file, which is UTF-8 or nearly so. Raises RefusedError, AwayError."""
        answer = await self._answer("GET", path)
        return answer.content.decode("utf-8", errors="replace")

    async def post(
        self, path: str, content: str = "", media_type: str = "application/json", timeout: float = TIMEOUT_SECONDS
    ) -> Document:
        headers = {"content-type": media_type} if content else {}
        return await self._ask("POST", path, content=content.encode(), headers=headers, timeout=timeout)

    async def _ask(self, method: str, path: str, **settings: Any) -> Document:
        answer = await self._answer(method, path, **settings)
        return dict(_document(answer))

    async def _answer(self, method: str, path: str, **settings: Any) -> httpx.Response:
        try:
            answer = await self._http.request(method, path, **settings)
        except httpx.HTTPError as error:
            raise AwayError(str(error)) from error
        if answer.is_success:
            return answer
        document = _document(answer)
        told: Mapping[str, Any] = document.get("error") or {"message": f"HTTP status {answer.status_code}"}
        if answer.status_code >= 500:
            raise AwayError(told["message"])
        raise RefusedError(answer.status_code, told["message"], told.get("problems") or [])


def _document(answer: httpx.Response) -> Any:
    return answer.json() if "json" in answer.headers.get("content-type", "") else {}


class Forwarded(Response):
    """The API's answer to a request of the browser, which has no key of its own: bytes pass through without being kept."""

    def __init__(self, api: ASGIApp, path: str, key: str) -> None:
        super().__init__()
        self._api, self._path, self._key = api, path, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kept = [(name, value) for name, value in scope["headers"] if name in (b"host", b"range", b"if-range")]
        own = {
            "path": self._path,
            "raw_path": self._path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [*kept, (b"authorization", f"Bearer {self._key}".encode())],
            "state": {},
        }
        await self._api({**scope, **own}, receive, send)
