"""How a machine that Ray is told to drain looks to the control plane: a real cluster of two nodes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from service.ray_driver import RayDriver
from tests.conftest import RAY_FOLDER
from tests.helpers import end_tree, wait_for
from tests.integration.groups import at_work, slow
from workers.jobfolder import read_lines
from workers.reports import ReasonCode

pytestmark = pytest.mark.integration

RAY = (sys.executable, "-m", "ray.scripts.scripts")


@pytest.fixture
def second_node(ray_cluster: str) -> Iterator[None]:
    command = [
        *(*RAY, "start", f"--address={ray_cluster}", "--block", "--node-ip-address=127.0.0.1", "--num-cpus=1"),
        *("--disable-usage-stats", f"--object-store-memory={100 << 20}"),
    ]
    with (RAY_FOLDER / "second.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    yield
    end_tree(process)


def occupy(node_id: str) -> Any:
    """Something that runs there: Ray ends a node at once that is to be drained and has nothing to do."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    class Resident:
        def node(self) -> str:
            return str(ray.get_runtime_context().get_node_id())

    actor = (
        ray.remote(Resident).options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)).remote()
    )
    assert ray.get(actor.node.remote(), timeout=60) == node_id
    return actor


def test_a_machine_that_ray_drains_is_said_to_be_draining(
    ray_cluster: str, ray_driver: None, second_node: None
) -> None:
    driver = RayDriver(ray_cluster, patience=60)
    wait_for("the second node", lambda: len(driver.capacity().nodes) == 2, 60)
    nodes = {node.id: node for node in driver.capacity().nodes}
    assert not any(node.draining for node in nodes.values())
    second = next(node_id for node_id, node in nodes.items() if node.total.cpus == 1)
    drain = [
        *(*RAY, "drain-node", f"--address={ray_cluster}", f"--node-id={second}", "--deadline-remaining-seconds=300"),
        *("--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=the spot market wants it back"),
    ]
    resident = occupy(second)
    subprocess.run(drain, check=True, timeout=60, capture_output=True)
    seen = wait_for("the drain", lambda: [node for node in driver.capacity().nodes if node.draining] or None, 30)
    assert [node.id for node in seen] == [second]
    driver.close()
    del resident


def test_workers_move_away_without_a_lost_step(
    ray_cluster: str, ray_driver: None, second_node: None, groups: Any
) -> None:
    """Would catch a worker that stays, a job that starts anew elsewhere, and room on the drained machine that is kept."""
    import ray

    wait_for("the second node", lambda: sum(node["Alive"] for node in ray.nodes()) == 2, 60)
    resources = {node["NodeID"]: node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]}
    second = min(resources, key=lambda node_id: resources[node_id])
    first = next(node_id for node_id in resources if node_id != second)
    group = groups(slow(workers={"count": 1}), avoid=frozenset({first}), workers=1)
    assert [worker.node_id for worker in at_work(group.until_step(100))] == [second]
    group.reshape(1, frozenset({second}))
    group.until("the move", lambda seen: [worker.node_id for worker in at_work(seen)] == [first], 60)
    end = group.finished()
    assert end.outcome.code is ReasonCode.COMPLETED, end.outcome
    assert not end.recoveries
    assert not group.events("training.resumed"), "the state went from worker to worker"
    sizes = [len(event.data["workers"]) for event in group.events("workers.formed")]
    assert sizes == [2, 1], "both were together for as long as the state was handed over"
    steps = [row["step"] for row in read_lines(group.folder.metrics_path(1)) if "train/loss" in row["values"]]
    assert steps == list(range(1, steps[-1] + 1))
