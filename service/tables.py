"""The tables. ``migrations/`` creates them; a test compares the two."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, DateTime, Dialect, Float, ForeignKey, Index, Integer, String, Text, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator


class UtcDateTime(TypeDecorator[datetime]):
    """Aware datetimes in UTC, also on SQLite, which knows no time zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class CleanText(TypeDecorator[str]):
    """Text of any origin. Postgres takes neither NUL nor lone surrogates, and a traceback may hold both."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else clean_text(value)


class CleanJson(TypeDecorator[Any]):
    """JSON of any origin: non-finite numbers become the strings that the API shows, text is cleaned as above."""

    impl = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        return clean_json(value)


def clean_text(value: str) -> str:
    return value.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def clean_json(value: Any) -> Any:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else NON_FINITE[str(value)]
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, Mapping):
        return {clean_text(str(key)): clean_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean_json(item) for item in value]
    return clean_text(str(value))


NON_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


class Base(DeclarativeBase):
    type_annotation_map = {datetime: UtcDateTime, str: CleanText}  # noqa: RUF012 (declared so by SQLAlchemy)


class JobRow(Base):
    """What the user wants (``desired``, ``spec``) apart from what is (``status`` and the rest)."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index("jobs_by_age", "project", "created_at", "id"),
        Index(
            "jobs_not_ended",
            "intent_at",
            sqlite_where=text("finished_at IS NULL"),
            postgresql_where=text("finished_at IS NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project: Mapped[str] = mapped_column(String(100))
    name: Mapped[str]
    spec: Mapped[Any] = mapped_column(CleanJson)
    labels: Mapped[Any] = mapped_column(CleanJson)  # the spec's metadata
    priority: Mapped[int]
    # What each worker reserves, so that the queue is planned without parsing specs.
    worker_min: Mapped[int]
    worker_max: Mapped[int]
    worker_cpus: Mapped[float] = mapped_column(Float)
    worker_gpus: Mapped[float] = mapped_column(Float)
    worker_memory: Mapped[int] = mapped_column(BigInteger)
    bundle: Mapped[str | None] = mapped_column(
        String(80)
    )  # id of the file with its code, which must stay until it has ended
    max_attempts: Mapped[int]  # as many may fail; pauses and losses of the cluster do not count
    deadline_at: Mapped[datetime | None]

    desired: Mapped[str] = mapped_column(String(20))
    desired_at: Mapped[datetime]
    intent_at: Mapped[datetime]  # last change of what is wanted; the scheduler looks for it between passes

    status: Mapped[str] = mapped_column(String(20))
    reason: Mapped[Any | None] = mapped_column(CleanJson)
    waiting: Mapped[str | None]
    attempt: Mapped[int]
    failures: Mapped[int]  # attempts that count against max_attempts
    cluster_losses: Mapped[int]  # attempts that were lost with the cluster
    recoveries: Mapped[int]  # of all attempts
    healthy_from: Mapped[int | None]  # attempt from which on it goes on from checkpoints that are not healthy too
    pause_at: Mapped[datetime | None]  # since when the attempt under way is being paused, by a user or for another job
    retry_at: Mapped[datetime | None]  # the next attempt may start then; also since when it has waited in the queue
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    last_sequence: Mapped[int] = mapped_column(BigInteger)  # of its events

    progress: Mapped[Any | None] = mapped_column(CleanJson)
    latest: Mapped[Any] = mapped_column(CleanJson)
    health: Mapped[Any] = mapped_column(CleanJson)
    workers: Mapped[Any] = mapped_column(CleanJson)
    links: Mapped[Any] = mapped_column(CleanJson)


class AttemptRow(Base):
    __tablename__ = "attempts"
    __table_args__ = (
        Index(
            "attempts_not_removed",
            "job_id",
            sqlite_where=text("removed_at IS NULL"),
            postgresql_where=text("removed_at IS NULL"),
        ),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    created_at: Mapped[datetime]
    seen_at: Mapped[datetime | None]  # when its controller first answered
    finished_at: Mapped[datetime | None]
    removed_at: Mapped[datetime | None]  # when nothing of it was left on the cluster
    reason: Mapped[Any | None] = mapped_column(CleanJson)
    cluster_id: Mapped[str | None]  # of the cluster that it was started on
    size: Mapped[int]  # how many workers it should have by now
    resized_at: Mapped[datetime | None]
    workers: Mapped[Any] = mapped_column(CleanJson)  # all that it ever had
    recoveries: Mapped[Any] = mapped_column(CleanJson)
    relayed: Mapped[int] = mapped_column(BigInteger)  # highest of the controller's event sequences in ``events``
    tracked: Mapped[bool]  # MLflow has everything


# Those that were raised; as the index has it, because SQLite uses it for no other words.
OF_FINDINGS = text("type IN ('finding.raised', 'data.finding', 'preflight.finding')")


class EventRow(Base):
    __tablename__ = "events"
    __table_args__ = (  # among a million events the few that are counted at every scrape
        Index("events_findings", "type", sqlite_where=OF_FINDINGS, postgresql_where=OF_FINDINGS),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    sequence: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    created_at: Mapped[datetime]
    level: Mapped[str] = mapped_column(String(10))
    type: Mapped[str] = mapped_column(String(100))
    message: Mapped[str]
    data: Mapped[Any] = mapped_column(CleanJson)


class UsageRow(Base):
    """What a job has cost, in seconds of workers. It stays when the job's folder, or the job itself, is gone."""

    __tablename__ = "usage"
    __table_args__ = (Index("usage_by_project", "project"),)

    job_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project: Mapped[str] = mapped_column(String(100))
    trained_seconds: Mapped[float] = mapped_column(Float)
    lost_seconds: Mapped[float] = mapped_column(Float)
    saved_seconds: Mapped[float] = mapped_column(Float)
    lost_steps: Mapped[int] = mapped_column(BigInteger)
    sequence: Mapped[int] = mapped_column(BigInteger)  # of the job's newest event when it was measured
    measured_at: Mapped[datetime]


class ApiKeyRow(Base):
    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)  # SHA-256 of the secret, which is nowhere else here
    name: Mapped[str]
    role: Mapped[str] = mapped_column(String(20))
    project: Mapped[str] = mapped_column(String(100))
    created_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]


class IdempotencyRow(Base):
    __tablename__ = "idempotency_keys"

    project: Mapped[str] = mapped_column(String(100), primary_key=True)
    route: Mapped[str] = mapped_column(String(100), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    digest: Mapped[str] = mapped_column(String(128))
    job_id: Mapped[str] = mapped_column(
        ForeignKey("jobs.id", ondelete="CASCADE", deferrable=True, initially="DEFERRED")  # the key is claimed first
    )
    expires_at: Mapped[datetime] = mapped_column(index=True)


class FileRow(Base):
    """A file that was uploaded. Its bytes are in storage, under its id."""

    __tablename__ = "files"
    __table_args__ = (Index("files_by_age", "project", "created_at", "id"),)

    id: Mapped[str] = mapped_column(String(80), primary_key=True)
    project: Mapped[str] = mapped_column(String(100))
    filename: Mapped[str]
    purpose: Mapped[str] = mapped_column(String(40))
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime]


class FileKeyRow(Base):
    """As IdempotencyRow, of uploads."""

    __tablename__ = "file_idempotency_keys"

    project: Mapped[str] = mapped_column(String(100), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    digest: Mapped[str] = mapped_column(String(128))
    file_id: Mapped[str] = mapped_column(
        ForeignKey("files.id", ondelete="CASCADE", deferrable=True, initially="DEFERRED")
    )
    expires_at: Mapped[datetime] = mapped_column(index=True)


class LeaseRow(Base):
    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    holder: Mapped[str]
    token: Mapped[int] = mapped_column(BigInteger)  # grows with every new holder
    renewed_at: Mapped[datetime]
    expires_at: Mapped[datetime]


class CordonRow(Base):
    """A node that an admin takes out of use."""

    __tablename__ = "cordons"

    node_id: Mapped[str] = mapped_column(String(100), primary_key=True)
    reason: Mapped[str | None]
    created_at: Mapped[datetime]
    key_id: Mapped[str] = mapped_column(String(40))  # whose wish it was


class ClusterRow(Base):
    """One row: the cluster as the scheduler last saw it, for the API."""

    __tablename__ = "cluster_state"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    reachable: Mapped[bool]
    message: Mapped[str | None]
    nodes: Mapped[Any] = mapped_column(CleanJson)
    updated_at: Mapped[datetime]
