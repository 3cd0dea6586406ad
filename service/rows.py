"""Rows to values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, cast

from service.cluster import Capacity, Node, Resources
from service.tables import AttemptRow, ClusterRow, CordonRow, EventRow, FileRow, JobRow, LeaseRow
from service.values import Attempt, ClusterView, Cordon, Desired, Job, JobEvent, Reason, Status, StoredFile, WorkerRange
from workers.reports import Level, ReasonCode


def job_value(row: JobRow) -> Job:
    return Job(
        id=row.id,
        name=row.name,
        project=row.project,
        status=Status(row.status),
        desired=Desired(row.desired),
        reason=reason_value(row.reason),
        waiting=row.waiting,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        deadline_at=row.deadline_at,
        attempt=row.attempt,
        priority=row.priority,
        progress=row.progress,
        latest=row.latest,
        health=row.health,
        worker_range=WorkerRange(row.worker_min, row.worker_max),
        workers=row.workers,
        recoveries=row.recoveries,
        links=row.links,
        metadata=row.labels,
        spec=row.spec,
    )


def event_value(row: EventRow) -> JobEvent:
    return JobEvent(
        id=f"event-{row.job_id.removeprefix('job-')}-{row.sequence}",
        job_id=row.job_id,
        sequence=row.sequence,
        created_at=row.created_at,
        level=cast(Level, row.level),
        type=row.type,
        message=row.message,
        data=row.data,
    )


def attempt_value(row: AttemptRow) -> Attempt:
    return Attempt(
        id=f"attempt-{row.job_id.removeprefix('job-')}-{row.number}",
        job_id=row.job_id,
        number=row.number,
        created_at=row.created_at,
        started_at=row.seen_at,
        finished_at=row.finished_at,
        reason=reason_value(row.reason),
        workers=row.workers,
        recoveries=row.recoveries,
    )


def file_value(row: FileRow) -> StoredFile:
    return StoredFile(row.id, row.project, row.filename, row.purpose, row.bytes, row.sha256, row.created_at)


def reason_value(document: Mapping[str, Any] | None) -> Reason | None:
    if document is None:
        return None
    return Reason(code=ReasonCode(document["code"]), message=document["message"], detail=document["detail"])


def cluster_value(
    row: ClusterRow | None,
    lease: LeaseRow | None,
    *,
    now: datetime,
    cordons: Sequence[CordonRow],
    used: tuple[Any, ...],
    queued: int,
) -> ClusterView:
    """``used``: cpus, gpus and memory that jobs reserve, and how many jobs they are."""
    cpus, gpus, memory, active = used
    cordoned = frozenset(cordon.node_id for cordon in cordons)
    nodes = tuple(map(_node, row.nodes)) if row is not None else ()
    return ClusterView(
        reachable=row is not None and row.reachable,
        message="no scheduler has looked at the cluster yet" if row is None else row.message,
        capacity=Capacity(tuple(replace(node, draining=node.draining or node.id in cordoned) for node in nodes)),
        cordons=[Cordon(cordon.node_id, cordon.reason, cordon.created_at) for cordon in cordons],
        used=Resources(cpus=float(cpus or 0), gpus=float(gpus or 0), memory=int(memory or 0)),
        updated_at=row.updated_at if row is not None else None,
        scheduler_alive=lease is not None and lease.expires_at > now,
        scheduler_seen_at=lease.renewed_at if lease is not None else None,
        queued=queued,
        active=active,
    )


def _node(document: Mapping[str, Any]) -> Node:
    total = Resources(cpus=document["cpus"], gpus=document["gpus"], memory=document["memory"])
    return Node(document["id"], document["address"], total, draining=document.get("draining", False))


def node_document(node: Node) -> dict[str, Any]:
    """As stored."""
    total = node.total
    return {
        "id": node.id,
        "address": node.address,
        "cpus": total.cpus,
        "gpus": total.gpus,
        "memory": total.memory,
        "draining": node.draining,
    }


def resumable(task: Mapping[str, Any]) -> bool:
    """Whether a job goes on, after a pause, from where it was: all but scripts that do not say so of themselves."""
    return task["kind"] != "script" or bool(task.get("resumable", False))
