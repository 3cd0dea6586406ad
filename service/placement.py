"""What is free on the machines, and what fits there. Pure.

Where workers really go is Ray's decision; this is the estimate that keeps the queue on our side. An estimate that is
too hopeful costs nothing but a placement group that waits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from service.cluster import Capacity, Resources

NOTHING = Resources(0, 0, 0)
ROUNDING = 1e-6  # ten workers of 0.1 processors fit on one


@dataclass(frozen=True)
class Gang:
    """Workers that start together, all alike."""

    count: int
    each: Resources


@dataclass(frozen=True)
class Held:
    """What a job that runs, or is about to, has reserved. ``places``: machine of each worker (its id, or its address), as far as
    known. ``moving``: workers that need a place elsewhere besides, because their machine goes away or is gone."""

    gang: Gang
    places: tuple[str, ...] = ()
    moving: int = 0


def fits(capacity: Capacity, gang: Gang) -> bool:
    """Whether the empty cluster could hold the gang."""
    return place([node.total for node in capacity.nodes], gang)


def too_small(capacity: Capacity, gang: Gang) -> str:
    """Why the empty cluster could not hold the gang."""
    why = shortage([node.total for node in capacity.nodes], gang).replace(" free", " in all")
    return f"the cluster can never hold this job: it {why}"


def free_resources(capacity: Capacity, held: Sequence[Held]) -> list[Resources]:
    """What is left of each machine, in the order of ``capacity.nodes``. A machine that is being drained has nothing to give."""
    free = [NOTHING if node.draining else node.total for node in capacity.nodes]
    index = index_of(capacity)
    unplaced = []
    for holding in held:
        for where in holding.places:
            if where in index:
                free[index[where]] = _without(free[index[where]], holding.gang.each, 1)
        if (rest := holding.gang.count - len(holding.places)) > 0:
            unplaced.append(Gang(rest, holding.gang.each))
    for gang in sorted(unplaced, key=lambda gang: (gang.each.gpus, gang.each.cpus, gang.each.memory), reverse=True):
        if not place(free, gang) and free:  # more is held than there is: a machine went away
            free[0] = _without(free[0], gang.each, gang.count)
    for holding in held:
        for _ in range(holding.moving):  # where there is room for them
            place(free, Gang(1, holding.gang.each))
    return free


def index_of(capacity: Capacity) -> Mapping[str, int]:
    """Positions of the machines that stay, by id and by address."""
    staying = [(position, node) for position, node in enumerate(capacity.nodes) if not node.draining]
    return {key: position for position, node in staying for key in (node.address, node.id)}


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


def shortage(free: Sequence[Resources], gang: Gang, draining: int = 0) -> str:
    """Why the gang does not fit, in the first resource that is short. ``draining``: machines that have nothing to give."""
    if not free:
        return "waits for the cluster, which has no machines yet"
    drained = f" ({draining} of {len(free)} machines are being drained)" if draining else ""
    for name, unit in (("cpus", "CPUs"), ("gpus", "GPUs"), ("memory", "bytes of memory")):
        needed = gang.count * getattr(gang.each, name)
        has = sum(max(0, getattr(node, name)) for node in free)
        if needed > has + ROUNDING:
            return f"needs {needed:.10g} {unit}, {has:.10g} free{drained}"
    each = f"{gang.each.cpus:.10g} CPUs" + (f" and {gang.each.gpus:.10g} GPUs" if gang.each.gpus else "")
    there = sum(room(node, gang.each) for node in free)
    return f"needs {gang.count} workers with {each} each; the machines have room for {there} of them{drained}"


def _without(node: Resources, each: Resources, count: int) -> Resources:
    return Resources(
        cpus=node.cpus - each.cpus * count,
        gpus=node.gpus - each.gpus * count,
        memory=node.memory - each.memory * count,
    )
