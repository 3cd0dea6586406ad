"""Standby workers: processes that have imported everything and belong to no job yet, so that a job starts in a second instead of four.

Each is used once: no state passes between jobs. They hold no scheduled resources; the job that takes one has reserved them. Whose a standby is,
it knows itself: there is no list of them that could be lost or wrong. Jobs that ask for accelerators start new processes.
"""

from __future__ import annotations

import contextlib
import uuid
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
    """A standby on that node, from now on the worker of ``assignment``: (name, actor). None when there is none."""
    for name, standing in _standings().items():
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
    asked: dict[str, Any] = {}
    for name in actors_of(None, ("standby",)):
        with contextlib.suppress(ValueError):  # gone since it was listed
            asked[name] = ray.get_actor(name, namespace=NAMESPACE).standing.remote()
    if not asked:
        return {}
    ready, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=ANSWER_SECONDS)
    found: dict[str, Standing | None] = {}
    for name, ref in asked.items():
        try:
            found[name] = ray.get(ref) if ref in ready else None
        except RayActorError:
            continue  # dead
    return found
