"""What the control plane does with the cluster, for a process that has called ``ray.init``. All calls may be repeated."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import ray
from ray._private.state import state
from ray.exceptions import ActorDiedError, GetTimeoutError, RayActorError, RaySystemError
from ray.util.placement_group import placement_group_table

from workers import standby
from workers.controller import JobController
from workers.placing import Attempt, end_workers, free_room
from workers.ray_names import (
    CONTROL_LABELS,
    NAMESPACE,
    NOT_CONTROL,
    actors_of,
    attempt_of,
    controller_name,
    kill_actor,
)
from workers.reports import GroupShape, Observation, StopMode

logger = logging.getLogger(__name__)


def start(
    name: str,
    job_id: str,
    attempt: int,
    spec_json: str,
    shape: GroupShape,
    folder: str,
    mlflow_url: str | None,
    experiment: str,
    train: str = "workers.train:train",
    checkpoints: str | None = None,
    bundle: str | None = None,
    healthy_from: int = 0,
) -> None:
    """Starts the controller of an attempt unless there is one of that name; returns before it runs."""
    ray.remote(JobController).options(
        name=controller_name(name),
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
        max_concurrency=8,
        label_selector=NOT_CONTROL,  # of nodes without load, Ray prefers the one from which it is asked
    ).remote(
        Attempt(
            name,
            job_id,
            attempt,
            spec_json,
            shape,
            folder,
            mlflow_url,
            experiment,
            train,
            checkpoints,
            bundle,
            healthy_from,
        )
    )


def observe(seen: Mapping[str, int], timeout_seconds: float = 2.0) -> dict[str, Observation | None]:
    """State of each attempt in ``seen`` (its highest known event). None: there is no such controller; missing: it did not answer in time,
    for it is being started or restarted."""
    found: dict[str, Observation | None] = {}
    asked: dict[str, Any] = {}
    for name, after in seen.items():
        try:
            asked[name] = ray.get_actor(controller_name(name), namespace=NAMESPACE).observe.remote(after)
        except ValueError:
            found[name] = None
    if not asked:
        return found
    ready, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=timeout_seconds)
    for name, ref in asked.items():
        if ref not in ready:
            continue
        try:
            found[name] = ray.get(ref, timeout=timeout_seconds)
        except ActorDiedError:
            found[name] = None
        except (RayActorError, GetTimeoutError):
            continue  # unavailable just now
        except RaySystemError:  # cannot be read here; the other attempts' answers can
            logger.exception("the answer of attempt %s cannot be read", name)
    return found


def stop(name: str, mode: StopMode) -> None:
    """Asks the controller to stop; does nothing when there is none."""
    try:
        controller = ray.get_actor(controller_name(name), namespace=NAMESPACE)
    except ValueError:
        return
    controller.stop.remote(mode)


def reshape(name: str, shape: GroupShape) -> None:
    """What the worker group should be like; does nothing when there is no controller."""
    try:
        controller = ray.get_actor(controller_name(name), namespace=NAMESPACE)
    except ValueError:
        return
    controller.reshape.remote(shape)


def remove(name: str) -> None:
    """Ends the controller, the workers and the placement group of an attempt, whichever of them there are."""
    kill_actor(controller_name(name))
    end_workers(name)
    free_room(name)


def names() -> frozenset[str]:
    """Attempts of which a controller, a worker or a placement group is there."""
    actors = {attempt_of(name) for name in actors_of(None, ("controller", "worker"))}
    groups = {
        attempt_of(entry["name"]) for entry in placement_group_table().values() if entry["state"] not in ("REMOVED",)
    }
    return frozenset(name for name in actors | groups | set(standby.taken().values()) if name)


def refill(count: int) -> None:
    """Sees to it that ``count`` standby workers wait for jobs."""
    standby.refill(count)


def capacity() -> list[dict[str, Any]]:
    """Living nodes that jobs may use: id, address, cpus, gpus, memory (bytes), and whether Ray takes the node away soon."""
    draining = state.get_draining_nodes()
    return [
        {
            "id": node["NodeID"],
            "address": node["NodeManagerAddress"],
            "cpus": node["Resources"].get("CPU", 0.0),
            "gpus": node["Resources"].get("GPU", 0.0),
            "memory": int(node["Resources"].get("memory", 0)),
            "draining": node["NodeID"] in draining,
        }
        for node in ray.nodes()
        if node["Alive"] and not CONTROL_LABELS.items() <= node["Labels"].items()
    ]
