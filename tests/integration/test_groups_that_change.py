"""Pause, preemption, resizing, draining and the loss of the cluster: passes of the reconciler over the cluster in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service import jobs
from service.cluster import Resources
from service.database import Store
from service.errors import Conflict, Forbidden, InvalidRequest, NotFound
from service.fake_cluster import FakeCluster
from service.leases import LeaseLostError
from service.nodes import cluster_view, cordon_node
from service.records import Records
from service.values import Job, Status, WorkerRange
from tests.integration.databases import database_url, postgres, sqlite_url, store  # noqa: F401 (fixtures)
from tests.integration.worlds import ADMIN, CALLER, World
from workers.reports import GroupShape, Outcome, ReasonCode, StopMode

# ruff: noqa: F811 (fixtures are imported and then named as parameters)
pytestmark = pytest.mark.integration

GIGABYTE = 2**30


def machine(cpus: float) -> Resources:
    return Resources(cpus, 0, 64 * GIGABYTE)


@pytest.fixture
def build(store: Store, tmp_path: Path) -> Callable[..., World]:
    """A world of machines with so many processors, whose jobs go on for ever."""
    return lambda *cpus, **settings: World(store, tmp_path, FakeCluster(*map(machine, cpus), steps=None), **settings)


@pytest.fixture
def world(build: Callable[..., World]) -> World:
    return build(4)


def elastic(least: int, most: int) -> dict[str, int]:
    return {"min": least, "max": most}


def pause(world: World, job_id: str) -> Job:
    return jobs.pause_job(world.store, CALLER, job_id)


def resume(world: World, job_id: str) -> Job:
    return jobs.resume_job(world.store, CALLER, job_id)


# --- pause and resume -------------------------------------------------------------------------------------------------


def test_a_running_job_is_paused_and_goes_on_as_another_attempt(world: World) -> None:
    job_id = world.create(2, retry={"max_attempts": 1})
    world.run_until(job_id, Status.RUNNING)
    assert pause(world, job_id).status is Status.PAUSING
    job = world.run_until(job_id, Status.PAUSED)
    assert world.attempts(job_id)[0].reason is not None
    assert job.reason is not None
    assert (job.reason.code, job.finished_at, list(job.workers)) == (ReasonCode.PAUSED, None, [])
    world.run_passes(5)
    assert world.cluster.names() == frozenset(), "everything is free"
    assert pause(world, job_id) == job, "once more changes nothing"
    assert cluster_view(world.store).queued == 0
    resumed = resume(world, job_id)
    assert (resumed.status, resumed.reason) == (Status.QUEUED, None)
    assert world.run_until(job_id, Status.RUNNING).attempt == 2, "a pause is no failure"
    assert resume(world, job_id).status is Status.RUNNING
    assert world.statuses(job_id) == ["starting", "running", "pausing", "paused", "queued", "starting", "running"]


def test_a_queued_job_leaves_the_queue_at_once_and_comes_back(world: World) -> None:
    job_id = world.create()
    assert pause(world, job_id).status is Status.PAUSED
    world.run_passes(3)
    assert world.cluster.launched == []
    resume(world, job_id)
    world.run_until(job_id, Status.RUNNING)


def test_a_pause_between_record_and_launch_launches_nothing(world: World) -> None:
    job_id = world.create()
    world.run_pass()
    assert pause(world, job_id).status is Status.PAUSING
    world.run_until(job_id, Status.PAUSED)
    assert world.cluster.launched == []


def test_a_resume_during_a_pause_is_honoured_after_it(world: World) -> None:
    job_id = world.create()
    world.run_until(job_id, Status.RUNNING)
    pause(world, job_id)
    world.run_pass()
    assert resume(world, job_id).status is Status.PAUSING
    world.run_until(job_id, Status.RUNNING)
    assert world.statuses(job_id)[2:] == ["pausing", "queued", "starting", "running"]


def test_what_has_ended_or_is_being_cancelled_can_be_neither_paused_nor_resumed_nor_changed(world: World) -> None:
    job_id = world.create()
    world.run_until(job_id, Status.RUNNING)
    jobs.cancel_job(world.store, CALLER, job_id)
    for _ in range(2):
        for ask in (pause, resume):
            with pytest.raises(Conflict):
                ask(world, job_id)
        with pytest.raises(Conflict):
            jobs.update_job(world.store, CALLER, job_id, priority=1)
        world.run_until(job_id, Status.CANCELLED)
    assert jobs.update_job(world.store, CALLER, job_id, metadata={"note": "kept"}).metadata == {"note": "kept"}


@pytest.mark.parametrize("wish", [jobs.cancel_job, jobs.kill_job])
@pytest.mark.parametrize("status", [Status.PAUSED, Status.PAUSING])
def test_a_paused_job_can_be_cancelled(world: World, wish: Callable[[Store, Any, str], Job], status: Status) -> None:
    job_id = world.create()
    world.run_until(job_id, Status.RUNNING)
    pause(world, job_id)
    world.run_until(job_id, status)
    wish(world.store, CALLER, job_id)
    job = world.run_until(job_id, Status.CANCELLED)
    assert job.finished_at is not None
    world.run_passes(2)
    assert world.cluster.names() == frozenset()


def test_a_deadline_applies_to_a_paused_job(world: World) -> None:
    job_id = world.create(deadline_seconds=100)
    pause(world, job_id)
    world.run_pass(101)
    job = world.job(job_id)
    assert job.reason is not None
    assert (job.status, job.reason.code) == (Status.FAILED, ReasonCode.DEADLINE_EXCEEDED)


def test_full_storage_pauses_a_job_with_the_reason_and_a_resume_clears_it(world: World) -> None:
    job_id = world.create()
    world.run_until(job_id, Status.RUNNING)
    world.cluster.finish(f"{job_id}.1", Outcome(ReasonCode.STORAGE_FULL, "no room for a checkpoint on /storage"))
    job = world.run_until(job_id, Status.PAUSED)
    assert job.reason is not None
    assert (job.reason.code, job.reason.message) == (ReasonCode.STORAGE_FULL, "no room for a checkpoint on /storage")
    world.run_passes(5, after=60)
    assert world.job(job_id).status is Status.PAUSED
    assert resume(world, job_id).reason is None
    world.run_until(job_id, Status.RUNNING)


def test_a_pause_that_has_no_effect_ends_the_attempt_by_force_and_says_so(world: World) -> None:
    job_id = world.create()
    world.run_until(job_id, Status.RUNNING)
    world.controller(job_id).silent = True
    pause(world, job_id)
    world.run_passes(20, after=2)
    assert set(world.controller(job_id).stops) == {StopMode.PAUSE}
    world.controller(job_id).silent = False
    world.controller(job_id).phase = "running"
    world.cluster.stop = lambda name, mode: None  # type: ignore[method-assign]
    world.run_until(job_id, Status.PAUSED, after=20)
    assert world.event(job_id, "job.pause_forced")["level"] == "warning"
    reason = world.job(job_id).reason
    assert reason is not None
    assert "took too long" in reason.message
    assert world.cluster.names() == frozenset()


# --- update -----------------------------------------------------------------------------------------------------------


def test_priority_metadata_and_workers_change_and_the_spec_says_so(world: World) -> None:
    job_id = world.create(2)
    job = jobs.update_job(world.store, CALLER, job_id, priority=7, metadata={"team": "x"}, workers=WorkerRange(1, 3))
    assert (job.priority, job.metadata, job.worker_range) == (7, {"team": "x"}, WorkerRange(1, 3))
    assert job.spec["workers"] | {"count": None, "min": 1, "max": 3} == job.spec["workers"]
    assert world.event(job_id, "job.updated")["message"] == "priority and metadata and workers changed"
    events = len(world.types(job_id))
    assert jobs.update_job(world.store, CALLER, job_id, priority=7) == job
    assert len(world.types(job_id)) == events, "nothing has changed"
    fixed = jobs.update_job(world.store, CALLER, job_id, workers=WorkerRange(2, 2))
    assert fixed.spec["workers"]["count"] == 2


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"workers": WorkerRange(1, 129)}, "workers"),  # the batch has 128 samples
        ({"workers": WorkerRange(3, 2)}, "workers"),
        ({"workers": WorkerRange(0, 2)}, "workers.min"),
        ({"priority": 5000}, "priority"),
        ({"metadata": {"key": "x" * 600}}, "metadata.key"),
    ],
)
def test_a_change_that_the_job_cannot_have_names_its_field(world: World, change: dict[str, Any], field: str) -> None:
    job_id = world.create()
    with pytest.raises(InvalidRequest) as caught:
        jobs.update_job(world.store, CALLER, job_id, **change)
    assert caught.value.param == field
    assert world.types(job_id) == ["job.created"]


@pytest.mark.parametrize("workers", [WorkerRange(3, 3), WorkerRange(1, 1)])
def test_a_running_job_follows_a_change_of_its_workers(world: World, workers: WorkerRange) -> None:
    job_id = world.create(2)
    world.run_until(job_id, Status.RUNNING)
    world.run_passes(3)
    jobs.update_job(world.store, CALLER, job_id, workers=workers)
    world.run_passes(8)
    assert world.size(job_id) == workers.min
    assert world.job(job_id).attempt == 1
    resized = world.event(job_id, "job.resized")
    assert (resized["from"], resized["to"], resized["why"]) == (2, workers.min, "its range changed")


# --- elastic ----------------------------------------------------------------------------------------------------------


def test_a_job_with_a_range_takes_the_room_there_is_gives_it_back_and_takes_it_again(world: World) -> None:
    job_id = world.create(workers=elastic(1, 4))
    world.run_until(job_id, Status.RUNNING)
    assert world.size(job_id) == 4
    other = world.create(2)
    world.run_until(other, Status.RUNNING)
    assert world.size(job_id) == 2
    assert world.job(job_id).attempt == 1
    jobs.cancel_job(world.store, CALLER, other)
    world.run_until(other, Status.CANCELLED)
    world.run_passes(5)
    assert world.size(job_id) == 2, "not so soon"
    world.run_passes(20, after=2)
    assert world.size(job_id) == 4
    [attempt] = world.attempts(job_id)
    assert [worker["state"] for worker in attempt.workers] == ["left"] * 2 + ["running"] * 4
    assert [worker["ended_at"] is None for worker in attempt.workers] == [False] * 2 + [True] * 4
    assert len(world.job(job_id).workers) == 4


def test_a_shape_is_sent_until_it_is_seen_and_then_no_more(world: World) -> None:
    job_id = world.create(workers=elastic(1, 4))
    world.run_until(job_id, Status.RUNNING)
    controller = world.controller(job_id)
    world.run_passes(30)
    assert controller.shapes == []
    world.create(2)
    world.cluster._reform = lambda controller: None  # type: ignore[method-assign]
    world.run_passes(30)
    assert 3 <= len(controller.shapes) <= 5
    assert set(controller.shapes) == {GroupShape(2)}
    del world.cluster._reform
    world.run_passes(5)
    sent = len(controller.shapes)
    world.run_passes(20)
    assert len(controller.shapes) == sent
    world.restart()
    world.run_passes(20)
    assert controller.shapes[sent:] == [GroupShape(2)], "a new scheduler says it once"


def test_the_room_of_a_job_is_what_it_has_now(world: World) -> None:
    job_id = world.create(workers=elastic(1, 4))
    world.run_until(job_id, Status.RUNNING)
    assert cluster_view(world.store).used.cpus == 4


# --- preemption -------------------------------------------------------------------------------------------------------


def test_a_more_important_job_gets_its_room_and_the_other_comes_back_by_itself(world: World) -> None:
    low = world.create(4)
    world.run_until(low, Status.RUNNING)
    urgent = world.create(2, priority=5)
    world.run_until(urgent, Status.RUNNING)
    job = world.job(low)
    assert (job.status, job.reason) == (Status.QUEUED, None)
    assert world.event(low, "job.preempted")["for"] == urgent
    world.run_passes(20, after=2)
    assert world.job(low).status is Status.QUEUED, "there is no room for it"
    assert world.job(low).waiting == "needs 4 CPUs, 2 free"
    jobs.cancel_job(world.store, CALLER, urgent)
    job = world.run_until(low, Status.RUNNING)
    assert job.attempt == 2
    assert world.statuses(low) == ["starting", "running", "pausing", "queued", "starting", "running"]
    first, _ = world.attempts(low)
    assert first.reason is not None
    assert first.reason.code is ReasonCode.PAUSED


def test_nobody_gives_way_to_an_equal_or_when_it_would_not_help_or_when_it_is_switched_off(
    build: Callable[..., World],
) -> None:
    world = build(4)
    low = world.create(2)
    high = world.create(2, priority=9)
    world.run_until(low, Status.RUNNING)
    world.create(2)  # an equal
    world.create(4, priority=5)  # needs more than the less important one has
    world.run_passes(20, after=2)
    assert (world.job(low).status, world.job(high).status) == (Status.RUNNING, Status.RUNNING)
    world.settings = world.settings.model_copy(update={"preemption": False})
    world.restart()
    world.create(2, priority=5)
    world.run_passes(20, after=2)
    assert world.job(low).status is Status.RUNNING
    assert "job.preempted" not in world.types(low)


def test_a_job_shrinks_rather_than_that_another_is_paused(world: World) -> None:
    stretchy, fixed = world.create(workers=elastic(1, 3)), world.create(1)
    world.run_until(fixed, Status.RUNNING)
    world.run_passes(20, after=2)
    assert world.size(stretchy) == 3
    urgent = world.create(2, priority=1)
    world.run_until(urgent, Status.RUNNING)
    assert world.job(fixed).status is Status.RUNNING
    assert world.size(stretchy) == 1


def test_a_job_that_waits_for_long_and_is_preempted_does_not_close_the_queue_at_once(world: World) -> None:
    """Would catch a job whose time in the queue counts from its creation."""
    low = world.create(4)
    world.run_until(low, Status.RUNNING)
    world.run_passes(3, after=400)
    urgent = world.create(2, priority=5)
    world.run_until(urgent, Status.RUNNING)
    small = world.create(1, priority=-1)
    assert world.run_until(small, Status.RUNNING)


# --- drain and cordon -------------------------------------------------------------------------------------------------


def places(world: World, job_id: str) -> set[str]:
    return {worker["node_id"] for worker in world.job(job_id).workers}


def test_workers_leave_a_cordoned_machine_and_may_come_back(build: Callable[..., World]) -> None:
    world = build(2, 2)
    job_id = world.create(2)
    world.run_until(job_id, Status.RUNNING)
    world.run_passes(5)
    assert places(world, job_id) == {"node-0"}
    view = cordon_node(world.store, ADMIN, "node-0", cordoned=True, reason="new disks")
    [cordon] = view.cordons
    assert (cordon.node_id, cordon.reason) == ("node-0", "new disks")
    assert [node.draining for node in view.capacity.nodes] == [True, False]
    world.run_passes(10)
    assert places(world, job_id) == {"node-1"}
    assert world.job(job_id).attempt == 1
    assert world.controller(job_id).shape == GroupShape(2, frozenset({"node-0"}))
    waiting = world.create(1)
    world.run_passes(10)
    assert world.job(waiting).waiting == "needs 1 CPUs, 0 free (1 of 2 machines are being drained)"
    view = cordon_node(world.store, ADMIN, "node-0", cordoned=False, reason=None)
    assert (list(view.cordons), [node.draining for node in view.capacity.nodes]) == ([], [False, False])
    world.run_until(waiting, Status.RUNNING)
    assert world.controller(job_id).shape == GroupShape(2), "it may go there again"


def test_a_machine_that_the_cluster_drains_is_left_too(build: Callable[..., World]) -> None:
    world = build(2, 2)
    job_id = world.create(2)
    world.run_until(job_id, Status.RUNNING)
    world.cluster.drain("node-0")
    world.run_passes(20)
    assert places(world, job_id) == {"node-1"}
    assert [node.draining for node in cluster_view(world.store).capacity.nodes] == [True, False]
    assert list(cluster_view(world.store).cordons) == []


def test_only_an_admin_cordons_and_only_what_is_there(world: World) -> None:
    world.run_pass()
    with pytest.raises(Forbidden):
        cordon_node(world.store, CALLER, "node-0", cordoned=True, reason=None)
    with pytest.raises(NotFound):
        cordon_node(world.store, ADMIN, "node-unknown", cordoned=True, reason=None)
    for _ in range(2):
        since = cordon_node(world.store, ADMIN, "node-0", cordoned=True, reason="again").cordons[0].since
    assert cordon_node(world.store, ADMIN, "node-0", cordoned=True, reason="b").cordons[0].since == since
    for _ in range(2):
        assert not cordon_node(world.store, ADMIN, "node-0", cordoned=False, reason=None).cordons


def test_a_cordon_of_a_machine_that_is_gone_for_good_is_forgotten(world: World) -> None:
    world.run_pass()
    cordon_node(world.store, ADMIN, "node-0", cordoned=True, reason=None)
    world.cluster.nodes = FakeCluster(machine(4), machine(4)).nodes[1:]
    world.run_passes(3, after=3600)
    assert cluster_view(world.store).cordons, "it may be back within a day"
    world.run_passes(2, after=86400)
    assert not cluster_view(world.store).cordons


# --- the cluster is lost ----------------------------------------------------------------------------------------------


def test_a_job_survives_any_number_of_clusters_and_goes_on_at_once(world: World) -> None:
    job_id = world.create(retry={"max_attempts": 1})
    for attempt in (1, 2, 3, 4):
        job = world.run_until(job_id, Status.RUNNING, after=1)
        assert job.attempt == attempt
        world.cluster.problem = "the head is gone"
        world.run_pass(1)
        world.cluster.problem = None
        world.cluster.replace()
        world.run_pass(0.1)
        assert world.job(job_id).status is Status.RECOVERING, "the new cluster cannot know it: no need to wait"
    reasons = [attempt.reason and attempt.reason.code for attempt in world.attempts(job_id)]
    assert reasons == [ReasonCode.CLUSTER_LOST] * 4
    assert [worker["state"] for worker in world.attempts(job_id)[0].workers] == ["lost"]


def test_a_cluster_that_was_replaced_while_no_scheduler_looked_is_a_loss_of_the_cluster(world: World) -> None:
    """Would cost an attempt if only what this process has seen counted: as after a restart of the whole machine."""
    job_id = world.create(retry={"max_attempts": 1})
    world.run_until(job_id, Status.RUNNING)
    world.cluster.replace()
    world.restart()
    world.run_pass()
    assert world.job(job_id).status is Status.RECOVERING
    assert world.run_until(job_id, Status.RUNNING, after=1).attempt == 2


def test_a_pause_under_way_is_done_when_the_cluster_is_lost(world: World) -> None:
    job_id = world.create()
    world.run_until(job_id, Status.RUNNING)
    pause(world, job_id)
    world.cluster.replace()
    world.restart()
    assert world.run_until(job_id, Status.PAUSED).status is Status.PAUSED
    assert world.event(job_id, "job.pause_forced")["level"] == "warning"


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_workers_and_recoveries_of_all_attempts_are_kept(world: World) -> None:
    job_id = world.create(2)
    world.run_until(job_id, Status.RUNNING)
    world.run_passes(3)
    world.cluster.recover(f"{job_id}.1")
    world.run_passes(5)
    controller = world.controller(job_id)
    forgotten = controller.past.pop(0)  # a controller tells of the last hundred only
    world.run_passes(5)
    world.cluster.finish(f"{job_id}.1", Outcome(ReasonCode.COMPLETED, "all steps done"))
    world.run_until(job_id, Status.SUCCEEDED)
    [attempt] = world.attempts(job_id)
    assert [(worker["rank"], worker["state"]) for worker in attempt.workers] == [(1, "lost"), (0, "done"), (1, "done")]
    assert attempt.workers[0]["pid"] == forgotten.pid
    assert all(worker["ended_at"] and worker["why"] for worker in attempt.workers)
    [recovery] = attempt.recoveries
    assert (recovery["ranks"], recovery["source"], recovery["cause"]) == ([1], "memory", "killed")
    assert {"lost_at", "step", "seconds"} <= set(recovery)


# --- schedulers come and go -------------------------------------------------------------------------------------------


def test_a_frozen_leader_neither_preempts_nor_resizes(world: World) -> None:
    low, stretchy = world.create(2), world.create(workers=elastic(1, 2))
    world.run_until(stretchy, Status.RUNNING)
    world.run_until(low, Status.RUNNING)
    world.run_passes(3)
    frozen = world.reconciler
    world.restart()
    world.create(4, priority=1)
    world.create(1, priority=1)
    before = world.types(low), world.types(stretchy)
    with pytest.raises(LeaseLostError):
        frozen.run_pass(world.start, world.elapsed)
    assert (world.types(low), world.types(stretchy)) == before


class DeathError(BaseException):
    """The process is gone: nothing catches it."""


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("call", ["resize", "preempt", "reshape", "stop", "apply", "start_attempt", "remove"])
def test_a_scheduler_that_dies_at_any_call_leaves_everything_to_the_next(
    world: World, call: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job shrinks, another is paused for a third, and comes back: with a new scheduler after each death."""
    target: type = Records if hasattr(Records, call) else FakeCluster
    real, turns = getattr(target, call), []

    def deadly(self: object, *arguments: Any) -> Any:
        turns.append(call)
        dies = len(turns) % 2 == 1 and len(turns) < 20  # every pass of a busy scheduler records something
        if dies and moment == "before":
            raise DeathError
        result = real(self, *arguments)
        if dies:
            raise DeathError
        return result

    stretchy, low = world.create(workers=elastic(1, 2)), world.create(2)
    world.run_until(low, Status.RUNNING)
    world.run_passes(40, after=1)
    monkeypatch.setattr(target, call, deadly)
    urgent = world.create(3, priority=1)

    def live(passes: int) -> None:
        for _ in range(passes):
            try:
                world.run_pass(1)
            except DeathError:
                world.restart()

    live(25)
    assert world.job(urgent).status is Status.RUNNING
    assert (world.job(low).status, world.size(stretchy)) == (Status.QUEUED, 1)
    assert world.types(low).count("job.preempted") == 1
    jobs.cancel_job(world.store, CALLER, urgent)
    live(25)
    assert turns, "the point was never reached"
    assert [world.job(each).status for each in (stretchy, low)] == [Status.RUNNING, Status.RUNNING]
    assert world.attempts(low)[-1].number == 2
    assert sorted(set(world.cluster.launched)) == sorted(world.cluster.launched), "nothing ran twice"
