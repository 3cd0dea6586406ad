"""Run by Alembic with the connection that ``service.database.migrate`` passes on, inside its transaction."""

from __future__ import annotations

from alembic import context

from service.tables import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()
