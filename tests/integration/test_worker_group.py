"""The worker group on a real Ray: real actors, real gloo, processes killed by pid."""

from __future__ import annotations

import io
import json
import os
import pickle
import signal
import sys
import time
import types
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import torch

from tests.helpers import wait_for
from tests.integration.groups import DIGITS, long
from workers import launcher
from workers.ray_names import NAMESPACE, controller_name
from workers.reports import Observation, Outcome, ReasonCode, StopMode

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_driver")]


def failing_on_rank_1(spec: Any, context: Any) -> Outcome:
    """Stands for a user's code that has a fault."""
    membership = context.link.next_group(None, None)
    if membership.rank == 1:
        1 / 0  # noqa: B018
    context.link.next_group(None, "the peer is gone")
    raise AssertionError("no other group is formed")


def test_two_ranks_train_together(groups: Any) -> None:
    """Would catch ranks that train alone: their gradients would differ and both would see every sample."""
    group = groups(DIGITS)
    seen = group.finished()
    assert seen.outcome.code is ReasonCode.COMPLETED, seen.outcome
    ends = {event.data["rank"]: event.data for event in group.events("training.finished")}
    assert set(ends) == {0, 1}
    assert ends[0]["gradients_sha256"] == ends[1]["gradients_sha256"]
    assert ends[0]["parameters_sha256"] == ends[1]["parameters_sha256"]
    assert ends[0]["samples_sha256"] != ends[1]["samples_sha256"]
    assert ends[0]["samples_seen"] + ends[1]["samples_seen"] == 2 * 1437
    assert abs(ends[0]["samples_seen"] - ends[1]["samples_seen"]) <= 2 * 15  # at most one sample a step
    (started,) = group.events("workers.started")
    assert len({worker["pid"] for worker in started.data["workers"]}) == 2


def test_everything_is_in_the_job_folder(groups: Any) -> None:
    group = groups(DIGITS)
    seen = group.finished()
    series = group.folder.series()
    assert list(series["train/loss"].steps) == list(range(1, 31))
    assert series["train/loss"].values[-1] < series["train/loss"].values[0]
    matrix = group.folder.gradient_matrix()
    assert matrix.layers == ("linear1", "output")
    assert matrix.norms.shape == (30, 2)
    total = np.sqrt(np.square(matrix.norms.astype(np.float64)).sum(axis=1))
    np.testing.assert_allclose(total, series["gradient/norm"].values, rtol=1e-5)
    assert [checkpoint.step for checkpoint in group.folder.checkpoints()] == [30]
    assert {path for path, _ in group.folder.model_files()} >= {"model.safetensors", "model.json", "MLmodel"}
    assert [event.sequence for event in seen.events] == list(range(1, len(seen.events) + 1))
    assert [row["sequence"] for row in group.folder.events(1)] == [event.sequence for event in seen.events]
    assert {log.rank for log in group.folder.log_files()} == {0, 1}


def test_an_answer_is_read_where_nothing_of_training_is_installed(groups: Any) -> None:
    """The control plane has no torch: one value of a class of torch, and no answer of any job would arrive."""
    answer = pickle.dumps(groups(DIGITS).finished())
    assert modules_in(answer) <= {"builtins", "workers.reports"}
    assert "torch.torch_version" in modules_in(pickle.dumps(torch.__version__)), "guards the guard"


@ray.remote
class Unreadable:
    """In a controller's place; answers with what only its own process can read."""

    def observe(self, _after: int) -> Any:
        module = types.ModuleType("only_here")
        exec("class Value: pass", module.__dict__)
        sys.modules["only_here"] = module
        return module.Value()


def test_an_answer_that_cannot_be_read_leaves_the_others(groups: Any) -> None:
    group = groups(DIGITS)
    group.finished()
    name = f"job-{uuid.uuid4().hex[:12]}.1"
    actor = Unreadable.options(  # type: ignore[attr-defined]
        name=controller_name(name), namespace=NAMESPACE, num_cpus=0
    ).remote()
    try:
        found = launcher.observe({name: 0, group.name: 0}, timeout_seconds=60.0)
    finally:
        ray.kill(actor)
    assert set(found) == {group.name}
    readable = found[group.name]
    assert readable is not None
    assert readable.phase == "finished"


def modules_in(pickled: bytes) -> set[str]:
    """Those that are imported when it is read."""
    found = set()

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            found.add(module)
            return super().find_class(module, name)

    Reader(io.BytesIO(pickled)).load()
    return found


def test_a_killed_worker_is_noticed_and_replaced(groups: Any) -> None:
    group = groups(long(checkpoint={}))
    seen = group.until_step(60)
    victim = next(worker for worker in seen.workers if worker.rank == 1)
    os.kill(victim.pid, signal.SIGKILL)
    killed_at = time.time()
    seen = group.until("the recovery", lambda seen: seen.recoveries)
    lost = next(event for event in seen.events if event.type == "worker.lost")
    assert (lost.data["rank"], lost.data["pid"]) == (1, victim.pid), (
        "the guilty rank, not the peer whose connection broke"
    )
    assert lost.timestamp - killed_at < 1.0
    (recovery,) = seen.recoveries
    assert (list(recovery.ranks), recovery.source) == ([1], "memory")
    end = group.finished()
    assert end.outcome.code is ReasonCode.COMPLETED
    assert not group.events("training.resumed"), "the survivor's memory, not a checkpoint"
    past = [(worker.rank, worker.state) for worker in end.workers]
    assert past == [(1, "lost"), (0, "done"), (1, "done")]


def test_no_step_is_lost_or_done_twice(groups: Any) -> None:
    """Would catch a step that only some ranks did, a state that the replacement lacks, and metrics that nobody, or two, told."""
    undisturbed = groups(long())
    whole = undisturbed.finished()
    group = groups(long())
    generator = np.random.default_rng(7)
    killed: set[int] = set()
    for number in range(6):
        seen = group.until("a whole group", lambda seen: alive(seen, killed) or seen.phase == "finished")
        # Three losses without a step between are an end, and on a busy machine a step takes its time.
        if number % 2 == 0 and seen.progress:
            step = seen.progress.step
            seen = group.until(
                "a step",
                lambda seen, step=step: seen.phase == "finished" or (seen.progress.step > step and alive(seen, killed)),
            )
        if seen.phase == "finished":
            break
        time.sleep(generator.uniform(0, 0.6))
        victim = alive(seen, killed)[generator.integers(2)]
        killed.add(victim)
        os.kill(victim, signal.SIGKILL)
    end = group.finished()
    assert end.outcome.code is ReasonCode.COMPLETED, end.outcome
    assert len(killed) >= 3
    assert end.outcome.detail["parameters_sha256"] == whole.outcome.detail["parameters_sha256"]
    lines = group.folder.metrics_path(1).read_text().splitlines()
    steps = [row["step"] for row in map(json.loads, lines) if "train/loss" in row["values"]]
    assert steps == list(range(1, 1201)), "each step once, in order"
    matrix = group.folder.gradient_matrix()
    assert list(matrix.steps) == steps
    np.testing.assert_array_equal(matrix.norms, undisturbed.folder.gradient_matrix().norms)
    for key in ("train/loss", "eval/accuracy"):
        mine, theirs = group.folder.series([key])[key], undisturbed.folder.series([key])[key]
        np.testing.assert_array_equal(mine.steps, theirs.steps)
        np.testing.assert_array_equal(mine.values, theirs.values)


def alive(seen: Observation, killed: set[int]) -> list[int]:
    """Pids by rank of a group at work that nobody was taken from yet."""
    pids = [worker.pid for worker in seen.workers if worker.state == "running"]
    return pids if seen.phase == "running" and len(pids) == 2 and not killed & set(pids) else []


def test_a_job_that_never_gets_anywhere_ends(groups: Any) -> None:
    group = groups(long(retry={"max_attempts": 2}, checkpoint={}, workers={"count": 1}))
    killed: set[int] = set()

    def kill_again(seen: Observation) -> bool:
        for worker in seen.workers:
            if worker.rank == 0 and worker.pid and worker.pid not in killed and worker.state == "running":
                killed.add(worker.pid)
                os.kill(worker.pid, signal.SIGKILL)
        return seen.phase == "finished"

    end = group.until("the end", kill_again, 90)
    assert end.outcome.code is ReasonCode.NO_PROGRESS, end.outcome
    assert len(killed) >= 2


def test_a_restarted_controller_finds_its_workers(groups: Any) -> None:
    """Would catch a controller that starts training anew, or that tells events twice."""
    import ray

    group = groups(long())
    seen = group.until_step(40)
    workers = [worker.pid for worker in seen.workers]
    controller = ray.get_actor(f"controller/{group.name}", namespace="chainrule")
    os.kill(ray.get(controller.pid.remote()), signal.SIGKILL)
    seen = group.until("the controller", lambda seen: any(e.type == "controller.restarted" for e in seen.events))
    assert [worker.pid for worker in seen.workers] == workers
    assert all(psutil.pid_exists(pid) for pid in workers)
    end = group.finished()
    assert end.outcome.code is ReasonCode.COMPLETED
    assert not end.recoveries
    assert len(group.events("training.started")) == 1
    lines = group.folder.metrics_path(1).read_text().splitlines()
    steps = [row["step"] for row in map(json.loads, lines) if "train/loss" in row["values"]]
    assert sorted(set(steps)) == list(range(1, max(steps) + 1))


def test_cancel_writes_a_checkpoint(groups: Any) -> None:
    group = groups(long(checkpoint={}))
    group.until_step(20)
    launcher.stop(group.name, StopMode.CANCEL)
    end = group.finished()
    assert end.outcome.code is ReasonCode.CANCELLED
    (checkpoint,) = group.folder.checkpoints()
    assert checkpoint.step == end.outcome.detail["steps"]
    assert not group.folder.model_files(), "a cancelled job has no finished model"


def test_kill_is_now(groups: Any) -> None:
    group = groups(long(checkpoint={}))
    seen = group.until_step(20)
    launcher.stop(group.name, StopMode.KILL)
    end = group.finished(10)
    assert end.outcome.code is ReasonCode.KILLED
    assert not group.folder.checkpoints()
    wait_for("the workers' end", lambda: not any(psutil.pid_exists(worker.pid) for worker in seen.workers), 10)


def test_bad_data_ends_the_job_with_its_field(groups: Any, tmp_path: Path) -> None:
    path = tmp_path / "empty.npz"
    np.savez(path, x_train=np.zeros((0, 8, 8), np.uint8), y_train=np.zeros(0, np.int64))
    data = {"source": "npz", "path": str(path), "evaluation_images": None, "evaluation_labels": None}
    spec = DIGITS | {"task": {"kind": "image_classification", "data": data}}
    group = groups(spec | {"health": {"data_checks": False}})  # which would see it before there is a worker
    end = group.finished()
    assert end.outcome.code is ReasonCode.BAD_DATA
    assert "task.data.train_images" in end.outcome.message
    (failed, *_) = group.events("worker.failed")
    assert "BadDataError" in failed.data["traceback"]


def test_an_exception_reaches_the_user_with_rank_and_traceback(groups: Any) -> None:
    end = groups(DIGITS, train="tests.integration.test_worker_group:failing_on_rank_1").finished()
    assert end.outcome.code is ReasonCode.USER_ERROR, end.outcome
    assert end.outcome.message == "rank 1: ZeroDivisionError: division by zero"
    assert "Traceback" in end.outcome.detail["traceback"]
    assert not end.recoveries, "an error of the user's is not tried again"


def test_starting_twice_is_harmless(groups: Any) -> None:
    group = groups(DIGITS)
    group.start()
    group.finished()
    group.start()
    assert len(group.events("workers.started")) == 1


def test_unknown_attempts_are_known_to_be_unknown() -> None:
    assert launcher.observe({"job-nobody.1": 0}) == {"job-nobody.1": None}
    launcher.stop("job-nobody.1", StopMode.KILL)
    launcher.remove("job-nobody.1")


def test_standbys_are_taken_once_and_only_by_one(groups: Any) -> None:
    """Would catch a job that starts new processes although some wait, and a standby that two jobs take."""
    import ray

    from workers import standby
    from workers.ray_names import actors_of, kill_actor

    try:
        launcher.refill(3)
        launcher.refill(3)
        names = actors_of(None, ("standby",))
        assert len(names) == 3
        others = launcher.names()
        assert not any(name.startswith("standby") for name in others), "a standby is no attempt"
        actors = {name: ray.get_actor(name, namespace="chainrule") for name in names}
        for actor in actors.values():
            assert ray.get(actor.standing.remote()).attempt is None
        first, second = groups(DIGITS | {"workers": {"count": 1}}), groups(long(workers={"count": 1}))
        second.until_step(1)
        first.finished()
        assert len(set(standby.taken()) & set(names)) <= 2
        started = [group.events("workers.started")[0].data["workers"][0] for group in (first, second)]
        assert started[0]["pid"] != started[1]["pid"]
        second_worker = next(name for name, owner in standby.taken().items() if owner == second.name)
        launcher.refill(3)
        launcher.remove(second.name)
        wait_for("the taken one's end", lambda: second_worker not in actors_of(None, ("standby",)))
        left = standby.taken()
        assert not left
        launcher.refill(3)
        assert len(actors_of(None, ("standby",))) == 3
    finally:
        for name in actors_of(None, ("standby",)):
            kill_actor(name)


def test_a_killed_standby_worker_is_replaced_like_any_other(groups: Any) -> None:
    from workers import standby
    from workers.ray_names import actors_of, kill_actor

    try:
        launcher.refill(2)
        group = groups(long())
        seen = group.until_step(30)
        assert set(standby.taken().values()) == {group.name}
        os.kill(next(worker.pid for worker in seen.workers if worker.rank == 0), signal.SIGKILL)
        assert group.finished().outcome.code is ReasonCode.COMPLETED
        assert len(group.observe().recoveries) == 1
        assert not standby.taken(), "the workers of a finished job are ended"
    finally:
        for name in actors_of(None, ("standby",)):
            kill_actor(name)
