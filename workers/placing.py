"""Placing an attempt in the cluster: a placement group that has all its resources or none, and a worker for each rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from workers import standby
from workers.ray_names import NAMESPACE, actors_of, find_placement_group, group_name, kill_actor, worker_name
from workers.reports import GroupShape
from workers.spec import JobSpec
from workers.worker import Assignment, TrainWorker


@dataclass(frozen=True)
class Attempt:
    """One attempt of a job. ``name`` is ``<job id>.<attempt>``."""

    name: str
    job_id: str
    attempt: int
    spec_json: str
    shape: GroupShape  # to begin with
    folder: str
    mlflow_url: str | None
    experiment: str
    train: str = "workers.train:train"


def reserve(attempt: Attempt, spec: JobSpec) -> PlacementGroup:
    """The attempt's placement group, made unless there is one. It may still have to wait for room."""
    name = group_name(attempt.name)
    found = find_placement_group(name)
    if found is not None:
        return found
    workers = spec.workers
    bundle: dict[str, float] = {"CPU": workers.cpus}
    if workers.gpus:
        bundle["GPU"] = workers.gpus
    if workers.memory:
        bundle["memory"] = workers.memory
    return placement_group([dict(bundle) for _ in range(attempt.shape.workers)], "PACK", name=name, lifetime="detached")


def place_worker(attempt: Attempt, spec: JobSpec, generation: int, rank: int, group: PlacementGroup) -> tuple[str, Any]:
    """(name, actor) of a rank: a standby on the machine that the group, which has its room, reserved for it, or a new process there."""
    workers = spec.workers
    assignment = Assignment(
        attempt.name,
        attempt.spec_json,
        attempt.folder,
        attempt.attempt,
        generation,
        rank,
        attempt.shape.workers,
        attempt.train,
    )
    if not workers.gpus:
        node_id = placement_group_table(group)["bundles_to_node_id"][rank]
        found = standby.take(assignment, node_id)
        if found is not None:
            return found
    needs: dict[str, Any] = {"num_cpus": workers.cpus, "num_gpus": workers.gpus or None, "memory": workers.memory}
    name = worker_name(attempt.name, generation, rank)
    actor = (
        ray.remote(TrainWorker)
        .options(
            name=name,
            namespace=NAMESPACE,
            lifetime="detached",
            max_restarts=0,
            max_concurrency=4,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
            **{key: value for key, value in needs.items() if value is not None},
        )
        .remote(assignment)
    )
    return name, actor


def end_workers(attempt: str) -> None:
    """Kills every worker of an attempt, whichever generation it is of."""
    for name in actors_of(attempt):
        kill_actor(name)
    for name, owner in standby.taken().items():
        if owner == attempt:
            kill_actor(name)
