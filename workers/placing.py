"""Where an attempt's workers are: placement groups that hold its resources, and a worker in each of their places.

The workers that a job cannot do without share one placement group, which has all its resources or none. Those that an elastic job may lose again,
and those that move from one machine to another, have a group each, so that each can be given back alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from workers import standby
from workers.jobfolder import JobFolder
from workers.ray_names import (
    NAMESPACE,
    actors_of,
    attempt_of,
    devices_name,
    extra_group_name,
    find_placement_group,
    group_name,
    kill_actor,
    worker_name,
)
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
    checkpoints: str | None = None  # folder or URL; None: in ``folder``
    bundle: str | None = None  # file with the job's code (workers/bundles.py), where it was uploaded
    healthy_from: int = 0  # attempt from which on checkpoints count that are not healthy


@dataclass(frozen=True)
class Slot:
    """Room for one worker: a bundle of a placement group."""

    group: str  # its name
    bundle: int


class Slots:
    """The room that an attempt has, or waits for. Ray holds it; this only knows the names."""

    def __init__(self, attempt: Attempt, spec: JobSpec) -> None:
        self._attempt, self._spec = attempt, spec
        self._taken: set[Slot] = set()
        self._extras = 0  # numbers given to groups of one
        self._base_is_gone = False  # everybody has moved out of it

    def take(self, avoid: frozenset[str]) -> Slot:
        """Room for another worker, not on the nodes ``avoid``. It may still have to be waited for."""
        for slot in self._base():
            if slot not in self._taken and self.node_of(slot) not in avoid:
                self._taken.add(slot)
                return slot
        self._extras += 1
        slot = Slot(extra_group_name(self._attempt.name, self._extras), 0)
        self._reserve(slot.group, 1, "STRICT_PACK", avoid)
        self._taken.add(slot)
        return slot

    def adopt(self, slot: Slot) -> None:
        """Of a worker that was placed before the controller was restarted."""
        self._taken.add(slot)
        base = group_name(self._attempt.name)
        if slot.group != base:
            self._extras = max(self._extras, int(slot.group.rpartition("/")[2]))
        self._base_is_gone = all(taken.group != base for taken in self._taken)

    def give_back(self, slot: Slot) -> None:
        self._taken.discard(slot)
        if all(taken.group != slot.group for taken in self._taken):
            self._base_is_gone = self._base_is_gone or slot.group == group_name(self._attempt.name)
            group = find_placement_group(slot.group)
            if group is not None:
                remove_placement_group(group)

    def node_of(self, slot: Slot) -> str | None:
        """Id of the living machine where the room is; None: it is still waited for."""
        group = find_placement_group(slot.group)
        if group is None:
            return None
        table = placement_group_table(group)
        if table["state"] == "CREATED":
            node: str | None = table["bundles_to_node_id"].get(slot.bundle)
            return node or None
        return None

    def _base(self) -> list[Slot]:
        name = group_name(self._attempt.name)
        if self._base_is_gone:
            return []
        if find_placement_group(name) is None:
            # All that the attempt begins with, for a job of fixed size; what an elastic one may lose again, it reserves one by one.
            count = min(self._spec.workers.fewest, self._attempt.shape.workers)
            self._reserve(name, count, "PACK", self._attempt.shape.avoid)
        group = find_placement_group(name)
        assert group is not None
        return [Slot(name, bundle) for bundle in range(len(placement_group_table(group)["bundles"]))]

    def _reserve(self, name: str, count: int, strategy: str, avoid: frozenset[str]) -> None:
        selector = {"ray.io/node-id": f"!in({','.join(sorted(avoid))})"} if avoid else {}
        placement_group(
            [self._bundle() for _ in range(count)],
            strategy,
            name=name,
            lifetime="detached",
            **({"bundle_label_selector": [selector] * count} if avoid else {}),
        )

    def _bundle(self) -> dict[str, float]:
        workers = self._spec.workers
        found: Mapping[str, float | None] = {"CPU": workers.cpus, "GPU": workers.gpus, "memory": workers.memory}
        return {name: amount for name, amount in found.items() if amount}


class Devices:
    """Holds the accelerators of one worker's room, whoever works there: a standby cannot be given any by Ray, and a replacement gets the same.

    Ends with the room.
    """

    def ids(self) -> list[str]:
        return [str(each) for each in ray.get_runtime_context().get_accelerator_ids().get("GPU", [])]


def ask_for_devices(slot: Slot, gpus: float) -> Any:
    """A reference to the ids of the accelerators in that room, which is there."""
    holder = (
        ray.remote(Devices)
        .options(
            name=devices_name(slot.group, slot.bundle),
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            num_gpus=gpus,
            max_restarts=0,
            scheduling_strategy=_in(slot),
        )
        .remote()
    )
    return holder.ids.remote()


def _in(slot: Slot) -> PlacementGroupSchedulingStrategy:
    group: PlacementGroup | None = find_placement_group(slot.group)
    return PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=slot.bundle)


def place_worker(
    attempt: Attempt, spec: JobSpec, number: int, rank: int, slot: Slot, node_id: str, devices: Sequence[str] | None
) -> tuple[str, Any]:
    """(name, actor) of worker ``number``: a standby on the machine where its room is, or a new process there."""
    workers = spec.workers
    assignment = Assignment(
        attempt.name,
        attempt.spec_json,
        attempt.folder,
        attempt.attempt,
        rank,
        JobFolder.at(attempt.folder, attempt.checkpoints).checkpoints_root,
        attempt.train,
        devices,
        attempt.bundle,
        attempt.healthy_from,
    )
    found = standby.take(assignment, node_id)
    if found is not None:
        return found
    needs: dict[str, Any] = {"num_cpus": workers.cpus, "memory": workers.memory}
    name = worker_name(attempt.name, number)
    actor = (
        ray.remote(TrainWorker)
        .options(
            name=name,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=0,
            max_concurrency=8,
            scheduling_strategy=_in(slot),
            **{key: value for key, value in needs.items() if value is not None},
        )
        .remote(assignment)
    )
    return name, actor


def end_workers(attempt: str) -> None:
    """Kills every worker of an attempt."""
    for name in actors_of(attempt):
        kill_actor(name)
    for name, owner in standby.taken().items():
        if owner == attempt:
            kill_actor(name)


def free_room(attempt: str) -> None:
    """Gives back everything that an attempt has reserved."""
    for entry in placement_group_table().values():
        if entry["state"] != "REMOVED" and attempt_of(entry["name"]) == attempt:
            group = find_placement_group(entry["name"])
            if group is not None:
                remove_placement_group(group)
