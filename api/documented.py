"""Shorthands with which routes describe their responses in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from api import schemas
from api.errors import error_type

# status -> (when, code, an example of the message)
_ERRORS: dict[int, tuple[str, str, str]] = {
    400: (
        "A parameter or the body cannot be read.",
        "invalid_parameter",
        "limit: Input should be less than or equal to 100 (got '500')",
    ),
    401: (
        "No key, or one that is not valid.",
        "unauthorized",
        "No key. Send the header 'Authorization: Bearer <key>'.",
    ),
    403: (
        "The key's role does not allow this.",
        "forbidden",
        "this needs the role member; the key has the role viewer",
    ),
    404: ("There is no such thing, or it belongs to another project.", "not_found", "There is no such job."),
    409: (
        "The request does not fit what is there.",
        "idempotency_key_reused",
        "this Idempotency-Key was used before with another body; use a new key",
    ),
    413: ("The body is too large.", "body_too_large", "The body is larger than 10 MiB."),
    415: (
        "The body is neither JSON nor YAML.",
        "unsupported_media_type",
        "Content-Type must be application/json or application/yaml; there was none.",
    ),
    422: (
        "The job cannot be accepted; all its problems are listed.",
        "invalid_request",
        "training.batch_size: Input should be greater than or equal to 1 (got 0)",
    ),
    429: ("Too many open streams.", "too_many_streams", "Too many open streams; a key may have 20 at a time."),
    503: (
        "Not available right now; try again after the time in Retry-After.",
        "unavailable",
        "the database is busy or cannot be reached; try again in a moment",
    ),
}

Responses = dict[int | str, dict[str, Any]]


def errors(*statuses: int) -> Responses:
    """Descriptions with examples of the error responses of these statuses."""
    return {status: _error(status) for status in statuses}


def protected(*statuses: int) -> Responses:
    """As ``errors``, with what every route behind the key check can answer besides."""
    return errors(*sorted({401, 403, 503, *statuses}))


def of_job(*statuses: int) -> Responses:
    return protected(404, *statuses)


def success(model: Any, example: Any = None, *, status: int = 200, description: str = "Success") -> Responses:
    documented: dict[str, Any] = {"model": model, "description": description}
    if example is not None:
        documented["content"] = {"application/json": {"example": example}}
    return {status: documented}


def with_stream(responses: Responses, example: str) -> Responses:
    """Adds the event-stream form of a 200."""
    content = responses[200].setdefault("content", {})
    content["text/event-stream"] = {"schema": {"type": "string"}, "example": example}
    return responses


def files(*kinds: str) -> Responses:
    """``kinds``: media types that files have besides the one of no type."""
    return binary("The file's bytes; ranges are supported, but not for checkpoints in an object store.", *kinds)


def binary(description: str, *kinds: str) -> Responses:
    content = {
        kind: {"schema": {"type": "string", "format": "binary"}} for kind in ("application/octet-stream", *kinds)
    }
    return {200: {"description": description, "content": content}}


def _error(status: int) -> dict[str, Any]:
    description, code, message = _ERRORS[status]
    error: dict[str, Any] = {"message": message, "type": error_type(status), "param": None, "code": code}
    if status == 422:
        path, value = "training.batch_size", "0"
        error["param"] = path
        error["problems"] = [{"path": path, "message": "Input should be greater than or equal to 1", "value": value}]
    return {
        "model": schemas.Error,
        "description": description,
        "content": {"application/json": {"example": {"error": error}}},
    }
