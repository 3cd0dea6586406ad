"""Workers of jobs that ask for accelerators, on a Ray node that says it has two: what they may see, as standbys and as replacements.

Ray hands out numbers and looks at no hardware, so that all of it but CUDA runs here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import RAY_FOLDER
from tests.helpers import end_tree, wait_for
from tests.integration.groups import at_work, slow
from workers import launcher
from workers.ray_names import NAMESPACE, actors_of, kill_actor
from workers.reports import Outcome, ReasonCode
from workers.spec import JobSpec
from workers.train import RunContext, train

pytestmark = pytest.mark.integration


def train_and_tell(spec: JobSpec, context: RunContext) -> Outcome:
    seen = {"pid": os.getpid(), "visible": os.environ.get("CUDA_VISIBLE_DEVICES")}
    context.reporter.event("info", "test.devices", "seen", seen)
    return train(spec, context)


@pytest.fixture
def gpu_node(ray_cluster: str, ray_driver: None) -> Iterator[str]:
    """Id of a second node, which says that it has two accelerators."""
    import ray

    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={ray_cluster}", "--block"),
        *("--node-ip-address=127.0.0.1", "--num-cpus=2", "--num-gpus=2"),
        *("--disable-usage-stats", f"--object-store-memory={100 << 20}"),
    ]
    with (RAY_FOLDER / "gpu-node.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield wait_for(
            "the node", lambda: next((n["NodeID"] for n in ray.nodes() if "GPU" in n["Resources"]), None), 60
        )
    finally:
        end_tree(process)
        wait_for("its end", lambda: sum(node["Alive"] for node in ray.nodes()) == 1, 60)


@pytest.fixture
def waiting(gpu_node: str) -> Iterator[frozenset[int]]:
    """Pids of the two standbys that wait on that node, of four."""
    import ray

    def look() -> frozenset[int] | None:
        names = [name for name in actors_of(None, ("standby",)) if f"/{gpu_node}/" in name]
        actors = [ray.get_actor(name, namespace=NAMESPACE) for name in names]
        return (
            frozenset(ray.get([a.__ray_call__.remote(lambda _: os.getpid()) for a in actors]))
            if len(actors) == 2
            else None
        )

    launcher.refill(4)
    yield wait_for("two standbys there", look, 90)
    for name in actors_of(None, ("standby",)):
        kill_actor(name)


def test_standbys_see_the_accelerators_of_their_room(groups: Any, gpu_node: str, waiting: frozenset[int]) -> None:
    """Would catch two workers on one device, a standby that sees none or all, and a replacement that gets another one."""
    import ray

    spec = slow(workers={"count": 2, "cpus": 1, "gpus": 1, "threads": 1})
    group = groups(spec, train="tests.integration.test_accelerators:train_and_tell")
    first = at_work(group.until_step(100))
    # One at least: a standby that does not answer within a second is not waited for.
    assert {worker.pid for worker in first} & waiting, "one is a standby"
    assert {worker.node_id for worker in first} == {gpu_node}
    os.kill(first[1].pid, signal.SIGKILL)
    group.until("the recovery", lambda seen: seen.recoveries)
    second = at_work(group.until("both", lambda seen: len(at_work(seen)) == 2))
    told = {event.data["pid"]: event.data["visible"] for event in group.events("test.devices")}
    assert sorted(told[worker.pid] for worker in first) == ["0", "1"]
    assert second[1].pid != first[1].pid
    assert [told[worker.pid] for worker in second] == [told[worker.pid] for worker in first]
    assert group.finished().outcome.code is ReasonCode.COMPLETED
    wait_for("nobody holds one", lambda: not actors_of(None, ("devices",)), 30)
    wait_for("both are free", lambda: ray.available_resources().get("GPU") == 2.0, 30)
