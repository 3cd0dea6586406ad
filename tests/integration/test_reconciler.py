"""The reconciler, one pass at a time, with the cluster in memory and a given time, on SQLite and Postgres."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from service import jobs
from service.cluster import ClusterUnavailableError, Launch, Resources
from service.database import Store
from service.errors import Unavailable
from service.fake_cluster import FakeCluster
from service.leases import LeaseLostError
from service.records import Records
from service.values import Status
from tests.integration.databases import database_url, postgres, sqlite_url, store  # noqa: F401 (fixtures)
from tests.integration.worlds import CALLER, World
from workers.reports import Outcome, ReasonCode, StopMode

# ruff: noqa: F811 (fixtures are imported and then named as parameters)
pytestmark = pytest.mark.integration


@pytest.fixture
def world(store: Store, tmp_path: Path) -> World:
    return World(store, tmp_path, FakeCluster(steps=3))


@pytest.fixture
def endless(store: Store, tmp_path: Path) -> World:
    return World(store, tmp_path, FakeCluster(steps=None))


# --- the good life ----------------------------------------------------------------------------------------------------


def test_links_lead_where_people_can_go(store: Store, tmp_path: Path) -> None:
    """Workers know MLflow by a name that only the deployment has."""
    settings = {"mlflow_url": "http://mlflow:5000", "mlflow_public_url": "https://mlflow.example.org/"}
    world = World(store, tmp_path, FakeCluster(steps=None), **settings)
    job_id = world.create()
    world.run_until(job_id, Status.RUNNING)
    world.controller(job_id).links = {"mlflow": "http://mlflow:5000/#/experiments/1/runs/0af3"}
    world.run_passes(10)
    assert world.job(job_id).links["mlflow"] == "https://mlflow.example.org/#/experiments/1/runs/0af3"


def test_a_job_runs_to_its_end(world: World) -> None:
    job_id = world.create(2)
    job = world.run_until(job_id, Status.SUCCEEDED)
    assert world.statuses(job_id) == ["starting", "running", "succeeded"]
    assert job.reason is not None
    assert job.reason.code is ReasonCode.COMPLETED
    assert job.started_at is not None
    assert job.finished_at is not None
    assert job.progress is not None
    assert job.progress["step"] == 3
    assert job.latest == {"train/loss": 0.25}
    assert [worker["rank"] for worker in job.workers] == [0, 1]
    world.run_pass()
    assert world.cluster.names() == frozenset(), "what has ended and is tracked is removed"
    [attempt] = jobs.list_attempts(world.store, CALLER, job_id)
    assert (attempt.number, attempt.reason) == (1, job.reason)
    assert world.cluster.launched == [f"{job_id}.1"]


def test_the_launch_says_what_the_controller_needs(endless: World) -> None:
    job_id = endless.create()
    endless.run_until(job_id, Status.RUNNING)
    launch = endless.cluster.controllers[f"{job_id}.1"].launch
    assert launch.folder == str(endless.settings.storage / "jobs" / job_id)
    assert (launch.job_id, launch.attempt, launch.experiment) == (job_id, 1, "chainrule")


def test_the_controllers_events_are_told_once_also_by_another_scheduler(world: World) -> None:
    job_id = world.create()
    for _ in range(12):
        world.run_pass()
        world.restart()
    assert world.job(job_id).status is Status.SUCCEEDED
    assert world.types(job_id).count("training.started") == 1
    assert world.types(job_id).count("tracking.complete") == 1
    assert world.statuses(job_id) == ["starting", "running", "succeeded"]
    assert len(world.cluster.launched) == 1


def test_nothing_is_written_while_nothing_changes(endless: World) -> None:
    """Would catch rows that are rewritten with every look at the cluster."""
    endless.create()
    for _ in range(5):
        endless.run_pass()
    endless.create(2)  # waits: one of two processors is taken
    endless.run_pass(1)
    endless.cluster.steps = 0
    with count_writes(endless.store) as writes, still(endless):
        for _ in range(20):
            endless.run_pass(0.1)
    assert len(writes) <= 3, writes  # progress once more, and the cluster's sign of life


def test_progress_is_written_at_most_twice_a_second(endless: World) -> None:
    job_id = endless.create()
    endless.run_until(job_id, Status.RUNNING)
    with count_writes(endless.store) as writes:
        for _ in range(50):
            endless.run_pass(0.1)
    jobs_written = [statement for statement in writes if statement.startswith("UPDATE jobs")]
    assert 8 <= len(jobs_written) <= 11
    progress = endless.job(job_id).progress
    assert progress is not None
    assert progress["step"] >= 45


# --- the queue --------------------------------------------------------------------------------------------------------


def test_a_job_waits_for_room_with_a_reason_and_then_starts(endless: World) -> None:
    first = endless.create(2)
    endless.run_until(first, Status.RUNNING)
    second = endless.create(1)
    endless.run_pass(1)
    assert endless.job(second).status is Status.QUEUED
    assert endless.job(second).waiting == "needs 1 CPUs, 0 free"
    endless.cluster.finish(f"{first}.1", Outcome(ReasonCode.COMPLETED, "done"))
    assert endless.run_until(second, Status.RUNNING).waiting is None
    assert endless.statuses(first)[-1] == "succeeded"


def test_the_more_important_and_then_the_older_job_starts_first(endless: World) -> None:
    low, old, young = endless.create(2, priority=-1), endless.create(2), endless.create(2)
    for job_id in (old, young, low):
        endless.run_until(job_id, Status.RUNNING)
        endless.cluster.finish(f"{job_id}.1", Outcome(ReasonCode.COMPLETED, "done"))
        endless.run_pass()
    assert endless.cluster.launched == [f"{old}.1", f"{young}.1", f"{low}.1"]


def test_a_job_larger_than_the_cluster_fails_and_before_there_are_machines_it_waits(world: World) -> None:
    nodes, world.cluster.nodes = world.cluster.nodes, []
    job_id = world.create(4)
    for _ in range(5):
        world.run_pass(60)
    assert world.job(job_id).waiting == "waits for the cluster, which has no machines yet"
    world.cluster.nodes = nodes
    job = world.run_until(job_id, Status.FAILED, passes=5, after=30)
    assert job.reason is not None
    assert job.reason.code is ReasonCode.NEVER_FITS
    assert "needs 4 CPUs, 2 in all" in job.reason.message


# --- stopping ---------------------------------------------------------------------------------------------------------


def test_a_queued_job_is_cancelled_without_ever_starting(endless: World) -> None:
    job_id = endless.create()
    jobs.cancel_job(endless.store, CALLER, job_id)
    endless.run_pass()
    job = endless.job(job_id)
    assert job.status is Status.CANCELLED
    assert job.reason is not None
    assert job.reason.code is ReasonCode.CANCELLED
    assert endless.cluster.launched == []


def test_a_job_cancelled_between_record_and_launch_is_not_launched(endless: World) -> None:
    job_id = endless.create()
    endless.run_pass()
    assert endless.job(job_id).status is Status.STARTING
    assert jobs.cancel_job(endless.store, CALLER, job_id).status is Status.CANCELLING
    endless.run_pass()
    assert endless.job(job_id).status is Status.CANCELLED
    assert endless.cluster.launched == []


@pytest.mark.parametrize("wish", ["cancel", "kill"])
def test_a_running_job_is_stopped(endless: World, wish: str) -> None:
    job_id = endless.create()
    endless.run_until(job_id, Status.RUNNING)
    stop = jobs.cancel_job if wish == "cancel" else jobs.kill_job
    assert stop(endless.store, CALLER, job_id).status is Status.CANCELLING
    job = endless.run_until(job_id, Status.CANCELLED)
    assert job.reason is not None
    assert job.reason.code == ("cancelled" if wish == "cancel" else "killed")
    assert stop(endless.store, CALLER, job_id) == job, "a wish for what has ended changes nothing"
    endless.run_pass()
    assert endless.cluster.names() == frozenset()


def test_a_kill_does_not_wait_for_a_controller_that_hangs(endless: World) -> None:
    job_id = endless.create()
    endless.run_until(job_id, Status.RUNNING)
    endless.cluster.controllers[f"{job_id}.1"].silent = True
    jobs.kill_job(endless.store, CALLER, job_id)
    endless.run_pass(5)
    assert endless.job(job_id).status is Status.CANCELLING
    endless.cluster.controllers[f"{job_id}.1"].phase = "running"  # the stop had no effect
    endless.run_pass(6)
    assert endless.job(job_id).status is Status.CANCELLED
    assert endless.cluster.names() == frozenset()


def test_a_cancel_without_effect_is_sent_again_and_becomes_a_kill(endless: World) -> None:
    job_id = endless.create()
    endless.run_until(job_id, Status.RUNNING)
    controller = endless.cluster.controllers[f"{job_id}.1"]
    controller.silent = True
    jobs.cancel_job(endless.store, CALLER, job_id)
    for _ in range(10):
        endless.run_pass(1)
    assert 3 <= len(controller.stops) <= 6
    assert set(controller.stops) == {StopMode.CANCEL}


def test_a_deadline_stops_the_job_with_a_checkpoint(endless: World) -> None:
    job_id = endless.create(deadline_seconds=100)
    endless.run_until(job_id, Status.RUNNING)
    endless.run_pass(101)
    assert endless.cluster.controllers[f"{job_id}.1"].stops == [StopMode.CANCEL]
    job = endless.run_until(job_id, Status.FAILED)
    assert job.reason is not None
    assert job.reason.code is ReasonCode.DEADLINE_EXCEEDED
    assert endless.statuses(job_id) == ["starting", "running", "cancelling", "failed"]


# --- trouble ----------------------------------------------------------------------------------------------------------


def test_replaced_workers_are_a_recovery_and_not_an_attempt(endless: World) -> None:
    job_id = endless.create()
    endless.run_until(job_id, Status.RUNNING)
    endless.cluster.recover(f"{job_id}.1")
    for _ in range(3):
        endless.run_pass()
    assert endless.statuses(job_id) == ["starting", "running", "recovering", "running"]
    [attempt] = jobs.list_attempts(endless.store, CALLER, job_id)
    assert len(attempt.recoveries) == 1


def test_a_lost_controller_means_another_attempt_in_the_same_folder(endless: World) -> None:
    job_id = endless.create()
    endless.run_until(job_id, Status.RUNNING)
    folder = endless.cluster.controllers.pop(f"{job_id}.1").launch.folder
    endless.run_pass(1)
    assert endless.job(job_id).status is Status.RUNNING, "not before the cluster has said so for a while"
    endless.run_pass(10)
    assert endless.job(job_id).status is Status.RECOVERING
    job = endless.run_until(job_id, Status.RUNNING, after=0.5)
    assert job.attempt == 2
    assert endless.cluster.controllers[f"{job_id}.2"].launch.folder == folder
    assert endless.statuses(job_id) == ["starting", "running", "recovering", "starting", "running"]
    first, second = jobs.list_attempts(endless.store, CALLER, job_id)
    assert first.reason is not None
    assert first.reason.code is ReasonCode.CONTROLLER_LOST
    assert second.reason is None


def test_attempts_are_used_up(endless: World) -> None:
    job_id = endless.create(retry={"max_attempts": 2})
    for attempt in (1, 2):
        endless.run_until(job_id, Status.RUNNING, after=0.5)
        endless.cluster.finish(f"{job_id}.{attempt}", Outcome(ReasonCode.NO_PROGRESS, "workers died"))
        endless.run_pass()
    job = endless.job(job_id)
    assert job.status is Status.FAILED
    assert job.reason is not None
    assert job.reason.code is ReasonCode.NO_PROGRESS
    endless.run_pass()
    assert endless.cluster.names() == frozenset()


def test_an_error_of_the_users_code_is_not_tried_again(endless: World) -> None:
    job_id = endless.create()
    endless.run_until(job_id, Status.RUNNING)
    outcome = Outcome(ReasonCode.USER_ERROR, "ValueError: no", {"rank": 1, "traceback": "..."})
    endless.cluster.finish(f"{job_id}.1", outcome)
    job = endless.run_until(job_id, Status.FAILED)
    assert job.reason is not None
    assert job.reason.detail == {"rank": 1, "traceback": "..."}
    assert endless.cluster.launched == [f"{job_id}.1"]


def test_the_attempt_before_is_gone_when_the_next_one_starts(endless: World) -> None:
    """Two controllers must never write into one folder."""
    job_id = endless.create()
    endless.run_until(job_id, Status.RUNNING)
    endless.cluster.finish(f"{job_id}.1", Outcome(ReasonCode.NO_PROGRESS, "workers died"))
    for _ in range(20):
        endless.run_pass(0.5)
        assert len(endless.cluster.names()) <= 1
    assert endless.cluster.names() == {f"{job_id}.2"}


def test_while_the_cluster_is_away_everything_stays_as_it_is(endless: World) -> None:
    job_id, queued = endless.create(2), endless.create()
    endless.run_until(job_id, Status.RUNNING)
    endless.cluster.problem = "no route to host"
    third = endless.create()
    jobs.cancel_job(endless.store, CALLER, third)
    for _ in range(10):
        endless.run_pass(30)
    assert endless.job(job_id).status is Status.RUNNING
    assert endless.job(queued).waiting == "waits for the cluster: no route to host"
    assert endless.job(third).status is Status.CANCELLED, "this needs no cluster"
    view = jobs.cluster_view(endless.store)
    assert (view.reachable, view.message) == (False, "no route to host")
    endless.cluster.problem = None
    endless.run_pass()
    assert endless.job(job_id).status is Status.RUNNING
    assert jobs.cluster_view(endless.store).reachable
    assert len(endless.cluster.launched) == 1


def test_after_the_cluster_was_replaced_its_jobs_start_again(endless: World) -> None:
    job_id = endless.create()
    endless.run_until(job_id, Status.RUNNING)
    endless.cluster.problem = "the head is gone"
    endless.run_pass(1)
    endless.cluster.problem = None
    endless.cluster.controllers.clear()
    job = endless.run_until(job_id, Status.RECOVERING, after=3)
    job = endless.run_until(job_id, Status.RUNNING, after=1)
    assert job.attempt == 2
    first, _ = jobs.list_attempts(endless.store, CALLER, job_id)
    assert first.reason is not None
    assert first.reason.code is ReasonCode.CLUSTER_LOST


def test_what_the_database_does_not_know_is_removed(endless: World) -> None:
    job_id = endless.create()
    endless.run_until(job_id, Status.RUNNING)
    known = endless.cluster.controllers[f"{job_id}.1"].launch
    endless.cluster.launch(replace(known, name="job-unknown.1"))
    endless.run_pass(6)
    assert endless.cluster.names() == {f"{job_id}.1"}


def test_one_jobs_trouble_is_not_anothers(endless: World, caplog: pytest.LogCaptureFixture) -> None:
    bad, good = endless.create(), endless.create()
    launch = endless.cluster.launch

    def refuse(wanted: Launch) -> None:
        if wanted.job_id == bad:
            raise RuntimeError("this one is cursed")
        launch(wanted)

    endless.cluster.launch = refuse  # type: ignore[method-assign, assignment]
    endless.run_until(good, Status.RUNNING)
    assert f"{bad} could not be attended to" in caplog.text
    assert endless.job(bad).status is Status.STARTING


def test_the_cluster_is_shown_with_what_jobs_reserve(endless: World) -> None:
    endless.cluster.nodes = FakeCluster(Resources(4, 1, 100), Resources(2, 0, 50)).nodes
    running, _waiting = endless.create(3), endless.create(4)
    endless.run_until(running, Status.RUNNING)
    view = jobs.cluster_view(endless.store)
    assert [node.total.cpus for node in view.capacity.nodes] == [4, 2]
    assert (view.used.cpus, view.queued, view.active) == (3, 1, 1)
    assert view.scheduler_alive


# --- schedulers come and go -------------------------------------------------------------------------------------------


def test_a_frozen_leader_writes_nothing_when_it_wakes(endless: World) -> None:
    job_id = endless.create()
    frozen = endless.reconciler
    endless.restart()
    endless.run_until(job_id, Status.RUNNING)
    events = len(endless.types(job_id))
    second = endless.create()
    with pytest.raises(LeaseLostError):
        frozen.run_pass(endless.start + timedelta(seconds=endless.elapsed), endless.elapsed)
    assert endless.job(second).status is Status.QUEUED
    assert len(endless.types(job_id)) == events


class DeathError(BaseException):
    """The process is gone: nothing catches it."""


CALLS = ("claim", "start_attempt", "apply", "removed", "launch", "stop", "observe", "remove", "names", "capacity")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("call", CALLS)
def test_a_scheduler_that_dies_at_any_call_loses_nothing_and_runs_nothing_twice(
    world: World, call: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call of the pass is the last one of some scheduler, each time it is made."""
    target: type = Records if hasattr(Records, call) else FakeCluster
    real = getattr(target, call)
    deaths: list[str] = []

    def deadly(self: object, *arguments: Any) -> Any:
        if moment == "before" and len(deaths) % 2 == 0:
            deaths.append(call)
            raise DeathError
        result = real(self, *arguments)
        if moment == "after" and len(deaths) % 2 == 0:
            deaths.append(call)
            raise DeathError
        deaths.append("survived")
        return result

    job_id, unwanted = world.create(), world.create()
    world.run_pass()
    world.run_pass()
    jobs.cancel_job(world.store, CALLER, unwanted)
    other = world.create()
    monkeypatch.setattr(target, call, deadly)
    for _ in range(25):
        try:
            world.run_pass(3)
        except DeathError:
            world.restart()
    assert call in deaths, "the point was never reached"
    assert [world.job(each).status for each in (job_id, other, unwanted)] == ["succeeded", "succeeded", "cancelled"]
    assert sorted(world.cluster.launched) == sorted(f"{each}.1" for each in (job_id, other, unwanted))
    for each in (job_id, other):
        assert world.statuses(each) == ["starting", "running", "succeeded"]
        assert world.types(each).count("training.started") == 1
    monkeypatch.undo()
    world.run_pass(3)
    assert world.cluster.names() == frozenset()


def test_trouble_with_the_database_ends_the_pass_and_not_the_job(
    endless: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = endless.create()

    def away(self: Records) -> object:
        raise Unavailable("the database cannot be reached")

    with monkeypatch.context() as patch:
        patch.setattr(Records, "claim", away)
        with pytest.raises(Unavailable):
            endless.run_pass()
    endless.run_until(job_id, Status.RUNNING)


@contextmanager
def count_writes(store: Store) -> Iterator[list[str]]:
    """Statements that change a row."""
    statements: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith(("UPDATE", "INSERT", "DELETE")):
            statements.append(statement)

    event.listen(store.engine, "before_cursor_execute", note)
    yield statements
    event.remove(store.engine, "before_cursor_execute", note)


@contextmanager
def still(world: World) -> Iterator[None]:
    """Controllers that do no steps."""
    advance = world.cluster._advance
    world.cluster._advance = lambda controller: None  # type: ignore[method-assign]
    yield
    world.cluster._advance = advance  # type: ignore[method-assign]


def test_the_fake_says_when_it_is_away() -> None:
    cluster = FakeCluster()
    cluster.problem = "away"
    with pytest.raises(ClusterUnavailableError):
        cluster.names()
