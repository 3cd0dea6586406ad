"""Standby workers: processes that have imported everything and belong to no job yet, so that a job starts in a second instead of four.

Each is used once: no state passes between jobs. They hold no scheduled resources; the job that takes one has reserved them. Whose a standby is,
it knows itself: there is no list of them that could be lost or wrong. Which accelerators it may see, it is told with its job: until then it makes
no CUDA call.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from workers.ray_names import NAMESPACE, actors_of
from workers.worker import Assignment, Standing, TrainWorker

ANSWER_SECONDS = 1.0


def refill(count: int) -> int:
    """Starts standbys until ``count`` wait; one that does not answer yet, because it is being started, counts. Returns how many were started."""
    standings = _standings()
    waiting = [_node_in(name) for name, standing in standings.items() if standing is None or standing.attempt is None]
    missing = max(0, count - len(waiting))
    for _ in range(missing):
        node_id = next_node(ray.nodes(), waiting)
        if node_id is None:
            return 0
        waiting.append(node_id)
        ray.remote(TrainWorker).options(
            name=f"standby/{node_id}/{uuid.uuid4().hex[:12]}",
            namespace=NAMESPACE,
            lifetime="detached",
            num_cpus=0,
            max_restarts=0,
            max_concurrency=8,
            # Left to itself, Ray keeps what needs no accelerator away from machines that have one.
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
        ).remote(None)
    return missing


def next_node(nodes: Sequence[Mapping[str, Any]], waiting: Sequence[str]) -> str | None:
    """Where the next standby goes, given where the others wait: where the fewest are; machines with accelerators first, then large ones."""

    def order(node: Mapping[str, Any]) -> tuple[float, ...]:
        return waiting.count(node["NodeID"]), -node["Resources"].get("GPU", 0), -node["Resources"].get("CPU", 0)

    able = [node for node in nodes if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
    return str(min(able, key=order)["NodeID"]) if able else None


def take(assignment: Assignment, node_id: str) -> tuple[str, Any] | None:
    """A standby on that node, from now on the worker of ``assignment``: (name, actor). None when there is none.

    Takes the first that answers: one that is being started may not for a second, and a group waits.
    """
    for name, standing in _answers(node_id):
        if standing is None or standing.attempt is not None:
            continue
        with contextlib.suppress(RayActorError, GetTimeoutError, ValueError):
            actor = ray.get_actor(name, namespace=NAMESPACE)
            if ray.get(actor.assign.remote(assignment), timeout=ANSWER_SECONDS):
                return name, actor
    return None


def taken() -> dict[str, str]:
    """Standbys that work for somebody: name -> attempt."""
    found = {name: standing.attempt for name, standing in _standings().items() if standing and standing.attempt}
    return {name: attempt.partition("/")[0] for name, attempt in found.items()}  # a trial's begins with its attempt's


def _standings() -> dict[str, Standing | None]:
    """What each standby says of itself; None: it did not answer in time."""
    return dict(_answers())


def _node_in(name: str) -> str:
    return name.split("/")[1]


def _answers(node_id: str | None = None) -> Iterator[tuple[str, Standing | None]]:
    """As they come, those that do not come in time at the end. ``node_id``: only of those that were started there."""
    asked: dict[Any, str] = {}
    for name in actors_of(None, ("standby",)):
        if node_id not in (None, _node_in(name)):
            continue
        with contextlib.suppress(ValueError):  # gone since it was listed
            asked[ray.get_actor(name, namespace=NAMESPACE).standing.remote()] = name
    deadline = time.monotonic() + ANSWER_SECONDS
    while asked:
        ready, _ = ray.wait(list(asked), num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            break
        with contextlib.suppress(RayActorError):  # dead
            yield asked.pop(ready[0]), ray.get(ready[0])
    for name in asked.values():
        yield name, None
