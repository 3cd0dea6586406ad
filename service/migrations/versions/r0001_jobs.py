"""Jobs, attempts, events, keys, leases and the state of the cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision: str = "0001"
down_revision: str | None = None
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

NOT_ENDED = sa.text("finished_at IS NULL")
NOT_REMOVED = sa.text("removed_at IS NULL")


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("project", sa.String(100), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        _json("spec"),
        _json("labels"),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("worker_count", sa.Integer, nullable=False),
        sa.Column("worker_cpus", sa.Float, nullable=False),
        sa.Column("worker_gpus", sa.Float, nullable=False),
        sa.Column("worker_memory", sa.BigInteger, nullable=False),
        sa.Column("max_attempts", sa.Integer, nullable=False),
        _time("deadline_at", nullable=True),
        sa.Column("desired", sa.String(20), nullable=False),
        _time("desired_at"),
        _time("intent_at"),
        sa.Column("status", sa.String(20), nullable=False),
        _json("reason", nullable=True),
        sa.Column("waiting", sa.Text),
        sa.Column("attempt", sa.Integer, nullable=False),
        _time("retry_at", nullable=True),
        _time("created_at"),
        _time("started_at", nullable=True),
        _time("finished_at", nullable=True),
        sa.Column("last_sequence", sa.BigInteger, nullable=False),
        _json("progress", nullable=True),
        _json("latest"),
        _json("health"),
        _json("workers"),
        _json("links"),
    )
    op.create_index("jobs_by_age", "jobs", ["project", "created_at", "id"])
    op.create_index("jobs_not_ended", "jobs", ["intent_at"], sqlite_where=NOT_ENDED, postgresql_where=NOT_ENDED)
    op.create_table(
        "attempts",
        sa.Column("job_id", sa.String(40), sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        _time("created_at"),
        _time("seen_at", nullable=True),
        _time("finished_at", nullable=True),
        _time("removed_at", nullable=True),
        _json("reason", nullable=True),
        sa.Column("recoveries", sa.Integer, nullable=False),
        sa.Column("relayed", sa.BigInteger, nullable=False),
        sa.Column("tracked", sa.Boolean, nullable=False),
    )
    op.create_index(
        "attempts_not_removed", "attempts", ["job_id"], sqlite_where=NOT_REMOVED, postgresql_where=NOT_REMOVED
    )
    op.create_table(
        "events",
        sa.Column("job_id", sa.String(40), sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        _time("created_at"),
        sa.Column("level", sa.String(10), nullable=False),
        sa.Column("type", sa.String(100), nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        _json("data"),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("role", sa.String(20), nullable=False),
        sa.Column("project", sa.String(100), nullable=False),
        _time("created_at"),
        _time("revoked_at", nullable=True),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("project", sa.String(100), primary_key=True),
        sa.Column("route", sa.String(100), primary_key=True),
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("digest", sa.String(128), nullable=False),
        sa.Column(
            "job_id",
            sa.String(40),
            sa.ForeignKey("jobs.id", ondelete="CASCADE", deferrable=True, initially="DEFERRED"),
            nullable=False,
        ),
        _time("expires_at"),
    )
    op.create_index("ix_idempotency_keys_expires_at", "idempotency_keys", ["expires_at"])
    op.create_table(
        "leases",
        sa.Column("name", sa.String(40), primary_key=True),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("token", sa.BigInteger, nullable=False),
        _time("renewed_at"),
        _time("expires_at"),
    )
    op.create_table(
        "cluster_state",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("reachable", sa.Boolean, nullable=False),
        sa.Column("message", sa.Text),
        _json("nodes"),
        _time("updated_at"),
    )


def downgrade() -> None:
    for table in ("cluster_state", "leases", "idempotency_keys", "api_keys", "events", "attempts", "jobs"):
        op.drop_table(table)


def _time(name: str, *, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _json(name: str, *, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.JSON().with_variant(JSONB(), "postgresql"), nullable=nullable)
