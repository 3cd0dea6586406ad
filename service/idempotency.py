"""Requests that are sent twice and make one job: the Idempotency-Key of a request, kept for a day with what it made."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import TypeVar

from sqlalchemy import delete
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from service.database import database_now
from service.errors import IdempotencyMismatch, InvalidRequest
from service.tables import FileKeyRow, FileRow, IdempotencyRow, JobRow
from service.values import Caller
from workers.problems import Problem, shorten

KEY = re.compile(r"[\x21-\x7e]{1,255}")
LIFETIME = timedelta(hours=24)
CREATE_ROUTE = "POST /v1/jobs"

KeyRow = TypeVar("KeyRow", IdempotencyRow, FileKeyRow)


def check(key: str) -> None:
    if KEY.fullmatch(key) is None:
        message = "must be 1 to 255 visible ASCII characters"
        raise InvalidRequest([Problem("Idempotency-Key", message, shorten(key))])


def made_before(session: Session, caller: Caller, key: str, digest: str) -> JobRow | None:
    row = _earlier(session, IdempotencyRow, (caller.project, CREATE_ROUTE, key), digest, "body")
    return session.get(JobRow, row.job_id) if row is not None else None


def file_made_before(session: Session, caller: Caller, key: str, digest: str) -> FileRow | None:
    row = _earlier(session, FileKeyRow, (caller.project, key), digest, "file")
    return session.get(FileRow, row.file_id) if row is not None else None


def claim(session: Session, caller: Caller, key: str, digest: str, job_id: str, now: datetime) -> bool:
    """Whether the key is ours from now on. A request with the same key that runs at the same moment is waited for."""
    values = {"project": caller.project, "route": CREATE_ROUTE, "key": key, "digest": digest, "job_id": job_id}
    return _claimed(session, IdempotencyRow, values, now)


def claim_for_file(session: Session, caller: Caller, key: str, digest: str, file_id: str, now: datetime) -> bool:
    values = {"project": caller.project, "key": key, "digest": digest, "file_id": file_id}
    return _claimed(session, FileKeyRow, values, now)


def _earlier(session: Session, keys: type[KeyRow], key: tuple[str, ...], digest: str, what: str) -> KeyRow | None:
    row = session.get(keys, key)
    if row is None or row.expires_at <= database_now(session):
        return None
    if row.digest != digest:
        raise IdempotencyMismatch(
            f"this Idempotency-Key was used before with another {what}; use a new key", param="Idempotency-Key"
        )
    return row


def _claimed(session: Session, keys: type[KeyRow], values: dict[str, str], now: datetime) -> bool:
    session.execute(delete(keys).where(keys.expires_at <= now))
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    insert = dialect.insert(keys).values(**values, expires_at=now + LIFETIME)
    return session.execute(insert.on_conflict_do_nothing().returning(keys.key)).first() is not None
