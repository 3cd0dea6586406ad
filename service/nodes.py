"""The use-cases around the cluster's nodes."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.database import Store, database_now
from service.errors import NotFound
from service.keys import require
from service.rows import cluster_value
from service.tables import AttemptRow, ClusterRow, CordonRow, JobRow, LeaseRow
from service.values import Caller, ClusterView, Role, Status
from workers.problems import shorten


def cluster_view(store: Store) -> ClusterView:
    with store.read() as session:
        return _view(session)


def cordon_node(store: Store, caller: Caller, node_id: str, *, cordoned: bool, reason: str | None) -> ClusterView:
    """Takes a node out of use, or back into use: the scheduler moves away what runs there, at its next pass. A node is
    known by the id that the cluster gave it; one that is gone and comes back has another and is not cordoned."""
    require(caller, Role.ADMIN)
    with store.write() as session:
        row = session.get(CordonRow, node_id)
        if row is None and not _is_known(session, node_id):
            raise NotFound(f"the cluster has no node {shorten(node_id)}", param="node_id")
        if not cordoned and row is not None:
            session.delete(row)
        elif cordoned and row is not None:
            row.reason = reason
        elif cordoned:
            now = database_now(session)
            session.add(CordonRow(node_id=node_id, reason=reason, created_at=now, key_id=caller.key_id))
        session.flush()
        return _view(session)


def _is_known(session: Session, node_id: str) -> bool:
    row = session.get(ClusterRow, 1)
    return row is not None and any(node["id"] == node_id for node in row.nodes)


def _view(session: Session) -> ClusterView:
    holds = AttemptRow.finished_at.is_(None)
    cpus, gpus, memory, active = (
        func.sum(AttemptRow.size * JobRow.worker_cpus),
        func.sum(AttemptRow.size * JobRow.worker_gpus),
        func.sum(AttemptRow.size * JobRow.worker_memory),
        func.count(),
    )
    used = session.execute(select(cpus, gpus, memory, active).select_from(JobRow).join(AttemptRow).where(holds)).one()
    waiting = select(func.count()).where(JobRow.finished_at.is_(None), JobRow.status != Status.PAUSED)
    unfinished = session.execute(waiting).scalar_one()
    return cluster_value(
        session.get(ClusterRow, 1),
        session.get(LeaseRow, "scheduler"),
        now=database_now(session),
        cordons=session.execute(select(CordonRow).order_by(CordonRow.node_id)).scalars().all(),
        used=tuple(used),
        queued=unfinished - used[3],
    )
