"""Findings are counted among all events."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    findings = sa.text("type IN ('finding.raised', 'data.finding', 'preflight.finding')")
    op.create_index("events_findings", "events", ["type"], sqlite_where=findings, postgresql_where=findings)


def downgrade() -> None:
    op.drop_index("events_findings", "events")
