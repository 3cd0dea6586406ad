"""The scheduler as a process: killed in the middle, told to stop, and left without its database."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from service import jobs
from service.database import Store, open_store
from service.fake_cluster import FakeCluster
from service.ray_driver import RayDriver
from service.scheduler import Scheduler
from service.settings import Settings
from service.tables import LeaseRow
from service.values import Caller, Job, Role, Status
from tests.integration.databases import Postgres, postgres  # noqa: F401 (fixture)

# ruff: noqa: F811 (fixtures are imported and then named as parameters)
pytestmark = pytest.mark.integration

CALLER = Caller("key-test", "default", Role.MEMBER)
SECONDS = 60
DOCUMENT = {
    "name": "digits",
    "task": {
        "kind": "image_classification",
        "data": {"source": "digits"},
        "model": {"architecture": "mlp", "hidden": [8]},
    },
    "training": {"steps": 1_000_000, "batch_size": 64},
}


def wait_until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@contextmanager
def scheduler(home: Path, address: str) -> Iterator[subprocess.Popen[bytes]]:
    code = "import sys; from service.scheduler import main; from service.settings import Settings; sys.exit(main(Settings()))"
    environment = {**os.environ, "CHAINRULE_HOME": str(home), "CHAINRULE_RAY_ADDRESS": address}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(10)


def test_training_does_not_notice_that_the_scheduler_is_killed_and_started_again(home: Path, ray_cluster: str) -> None:
    store = open_store(Settings(home=home).database_url)

    def job() -> Job:
        return jobs.get_job(store, CALLER, made.id)

    def step() -> int:
        progress = job().progress
        return progress["step"] if progress else 0

    with scheduler(home, ray_cluster) as first:
        wait_until(lambda: jobs.cluster_view(store).reachable)
        made = jobs.create_job(store, CALLER, DOCUMENT)
        wait_until(lambda: job().status is Status.RUNNING and step() > 0)
        first.send_signal(signal.SIGKILL)
        first.wait(10)
    workers, reached = job().workers, step()
    with scheduler(home, ray_cluster) as second:
        wait_until(lambda: step() > reached)
        assert [worker["pid"] for worker in job().workers] == [worker["pid"] for worker in workers]
        second.terminate()
        assert second.wait(20) == 0
        assert not jobs.cluster_view(store).scheduler_alive, "the lease was given back"
    driver = RayDriver(ray_cluster, patience=SECONDS)
    assert f"{made.id}.1" in driver.names(), "training goes on"
    driver.close()
    with scheduler(home, ray_cluster):
        jobs.cancel_job(store, CALLER, made.id)
        wait_until(lambda: job().status.ended)
    assert job().status is Status.CANCELLED
    assert [attempt.number for attempt in jobs.list_attempts(store, CALLER, made.id)] == [1]
    events = jobs.list_events(store, CALLER, made.id, limit=1000)
    assert [event.data["to"] for event in events if event.type == "job.status"] == [
        "starting", "running", "cancelling", "cancelled",
    ]  # fmt: skip
    assert [event.type for event in events].count("training.started") == 1
    store.close()


@contextmanager
def running(settings: Settings, cluster: FakeCluster) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=Scheduler(settings, lambda: cluster, stop).run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(SECONDS)
        assert not thread.is_alive()


def submit(store: Store) -> str:
    return jobs.create_job(store, CALLER, DOCUMENT).id


def test_a_new_job_is_seen_at_once(home: Path) -> None:
    """Would catch a scheduler that sleeps through its whole pause, which is made long here."""
    settings = Settings(home=home, poll_idle_seconds=60, poll_active_seconds=60)
    store = open_store(settings.database_url)
    cluster = FakeCluster(steps=None)
    with running(settings, cluster):
        wait_until(lambda: jobs.cluster_view(store).reachable)
        started = time.monotonic()
        submit(store)
        wait_until(lambda: cluster.launched)
        assert time.monotonic() - started < 2
    store.close()


def test_a_restart_of_the_database_is_survived(home: Path, postgres: Postgres) -> None:
    with postgres.database() as url:
        settings, cluster = Settings(home=home, database_url=url), FakeCluster(steps=None)
        store = open_store(url)
        with running(settings, cluster):
            before = submit(store)
            wait_until(lambda: jobs.get_job(store, CALLER, before).status is Status.RUNNING)
            postgres.stop(signal.SIGQUIT)
            postgres.start()
            after = submit(store)
            wait_until(lambda: jobs.get_job(store, CALLER, after).status is Status.RUNNING)
        assert cluster.launched == [f"{before}.1", f"{after}.1"]
        assert cluster.names() == {f"{before}.1", f"{after}.1"}, "a scheduler that ends leaves training alone"
        store.close()


def test_the_second_scheduler_takes_over(home: Path) -> None:
    settings, cluster = Settings(home=home), FakeCluster(steps=None)
    store = open_store(settings.database_url)
    with ExitStack() as first:
        first.enter_context(running(settings, cluster))
        before = submit(store)
        wait_until(lambda: cluster.launched)
        with running(settings, cluster):
            first.close()
            after = submit(store)
            wait_until(lambda: len(cluster.launched) == 2)
    assert cluster.launched == [f"{before}.1", f"{after}.1"]
    with store.read() as session:
        assert session.get_one(LeaseRow, "scheduler").token == 2, "the lead has changed hands once"
    store.close()
