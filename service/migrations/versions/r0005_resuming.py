"""From where a job that is resumed goes on."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("healthy_from", sa.Integer))


def downgrade() -> None:
    op.drop_column("jobs", "healthy_from")
