"""What each job has cost, for its project."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "usage",
        sa.Column("job_id", sa.String(40), primary_key=True),
        sa.Column("project", sa.String(100), nullable=False),
        sa.Column("trained_seconds", sa.Float, nullable=False),
        sa.Column("lost_seconds", sa.Float, nullable=False),
        sa.Column("saved_seconds", sa.Float, nullable=False),
        sa.Column("lost_steps", sa.BigInteger, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("measured_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("usage_by_project", "usage", ["project"])


def downgrade() -> None:
    op.drop_table("usage")
