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
