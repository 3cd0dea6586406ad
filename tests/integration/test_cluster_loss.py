"""Ray's head is killed with everything beneath it and started again at the same address: a job goes on by itself."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from service import jobs
from service.database import open_store
from service.nodes import cluster_view
from service.ray_driver import RayDriver
from service.scheduler import Scheduler
from service.settings import Settings
from service.values import Caller, Role, Status
from tests.conftest import RAY_FOLDER
from tests.helpers import end_tree, free_port, listens, wait_for
from workers.jobfolder import JobFolder
from workers.reports import ReasonCode

pytestmark = pytest.mark.integration

CALLER = Caller("key-test", "default", Role.MEMBER)
SECONDS = 90
DOCUMENT = {
    "name": "digits",
    "task": {
        "kind": "image_classification",
        "data": {"source": "digits"},
        "model": {"architecture": "mlp", "hidden": [8]},
    },
    "training": {"steps": 1_000_000, "batch_size": 64},
    "checkpoint": {"every_steps": 50},
    "retry": {"max_attempts": 1},
}


class Head:
    """A Ray head on a fixed port that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.times = 0

    def start(self) -> None:
        self.times += 1
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--include-dashboard=false"),
            *("--node-ip-address=127.0.0.1", f"--port={self.port}", f"--temp-dir={self.folder / str(self.times)}"),
            *("--num-cpus=2", "--disable-usage-stats", "--include-log-monitor=false"),
            f"--object-store-memory={100 << 20}",
        ]
        with (self.folder / "head.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        wait_for("Ray's head", lambda: listens(self.port), 60)

    def kill(self) -> None:
        """As when the machine loses power."""
        tree = [*psutil.Process(self.process.pid).children(recursive=True), psutil.Process(self.process.pid)]
        for process in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(10)
        psutil.wait_procs(tree, timeout=10)


@pytest.fixture
def head() -> Iterator[Head]:
    folder = RAY_FOLDER / "lost"
    folder.mkdir()
    head = Head(folder)
    head.start()
    yield head
    end_tree(head.process)


def test_a_job_goes_on_from_its_checkpoint_in_the_next_cluster(head: Head, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, ray_address=f"127.0.0.1:{head.port}")
    store, stop = open_store(settings.database_url), threading.Event()
    scheduler = threading.Thread(target=Scheduler(settings, lambda: RayDriver(settings.ray_address), stop).run)
    scheduler.start()

    def step() -> int:
        progress = jobs.get_job(store, CALLER, job_id).progress
        return int(progress["step"]) if progress else 0

    try:
        job_id = jobs.create_job(store, CALLER, DOCUMENT).id
        wait_for("steps", lambda: step() > 120, SECONDS)
        head.kill()
        reached, killed_at = step(), time.monotonic()
        wait_for("the loss", lambda: not cluster_view(store).reachable, SECONDS)
        assert time.monotonic() - killed_at < 10, "nobody listens there: there is nothing to wait for"
        assert jobs.get_job(store, CALLER, job_id).status is Status.RUNNING, "nothing is known about it yet"
        head.start()
        wait_for("more steps", lambda: step() > reached, SECONDS)
        lost, goes_on = jobs.list_attempts(store, CALLER, job_id)
        assert lost.reason is not None
        assert (lost.reason.code, goes_on.reason) == (ReasonCode.CLUSTER_LOST, None)
        assert [worker["state"] for worker in lost.workers] == ["lost"]
        resumed = [row for row in JobFolder(settings.storage, job_id).events(2) if row["type"] == "training.resumed"]
        assert [row["data"]["step"] >= 100 for row in resumed] == [True], "from the newest checkpoint"
        jobs.cancel_job(store, CALLER, job_id)
        wait_for("the end", lambda: jobs.get_job(store, CALLER, job_id).status is Status.CANCELLED, SECONDS)
    finally:
        stop.set()
        scheduler.join(SECONDS)
        store.close()
