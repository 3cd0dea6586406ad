"""Standby workers: processes that have imported everything and belong to no job yet, so that a job starts in a second instead of four.

Each is used once: no state passes between jobs. They hold no scheduled resources; the job that takes one has reserved them. Whose a standby is,
it knows itself: there is no list of them that could be lost or wrong. Jobs that ask for accelerators start new processes.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from workers.ray_names import NAMESPACE, actors_of
from workers.worker import Assignment, Standing, TrainWorker

ANSWER_SECONDS = 1.0


def refill(count: int) -> int:
    """Starts standbys until ``count`` wait; one that does not answer yet, because it is being started, counts. Returns how many were started."""
    standings = _standings()
    waiting = sum(standing is None or standing.attempt is None for standing in standings.values())
    missing = max(0, count - waiting)
    for _ in range(missing):
        ray.remote(TrainWorker).options(
            name=f"standby/{uuid.uuid4().hex[:12]}",
            namespace=NAMESPACE,
            lifetime="detached",
            num_cpus=0,
            max_restarts=0,
            max_concurrency=8,
            scheduling_strategy="SPREAD",
        ).remote(None)
    return missing


def take(assignment: Assignment, node_id: str) -> tuple[str, Any] | None:
    """A standby on that node, from now on the worker of ``assignment``: (name, actor). None when there is none.

    Takes the first that answers: one that is being started may not for a second, and a group waits.
    """
    for name, standing in _answers():
        if standing is None or standing.attempt is not None or standing.node_id != node_id:
            continue
        with contextlib.suppress(RayActorError, GetTimeoutError, ValueError):
            actor = ray.get_actor(name, namespace=NAMESPACE)
            if ray.get(actor.assign.remote(assignment), timeout=ANSWER_SECONDS):
                return name, actor
    return None


def taken() -> dict[str, str]:
    """Standbys that work for somebody: name -> attempt."""
    return {name: standing.attempt for name, standing in _standings().items() if standing and standing.attempt}


def _standings() -> dict[str, Standing | None]:
    """What each standby says of itself; None: it did not answer in time."""
    return dict(_answers())


def _answers() -> Iterator[tuple[str, Standing | None]]:
    """As they come, those that do not come in time at the end."""
    asked: dict[Any, str] = {}
    for name in actors_of(None, ("standby",)):
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
