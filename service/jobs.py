"""The use-cases around jobs. Each opens one short session and has committed when it returns.

They record what the user wants; the scheduler, which looks for changes of it between its passes, brings it about.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import Select, select, text, tuple_
from sqlalchemy.orm import Session

from service import idempotency
from service.database import Store, database_now
from service.errors import Conflict, InvalidRequest, NotFound
from service.files import check_bundle
from service.keys import require
from service.nodes import cluster_view as cluster_view  # a use-case like those here
from service.rows import attempt_value, event_value, job_value, resumable
from service.states import append_event, locked_job, transition
from service.tables import AttemptRow, EventRow, JobRow
from service.values import Attempt, Caller, Desired, Job, JobEvent, Order, Page, Reason, Role, Status, WorkerRange
from workers.problems import Problem, SpecError, shorten
from workers.reports import ReasonCode
from workers.spec import JobSpec, code_of, parse_spec

ResumeFrom = Literal["latest", "healthy"]  # which checkpoint

STRENGTH = {Desired.RUN: 0, Desired.PAUSE: 0, Desired.CANCEL: 1, Desired.KILL: 2}


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
        idempotency.check(idempotency_key)
        with store.read() as session:
            if (earlier := idempotency.made_before(session, caller, idempotency_key, digest)) is not None:
                return job_value(earlier)
    spec = checked(document)
    if admit is not None:
        admit(spec)
    with store.write() as session:
        now = database_now(session)
        job_id = f"job-{secrets.token_hex(12)}"
        if idempotency_key is not None and not idempotency.claim(session, caller, idempotency_key, digest, job_id, now):
            earlier = idempotency.made_before(session, caller, idempotency_key, digest)
            assert earlier is not None, "a key that cannot be claimed is there, with its job"
            return job_value(earlier)
        row = _new_row(job_id, caller.project, spec, now)
        if row.bundle is not None:
            check_bundle(session, caller, row.bundle)  # again: it may have been deleted since the job was admitted
        session.add(row)
        session.flush()  # the job before its event
        append_event(session, row, now, "info", "job.created", f"job {spec.name!r} was created", {"status": row.status})
        return job_value(row)


def get_job(store: Store, caller: Caller, job_id: str) -> Job:
    with store.read() as session:
        return job_value(own_job(session, caller, job_id))


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


def pause_job(store: Store, caller: Caller, job_id: str) -> Job:
    """The job finishes its step, writes a checkpoint and frees everything; one that waits in the queue just leaves it. A
    paused job stays as it is. Raises Conflict when the job has ended or is being cancelled, and for a running script that would
    begin anew."""
    require(caller, Role.MEMBER)
    with store.write() as session:
        row = _own(locked_job(session, job_id), caller, job_id)
        _refuse_if_over(row, "paused")
        if row.status == Status.PAUSED or row.desired == Desired.PAUSE:
            return job_value(row)
        _refuse_if_lost_by_a_pause(row)
        now = database_now(session)
        row.desired, row.desired_at, row.intent_at = Desired.PAUSE, now, now
        append_event(session, row, now, "info", "job.pause_requested", "pause was requested", {})
        if row.status == Status.QUEUED:
            reason = Reason(ReasonCode.PAUSED, "paused while it waited in the queue", {})
            transition(session, row, Status.PAUSED, now, reason.message, reason=reason)
        elif row.status != Status.PAUSING:  # which it is already when another job goes first
            row.pause_at = now
            transition(session, row, Status.PAUSING, now, "the job is being paused")
        return job_value(row)


def resume_job(store: Store, caller: Caller, job_id: str, start: ResumeFrom | None = None) -> Job:
    """A paused job goes back to the queue and on from its newest checkpoint, or its last healthy one; one that is being paused does
    so once it is. ``start`` None: the healthy one after a pause for something critical. Any other job stays as it is. Raises Conflict when
    the job has ended or is being cancelled."""
    require(caller, Role.MEMBER)
    with store.write() as session:
        row = _own(locked_job(session, job_id), caller, job_id)
        _refuse_if_over(row, "resumed")
        if row.status != Status.PAUSED and row.desired == Desired.RUN:
            return job_value(row)
        now = database_now(session)
        row.desired, row.desired_at, row.intent_at = Desired.RUN, now, now
        critical = row.reason is not None and row.reason["code"] == ReasonCode.CRITICAL_PAUSE
        ours = row.spec["task"]["kind"] != "script"  # whose checkpoints are its own
        start = start or ("healthy" if critical and ours else None)
        if start is not None:
            row.healthy_from = row.attempt + 1 if start == "healthy" else None
        said = {"healthy": ", from the last healthy checkpoint", "latest": ", from the newest checkpoint"}.get(
            start or "", ""
        )
        append_event(session, row, now, "info", "job.resume_requested", f"resume was requested{said}", {"from": start})
        if row.status == Status.PAUSED:
            row.retry_at = now
            transition(session, row, Status.QUEUED, now, "the job is in the queue again")
        return job_value(row)


def update_job(
    store: Store,
    caller: Caller,
    job_id: str,
    *,
    priority: int | None = None,
    metadata: Mapping[str, str] | None = None,
    workers: WorkerRange | None = None,
) -> Job:
    """Changes what is given, also while the job runs; ``metadata`` takes the place of all that was there. The job's spec says
    it from then on. Raises InvalidRequest with every field that does not fit the rest of the spec, and Conflict for
    priority or workers of a job that has ended or is being cancelled."""
    require(caller, Role.MEMBER)
    with store.write() as session:
        row = _own(locked_job(session, job_id), caller, job_id)
        if priority is not None or workers is not None:
            _refuse_if_over(row, "changed, but for its metadata")
        if workers is not None:
            _refuse_if_a_script_runs(row)
        spec = _changed(row.spec, priority, metadata, workers)
        document = spec.model_dump(mode="json")
        fields = [key for key in ("priority", "metadata", "workers") if document[key] != row.spec[key]]
        if fields:
            now = database_now(session)
            row.spec, row.labels, row.priority, row.intent_at = document, dict(spec.metadata), spec.priority, now
            row.worker_min, row.worker_max = spec.workers.fewest, spec.workers.most
            changes = {key: document[key] for key in fields}
            append_event(session, row, now, "info", "job.updated", f"{' and '.join(fields)} changed", changes)
        return job_value(row)


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
        own_job(session, caller, job_id)
        return [event_value(row) for row in session.execute(query).scalars()]


def list_attempts(store: Store, caller: Caller, job_id: str) -> list[Attempt]:
    query = select(AttemptRow).where(AttemptRow.job_id == job_id).order_by(AttemptRow.number)
    with store.read() as session:
        own_job(session, caller, job_id)
        return [attempt_value(row) for row in session.execute(query).scalars()]


def ping(store: Store) -> None:
    """Raises Unavailable when the database does not answer."""
    with store.read() as session:
        session.execute(text("SELECT 1"))


def checked(document: object) -> JobSpec:
    """Raises InvalidRequest with all problems at once."""
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
        worker_min=spec.workers.fewest,
        worker_max=spec.workers.most,
        worker_cpus=spec.workers.cpus,
        worker_gpus=spec.workers.gpus,
        worker_memory=spec.workers.memory or 0,
        bundle=code.file if (code := code_of(spec)) is not None else None,
        max_attempts=spec.retry.max_attempts,
        deadline_at=None if deadline is None else now + timedelta(seconds=deadline),
        desired=Desired.RUN,
        desired_at=now,
        intent_at=now,
        status=Status.QUEUED,
        reason=None,
        waiting=None,
        attempt=0,
        failures=0,
        cluster_losses=0,
        recoveries=0,
        healthy_from=None,
        pause_at=None,
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
            if Status(row.status) in (Status.STARTING, Status.RUNNING, Status.RECOVERING, Status.PAUSING):
                transition(session, row, Status.CANCELLING, now, f"{desired} is under way")
        return job_value(row)


def _refuse_if_lost_by_a_pause(row: JobRow) -> None:
    if not resumable(row.spec["task"]) and row.status != Status.QUEUED:
        raise Conflict(
            f"job {row.id} is a script, which would begin anew after a pause; cancel it, or, if it goes on from what it has written into its "
            "output folder, say task.resumable: true in its job"
        )


def _refuse_if_a_script_runs(row: JobRow) -> None:
    if row.spec["task"]["kind"] == "script" and row.status not in (Status.QUEUED, Status.PAUSED):
        raise Conflict(f"job {row.id} is a script, whose number of workers is fixed while it runs")


def _refuse_if_over(row: JobRow, what: str) -> None:
    if Status(row.status).ended:
        raise Conflict(f"{row.id} has ended ({row.status}) and cannot be {what}", param="job_id")
    if STRENGTH[Desired(row.desired)] > 0 or row.status == Status.CANCELLING:
        raise Conflict(f"{row.id} is being cancelled and cannot be {what}", param="job_id")


def _changed(
    document: Mapping[str, Any], priority: int | None, metadata: Mapping[str, str] | None, workers: WorkerRange | None
) -> JobSpec:
    changed = dict(document)
    if priority is not None:
        changed["priority"] = priority
    if metadata is not None:
        changed["metadata"] = dict(metadata)
    if workers is not None:
        fixed = workers.min == workers.max
        size = {"count": workers.min} if fixed else {"min": workers.min, "max": workers.max}
        changed["workers"] = {**document["workers"], "count": None, "min": None, "max": None, **size}
    try:
        return parse_spec(changed)
    except SpecError as error:  # a rule between fields of the whole spec names none: only workers can have broken one
        named = (p if p.path else replace(p, path="workers", value=None) for p in error.problems)
        raise InvalidRequest(named) from None


def own_job(session: Session, caller: Caller, job_id: str) -> JobRow:
    """Raises NotFound."""
    return _own(session.get(JobRow, job_id), caller, job_id)


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
