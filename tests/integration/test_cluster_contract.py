"""What the control plane may rely on, of the cluster in memory and of Ray behind its driver process alike."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from service.cluster import Cluster, ClusterUnavailableError, Launch
from service.fake_cluster import FakeCluster
from service.ray_driver import RayDriver
from workers.jobfolder import JobFolder
from workers.reports import GroupShape, Observation, ReasonCode, StopMode
from workers.spec import parse_spec

pytestmark = pytest.mark.integration

SECONDS = 60
Build = Callable[[bool], Cluster]


@pytest.fixture(params=["fake", "ray"])
def build(request: pytest.FixtureRequest) -> Iterator[Build]:
    """Makes a cluster whose jobs do a few steps, or go on for ever."""
    if request.param == "fake":
        yield lambda endless: FakeCluster(steps=None if endless else 3)
        return
    driver = RayDriver(request.getfixturevalue("ray_cluster"), patience=SECONDS)
    yield lambda _endless: driver
    for name in driver.names():
        driver.remove(name)
    driver.close()


def launch(folder: Path, job_id: str, *, endless: bool = False) -> Launch:
    spec = parse_spec(
        {
            "name": "digits",
            "task": {
                "kind": "image_classification",
                "data": {"source": "digits"},
                "model": {"architecture": "mlp", "hidden": [8]},
            },
            "training": {"steps": 1_000_000 if endless else 3, "batch_size": 64},
        }
    )
    job_folder = JobFolder(folder, job_id)
    return Launch(f"{job_id}.1", job_id, 1, spec, GroupShape(1), str(job_folder.path), None, "chainrule")


def look(cluster: Cluster, name: str, seen: int = 0) -> Observation | None:
    """The cluster's answer about one attempt, once there is one."""
    deadline = time.monotonic() + SECONDS
    while True:
        answers = cluster.observe({name: seen})
        if name in answers:
            return answers[name]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_for(cluster: Cluster, name: str, what: Callable[[Observation], bool]) -> Observation:
    deadline = time.monotonic() + SECONDS
    while True:
        seen = look(cluster, name)
        if seen is not None and what(seen):
            return seen
        assert time.monotonic() < deadline, seen
        time.sleep(0.05)


def gone(cluster: Cluster, name: str) -> bool:
    """Ends of actors take effect a moment after they were asked for."""
    deadline = time.monotonic() + SECONDS
    while name in cluster.names() or look(cluster, name) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return True


def test_an_attempt_runs_to_its_end_and_is_removed(build: Build, tmp_path: Path) -> None:
    cluster = build(False)
    capacity = cluster.capacity()
    assert capacity.cluster_id
    assert capacity == cluster.capacity()
    assert capacity.nodes[0].total.cpus >= 2
    assert not capacity.nodes[0].draining
    job = launch(tmp_path, "job-contract-runs")
    cluster.launch(job)
    cluster.launch(job)  # harmless
    seen = wait_for(cluster, job.name, lambda seen: seen.phase == "finished")
    assert seen.outcome is not None
    assert seen.outcome.code is ReasonCode.COMPLETED
    assert seen.progress is not None
    assert seen.progress.step == 3
    assert seen.latest["train/loss"] > 0
    assert [event.sequence for event in seen.events] == list(range(1, len(seen.events) + 1))
    assert [event.type for event in seen.events].count("training.started") == 1
    later = look(cluster, job.name, seen=1)
    assert later is not None
    assert [event.sequence for event in later.events][:1] == [2]
    assert job.name in cluster.names()
    cluster.remove(job.name)
    cluster.remove(job.name)  # harmless
    assert gone(cluster, job.name)


@pytest.mark.parametrize(
    ("mode", "code"),
    [
        (StopMode.PAUSE, ReasonCode.PAUSED),
        (StopMode.CANCEL, ReasonCode.CANCELLED),
        (StopMode.KILL, ReasonCode.KILLED),
    ],
)
def test_an_attempt_is_stopped(build: Build, tmp_path: Path, mode: StopMode, code: ReasonCode) -> None:
    cluster = build(True)
    job = launch(tmp_path, f"job-contract-{mode}", endless=True)
    cluster.launch(job)
    wait_for(cluster, job.name, lambda seen: seen.progress is not None and seen.progress.step > 0)
    cluster.stop(job.name, mode)
    cluster.stop(job.name, mode)  # harmless
    seen = wait_for(cluster, job.name, lambda seen: seen.phase == "finished")
    assert seen.outcome is not None
    assert seen.outcome.code is code


def states(seen: Observation) -> list[str]:
    return [worker.state for worker in seen.workers]


def test_a_group_changes_its_number_of_workers_and_remembers_those_that_left(build: Build, tmp_path: Path) -> None:
    cluster = build(True)
    job = launch(tmp_path, "job-contract-reshapes", endless=True)
    cluster.launch(job)
    first = wait_for(cluster, job.name, lambda seen: states(seen) == ["running"])
    cluster.reshape(job.name, GroupShape(2))
    cluster.reshape(job.name, GroupShape(2))  # harmless
    grown = wait_for(cluster, job.name, lambda seen: states(seen) == ["running", "running"])
    assert first.workers[0].pid in [worker.pid for worker in grown.workers], "who was there goes on"
    assert [worker.rank for worker in grown.workers] == [0, 1]
    cluster.reshape(job.name, GroupShape(1))
    small = wait_for(cluster, job.name, lambda seen: states(seen) == ["left", "running"])
    gone, there = small.workers
    assert (gone.ended_at is not None, bool(gone.why)) == (True, True)
    assert (there.ended_at, there.why) == (None, None)
    assert there.node_id == cluster.capacity().nodes[0].id
    assert {gone.pid, there.pid} == {worker.pid for worker in grown.workers}
    step = small.progress.step if small.progress else 0
    wait_for(cluster, job.name, lambda seen: seen.progress is not None and seen.progress.step > step)
    cluster.remove(job.name)


def test_what_was_never_launched_is_unknown_and_can_be_stopped_and_removed(build: Build) -> None:
    cluster = build(False)
    name = "job-contract-unknown.1"
    assert cluster.observe({name: 0}) == {name: None}
    cluster.stop(name, StopMode.KILL)
    cluster.reshape(name, GroupShape(2))
    cluster.remove(name)
    assert name not in cluster.names()


def test_an_attempt_outlives_the_connection(build: Build, tmp_path: Path) -> None:
    cluster = build(True)
    job = launch(tmp_path, "job-contract-outlives", endless=True)
    cluster.launch(job)
    before = wait_for(cluster, job.name, lambda seen: seen.progress is not None and seen.progress.step > 0)
    if isinstance(cluster, RayDriver):
        os.kill(driver_process().pid, signal.SIGKILL)
        with pytest.raises(ClusterUnavailableError):
            cluster.names()
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                cluster.names()
                break
            except ClusterUnavailableError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
    cluster.close()
    assert before.progress is not None
    further = before.progress.step
    after = wait_for(cluster, job.name, lambda seen: seen.progress is not None and seen.progress.step > further)
    assert [worker.pid for worker in after.workers] == [worker.pid for worker in before.workers]


@pytest.fixture
def mute() -> Iterator[str]:
    """Something that listens and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


# --- the driver process -----------------------------------------------------------------------------------------------


def driver_process() -> psutil.Process:
    [child] = [child for child in psutil.Process().children() if "service.ray_cluster" in child.cmdline()]
    return child


def test_where_nobody_listens_no_driver_is_started() -> None:
    driver = RayDriver("127.0.0.1:1", patience=60)
    with pytest.raises(ClusterUnavailableError, match="nobody listens there"):
        driver.capacity()
    assert not [child for child in psutil.Process().children() if "service.ray_cluster" in child.cmdline()]
    driver.close()


def test_a_cluster_that_does_not_answer_is_unavailable_and_says_so_at_once(mute: str) -> None:
    driver = RayDriver(mute, patience=0.2, connect_seconds=2)
    problems: list[str] = []
    deadline = time.monotonic() + 20
    while len(set(problems)) < 2:
        started = time.monotonic()
        with pytest.raises(ClusterUnavailableError) as caught:
            driver.capacity()
        assert time.monotonic() - started < 2, "the scheduler has other things to do meanwhile"
        problems.append(str(caught.value))
        assert time.monotonic() < deadline
    assert problems[0] == f"connecting to the Ray cluster at {mute}"
    assert problems[-1].startswith(f"no connection to the Ray cluster at {mute}: ")
    driver.close()


def test_the_driver_process_dies_with_the_scheduler(ray_cluster: str) -> None:
    code = (
        "import sys, time; from service.ray_driver import RayDriver\n"
        "driver = RayDriver(sys.argv[1], patience=60); driver.names(); print('there', flush=True); time.sleep(600)"
    )
    scheduler = subprocess.Popen([sys.executable, "-c", code, ray_cluster], stdout=subprocess.PIPE, text=True)
    with scheduler:
        assert scheduler.stdout is not None
        assert scheduler.stdout.readline() == "there\n"
        children = psutil.Process(scheduler.pid).children(recursive=True)
        assert any("service.ray_cluster" in child.cmdline() for child in children)
        scheduler.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
