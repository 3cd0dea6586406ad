"""The use-cases around jobs. Each opens one short session and has committed when it returns.

They record what the user wants; the scheduler, which looks for changes of it between its passes, brings it about.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import Select, delete, func, select, text, tuple_
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from service.database import Store, database_now
from service.errors import IdempotencyMismatch, InvalidRequest, NotFound
from service.keys import require
from service.rows import attempt_value, cluster_value, event_value, job_value
from service.states import append_event, locked_job, transition
from service.tables import AttemptRow, ClusterRow, EventRow, IdempotencyRow, JobRow, LeaseRow
from service.values import Attempt, Caller, ClusterView, Desired, Job, JobEvent, Page, Role, Status
from workers.problems import Problem, SpecError, shorten
from workers.spec import JobSpec, parse_spec

Order = Literal["asc", "desc"]
IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")
IDEMPOTENCY_LIFETIME = timedelta(hours=24)
CREATE_ROUTE = "POST /v1/jobs"
STRENGTH = {Desired.RUN: 0, Desired.CANCEL: 1, Desired.KILL: 2}


def create_job(
    store: Store,
    caller: Caller,
    document: object,
    *,
    idempotency_key: str | None = None,
    digest: str = "",
    admit: Callable[[JobSpec], None] | None = None,
) -> Job:
    """A new job, or the one that this idempotency key made before. ``digest``: of the request's body. ``admit`` (usually
    admission.check with settings and capacity bound) is called for new jobs only, outside any database session."""
    require(caller, Role.MEMBER)
    if idempotency_key is not None:
        _check_idempotency_key(idempotency_key)
        with store.read() as session:
            if (earlier := _made_before(session, caller, idempotency_key, digest)) is not None:
                return earlier
    spec = _parse(document)
    if admit is not None:
        admit(spec)
    with store.write() as session:
        now = database_now(session)
        job_id = f"job-{secrets.token_hex(12)}"
        if idempotency_key is not None and not _claim_key(session, caller, idempotency_key, digest, job_id, now):
            earlier = _made_before(session, caller, idempotency_key, digest)
            assert earlier is not None, "a key that cannot be claimed is there, with its job"
            return earlier
        row = _new_row(job_id, caller.project, spec, now)
        session.add(row)
        session.flush()  # the job before its event
        append_event(session, row, now, "info", "job.created", f"job {spec.name!r} was created", {"status": row.status})
        return job_value(row)


def get_job(store: Store, caller: Caller, job_id: str) -> Job:
    with store.read() as session:
        return job_value(_own(session.get(JobRow, job_id), caller, job_id))


def list_jobs(
    store: Store,
    caller: Caller,
    *,
    after: str | None = None,
    limit: int = 20,
    order: Order = "desc",
    status: Status | None = None,
    name: str | None = None,
) -> Page[Job]:
    """Jobs by age, those after (in ``order``) the job ``after``. ``name`` is the whole name."""
    position = tuple_(JobRow.created_at, JobRow.id)
    query = select(JobRow).where(JobRow.project == caller.project)
    if status is not None:
        query = query.where(JobRow.status == status)
    if name is not None:
        query = query.where(JobRow.name == name)
    with store.read() as session:
        if after is not None:
            query = _after(session, query, caller, after, order)
        query = query.order_by(*(column.desc() if order == "desc" else column for column in position.clauses))
        rows = session.execute(query.limit(limit + 1)).scalars().all()
        return Page(data=[job_value(row) for row in rows[:limit]], has_more=len(rows) > limit)


def cancel_job(store: Store, caller: Caller, job_id: str) -> Job:
    """The job finishes its step, writes a checkpoint and ends. A job that has ended stays as it is."""
    return _want(store, caller, job_id, Desired.CANCEL)


def kill_job(store: Store, caller: Caller, job_id: str) -> Job:
    """The job ends now and writes nothing. A job that has ended stays as it is."""
    return _want(store, caller, job_id, Desired.KILL)


def list_events(
    store: Store, caller: Caller, job_id: str, *, after_sequence: int = 0, limit: int = 100, order: Order = "asc"
) -> list[JobEvent]:
    """asc: events after ``after_sequence``; desc: those before it (0: from the newest)."""
    query = select(EventRow).where(EventRow.job_id == job_id).limit(limit)
    if order == "asc":
        query = query.where(EventRow.sequence > after_sequence).order_by(EventRow.sequence)
    else:
        query = query.order_by(EventRow.sequence.desc())
        if after_sequence:
            query = query.where(EventRow.sequence < after_sequence)
    with store.read() as session:
        _own(session.get(JobRow, job_id), caller, job_id)
        return [event_value(row) for row in session.execute(query).scalars()]


def list_attempts(store: Store, caller: Caller, job_id: str) -> list[Attempt]:
    query = select(AttemptRow).where(AttemptRow.job_id == job_id).order_by(AttemptRow.number)
    with store.read() as session:
        _own(session.get(JobRow, job_id), caller, job_id)
        return [attempt_value(row) for row in session.execute(query).scalars()]


def cluster_view(store: Store) -> ClusterView:
    holds = AttemptRow.finished_at.is_(None)
    cpus, gpus, memory, active = (
        func.sum(JobRow.worker_count * JobRow.worker_cpus),
        func.sum(JobRow.worker_count * JobRow.worker_gpus),
        func.sum(JobRow.worker_count * JobRow.worker_memory),
        func.count(),
    )
    with store.read() as session:
        used = session.execute(
            select(cpus, gpus, memory, active).select_from(JobRow).join(AttemptRow).where(holds)
        ).one()
        waiting = select(func.count()).where(JobRow.finished_at.is_(None))
        unfinished = session.execute(waiting).scalar_one()
        return cluster_value(
            session.get(ClusterRow, 1),
            session.get(LeaseRow, "scheduler"),
            now=database_now(session),
            used=tuple(used),
            queued=unfinished - used[3],
        )


def ping(store: Store) -> None:
    """Raises Unavailable when the database does not answer."""
    with store.read() as session:
        session.execute(text("SELECT 1"))


def _parse(document: object) -> JobSpec:
    try:
        return parse_spec(document)
    except SpecError as error:
        raise InvalidRequest(error.problems) from None


def _new_row(job_id: str, project: str, spec: JobSpec, now: datetime) -> JobRow:
    deadline = spec.deadline_seconds
    return JobRow(
        id=job_id,
        project=project,
        name=spec.name,
        spec=spec.model_dump(mode="json"),
        labels=dict(spec.metadata),
        priority=spec.priority,
        worker_count=spec.workers.fewest,
        worker_cpus=spec.workers.cpus,
        worker_gpus=spec.workers.gpus,
        worker_memory=spec.workers.memory or 0,
        max_attempts=spec.retry.max_attempts,
        deadline_at=None if deadline is None else now + timedelta(seconds=deadline),
        desired=Desired.RUN,
        desired_at=now,
        intent_at=now,
        status=Status.QUEUED,
        reason=None,
        waiting=None,
        attempt=0,
        retry_at=None,
        created_at=now,
        started_at=None,
        finished_at=None,
        last_sequence=0,
        progress=None,
        latest={},
        health={},
        workers=[],
        links={},
    )


def _want(store: Store, caller: Caller, job_id: str, desired: Desired) -> Job:
    require(caller, Role.MEMBER)
    with store.write() as session:
        row = _own(locked_job(session, job_id), caller, job_id)
        if not Status(row.status).ended and STRENGTH[desired] > STRENGTH[Desired(row.desired)]:
            now = database_now(session)
            row.desired, row.desired_at, row.intent_at = desired, now, now
            append_event(session, row, now, "info", f"job.{desired}_requested", f"{desired} was requested", {})
            if Status(row.status) in (Status.STARTING, Status.RUNNING, Status.RECOVERING):
                transition(session, row, Status.CANCELLING, now, f"{desired} is under way")
        return job_value(row)


def _own(row: JobRow | None, caller: Caller, job_id: str) -> JobRow:
    if row is None or row.project != caller.project:  # not even that it exists is told to others
        raise NotFound(f"there is no job {shorten(job_id)}", param="job_id")
    return row


def _after(session: Session, query: Select[Any], caller: Caller, after: str, order: Order) -> Select[Any]:
    mark = session.get(JobRow, after)
    if mark is None or mark.project != caller.project:
        raise InvalidRequest([Problem("after", "there is no such job", shorten(after))])
    position, limit = tuple_(JobRow.created_at, JobRow.id), tuple_(mark.created_at, mark.id)
    return query.where(position < limit if order == "desc" else position > limit)


def _check_idempotency_key(key: str) -> None:
    if IDEMPOTENCY_KEY.fullmatch(key) is None:
        message = "must be 1 to 255 visible ASCII characters"
        raise InvalidRequest([Problem("Idempotency-Key", message, shorten(key))])


def _made_before(session: Session, caller: Caller, key: str, digest: str) -> Job | None:
    row = session.get(IdempotencyRow, (caller.project, CREATE_ROUTE, key))
    if row is None or row.expires_at <= database_now(session):
        return None
    if row.digest != digest:
        raise IdempotencyMismatch(
            "this Idempotency-Key was used before with another body; use a new key", param="Idempotency-Key"
        )
    job = session.get(JobRow, row.job_id)
    return None if job is None else job_value(job)


def _claim_key(session: Session, caller: Caller, key: str, digest: str, job_id: str, now: datetime) -> bool:
    """Whether the key is ours from now on. A request with the same key that runs at the same moment is waited for."""
    session.execute(delete(IdempotencyRow).where(IdempotencyRow.expires_at <= now))
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    insert = dialect.insert(IdempotencyRow).values(
        project=caller.project,
        route=CREATE_ROUTE,
        key=key,
        digest=digest,
        job_id=job_id,
        expires_at=now + IDEMPOTENCY_LIFETIME,
    )
    claimed = session.execute(insert.on_conflict_do_nothing().returning(IdempotencyRow.key)).first()
    return claimed is not None
