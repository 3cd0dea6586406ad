"""The life of a job: which status may follow which, and the one function that writes a status.

Events are appended here too, in the caller's transaction, which must hold the job's row (``locked_job``): that is
what keeps a job's sequence numbers without holes.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.tables import EventRow, JobRow
from service.values import Reason, Status
from workers.reports import Level

_S = Status
ENDS = frozenset({_S.SUCCEEDED, _S.FAILED, _S.CANCELLED})
BREAKS = frozenset({_S.PAUSING, _S.PAUSED, _S.QUEUED})

TRANSITIONS: Mapping[Status, frozenset[Status]] = {
    _S.QUEUED: frozenset({_S.STARTING, _S.PAUSED, _S.FAILED, _S.CANCELLED}),
    # -> paused, without a wish for it: storage is full
    _S.STARTING: frozenset({_S.RUNNING, _S.RECOVERING, _S.CANCELLING, _S.FAILED, _S.CANCELLED}) | BREAKS,
    _S.RUNNING: frozenset({_S.RECOVERING, _S.CANCELLING}) | BREAKS | ENDS,
    # recovering -> running: workers were replaced; recovering -> starting: a new attempt
    _S.RECOVERING: frozenset({_S.RUNNING, _S.STARTING, _S.CANCELLING}) | BREAKS | ENDS,
    # pausing -> queued: for a job that goes first, or a resume came meanwhile
    _S.PAUSING: frozenset({_S.PAUSED, _S.QUEUED, _S.CANCELLING}) | ENDS,
    _S.PAUSED: frozenset({_S.QUEUED, _S.FAILED, _S.CANCELLED}),
    _S.CANCELLING: ENDS,  # it may finish or fail before the cancel reaches it
    _S.SUCCEEDED: frozenset(),
    _S.FAILED: frozenset(),
    _S.CANCELLED: frozenset(),
}
LEVELS: Mapping[Status, Level] = {_S.FAILED: "error", _S.RECOVERING: "warning"}


class TransitionError(AssertionError):
    """A status that cannot follow the present one: a mistake of ours."""


def locked_job(session: Session, job_id: str) -> JobRow | None:
    """The job's row, which nobody else changes until the transaction ends."""
    return session.execute(select(JobRow).where(JobRow.id == job_id).with_for_update()).scalar_one_or_none()


def transition(
    session: Session,
    job: JobRow,
    to: Status,
    now: datetime,
    message: str,
    *,
    reason: Reason | None = None,
    data: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Writes the status and its event. ``reason`` is why the job ended or is paused, or why an attempt of it ended."""
    before = Status(job.status)
    if to not in TRANSITIONS[before]:
        raise TransitionError(f"{job.id}: {before} cannot become {to}")
    job.status = to
    if to is Status.RUNNING and job.started_at is None:
        job.started_at = now
    if to.ended:
        assert reason is not None, "a job ends for a reason"
        job.reason = reason_document(reason)
        job.finished_at = now
    elif to in (Status.PAUSED, Status.QUEUED):
        job.reason = reason_document(reason) if reason is not None and to is Status.PAUSED else None
    job.waiting = None
    facts = {"from": before, "to": to, "reason": reason_summary(reason) if reason else None, **data}
    append_event(session, job, now, LEVELS.get(to, "info"), "job.status", message, facts)


def append_event(
    session: Session,
    job: JobRow,
    created_at: datetime,
    level: Level,
    type: str,
    message: str,
    data: Mapping[str, Any],
) -> None:
    job.last_sequence += 1
    session.add(
        EventRow(
            job_id=job.id,
            sequence=job.last_sequence,
            created_at=created_at,
            level=level,
            type=type[:100],
            message=message,
            data=dict(data),
        )
    )


def reason_document(reason: Reason) -> dict[str, Any]:
    """As stored."""
    return {"code": reason.code, "message": reason.message, "detail": dict(reason.detail)}


def reason_summary(reason: Reason) -> dict[str, Any]:
    """As shown in events."""
    return {
        "code": reason.code,
        "message": reason.message,
        "whose": reason.whose,
        "retryable": reason.retryable,
    }
