"""Errors on the wire: one table from error class to HTTP status, one renderer for every error of the API.

The envelope is OpenAI's: ``{"error": {"message", "type", "param", "code"}}``. What was sent is never repeated beyond a few
escaped characters, and nothing from inside (tracebacks, SQL, paths of this machine) goes out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from api.responses import json_response
from service.errors import (
    Conflict,
    Forbidden,
    IdempotencyMismatch,
    InvalidRequest,
    NotFound,
    ServiceError,
    StorageFull,
    Unauthorized,
    Unavailable,
)
from workers.problems import Problem, shorten

STATUS: Mapping[type[ServiceError], int] = {
    ServiceError: 500,
    InvalidRequest: 422,
    Unauthorized: 401,
    Forbidden: 403,
    NotFound: 404,
    Conflict: 409,
    IdempotencyMismatch: 409,
    Unavailable: 503,
    StorageFull: 507,
}

TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}

MAX_PROBLEMS = 100  # a body of 10 MB can hold a million of them
MAX_PROBLEMS_IN_MESSAGE = 20
MAX_MESSAGE = 4000
INTERNAL = "Something went wrong inside the service."


class ApiError(Exception):
    """What is wrong at the level of HTTP: headers, bodies, query parameters."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        problems: Sequence[Problem] = (),
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.headers = dict(headers or {})
        self.problems = tuple(problems)


@contextmanager
def of_a_parameter() -> Iterator[None]:
    """What a use-case refuses meanwhile is a parameter of the address, not a part of a body."""
    try:
        yield
    except InvalidRequest as error:
        raise ApiError(400, "invalid_parameter", error.message, param=error.param, problems=error.problems) from None


def render(error: Exception, request_id: str = "") -> Response:
    """The response for any exception. Unknown ones say nothing but the request id, under which the log has the rest."""
    known = _as_api_error(error)
    if known is None:
        known = ApiError(500, "internal_error", f"{INTERNAL} The log has it under request id {request_id}.")
    return json_response(envelope(known), known.status, _headers(known))


def envelope(error: ApiError) -> dict[str, Any]:
    body: dict[str, Any] = {
        "message": error.message if len(error.message) <= MAX_MESSAGE else error.message[: MAX_MESSAGE - 3] + "...",
        "type": error_type(error.status),
        "param": error.param,
        "code": error.code,
    }
    if error.problems:
        shown = error.problems[:MAX_PROBLEMS]
        body["problems"] = [
            {"path": _short_path(problem.path), "message": problem.message, "value": problem.value} for problem in shown
        ]
    return {"error": body}


def error_type(status: int) -> str:
    return TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")


def as_envelope(error: Exception) -> dict[str, Any]:
    """The envelope alone, for errors inside an event stream."""
    return envelope(_as_api_error(error) or ApiError(500, "internal_error", INTERNAL))


def _as_api_error(error: Exception) -> ApiError | None:
    match error:
        case ApiError():
            return error
        case InvalidRequest():
            return _from_problems(STATUS[InvalidRequest], error.code, error.problems)
        case ServiceError():
            headers = {} if error.retry_after is None else {"retry-after": str(max(1, round(error.retry_after)))}
            status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
            return ApiError(status, error.code, error.message, param=error.param, headers=headers)
        case RequestValidationError():
            return _from_problems(400, "invalid_parameter", [_parameter_problem(dict(e)) for e in error.errors()])
        case HTTPException():
            return _from_framework(error)
    return None


def _from_problems(status: int, code: str, problems: Sequence[Problem]) -> ApiError:
    lines = [str(Problem(_short_path(p.path), p.message, p.value)) for p in problems[:MAX_PROBLEMS_IN_MESSAGE]]
    if more := len(problems) - len(lines):
        lines.append(f"and {more} more")
    param = _short_path(problems[0].path) if problems else ""
    return ApiError(status, code, "; ".join(lines), param=param or None, problems=problems)


def _parameter_problem(details: dict[str, Any]) -> Problem:
    """A problem of a query, path or header parameter; the first part of its location says which of them."""
    path = ".".join(str(part) for part in details["loc"][1:])
    if details["type"] == "missing":
        return Problem(path, "required, but missing")
    if details["type"] == "extra_forbidden":
        return Problem(path, "unknown parameter", shorten(details.get("input")))
    return Problem(path, details["msg"].removeprefix("Value error, "), shorten(details.get("input")))


def _from_framework(error: HTTPException) -> ApiError:
    """The router's own errors: no such route, or not with this method."""
    headers = dict(error.headers or {})
    if error.status_code == 404:
        return ApiError(404, "unknown_route", "There is no such address. /docs lists all routes.", headers=headers)
    if error.status_code == 405:
        message = f"This address does not know this method; use {headers['Allow']}."
        return ApiError(405, "method_not_allowed", message, headers=headers)
    phrase = HTTPStatus(error.status_code).phrase
    return ApiError(error.status_code, phrase.lower().replace(" ", "_"), f"{phrase}.", headers=headers)


def _short_path(path: str) -> str:
    """Unknown keys become part of a path: escaped and cut like every other value that came in."""
    return path if path.isascii() and path.isprintable() and len(path) <= 200 else shorten(path, 200)[1:-1]


def _headers(error: ApiError) -> dict[str, str]:
    headers = dict(error.headers)
    if error.status == 401:
        headers.setdefault("www-authenticate", 'Bearer realm="chainrule"')
    if error.status == 409:
        headers["x-should-retry"] = "false"  # OpenAI's clients retry 409 unless told
    return headers


async def handle(request: Request, error: Exception) -> Response:
    """FastAPI's exception handler for the classes that it would otherwise render itself."""
    if isinstance(error, HTTPException) and error.status_code == 405:  # the router names the methods of one route only
        error = HTTPException(405, headers={"Allow": ", ".join(request.app.state.methods(request.url.path))})
    return render(error, getattr(request.state, "request_id", ""))
