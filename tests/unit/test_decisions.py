"""What to do about one job: a table of situations, and properties that hold in all of them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.cluster import Capacity, Node, Resources
from service.decisions import (
    AttemptState,
    Decision,
    JobState,
    Limits,
    Sight,
    backoff,
    decide,
    decide_idle,
    may_remove,
    may_start,
    never_fits,
    shape_wanted,
    shows,
)
from service.states import TRANSITIONS
from service.values import Desired, Status
from workers.reports import REASONS, GroupShape, Observation, Outcome, ReasonCode, StopMode, WorkerStatus

pytestmark = pytest.mark.unit

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LIMITS = Limits(lost=10, silent=60, launch=120, cancel=300, kill=10, tracking=60, never_fits=60)
ATTEMPT = AttemptState(
    1, created_at=NOW - timedelta(seconds=30), seen=True, finished_at=None, size=2, resized_at=None, cluster_id="c",
    relayed=0, tracked=False,
)  # fmt: skip
JOB = JobState(
    id="job-1",
    status=Status.RUNNING,
    desired=Desired.RUN,
    desired_at=NOW - timedelta(seconds=60),
    priority=0,
    created_at=NOW - timedelta(seconds=60),
    deadline_at=None,
    retry_at=None,
    pause_at=None,
    attempt=1,
    failures=0,
    cluster_losses=0,
    max_attempts=3,
    fewest=2,
    most=2,
    each=Resources(1, 0, 0),
    waiting=None,
    resumable=True,
    attempts=(ATTEMPT,),
)
NEW = replace(ATTEMPT, seen=False)
STOPPING = (Desired.CANCEL, Desired.KILL)


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


def saw(phase: str, code: ReasonCode | None = None) -> Sight:
    outcome = None if code is None else Outcome(code, code.value, {"step": 7})
    return Sight(
        Observation(
            phase=phase,  # type: ignore[arg-type]
            outcome=outcome, progress=None, latest={}, health={}, workers=(), events=(), links={}, recoveries=(),
        )
    )  # fmt: skip


def missing(seconds: float, *, away: bool = False) -> Sight:
    return Sight(None, missing_seconds=seconds, cluster_was_away=away)


def about(job: JobState, sight: Sight, attempt: AttemptState = ATTEMPT) -> Decision:
    return decide(job, attempt, sight, NOW, LIMITS)


def wishing(desired: Desired, ago: float = 0, **changes: object) -> JobState:
    status = Status.CANCELLING if desired is not Desired.RUN else Status.RUNNING
    changes = {"status": status, **changes}
    return replace(JOB, desired=desired, desired_at=NOW - seconds(ago), **changes)  # type: ignore[arg-type]


# --- as it should go --------------------------------------------------------------------------------------------------


def test_a_new_attempt_is_launched_and_a_running_one_left_alone() -> None:
    assert about(replace(JOB, status=Status.STARTING), missing(0), NEW) == Decision(launch=True)
    assert about(JOB, saw("running")) == Decision()
    assert about(replace(JOB, status=Status.STARTING), saw("starting")) == Decision()


def test_the_status_follows_the_controller() -> None:
    assert about(replace(JOB, status=Status.STARTING), saw("running")).status is Status.RUNNING
    assert about(JOB, saw("recovering")).status is Status.RECOVERING
    assert about(replace(JOB, status=Status.RECOVERING), saw("running")).status is Status.RUNNING


@pytest.mark.parametrize("code", [ReasonCode.COMPLETED, ReasonCode.EARLY_STOPPED])
@pytest.mark.parametrize("desired", list(Desired))
def test_success_is_success_also_when_a_cancel_came_too_late(code: ReasonCode, desired: Desired) -> None:
    decision = about(wishing(desired), saw("finished", code))
    assert decision.finish is not None
    assert decision.finish.code is code
    assert decision.end is decision.finish


# --- failure and retry ------------------------------------------------------------------------------------------------


def test_what_another_attempt_can_help_is_tried_again_after_a_pause() -> None:
    decision = about(JOB, saw("finished", ReasonCode.NO_PROGRESS))
    assert decision.finish is None
    assert decision.end is not None
    assert decision.status is Status.RECOVERING
    assert decision.retry_at == NOW + seconds(1)


def test_the_last_attempt_is_the_last() -> None:
    decision = about(replace(JOB, attempt=9, failures=2), saw("finished", ReasonCode.NO_PROGRESS))
    assert decision.finish is not None
    assert decision.finish.code is ReasonCode.NO_PROGRESS
    assert "failed attempt 3 of 3" in decision.finish.message


ENDS_FOR_GOOD = [code for code, kind in REASONS.items() if not kind.retryable and kind.status != "paused"]


@pytest.mark.parametrize("code", ENDS_FOR_GOOD)
def test_what_another_attempt_cannot_help_is_not_tried_again(code: ReasonCode) -> None:
    decision = about(JOB, saw("finished", code))
    assert decision.retry_at is None
    assert decision.finish is not None
    assert decision.finish.code is code
    assert decision.finish.detail == {"step": 7}


def test_pauses_double_up_to_a_minute() -> None:
    assert [backoff(attempt).total_seconds() for attempt in (1, 2, 3, 6, 7, 100)] == [1, 2, 4, 32, 60, 60]


@pytest.mark.parametrize(("away", "code"), [(False, ReasonCode.CONTROLLER_LOST), (True, ReasonCode.CLUSTER_LOST)])
def test_a_controller_that_the_cluster_does_not_know_is_lost_after_a_while(away: bool, code: ReasonCode) -> None:
    assert about(JOB, missing(9.9, away=away)) == Decision()
    decision = about(JOB, missing(10, away=away))
    assert decision.end is not None
    assert decision.end.code is code
    assert decision.status is Status.RECOVERING
    assert decision.remove, "its workers may still be there"


def test_a_controller_that_does_not_answer_is_given_more_time() -> None:
    assert about(JOB, Sight(None, silent_seconds=59)) == Decision()
    assert about(JOB, Sight(None, silent_seconds=60)).remove


def test_a_launch_that_shows_nothing_is_given_up() -> None:
    late = replace(NEW, created_at=NOW - seconds(120))
    decision = about(replace(JOB, status=Status.STARTING), missing(100), late)
    assert decision.end is not None
    assert decision.end.code is ReasonCode.CONTROLLER_LOST
    assert not decision.launch


# --- cancel, kill, deadline -------------------------------------------------------------------------------------------


def test_a_cancel_is_asked_for_until_it_is_under_way() -> None:
    assert about(wishing(Desired.CANCEL), saw("running")).stop is StopMode.CANCEL
    assert about(wishing(Desired.CANCEL), saw("stopping")).stop is None
    assert about(wishing(Desired.CANCEL), Sight(None, silent_seconds=1)).stop is StopMode.CANCEL


def test_a_kill_overtakes_a_cancel_and_becomes_a_removal() -> None:
    assert about(wishing(Desired.KILL), saw("stopping")).stop is StopMode.KILL
    decision = about(wishing(Desired.KILL, ago=10), saw("stopping"))
    assert decision.remove
    assert decision.finish is not None
    assert decision.finish.code is ReasonCode.KILLED


def test_a_cancel_that_takes_too_long_becomes_a_kill() -> None:
    assert about(wishing(Desired.CANCEL, ago=300), saw("stopping")).stop is StopMode.KILL
    decision = about(wishing(Desired.CANCEL, ago=310), saw("stopping"))
    assert decision.remove
    assert decision.finish is not None
    assert decision.finish.code is ReasonCode.CANCELLED


def test_a_stopped_job_whose_workers_died_is_stopped_and_not_tried_again() -> None:
    for desired, code in ((Desired.CANCEL, ReasonCode.CANCELLED), (Desired.KILL, ReasonCode.KILLED)):
        decision = about(wishing(desired), saw("finished", ReasonCode.NO_PROGRESS))
        assert decision.finish is not None
        assert decision.finish.code is code
        assert decision.retry_at is None


def test_a_stopped_job_whose_code_was_wrong_says_so() -> None:
    decision = about(wishing(Desired.CANCEL), saw("finished", ReasonCode.USER_ERROR))
    assert decision.finish is not None
    assert decision.finish.code is ReasonCode.USER_ERROR


def test_a_job_stopped_before_its_launch_was_seen_is_not_launched() -> None:
    decision = about(wishing(Desired.CANCEL), missing(0), NEW)
    assert not decision.launch
    assert decision.remove, "the launch may be under way"
    assert decision.finish is not None
    assert decision.finish.code is ReasonCode.CANCELLED


def test_a_deadline_cancels_and_is_named_as_the_reason() -> None:
    job = replace(JOB, deadline_at=NOW)
    decision = about(job, saw("running"))
    assert (decision.stop, decision.status) == (StopMode.CANCEL, Status.CANCELLING)
    stopping = replace(job, status=Status.CANCELLING)
    for code in (ReasonCode.CANCELLED, ReasonCode.NO_PROGRESS):
        finished = about(stopping, saw("finished", code)).finish
        assert finished is not None
        assert finished.code is ReasonCode.DEADLINE_EXCEEDED
    back = about(replace(stopping, deadline_at=NOW + seconds(3600)), saw("finished", ReasonCode.CANCELLED)).finish
    assert back is not None
    assert back.code is ReasonCode.DEADLINE_EXCEEDED, "also when the clock was set back meanwhile"


# --- pause ------------------------------------------------------------------------------------------------------------


def pausing(desired: Desired = Desired.PAUSE, ago: float = 0, **changes: object) -> JobState:
    """Asked for by a user, or (RUN) to make room, or resumed meanwhile."""
    job = replace(JOB, status=Status.PAUSING, desired=desired, pause_at=NOW - seconds(ago))
    return replace(job, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("desired", [Desired.PAUSE, Desired.RUN])
def test_a_pause_is_asked_for_until_it_is_under_way(desired: Desired) -> None:
    assert about(pausing(desired), saw("running")) == Decision(stop=StopMode.PAUSE)
    assert about(pausing(desired), saw("stopping")) == Decision()
    assert about(pausing(desired), Sight(None, silent_seconds=1)) == Decision(stop=StopMode.PAUSE)


def test_a_paused_attempt_leaves_a_paused_job_or_one_in_the_queue() -> None:
    done = saw("finished", ReasonCode.PAUSED)
    paused = about(pausing(), done)
    assert (paused.status, paused.retry_at, paused.finish, paused.warning) == (Status.PAUSED, None, None, None)
    back = about(pausing(Desired.RUN), done)
    assert (back.status, back.retry_at, back.failures) == (Status.QUEUED, NOW, None)


@pytest.mark.parametrize("code", [ReasonCode.STORAGE_FULL, ReasonCode.CRITICAL_PAUSE])
@pytest.mark.parametrize("job", [JOB, pausing(), pausing(Desired.RUN)])
def test_what_needs_somebody_pauses_the_job_until_it_is_resumed(job: JobState, code: ReasonCode) -> None:
    decision = about(job, saw("finished", code))
    assert (decision.status, decision.retry_at, decision.finish) == (Status.PAUSED, None, None)


@pytest.mark.parametrize("code", [ReasonCode.NO_PROGRESS, ReasonCode.CONTROLLER_LOST, ReasonCode.CLUSTER_LOST])
@pytest.mark.parametrize(("desired", "status"), [(Desired.PAUSE, Status.PAUSED), (Desired.RUN, Status.QUEUED)])
def test_an_attempt_that_dies_while_it_is_paused_loses_what_is_not_in_a_checkpoint_and_says_so(
    code: ReasonCode, desired: Desired, status: Status
) -> None:
    decision = about(pausing(desired), saw("finished", code))
    assert (decision.status, decision.failures) == (status, None)
    assert decision.warning is not None
    assert "newest" in decision.warning


def test_a_pause_that_takes_too_long_becomes_a_kill_of_the_attempt_and_not_of_the_job() -> None:
    assert about(pausing(ago=299), saw("running")).stop is StopMode.PAUSE
    assert about(pausing(ago=300), saw("stopping")).stop is StopMode.KILL
    for decision in (
        about(pausing(ago=300), saw("finished", ReasonCode.KILLED)),
        about(pausing(ago=310), saw("stopping")),
    ):
        assert (decision.status, decision.finish) == (Status.PAUSED, None)
        assert decision.warning is not None
        assert "took too long" in decision.warning
    assert about(pausing(ago=310), saw("stopping")).remove


def test_an_error_of_the_users_code_ends_a_job_also_while_it_is_paused() -> None:
    decision = about(pausing(), saw("finished", ReasonCode.USER_ERROR))
    assert decision.finish is not None
    assert decision.finish.code is ReasonCode.USER_ERROR


def test_a_cancel_and_a_deadline_overtake_a_pause() -> None:
    for job in (pausing(Desired.CANCEL, desired_at=NOW), pausing(deadline_at=NOW)):
        assert about(job, saw("running")) == Decision(stop=StopMode.CANCEL, status=Status.CANCELLING)
        assert about(job, saw("finished", ReasonCode.PAUSED)).finish is not None


def test_a_pause_before_the_launch_was_seen_launches_nothing() -> None:
    decision = about(pausing(), missing(0), NEW)
    assert (decision.launch, decision.remove, decision.status) == (False, True, Status.PAUSED)


# --- the cluster goes -------------------------------------------------------------------------------------------------


def test_what_was_lost_with_the_cluster_is_tried_again_without_limit_and_ever_more_slowly() -> None:
    job = replace(JOB, max_attempts=1, failures=0, attempt=50, cluster_losses=4)
    decision = about(job, Sight(None, missing_seconds=0, cluster_replaced=True))
    assert decision.end is not None
    assert decision.end.code is ReasonCode.CLUSTER_LOST
    assert (decision.status, decision.failures, decision.cluster_losses) == (Status.RECOVERING, None, 5)
    assert decision.retry_at == NOW + seconds(16)
    assert decision.remove


def test_a_cluster_that_held_for_long_is_trusted_again() -> None:
    old = replace(ATTEMPT, created_at=NOW - seconds(600))
    decision = about(replace(JOB, cluster_losses=6, attempts=(old,)), missing(10, away=True), old)
    assert (decision.cluster_losses, decision.retry_at) == (1, NOW + seconds(1))


def test_an_attempt_that_was_recorded_for_another_cluster_is_not_launched_here() -> None:
    decision = about(replace(JOB, status=Status.STARTING), Sight(None, missing_seconds=0, cluster_replaced=True), NEW)
    assert not decision.launch
    assert decision.end is not None
    assert decision.end.code is ReasonCode.CLUSTER_LOST


# --- the group's shape ------------------------------------------------------------------------------------------------


def group(*places: str, phase: str = "running", state: str = "running") -> Observation:
    workers = [WorkerStatus(rank, 1, "", place, "cpu", state, 0.0) for rank, place in enumerate(places)]  # type: ignore[arg-type]
    observation = saw(phase).observation
    assert observation is not None
    return replace(observation, workers=workers)


def test_a_group_is_as_wanted_when_its_number_is_and_nobody_is_where_nobody_should_be() -> None:
    assert shows(group("a", "b"), GroupShape(2))
    assert not shows(group("a"), GroupShape(2))
    assert not shows(group("a", "b"), GroupShape(2, frozenset({"b"})))
    assert not shows(group("a", "b", state="left"), GroupShape(2))
    assert shows(group("a", phase="recovering"), GroupShape(2)), "it is given the time"


def test_nothing_is_asked_of_a_group_that_ends() -> None:
    running, avoid = Sight(group("a", "b")), frozenset({"b"})
    assert shape_wanted(ATTEMPT, running, Decision(), avoid) == GroupShape(2, avoid)
    assert shape_wanted(ATTEMPT, running, Decision(stop=StopMode.PAUSE), avoid) is None
    assert shape_wanted(ATTEMPT, saw("stopping"), Decision(), avoid) is None
    assert shape_wanted(ATTEMPT, Sight(None, silent_seconds=1), Decision(), avoid) is None


# --- without an attempt -----------------------------------------------------------------------------------------------

IDLE = replace(JOB, status=Status.QUEUED, attempt=0, attempts=())


@pytest.mark.parametrize(
    ("job", "code"),
    [
        (replace(IDLE, desired=Desired.CANCEL), ReasonCode.CANCELLED),
        (replace(IDLE, desired=Desired.KILL), ReasonCode.KILLED),
        (replace(IDLE, deadline_at=NOW), ReasonCode.DEADLINE_EXCEEDED),
        (replace(IDLE, status=Status.CANCELLING, desired=Desired.CANCEL, attempt=1), ReasonCode.CANCELLED),
    ],
)
def test_a_job_that_waits_can_end(job: JobState, code: ReasonCode) -> None:
    finish = decide_idle(job, NOW).finish
    assert finish is not None
    assert finish.code is code


def test_a_paused_job_waits_for_its_user_and_can_end() -> None:
    paused = replace(IDLE, status=Status.PAUSED, desired=Desired.PAUSE, attempt=1)
    assert decide_idle(paused, NOW) == Decision()
    assert not may_start(paused, NOW)
    for job, code in (
        (replace(paused, desired=Desired.KILL), ReasonCode.KILLED),
        (replace(paused, deadline_at=NOW), ReasonCode.DEADLINE_EXCEEDED),
    ):
        finish = decide_idle(job, NOW).finish
        assert finish is not None
        assert finish.code is code


def test_a_pause_between_two_attempts_is_done_at_once() -> None:
    between = replace(IDLE, status=Status.PAUSING, desired=Desired.PAUSE, attempt=1)
    assert decide_idle(between, NOW).status is Status.PAUSED
    assert decide_idle(replace(between, desired=Desired.RUN), NOW).status is Status.QUEUED


def test_the_next_attempt_waits_for_its_time_and_for_the_last_one_to_be_gone() -> None:
    ended = replace(ATTEMPT, finished_at=NOW - seconds(5))
    assert may_start(IDLE, NOW)
    assert not may_start(replace(IDLE, retry_at=NOW + seconds(1)), NOW)
    assert not may_start(replace(IDLE, attempts=(ended,)), NOW)


def test_only_a_job_that_never_ran_is_too_large() -> None:
    capacity = Capacity((Node("n", "a", Resources(1, 0, 0)),))
    assert never_fits(IDLE, capacity, 59, LIMITS).finish is None
    finish = never_fits(IDLE, capacity, 60, LIMITS).finish
    assert finish is not None
    assert "needs 2 CPUs, 1 in all" in finish.message
    assert never_fits(replace(IDLE, attempt=1), capacity, 600, LIMITS).finish is None


def test_an_ended_attempt_stays_until_mlflow_has_everything() -> None:
    ended = replace(ATTEMPT, finished_at=NOW - seconds(5))
    job = replace(JOB, status=Status.SUCCEEDED, attempts=(ended,))
    assert not may_remove(job, ended, saw("finished"), NOW, LIMITS)
    assert may_remove(job, replace(ended, tracked=True), saw("finished"), NOW, LIMITS)
    assert may_remove(job, ended, missing(0), NOW, LIMITS)
    assert not may_remove(job, ended, Sight(None, silent_seconds=5), NOW, LIMITS)
    assert may_remove(job, replace(ended, finished_at=NOW - seconds(60)), saw("finished"), NOW, LIMITS)
    assert may_remove(replace(job, status=Status.RECOVERING), ended, saw("finished"), NOW, LIMITS)
    assert not may_remove(replace(job, status=Status.PAUSED), ended, saw("finished"), NOW, LIMITS)
    assert may_remove(replace(job, status=Status.QUEUED), ended, saw("finished"), NOW, LIMITS)


# --- in all situations ------------------------------------------------------------------------------------------------

sights = st.one_of(
    st.builds(saw, st.sampled_from(["starting", "running", "recovering", "stopping"])),
    st.builds(lambda code: saw("finished", code), st.sampled_from(list(ReasonCode))),
    st.builds(missing, st.floats(0, 1000), away=st.booleans()),
    st.builds(lambda silent: Sight(None, silent_seconds=silent), st.floats(0, 1000)),
)
attempts = st.builds(
    lambda age, seen: replace(ATTEMPT, created_at=NOW - seconds(age), seen=seen), st.floats(0, 1000), st.booleans()
)
situations = st.builds(
    lambda status, desired, ago, failures, most, deadline: replace(
        JOB, status=status, desired=desired, desired_at=NOW - seconds(ago), failures=min(failures, most - 1),
        max_attempts=most, deadline_at=None if deadline is None else NOW + seconds(deadline),
        pause_at=NOW - seconds(ago) if status is Status.PAUSING else None,
    ),
    st.sampled_from([Status.STARTING, Status.RUNNING, Status.RECOVERING, Status.PAUSING, Status.CANCELLING]),
    st.sampled_from(list(Desired)),
    st.floats(0, 1000),
    st.integers(0, 4),
    st.integers(1, 4),
    st.none() | st.floats(-1000, 1000),
).filter(
    # Only a wish or a deadline cancels.
    lambda job: job.status is not Status.CANCELLING or job.desired in STOPPING or job.deadline_at is not None
)  # fmt: skip


@given(situations, attempts, sights)
def test_a_decision_is_consistent(job: JobState, attempt: AttemptState, sight: Sight) -> None:
    decision = decide(job, attempt, sight, NOW, LIMITS)
    if decision.finish is not None:
        assert decision.end is not None, "a job does not end while its attempt goes on"
        assert decision.retry_at is None
    if decision.retry_at is not None:
        assert decision.end is not None
        assert decision.finish is None
        assert decision.status in (Status.RECOVERING, Status.QUEUED) or job.status is Status.RECOVERING
        assert job.desired in (Desired.RUN, Desired.PAUSE)
    if decision.failures is not None:
        assert decision.end is not None
        assert REASONS[decision.end.code].retryable
        assert decision.end.code is not ReasonCode.CLUSTER_LOST
        assert job.failures < decision.failures < job.max_attempts
    if decision.end is not None and decision.finish is None:
        next_attempt = decision.retry_at is not None or decision.status is Status.PAUSED
        assert next_attempt, "no job is left without an attempt, an end, a next attempt or a pause"
    if decision.launch:
        assert not attempt.seen
        assert decision.end is None
        assert not decision.remove
    if decision.remove:
        assert decision.end is not None


@given(situations, attempts, sights)
def test_every_decided_status_may_follow(job: JobState, attempt: AttemptState, sight: Sight) -> None:
    decision = decide(job, attempt, sight, NOW, LIMITS)
    if decision.status is not None:
        # A retry from starting passes through recovering, which is what the table allows.
        assert decision.status in TRANSITIONS[job.status]


@given(situations, attempts)
def test_a_wish_to_stop_is_always_served_in_the_end(job: JobState, attempt: AttemptState) -> None:
    stopping = replace(job, desired=Desired.CANCEL, desired_at=NOW - seconds(LIMITS.cancel + LIMITS.kill))
    for sight in (saw("running"), saw("stopping"), missing(0), Sight(None, silent_seconds=0)):
        assert decide(stopping, attempt, sight, NOW, LIMITS).finish is not None


@given(attempts, st.sampled_from([Desired.PAUSE, Desired.RUN]))
def test_a_wish_to_pause_is_always_served_in_the_end_and_never_ends_the_job(
    attempt: AttemptState, desired: Desired
) -> None:
    job = pausing(desired, ago=LIMITS.cancel + LIMITS.kill)
    for sight in (saw("running"), saw("stopping"), missing(0), Sight(None, silent_seconds=0)):
        decision = decide(job, attempt, sight, NOW, LIMITS)
        assert decision.end is not None
        assert decision.status is (Status.PAUSED if desired is Desired.PAUSE else Status.QUEUED)
