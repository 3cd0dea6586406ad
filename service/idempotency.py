"""Requests that are sent twice and make one job: the Idempotency-Key of a request, kept for a day with what it made."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from sqlalchemy import delete
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from service.database import database_now
from service.errors import IdempotencyMismatch, InvalidRequest
from service.tables import IdempotencyRow, JobRow
from service.values import Caller
from workers.problems import Problem, shorten

KEY = re.compile(r"[\x21-\x7e]{1,255}")
LIFETIME = timedelta(hours=24)
CREATE_ROUTE = "POST /v1/jobs"


def check(key: str) -> None:
    if KEY.fullmatch(key) is None:
        message = "must be 1 to 255 visible ASCII characters"
        raise InvalidRequest([Problem("Idempotency-Key", message, shorten(key))])


def made_before(session: Session, caller: Caller, key: str, digest: str) -> JobRow | None:
    row = session.get(IdempotencyRow, (caller.project, CREATE_ROUTE, key))
    if row is None or row.expires_at <= database_now(session):
        return None
    if row.digest != digest:
        raise IdempotencyMismatch(
            "this Idempotency-Key was used before with another body; use a new key", param="Idempotency-Key"
        )
    return session.get(JobRow, row.job_id)


def claim(session: Session, caller: Caller, key: str, digest: str, job_id: str, now: datetime) -> bool:
    """Whether the key is ours from now on. A request with the same key that runs at the same moment is waited for."""
    session.execute(delete(IdempotencyRow).where(IdempotencyRow.expires_at <= now))
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    insert = dialect.insert(IdempotencyRow).values(
        project=caller.project,
        route=CREATE_ROUTE,
        key=key,
        digest=digest,
        job_id=job_id,
        expires_at=now + LIFETIME,
    )
    claimed = session.execute(insert.on_conflict_do_nothing().returning(IdempotencyRow.key)).first()
    return claimed is not None
