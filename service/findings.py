"""The use-cases around findings: what was told of a job over time, and how much of it there is in all jobs."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import JSON, func, select, type_coerce

from service.database import Store
from service.jobs import own_job
from service.rows import event_value
from service.tables import OF_FINDINGS, EventRow, JobRow
from service.values import Caller, JobEvent
from workers.watch.told import CHANGES

MOST_TOLD = 500  # changes of one job that are shown, the newest


def history(store: Store, caller: Caller, job_id: str) -> list[JobEvent]:
    """The events that raised or cleared a finding, oldest first; of more than ``MOST_TOLD`` the newest."""
    query = select(EventRow).where(EventRow.job_id == job_id, EventRow.type.in_(CHANGES))
    with store.read() as session:
        own_job(session, caller, job_id)
        newest = session.execute(query.order_by(EventRow.sequence.desc()).limit(MOST_TOLD)).scalars()
        return [event_value(row) for row in newest][::-1]


def raised(store: Store) -> Mapping[tuple[str, str], int]:
    """(code, severity) -> how often such a finding was raised, in all jobs of all projects."""
    told = type_coerce(EventRow.data, JSON)
    # What is found beforehand is told as the finding alone.
    code, severity = (
        func.coalesce(told["finding", field].as_string(), told[field].as_string()) for field in ("code", "severity")
    )
    query = select(code, severity, func.count()).where(OF_FINDINGS).group_by(code, severity)
    with store.read() as session:
        return {(code, severity): count for code, severity, count in session.execute(query)}


def verdicts(store: Store) -> Mapping[str, int]:
    """Verdict -> jobs that have not ended and have it. A job that nothing is known of yet is unknown."""
    verdict = func.coalesce(type_coerce(JobRow.health, JSON)["verdict"].as_string(), "unknown")
    query = select(verdict, func.count()).where(JobRow.finished_at.is_(None)).group_by(verdict)
    with store.read() as session:
        return dict(session.execute(query).tuples().all())
