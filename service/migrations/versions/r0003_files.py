"""Uploaded files, and the jobs whose code is in one."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "files",
        sa.Column("id", sa.String(80), primary_key=True),
        sa.Column("project", sa.String(100), nullable=False),
        sa.Column("filename", sa.Text, nullable=False),
        sa.Column("purpose", sa.String(40), nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("files_by_age", "files", ["project", "created_at", "id"])
    op.create_table(
        "file_idempotency_keys",
        sa.Column("project", sa.String(100), primary_key=True),
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("digest", sa.String(128), nullable=False),
        sa.Column(
            "file_id",
            sa.String(80),
            sa.ForeignKey("files.id", ondelete="CASCADE", deferrable=True, initially="DEFERRED"),
            nullable=False,
        ),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_file_idempotency_keys_expires_at", "file_idempotency_keys", ["expires_at"])
    op.add_column("jobs", sa.Column("bundle", sa.String(80)))


def downgrade() -> None:
    op.drop_column("jobs", "bundle")
    for table in ("file_idempotency_keys", "files"):
        op.drop_table(table)
