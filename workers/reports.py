"""What crosses the border between the training process, its controller and the control plane. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol

Level = Literal["info", "warning", "error"]
Whose = Literal["user", "platform", "numerics", "nobody"]


class ReasonCode(StrEnum):
    """Why a job, or an attempt of it, ended. State, retry and wording follow from it (``REASONS``)."""

    COMPLETED = "completed"
    EARLY_STOPPED = "early_stopped"
    CANCELLED = "cancelled"
    KILLED = "killed"
    PAUSED = "paused"  # on request, or for a job that goes first; everything is in a checkpoint
    STORAGE_FULL = (
        "storage_full"  # a checkpoint could not be written for want of room: the job pauses until there is some
    )
    CRITICAL_PAUSE = "critical_pause"  # something critical was found, and the job says health.on_critical: pause
    CRITICAL_FINDING = "critical_finding"  # the same, and it says stop
    DEADLINE_EXCEEDED = "deadline_exceeded"
    BAD_DATA = "bad_data"
    BAD_CODE = "bad_code"  # the user's own code cannot be used: it is not there, does not import, or gives no task
    USER_ERROR = "user_error"  # an exception in the model, the loss or the data
    OUT_OF_MEMORY = "out_of_memory"
    NONFINITE = "nonfinite"  # the loss is NaN or infinite, and stays so
    SCRIPT_KILLED = "script_killed"  # a script's process was killed from outside, by nobody who is known here
    HUNG = "hung"  # a script has made no step and printed nothing for longer than it may
    NO_PROGRESS = "no_progress"  # workers died again and again without a step between
    CHECKPOINT_FAILED = "checkpoint_failed"
    CONTROLLER_LOST = "controller_lost"
    CLUSTER_LOST = "cluster_lost"
    NEVER_FITS = "never_fits"  # asks for more than the cluster can ever have
    INTERNAL_ERROR = "internal_error"


@dataclass(frozen=True)
class ReasonKind:
    status: Literal["succeeded", "failed", "cancelled", "paused"]
    whose: Whose
    retryable: bool


REASONS: Mapping[ReasonCode, ReasonKind] = {
    ReasonCode.COMPLETED: ReasonKind("succeeded", "nobody", False),
    ReasonCode.EARLY_STOPPED: ReasonKind("succeeded", "nobody", False),
    ReasonCode.CANCELLED: ReasonKind("cancelled", "user", False),
    ReasonCode.KILLED: ReasonKind("cancelled", "user", False),
    ReasonCode.PAUSED: ReasonKind("paused", "user", False),
    ReasonCode.STORAGE_FULL: ReasonKind("paused", "platform", False),
    ReasonCode.CRITICAL_PAUSE: ReasonKind("paused", "numerics", False),
    ReasonCode.CRITICAL_FINDING: ReasonKind("failed", "numerics", False),
    ReasonCode.DEADLINE_EXCEEDED: ReasonKind("failed", "user", False),
    ReasonCode.BAD_DATA: ReasonKind("failed", "user", False),
    ReasonCode.BAD_CODE: ReasonKind("failed", "user", False),
    ReasonCode.USER_ERROR: ReasonKind("failed", "user", False),
    ReasonCode.OUT_OF_MEMORY: ReasonKind("failed", "user", True),
    ReasonCode.NONFINITE: ReasonKind("failed", "numerics", False),
    ReasonCode.SCRIPT_KILLED: ReasonKind("failed", "platform", True),
    ReasonCode.HUNG: ReasonKind("failed", "user", False),
    ReasonCode.NO_PROGRESS: ReasonKind("failed", "platform", True),
    ReasonCode.CHECKPOINT_FAILED: ReasonKind("failed", "platform", True),
    ReasonCode.CONTROLLER_LOST: ReasonKind("failed", "platform", True),
    ReasonCode.CLUSTER_LOST: ReasonKind("failed", "platform", True),
    ReasonCode.NEVER_FITS: ReasonKind("failed", "user", False),
    ReasonCode.INTERNAL_ERROR: ReasonKind("failed", "platform", True),
}


@dataclass(frozen=True)
class Outcome:
    """How training ended. ``detail`` may hold rank, exception type and traceback."""

    code: ReasonCode
    message: str
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    step: int  # optimizer steps done
    steps: int  # optimizer steps of the whole run
    epoch: float  # passes over the training data done
    samples_per_second: float | None
    eta_seconds: float | None


@dataclass(frozen=True)
class Event:
    """Something worth telling. ``sequence`` counts from 1 without holes within its source (a controller's attempt)."""

    sequence: int
    timestamp: float  # seconds since the epoch, UTC
    level: Level
    type: str  # dotted, e.g. "checkpoint.saved", "worker.lost", "log.metrics"
    message: str
    data: Mapping[str, Any] = field(default_factory=dict)


class Reporter(Protocol):
    """Where the training loop tells what happens. Implementations must be quick and must never raise.

    Only rank 0 calls ``metrics``, ``gradients``, ``probes``, ``ranks`` and ``progress``; every rank may call ``event``. What is told again (after
    another worker became rank 0) comes with the same step.
    """

    def metrics(self, step: int, values: Mapping[str, float], timestamp: float) -> None:
        """Scalars after ``step`` optimizer steps, by series key (``train/loss``, ``eval/accuracy``, ...). May be non-finite.

        ``timestamp``: when that step was done, in seconds since the epoch; rows may be handed over some time later.
        """

    def gradients(self, layers: Sequence[str], rows: Sequence[tuple[int, Sequence[float]]]) -> None:
        """Norm of each layer's gradient: rows of (step, norms in the order of ``layers``, which is network order)."""

    def probes(self, layers: Sequence[str], activations: Sequence[str], rows: Sequence[tuple[int, str]]) -> None:
        """What probes measured of layers and activation modules: rows of (step, record), see workers/watch/probe_rows.py."""

    def ranks(self, rows: Sequence[str]) -> None:
        """What each rank had by itself in a step: records, see workers/watch/rank_rows.py. The number of ranks may change between them."""

    def progress(self, progress: Progress) -> None: ...

    def event(self, level: Level, type: str, message: str, data: Mapping[str, Any] | None = None) -> None: ...


def mark_of(step: int, values: Mapping[str, float | str]) -> int | None:
    """Place of a row of metrics in the order in which a run measures: a step's own, its evaluation's, the finished model's test's.

    None: it has none (system metrics, and what a script says of itself).
    """
    first = next(iter(values), "")
    if first.startswith(("system/", "script/")):
        return None
    return 3 * step + first.startswith("eval/") + 2 * first.startswith("test/")


class StopMode(StrEnum):
    """From gentle to strong; a stronger one replaces a gentler one."""

    PAUSE = "pause"  # finish the step, write a checkpoint, free everything; the job goes on later
    CANCEL = "cancel"  # finish the step, write a checkpoint, end
    KILL = "kill"  # now, nothing is written


@dataclass(frozen=True)
class GroupShape:
    """What the worker group of an attempt should be like. It changes at a step boundary, without a restart."""

    workers: int
    avoid: frozenset[str] = frozenset()  # ids of nodes that its workers should leave, because they are drained


@dataclass(frozen=True)
class WorkerStatus:
    """One worker process of an attempt, now or in the past."""

    rank: int
    pid: int
    node: str  # address of the machine
    node_id: str
    device: str
    state: Literal["starting", "running", "done", "lost", "left"]  # left: no longer needed, or moved elsewhere
    started_at: float
    ended_at: float | None = None
    why: str | None = None  # it ended


@dataclass(frozen=True)
class Recovery:
    """Workers were lost and replaced."""

    lost_at: float
    ranks: Sequence[int]
    cause: str
    step: int  # optimizer steps done when training went on
    source: Literal["memory", "checkpoint", "start"]  # where the state came from: a survivor, storage, nowhere
    seconds: float  # from the loss to the next step


@dataclass(frozen=True)
class Observation:
    """A controller's answer to the control plane: everything after the event that the asker has already."""

    phase: Literal["starting", "running", "recovering", "stopping", "finished"]
    outcome: Outcome | None  # set when phase is finished
    progress: Progress | None
    latest: Mapping[str, float]  # newest value of each series
    health: Mapping[str, Any]  # {"verdict": ..., "findings": [...]}
    workers: Sequence[WorkerStatus]  # those at work and, before them, those that ended (the last 100 of them)
    events: Sequence[Event]
    links: Mapping[str, str]  # {"mlflow": url}
    recoveries: Sequence[Recovery]  # the last 100
