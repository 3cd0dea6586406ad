"""Every error that a use-case raises on purpose. ``api/errors.py`` maps each class to an HTTP status."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from workers.problems import Problem


class ServiceError(Exception):
    """``code`` is for machines, ``message`` for people; ``param`` names the field or parameter that is wrong, if one is."""

    code: ClassVar[str] = "service_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after  # seconds


class InvalidRequest(ServiceError):
    """The payload or a parameter is wrong; ``problems`` has everything that was found."""

    code = "invalid_request"

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(map(str, self.problems)), param=self.problems[0].path or None)


class Unauthorized(ServiceError):
    """No key, or one that is not (or no longer) valid."""

    code = "unauthorized"


class Forbidden(ServiceError):
    """The key is good; its role does not allow this."""

    code = "forbidden"


class NotFound(ServiceError):
    """There is no such thing, or it belongs to another project: an outsider cannot tell which."""

    code = "not_found"


class Conflict(ServiceError):
    """What is asked does not fit the state of the thing."""

    code = "conflict"


class IdempotencyMismatch(Conflict):
    """The Idempotency-Key was used before, with another body."""

    code = "idempotency_key_reused"


class Unavailable(ServiceError):
    """The database does not answer, or is locked. The same request may succeed after ``retry_after`` seconds."""

    code = "unavailable"

    def __init__(self, message: str, *, param: str | None = None, retry_after: float | None = 2.0) -> None:
        super().__init__(message, param=param, retry_after=retry_after)


class StorageFull(ServiceError):
    """The disk of the database is full: nothing can be written, reading goes on."""

    code = "storage_full"
