"""What use-cases return: frozen values that hold no database session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Generic, Literal, TypeVar

from service.cluster import Capacity, Resources
from workers.reports import REASONS, Level, ReasonCode, Whose

Order = Literal["asc", "desc"]


class Role(StrEnum):
    ADMIN = "admin"
    MEMBER = "member"
    VIEWER = "viewer"


class Status(StrEnum):
    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    RECOVERING = "recovering"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in (Status.SUCCEEDED, Status.FAILED, Status.CANCELLED)


class Desired(StrEnum):
    """What the user wants, apart from what is."""

    RUN = "run"
    PAUSE = "pause"
    CANCEL = "cancel"
    KILL = "kill"


@dataclass(frozen=True)
class Caller:
    """Who asks, as proven by the key."""

    key_id: str
    project: str
    role: Role


@dataclass(frozen=True)
class Usage:
    """Of all jobs of a project. Seconds are those of workers."""

    project: str
    jobs: int  # that have trained
    repaired_jobs: int  # in which a repair that was kept has saved time
    trained_seconds: float
    lost_seconds: float  # of steps after something had gone wrong, until it had passed or was mended
    saved_seconds: float  # of steps since the first repair that was kept, but for those that were lost
    lost_steps: int


@dataclass(frozen=True)
class ApiKey:
    id: str
    name: str
    role: Role
    project: str
    created_at: datetime
    revoked_at: datetime | None


@dataclass(frozen=True)
class Reason:
    code: ReasonCode
    message: str
    detail: Mapping[str, Any]  # facts of the outcome, e.g. rank and traceback, or the last metrics

    @property
    def whose(self) -> Whose:
        return REASONS[self.code].whose

    @property
    def retryable(self) -> bool:
        return REASONS[self.code].retryable


@dataclass(frozen=True)
class WorkerRange:
    """How many workers a job may have: a fixed number when both are equal."""

    min: int
    max: int


@dataclass(frozen=True)
class Job:
    id: str
    name: str
    project: str
    status: Status
    desired: Desired
    reason: Reason | None  # why it ended, or is paused
    waiting: str | None  # why it has not started yet, or not again
    created_at: datetime
    started_at: datetime | None  # when it first ran
    finished_at: datetime | None
    deadline_at: datetime | None
    attempt: int  # number of the newest attempt, 0 before the first
    priority: int
    progress: Mapping[str, Any] | None  # step, steps, epoch, samples_per_second, eta_seconds
    latest: Mapping[str, float | str]  # newest value of each series; non-finite ones as "NaN", "Infinity", "-Infinity"
    health: Mapping[str, Any]  # verdict, sentence, findings
    worker_range: WorkerRange
    recoveries: int  # how often workers were lost and replaced, over all attempts
    workers: Sequence[Mapping[str, Any]]  # those at work, as in Attempt; of an ended job, those that were to the end
    links: Mapping[str, str]
    metadata: Mapping[str, str]
    spec: Mapping[str, Any]


@dataclass(frozen=True)
class JobEvent:
    id: str
    job_id: str
    sequence: int  # from 1, without holes within a job
    created_at: datetime
    level: Level
    type: str
    message: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Attempt:
    id: str
    job_id: str
    number: int
    created_at: datetime
    started_at: datetime | None  # when its controller was first seen
    finished_at: datetime | None
    reason: Reason | None
    workers: Sequence[Mapping[str, Any]]
    """All workers that it ever had: rank, pid, node (address), node_id, device, state, started_at, ended_at, why (it
    ended). Times in seconds since the epoch."""
    recoveries: Sequence[Mapping[str, Any]]
    """Each time that workers were lost and replaced: lost_at (seconds since the epoch), ranks, cause, step, source, seconds."""


@dataclass(frozen=True)
class StoredFile:
    """A file that was uploaded."""

    id: str
    project: str
    filename: str
    purpose: str
    bytes: int
    sha256: str
    created_at: datetime


T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Page(Generic[T_co]):
    data: Sequence[T_co]
    has_more: bool


@dataclass(frozen=True)
class Cordon:
    """A node that an admin takes out of use: nothing new is placed there, and what is there moves away."""

    node_id: str
    reason: str | None
    since: datetime


@dataclass(frozen=True)
class ClusterView:
    """The cluster as the scheduler last saw it."""

    reachable: bool
    message: str | None  # why it is not reachable
    capacity: Capacity  # a node is draining when Ray says so, or when it is cordoned
    cordons: Sequence[Cordon]  # by node id; a node may have gone since
    used: Resources  # reserved by jobs
    updated_at: datetime | None  # None: no scheduler has looked yet
    scheduler_alive: bool
    scheduler_seen_at: datetime | None
    queued: int
    active: int
