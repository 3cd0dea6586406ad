"""Who starts next. Pure: from the machines, what is held on them and the queue to the jobs that start now.

Order is priority, then age. A job's workers start together or not at all. Smaller jobs overtake a job that does not fit yet, but
only for so long: then everything behind it waits, so that what ends makes room for it.

Where workers really go is Ray's decision; this is the estimate that keeps the queue on our side. An estimate that is
too hopeful costs nothing but a placement group that waits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from service.cluster import Capacity, Resources

ROUNDING = 1e-6  # ten workers of 0.1 processors fit on one


@dataclass(frozen=True)
class Gang:
    """Workers that start together, all alike."""

    count: int
    each: Resources


@dataclass(frozen=True)
class Held:
    """What a job that runs, or is about to, has reserved. ``addresses``: machine of each worker, as far as known."""

    gang: Gang
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True)
class Candidate:
    job_id: str
    gang: Gang
    priority: int
    created_at: datetime
    ready_at: datetime  # since when it could start, had there been room


@dataclass(frozen=True)
class Plan:
    start: tuple[str, ...]  # ids, in the order of the queue
    waiting: Mapping[str, str]  # id -> why not yet


def plan(
    capacity: Capacity, held: Sequence[Held], queue: Iterable[Candidate], now: datetime, backfill: timedelta
) -> Plan:
    free = free_resources(capacity, held)
    start: list[str] = []
    waiting: dict[str, str] = {}
    closed_by: str | None = None  # the job for which everything behind it waits
    for job in sorted(queue, key=lambda job: (-job.priority, job.created_at, job.job_id)):
        if closed_by is not None:
            waiting[job.job_id] = f"waits for {closed_by}, which is ahead in the queue and has waited for long"
        elif place(free, job.gang):
            start.append(job.job_id)
        else:
            waiting[job.job_id] = shortage(free, job.gang)
            if now - job.ready_at >= backfill:
                closed_by = job.job_id
    return Plan(tuple(start), waiting)


def fits(capacity: Capacity, gang: Gang) -> bool:
    """Whether the empty cluster could hold the gang."""
    return place([node.total for node in capacity.nodes], gang)


def too_small(capacity: Capacity, gang: Gang) -> str:
    """Why the empty cluster could not hold the gang."""
    why = shortage([node.total for node in capacity.nodes], gang).replace(" free", " in all")
    return f"the cluster can never hold this job: it {why}"


def free_resources(capacity: Capacity, held: Sequence[Held]) -> list[Resources]:
    """What is left of each machine, in the order of ``capacity.nodes``."""
    free = [node.total for node in capacity.nodes]
    index = {node.address: position for position, node in enumerate(capacity.nodes)}
    unplaced = []
    for holding in held:
        known = [index[address] for address in holding.addresses if address in index]
        for position in known:
            free[position] = _without(free[position], holding.gang.each, 1)
        if rest := holding.gang.count - len(holding.addresses):
            unplaced.append(Gang(rest, holding.gang.each))
    for gang in sorted(unplaced, key=lambda gang: (gang.each.gpus, gang.each.cpus, gang.each.memory), reverse=True):
        if not place(free, gang) and free:  # more is held than there is: a machine went away
            free[0] = _without(free[0], gang.each, gang.count)
    return free


def place(free: list[Resources], gang: Gang) -> bool:
    """Takes the gang's share from ``free``, fullest machines first, if all of it fits; else leaves ``free`` alone."""
    rooms = [room(node, gang.each) for node in free]
    if sum(rooms) < gang.count:
        return False
    missing = gang.count
    for position in sorted(range(len(free)), key=lambda position: rooms[position]):
        taken = min(rooms[position], missing)
        free[position] = _without(free[position], gang.each, taken)
        missing -= taken
    return True


def room(node: Resources, each: Resources) -> int:
    """How many such workers fit on what is left of a machine."""
    pairs = ((node.cpus, each.cpus), (node.gpus, each.gpus), (node.memory, each.memory))
    return max(0, min(math.floor(has / needs + ROUNDING) for has, needs in pairs if needs > 0))


def shortage(free: Sequence[Resources], gang: Gang) -> str:
    """Why the gang does not fit, in the first resource that is short."""
    if not free:
        return "waits for the cluster, which has no machines yet"
    for name, unit in (("cpus", "CPUs"), ("gpus", "GPUs"), ("memory", "bytes of memory")):
        needed = gang.count * getattr(gang.each, name)
        has = sum(max(0, getattr(node, name)) for node in free)
        if needed > has + ROUNDING:
            return f"needs {needed:.10g} {unit}, {has:.10g} free"
    each = f"{gang.each.cpus:.10g} CPUs" + (f" and {gang.each.gpus:.10g} GPUs" if gang.each.gpus else "")
    there = sum(room(node, gang.each) for node in free)
    return f"needs {gang.count} workers with {each} each; the machines have room for {there} of them"


def _without(node: Resources, each: Resources, count: int) -> Resources:
    return Resources(
        cpus=node.cpus - each.cpus * count,
        gpus=node.gpus - each.gpus * count,
        memory=node.memory - each.memory * count,
    )
