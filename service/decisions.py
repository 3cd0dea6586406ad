"""What to do about a job. Pure: from what is wanted, what was recorded and what was seen to a value that says what to do.

The reconciler carries it out, in this order: act on the cluster, then record. Everything here may be decided twice, by two
schedulers one after the other or before and after a crash, and must then be harmless.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from service.cluster import Capacity, Resources
from service.placement import Gang, too_small
from service.settings import Settings
from service.values import Desired, Status
from workers.reports import REASONS, GroupShape, Observation, Outcome, ReasonCode, StopMode, WorkerStatus

BACKOFF_FIRST = timedelta(seconds=1)
BACKOFF_LONGEST = timedelta(seconds=60)
FOR_SOMEBODY = frozenset(
    {ReasonCode.STORAGE_FULL, ReasonCode.CRITICAL_PAUSE}
)  # who must do something before it goes on
CALM = timedelta(minutes=10)  # a cluster that held an attempt for so long is not in trouble


@dataclass(frozen=True)
class Limits:
    """Times after which something counts as gone (seconds)."""

    lost: float
    silent: float
    launch: float
    cancel: float
    kill: float
    tracking: float
    never_fits: float

    @staticmethod
    def of(settings: Settings) -> Limits:
        return Limits(
            lost=settings.controller_lost_seconds,
            silent=settings.controller_silent_seconds,
            launch=settings.launch_timeout_seconds,
            cancel=settings.cancel_timeout_seconds,
            kill=settings.kill_timeout_seconds,
            tracking=settings.tracking_timeout_seconds,
            never_fits=settings.never_fits_seconds,
        )


@dataclass(frozen=True)
class AttemptState:
    """An attempt of which something may still be on the cluster."""

    number: int
    created_at: datetime
    seen: bool  # its controller has answered at least once
    finished_at: datetime | None
    size: int  # workers that it should have
    resized_at: datetime | None
    cluster_id: str | None  # of the cluster that it was started on
    relayed: int  # its controller's events up to here are the job's
    tracked: bool  # MLflow has everything


@dataclass(frozen=True)
class JobState:
    """A job as recorded, without what nobody decides by."""

    id: str
    status: Status
    desired: Desired
    desired_at: datetime
    priority: int
    created_at: datetime
    deadline_at: datetime | None
    retry_at: datetime | None
    pause_at: datetime | None
    attempt: int
    failures: int
    cluster_losses: int
    max_attempts: int
    fewest: int  # workers
    most: int
    each: Resources  # of a worker
    waiting: str | None
    resumable: bool  # after a pause it goes on from where it was
    attempts: tuple[AttemptState, ...]  # those not removed, oldest first

    @property
    def current(self) -> AttemptState | None:
        """The attempt under way."""
        return next((a for a in self.attempts if a.finished_at is None), None)

    def name(self, attempt: AttemptState) -> str:
        return f"{self.id}.{attempt.number}"

    @property
    def gang(self) -> Gang:
        """The least with which it can start."""
        return Gang(self.fewest, self.each)

    @property
    def leaving(self) -> bool:
        """Whether the attempt under way ends soon, by somebody's wish."""
        return self.status in (Status.PAUSING, Status.CANCELLING) or self.desired is not Desired.RUN

    @property
    def ready_at(self) -> datetime:
        return self.retry_at or self.created_at


@dataclass(frozen=True)
class Sight:
    """What the cluster said about one attempt."""

    observation: Observation | None
    missing_seconds: float | None = None  # how long the answering cluster has not known it; None: it knows it
    silent_seconds: float | None = None  # how long it is there without answering; None: it answers
    cluster_was_away: bool = False  # since it was last seen
    cluster_replaced: bool = False  # the cluster is not the one that the attempt was started on


@dataclass(frozen=True)
class Decision:
    """Parts that are not set ask for nothing."""

    launch: bool = False
    stop: StopMode | None = None
    remove: bool = False  # everything of the attempt
    status: Status | None = None  # of a job that goes on
    end: Outcome | None = None  # the attempt is over
    finish: Outcome | None = None  # the job is over
    retry_at: datetime | None = None  # the next attempt may start then
    failures: int | None = None  # of the job from now on
    cluster_losses: int | None = None
    warning: str | None = None  # what did not go as the user wished


def decide(job: JobState, attempt: AttemptState, sight: Sight, now: datetime, limits: Limits) -> Decision:
    """About a job whose attempt is under way."""
    wish = wanted(job, now, limits)
    seen = sight.observation
    if seen is not None and seen.phase == "finished":
        outcome = seen.outcome or Outcome(ReasonCode.INTERNAL_ERROR, "the controller ended without saying why")
        return over(job, outcome, now)
    if wish.kill_overdue:
        return replace(
            over(job, Outcome(ReasonCode.KILLED, "killed by removal of all its processes"), now), remove=True
        )
    if seen is None:
        return _unseen(job, attempt, sight, now, limits)
    if wish.stop is not None:
        due = wish.stop if seen.phase != "stopping" or wish.stop is StopMode.KILL else None
        return Decision(stop=due, status=_other(job, wish.to))
    if seen.phase in ("running", "recovering"):
        return Decision(status=_other(job, Status.RUNNING if seen.phase == "running" else Status.RECOVERING))
    return Decision()


def shape_wanted(attempt: AttemptState, sight: Sight, decision: Decision, avoid: frozenset[str]) -> GroupShape | None:
    """What the workers of an attempt should be like. None: it ends, or cannot be asked. ``avoid``: ids of nodes."""
    seen = sight.observation
    if seen is None or seen.phase not in ("starting", "running", "recovering"):
        return None
    if decision.stop is not None or decision.end is not None:
        return None
    return GroupShape(attempt.size, avoid)


def shows(seen: Observation, shape: GroupShape) -> bool:
    """Whether the group is as it should be. One that is being formed is given the time."""
    there = at_work(seen)
    right = len(there) == shape.workers and not any(worker.node_id in shape.avoid for worker in there)
    return right or seen.phase != "running"


def at_work(seen: Observation) -> list[WorkerStatus]:
    """Workers that hold resources, by rank."""
    there = (worker for worker in seen.workers if worker.state in ("starting", "running"))
    return sorted(there, key=lambda worker: worker.rank)


def decide_idle(job: JobState, now: datetime) -> Decision:
    """About a job without an attempt under way: it waits for its first one, or for the next."""
    if job.desired in (Desired.CANCEL, Desired.KILL):
        return Decision(finish=_as_wished(job.desired, f"{job.desired.value} was requested while no attempt ran"))
    if deadline_passed(job, now):
        return Decision(finish=_deadline_exceeded())
    if job.status is Status.PAUSING:  # asked for between two attempts
        return _paused(job, Outcome(ReasonCode.PAUSED, "paused while no attempt ran"), now)
    return Decision()


def may_start(job: JobState, now: datetime) -> bool:
    """Whether an idle job is in the queue: not before its back-off is over and nothing is left of the attempt before."""
    return _waits(job) and not job.attempts and (job.retry_at is None or now >= job.retry_at)


def expected(job: JobState, now: datetime) -> bool:
    """Whether an idle job will be in the queue soon."""
    return _waits(job) and not may_start(job, now)


def _waits(job: JobState) -> bool:
    return job.desired is Desired.RUN and job.status in (Status.QUEUED, Status.RECOVERING)


def may_remove(job: JobState, attempt: AttemptState, sight: Sight | None, now: datetime, limits: Limits) -> bool:
    """Whether an attempt that is over can go. ``sight`` None: not looked at."""
    assert attempt.finished_at is not None
    if (
        not job.status.ended and job.status is not Status.PAUSED
    ):  # the next attempt waits, and goes on with its tracking
        return True
    gone = sight is not None and sight.observation is None and sight.missing_seconds is not None
    return attempt.tracked or gone or (now - attempt.finished_at).total_seconds() >= limits.tracking


@dataclass(frozen=True)
class Wish:
    stop: StopMode | None
    kill_overdue: bool
    to: Status = Status.CANCELLING


def wanted(job: JobState, now: datetime, limits: Limits) -> Wish:
    """How the attempt should stop by now, if at all. A cancel or a pause that takes too long becomes a kill, a kill a
    removal."""
    since: datetime | None = job.desired_at if job.desired in (Desired.CANCEL, Desired.KILL) else None
    if job.deadline_at is not None and deadline_passed(job, now):
        since = job.deadline_at if since is None else min(since, job.deadline_at)
    gentle, to = StopMode.CANCEL, Status.CANCELLING
    if since is None:
        if job.status is not Status.PAUSING:
            return Wish(None, False)
        since, gentle, to = job.pause_at or job.desired_at, StopMode.PAUSE, Status.PAUSING
    kill_at = job.desired_at if job.desired is Desired.KILL else since + timedelta(seconds=limits.cancel)
    kill_for = (now - kill_at).total_seconds()
    return Wish(StopMode.KILL if kill_for >= 0 else gentle, kill_for >= limits.kill, to)


def deadline_passed(job: JobState, now: datetime) -> bool:
    """A deadline that has begun to stop the job stays passed, also when the clock is set back."""
    stopping = job.status is Status.CANCELLING and job.desired not in (Desired.CANCEL, Desired.KILL)
    return job.deadline_at is not None and (stopping or now >= job.deadline_at)


def never_fits(job: JobState, capacity: Capacity, too_small_seconds: float, limits: Limits) -> Decision:
    """About a job that even the empty cluster could not hold, for so long by now. A job that ran before waits instead:
    the machine that it ran on may come back."""
    if job.attempt or too_small_seconds < limits.never_fits:
        return Decision()
    return Decision(finish=Outcome(ReasonCode.NEVER_FITS, too_small(capacity, job.gang)))


def over(job: JobState, outcome: Outcome, now: datetime) -> Decision:
    """The attempt is over: is the job?"""
    kind = REASONS[outcome.code]
    if kind.status == "succeeded":  # also when a cancel was under way: it came too late
        return Decision(end=outcome, finish=outcome)
    stopped = kind.status in ("cancelled", "paused") or kind.retryable
    if job.desired in (Desired.CANCEL, Desired.KILL):
        final = _as_wished(job.desired, outcome.message, outcome.detail) if stopped else outcome
        return Decision(end=outcome, finish=final)
    if deadline_passed(job, now) and stopped:
        return Decision(end=outcome, finish=_deadline_exceeded(outcome.detail))
    if kind.status == "paused" or (job.status is Status.PAUSING and stopped):
        return replace(_paused(job, outcome, now), end=outcome)
    again = Decision(end=outcome, status=_other(job, Status.RECOVERING))
    if outcome.code is ReasonCode.CLUSTER_LOST:  # not the job's doing: there is no limit
        calm = job.current is not None and now - job.current.created_at >= CALM
        losses = 1 if calm else job.cluster_losses + 1
        return replace(again, cluster_losses=losses, retry_at=now + backoff(losses))
    failures = job.failures + 1
    if kind.retryable and failures < job.max_attempts:
        return replace(again, failures=failures, retry_at=now + backoff(failures))
    if kind.retryable and job.max_attempts > 1:
        return Decision(end=outcome, finish=replace(outcome, message=_last_of(job, outcome.message)))
    return Decision(end=outcome, finish=outcome)


def backoff(times: int) -> timedelta:
    """Pause after so many failures: 1 s, 2 s, 4 s, ... a minute."""
    return min(BACKOFF_FIRST * (1 << min(times - 1, 10)), BACKOFF_LONGEST)


def _paused(job: JobState, outcome: Outcome, now: datetime) -> Decision:
    """Where a job goes whose attempt was to be paused, or had to: paused when the user wants that or must do something, else
    into the queue."""
    if outcome.code in FOR_SOMEBODY or job.desired is Desired.PAUSE:
        status, retry_at = Status.PAUSED, None
    else:
        status, retry_at = Status.QUEUED, now
    return Decision(status=status, retry_at=retry_at, warning=_forced(outcome))


def _forced(outcome: Outcome) -> str | None:
    """A pause that left no checkpoint of its own."""
    if REASONS[outcome.code].status == "paused":
        return None
    why = "it took too long" if outcome.code is ReasonCode.KILLED else outcome.message
    return f"the pause left no checkpoint of its own ({why}): the job will go on from its newest one"


def _unseen(job: JobState, attempt: AttemptState, sight: Sight, now: datetime, limits: Limits) -> Decision:
    if sight.missing_seconds is not None:
        if not attempt.seen:
            return _not_started(job, attempt, sight, now, limits)
        if sight.missing_seconds >= limits.lost or sight.cluster_replaced or job.desired is Desired.KILL:
            return replace(over(job, _lost(sight), now), remove=True)
    elif sight.silent_seconds is not None and sight.silent_seconds >= limits.silent:
        message = f"the job's controller did not answer for {sight.silent_seconds:.0f} s"
        return replace(over(job, Outcome(ReasonCode.CONTROLLER_LOST, message), now), remove=True)
    wish = wanted(job, now, limits)
    if sight.silent_seconds is not None and wish.stop is not None:
        return Decision(stop=wish.stop, status=_other(job, wish.to))
    return Decision()


def _not_started(job: JobState, attempt: AttemptState, sight: Sight, now: datetime, limits: Limits) -> Decision:
    """Recorded, but never seen: not launched yet, or a scheduler died before or after launching it."""
    wish = wanted(job, now, limits)
    if wish.stop is not None:
        code = ReasonCode.PAUSED if wish.to is Status.PAUSING else ReasonCode.CANCELLED
        return replace(over(job, Outcome(code, "stopped before training ran"), now), remove=True)
    if sight.cluster_replaced:
        return replace(over(job, _lost(sight), now), remove=True)
    waited = (now - attempt.created_at).total_seconds()
    if waited >= limits.launch:
        message = f"the job's controller did not start within {limits.launch:.0f} s"
        return replace(over(job, Outcome(ReasonCode.CONTROLLER_LOST, message), now), remove=True)
    return Decision(launch=True)


def _lost(sight: Sight) -> Outcome:
    if sight.cluster_was_away or sight.cluster_replaced:
        return Outcome(ReasonCode.CLUSTER_LOST, "the cluster went away, and the job with it")
    return Outcome(ReasonCode.CONTROLLER_LOST, "the job's controller is gone from the cluster")


def _as_wished(desired: Desired, message: str, detail: Mapping[str, object] | None = None) -> Outcome:
    code = ReasonCode.KILLED if desired is Desired.KILL else ReasonCode.CANCELLED
    return Outcome(code, message, detail or {})


def _deadline_exceeded(detail: Mapping[str, object] | None = None) -> Outcome:
    return Outcome(ReasonCode.DEADLINE_EXCEEDED, "the job's deadline_seconds have passed", detail or {})


def _last_of(job: JobState, message: str) -> str:
    return f"{message} (failed attempt {job.failures + 1} of {job.max_attempts})"


def _other(job: JobState, status: Status) -> Status | None:
    """``status``, unless the job has it already, or is being cancelled."""
    return None if job.status in (status, Status.CANCELLING) else status
