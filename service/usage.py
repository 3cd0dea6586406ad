"""What a project's jobs have cost: the time of their workers, what of it went by after something had gone wrong, and what repairs have saved.

A job's numbers follow from its series and its events. They are kept in the database when an attempt is over, and whenever somebody asks for them, so
they outlive the job's folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from service.database import Store, database_now
from service.rows import event_value
from service.tables import EventRow, JobRow, UsageRow
from service.values import Caller, JobEvent, Usage
from workers.jobfolder import JobFolder
from workers.repair.cost import Cost, cost
from workers.repair.told import CHANGES as REPAIRS
from workers.repair.told import entries
from workers.watch.told import CHANGES as FINDINGS

FolderOf = Callable[[str], JobFolder]


def of_project(store: Store, caller: Caller, folder_of: FolderOf) -> Usage:
    """Summed over all jobs of the caller's project, those included that train now."""
    for job_id in _stale(store, caller.project):
        keep(store, job_id, folder_of(job_id))
    columns = (UsageRow.trained_seconds, UsageRow.lost_seconds, UsageRow.saved_seconds, UsageRow.lost_steps)
    trained_, lost_, saved_, steps_ = (func.coalesce(func.sum(column), 0) for column in columns)
    query = select(func.count(), trained_, lost_, saved_, steps_)
    with store.read() as session:
        jobs, trained, lost, saved, steps = session.execute(query.where(UsageRow.project == caller.project)).one()
        repaired = select(func.count()).where(UsageRow.project == caller.project, UsageRow.saved_seconds > 0)
        return Usage(caller.project, jobs, session.scalar(repaired) or 0, trained, lost, saved, int(steps))


def of_job(spec: Mapping[str, Any], folder: JobFolder, told: list[JobEvent]) -> Cost:
    """``told``: the job's events about findings and repairs, oldest first."""
    timed = folder.series(("train/step_seconds",)).get("train/step_seconds")
    if timed is None:
        return Cost()
    of_workers = spec.get("workers") or {}
    workers = of_workers.get("count") or of_workers.get("max") or 1
    changes = [(event.type, event.data) for event in told if event.type in FINDINGS]
    done = entries((event.type, event.data) for event in told)
    return cost(timed.steps, timed.values, workers, changes, done)


def keep(store: Store, job_id: str, folder: JobFolder) -> None:
    """Writes down what a job has cost so far. A folder that is gone leaves what is known."""
    with store.read() as session:
        job = session.get(JobRow, job_id)
        if job is None:
            return
        spec, sequence, told = job.spec, job.last_sequence, _told(session, job_id)
    found = of_job(spec, folder, told)
    with store.write() as session:
        known, job = session.get(UsageRow, job_id), session.get_one(JobRow, job_id)
        if known is None:
            known = UsageRow(job_id=job_id, project=job.project, trained_seconds=0.0)
            session.add(known)
        elif found.trained_seconds < known.trained_seconds:
            known.sequence = sequence
            return
        known.trained_seconds, known.lost_seconds = found.trained_seconds, found.lost_seconds
        known.saved_seconds, known.lost_steps = found.saved_seconds, found.lost_steps
        known.sequence, known.measured_at = sequence, database_now(session)


def _stale(store: Store, project: str) -> list[str]:
    """Jobs that have started and train now, or of which something was told since they were looked at."""
    older = or_(UsageRow.job_id.is_(None), JobRow.finished_at.is_(None), UsageRow.sequence < JobRow.last_sequence)
    query = select(JobRow.id).outerjoin(UsageRow, UsageRow.job_id == JobRow.id)
    query = query.where(JobRow.project == project, JobRow.started_at.is_not(None), older)
    with store.read() as session:
        return list(session.execute(query).scalars())


def _told(session: Session, job_id: str) -> list[JobEvent]:
    query = select(EventRow).where(EventRow.job_id == job_id, EventRow.type.in_((*FINDINGS, *REPAIRS)))
    return [event_value(row) for row in session.execute(query.order_by(EventRow.sequence)).scalars()]
