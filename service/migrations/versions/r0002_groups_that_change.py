"""Worker groups that change: ranges, sizes, pauses, workers of the past, cordoned nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.alter_column("jobs", "worker_count", new_column_name="worker_min")
    counts = (_number("worker_max"), _number("failures"), _number("cluster_losses"), _number("recoveries"))
    for column in (*counts, _time("pause_at")):
        op.add_column("jobs", column)
    op.execute("UPDATE jobs SET worker_max = worker_min")
    op.execute(
        "UPDATE jobs SET failures = attempt - 1 WHERE attempt > 0"
    )  # until now, every attempt but the last failed
    op.execute(
        "UPDATE jobs SET recoveries = (SELECT COALESCE(SUM(recoveries), 0) FROM attempts WHERE attempts.job_id = jobs.id)"
    )
    op.drop_column("attempts", "recoveries")  # a count, without what there is to tell of each
    for column in (
        sa.Column("cluster_id", sa.Text),
        _number("size"),
        _time("resized_at"),
        _documents("workers"),
        _documents("recoveries"),
    ):
        op.add_column("attempts", column)
    op.execute("UPDATE attempts SET size = (SELECT worker_min FROM jobs WHERE jobs.id = attempts.job_id)")
    op.create_table(
        "cordons",
        sa.Column("node_id", sa.String(100), primary_key=True),
        sa.Column("reason", sa.Text),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("key_id", sa.String(40), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("cordons")
    for name in ("cluster_id", "size", "resized_at", "workers", "recoveries"):
        op.drop_column("attempts", name)
    op.add_column("attempts", _number("recoveries"))
    for name in ("worker_max", "failures", "cluster_losses", "recoveries", "pause_at"):
        op.drop_column("jobs", name)
    op.alter_column("jobs", "worker_min", new_column_name="worker_count")


def _number(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.Integer, nullable=False, server_default="0")  # of the rows that are there


def _time(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.DateTime(timezone=True))


def _documents(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False, server_default="[]")
