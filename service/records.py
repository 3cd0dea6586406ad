"""What the reconciler reads and writes. Every write is guarded by the lease, and dropped when the job is no longer as it
was claimed: somebody, mostly a user, was quicker, and the next pass decides anew."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from service.cluster import Capacity, Resources
from service.database import Store
from service.decisions import AttemptState, Decision, JobState
from service.leases import Lease
from service.rows import node_document, resumable
from service.states import append_event, locked_job, reason_document, transition
from service.tables import AttemptRow, ClusterRow, CordonRow, JobRow, clean_json
from service.values import Desired, Reason, Status
from workers.reports import REASONS, Observation, Outcome, ReasonCode, Recovery, WorkerStatus
from workers.spec import JobSpec

CORDON_KEPT = timedelta(days=1)  # of a node that is not there
HISTORY = 1000  # workers, and recoveries, that are kept of an attempt
TRACKING_COMPLETE = "tracking.complete"  # the controller's event when MLflow has everything

JOB_COLUMNS = (
    JobRow.id, JobRow.status, JobRow.desired, JobRow.desired_at, JobRow.priority, JobRow.created_at, JobRow.deadline_at,
    JobRow.retry_at, JobRow.pause_at, JobRow.attempt, JobRow.failures, JobRow.cluster_losses, JobRow.max_attempts,
    JobRow.worker_min, JobRow.worker_max, JobRow.worker_cpus, JobRow.worker_gpus, JobRow.worker_memory, JobRow.waiting,
    JobRow.spec["task"]["kind"].as_string().label("kind"), JobRow.spec["task"]["resumable"].as_boolean().label("resumable"),
)  # fmt: skip


class Records:
    def __init__(self, store: Store, lease: Lease) -> None:
        self.store = store
        self._lease = lease

    def claim(self) -> list[JobState]:
        """Every job that has not ended, or of which something may still be on the cluster."""
        with self.store.read() as session:
            attempts: dict[str, list[AttemptState]] = defaultdict(list)
            left = select(AttemptRow).where(AttemptRow.removed_at.is_(None)).order_by(AttemptRow.number)
            for row in session.execute(left).scalars():
                attempts[row.job_id].append(_attempt_state(row))
            rows = session.execute(
                select(*JOB_COLUMNS).where(JobRow.finished_at.is_(None) | JobRow.id.in_(list(attempts)))
            )
            return [_job_state(row, tuple(attempts[row.id])) for row in rows]

    def asked(self, job_id: str) -> tuple[JobSpec, int]:
        """The job's spec, and the attempt from which on checkpoints count that are not healthy."""
        with self.store.read() as session:
            row = session.execute(select(JobRow.spec, JobRow.healthy_from).where(JobRow.id == job_id)).one()
        return JobSpec.model_validate(row.spec), row.healthy_from or 0

    def intent_mark(self) -> object:
        """Changes whenever a user has asked for something new."""
        with self.store.read() as session:
            query = select(func.count(), func.max(JobRow.intent_at)).where(JobRow.finished_at.is_(None))
            return tuple(session.execute(query).one())

    def cordoned(self) -> frozenset[str]:
        """Ids of nodes."""
        with self.store.read() as session:
            return frozenset(session.execute(select(CordonRow.node_id)).scalars())

    def start_attempt(self, job: JobState, size: int, cluster_id: str | None, now: datetime) -> bool:
        """The intent to launch: recorded first, so that a crash in between leaves nothing that the database does not know."""
        with self._write() as session:
            row = _unchanged(session, job)
            if row is None:
                return False
            row.attempt += 1
            row.retry_at = None
            session.add(
                AttemptRow(
                    job_id=job.id, number=row.attempt, created_at=now, seen_at=None, finished_at=None, removed_at=None,
                    reason=None, cluster_id=cluster_id, size=size, resized_at=None, workers=[], recoveries=[],
                    relayed=0, tracked=False,
                )
            )  # fmt: skip
            message = f"attempt {row.attempt} starts with {size} {'worker' if size == 1 else 'workers'}"
            transition(session, row, Status.STARTING, now, message, data={"attempt": row.attempt, "workers": size})
            return True

    def resize(self, job: JobState, size: int, why: str, now: datetime) -> bool:
        """How many workers the attempt under way should have from now on."""
        with self._write() as session:
            row = _unchanged(session, job)
            if row is None or job.current is None:
                return False
            attempt = session.get_one(AttemptRow, (job.id, job.current.number))
            data = {"from": attempt.size, "to": size, "why": why}
            append_event(session, row, now, "info", "job.resized", f"{attempt.size} -> {size} workers: {why}", data)
            attempt.size, attempt.resized_at = size, now
            return True

    def preempt(self, job: JobState, other: str, now: datetime) -> bool:
        """The job gives way to ``other``: its attempt is paused, and it waits in the queue then."""
        with self._write() as session:
            row = _unchanged(session, job)
            if row is None:
                return False
            row.pause_at = now
            message = f"gives way to {other}, which has a higher priority"
            append_event(session, row, now, "warning", "job.preempted", message, {"for": other})
            transition(session, row, Status.PAUSING, now, f"paused for {other}")
            return True

    def apply(
        self,
        job: JobState,
        attempt: AttemptState | None,
        seen: Observation | None,
        decision: Decision,
        now: datetime,
    ) -> bool:
        """What was seen of the attempt, and what was decided, in one transaction."""
        with self._write() as session:
            row = _unchanged(session, job)
            if row is None:
                return False
            if attempt is not None and not _apply_attempt(session, row, attempt, seen, decision, now):
                session.rollback()
                return False
            _apply_status(session, row, decision, now)
            return True

    def removed(self, job: JobState, attempt: AttemptState, now: datetime) -> None:
        with self._write() as session:
            row = session.get_one(AttemptRow, (job.id, attempt.number))
            row.removed_at = now

    def waiting(self, reasons: Mapping[str, str | None]) -> None:
        """Why jobs have not started yet, as their users read it."""
        with self._write() as session:
            for job_id, reason in reasons.items():
                idle = (JobRow.id == job_id) & JobRow.status.in_((Status.QUEUED, Status.RECOVERING))
                session.execute(update(JobRow).where(idle).values(waiting=reason))

    def cluster(self, capacity: Capacity, problem: str | None, now: datetime) -> None:
        with self._write() as session:
            nodes = [node_document(node) for node in capacity.nodes]
            session.merge(ClusterRow(id=1, reachable=problem is None, message=problem, nodes=nodes, updated_at=now))
            if nodes:  # a node that is gone for good never comes back under its id
                gone = CordonRow.node_id.not_in([node["id"] for node in nodes])
                session.execute(delete(CordonRow).where(gone, CordonRow.created_at < now - CORDON_KEPT))

    @contextmanager
    def _write(self) -> Iterator[Session]:
        with self.store.write() as session:
            self._lease.guard(session)
            yield session


def _unchanged(session: Session, job: JobState) -> JobRow | None:
    row = locked_job(session, job.id)
    claimed = (job.status, job.desired, job.attempt)
    return row if row is not None and (row.status, row.desired, row.attempt) == claimed else None


def _apply_attempt(
    session: Session, job: JobRow, attempt: AttemptState, seen: Observation | None, decision: Decision, now: datetime
) -> bool:
    row = session.get_one(AttemptRow, (job.id, attempt.number), with_for_update=True)
    if row.relayed != attempt.relayed or (row.finished_at is None) != (attempt.finished_at is None):
        return False
    if seen is not None:
        row.seen_at = row.seen_at or now
        known = len(row.recoveries)
        row.recoveries = together(row.recoveries, seen.recoveries, ("lost_at", "ranks"))
        job.recoveries += len(row.recoveries) - known
        row.workers = together(row.workers, seen.workers, ("rank", "pid", "started_at"))
        _relay(session, job, row, seen)
        if attempt.number == job.attempt:
            _show(job, seen)
    if decision.end is not None:
        row.finished_at = now
        row.reason = reason_document(_reason(decision.end))
        row.workers = [_ended(worker, decision, now) for worker in row.workers]
        job.retry_at, job.pause_at = decision.retry_at, None
        if decision.finish is None:
            job.workers = []
    if decision.remove:
        row.removed_at = now
    return True


def _relay(session: Session, job: JobRow, attempt: AttemptRow, seen: Observation) -> None:
    """The controller's events become the job's: each once, because the position is kept in the same transaction."""
    for event in sorted(seen.events, key=lambda event: event.sequence):
        if event.sequence <= attempt.relayed:
            continue
        created_at = datetime.fromtimestamp(event.timestamp, UTC)
        append_event(session, job, created_at, event.level, event.type, event.message, event.data)
        attempt.relayed = event.sequence
        attempt.tracked = attempt.tracked or event.type == TRACKING_COMPLETE


def _show(job: JobRow, seen: Observation) -> None:
    if seen.progress is not None:
        job.progress = asdict(seen.progress)
    job.latest = {**job.latest, **seen.latest}
    job.health = dict(seen.health)
    job.workers = [asdict(worker) for worker in seen.workers if worker.state not in ("lost", "left")]
    job.links = {**job.links, **seen.links}


def together(known: Sequence[Any], seen: Sequence[WorkerStatus | Recovery], key: Sequence[str]) -> list[Any]:
    """Documents of what was known, is over and is not told any more, before those of what is seen."""
    documents = [clean_json(asdict(each)) for each in seen]  # as they are read back

    def identity(document: Mapping[str, Any]) -> list[Any]:
        return [document[field] for field in key]

    told = [identity(document) for document in documents]
    over = [document for document in known if document.get("ended_at", 0) is not None]
    return [*(document for document in over if identity(document) not in told), *documents][-HISTORY:]


def _ended(worker: dict[str, Any], decision: Decision, now: datetime) -> dict[str, Any]:
    """A worker of an attempt that is over."""
    assert decision.end is not None
    if worker["ended_at"] is not None:
        return worker
    state = "lost" if decision.remove and worker["state"] != "done" else "done"
    return {**worker, "state": state, "ended_at": now.timestamp(), "why": decision.end.message}


def _apply_status(session: Session, job: JobRow, decision: Decision, now: datetime) -> None:
    outcome = decision.finish
    if decision.failures is not None:
        job.failures = decision.failures
    if decision.cluster_losses is not None:
        job.cluster_losses = decision.cluster_losses
    if decision.warning is not None:
        append_event(session, job, now, "warning", "job.pause_forced", decision.warning, {})
    if outcome is not None:
        status = Status(REASONS[outcome.code].status)
        if status is Status.SUCCEEDED and job.status == Status.STARTING:  # it ran between two looks
            transition(session, job, Status.RUNNING, now, "training runs")
        transition(session, job, status, now, outcome.message, reason=_reason(outcome))
        job.retry_at = None
    elif decision.end is not None and decision.status is not None:
        facts = {"attempt": job.attempt, "retry_at": decision.retry_at and decision.retry_at.isoformat()}
        message = f"attempt {job.attempt} ended: {decision.end.message}"
        if decision.failures is not None:
            message = (
                f"attempt {job.attempt} ended, failure {job.failures} of {job.max_attempts}: {decision.end.message}"
            )
        reason = _reason(decision.end)
        if decision.status is Status.PAUSED and decision.warning is not None:
            reason = Reason(ReasonCode.PAUSED, decision.warning, decision.end.detail)
        transition(session, job, decision.status, now, message, reason=reason, data=facts)
    elif decision.status is Status.PAUSED or decision.status is Status.QUEUED:  # no attempt ran
        reason = Reason(ReasonCode.PAUSED, MESSAGES[decision.status], {})
        job.retry_at, job.pause_at = decision.retry_at, None
        transition(session, job, decision.status, now, MESSAGES[decision.status], reason=reason)
    elif decision.status is not None:
        transition(session, job, decision.status, now, MESSAGES[decision.status])


MESSAGES: Mapping[Status, str] = {
    Status.RUNNING: "training runs",
    Status.RECOVERING: "workers were lost and are being replaced",
    Status.CANCELLING: "the job is being stopped",
    Status.PAUSED: "paused while no attempt ran",
    Status.QUEUED: "the job is in the queue again",
}


def _reason(outcome: Outcome) -> Reason:
    return Reason(code=outcome.code, message=outcome.message, detail=outcome.detail)


def _attempt_state(row: AttemptRow) -> AttemptState:
    return AttemptState(
        number=row.number,
        created_at=row.created_at,
        seen=row.seen_at is not None,
        finished_at=row.finished_at,
        size=row.size,
        resized_at=row.resized_at,
        cluster_id=row.cluster_id,
        relayed=row.relayed,
        tracked=row.tracked,
    )


def _job_state(row: Any, attempts: Sequence[AttemptState]) -> JobState:
    return JobState(
        id=row.id,
        status=Status(row.status),
        desired=Desired(row.desired),
        desired_at=row.desired_at,
        priority=row.priority,
        created_at=row.created_at,
        deadline_at=row.deadline_at,
        retry_at=row.retry_at,
        pause_at=row.pause_at,
        attempt=row.attempt,
        failures=row.failures,
        cluster_losses=row.cluster_losses,
        max_attempts=row.max_attempts,
        fewest=row.worker_min,
        most=row.worker_max,
        each=Resources(row.worker_cpus, row.worker_gpus, row.worker_memory),
        waiting=row.waiting,
        resumable=resumable({"kind": row.kind, "resumable": row.resumable}),
        attempts=tuple(attempts),
    )
