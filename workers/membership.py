"""What a worker knows of its group: which one it is in, how far it has come, and how it asks for the next.

A group lives for one *generation*. When a worker is lost, or the number of workers changes, those that are left keep everything in memory, say how
far they have come and wait; the next generation begins with the state of the one that came furthest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol, TypeAlias

from workers.reports import StopMode

if TYPE_CHECKING:  # the controller does without torch
    from torch._C._distributed_c10d import Store

# (host, port) or a store as it is; None: MASTER_ADDR and MASTER_PORT, or a world size of 1
MeetingPoint: TypeAlias = "tuple[str, int] | Store | None"


class Stage(IntEnum):
    """How much of what belongs to a step is done."""

    STEPPED = 0  # the weights are updated; evaluation and what else is due after the step is not done yet
    REPAIRED = 1  # all that was due is done, and what was agreed to mend is mended
    COMPLETE = 2


@dataclass(frozen=True, order=True)
class Position:
    """How far a run has come. Workers of one group stand at most one step apart: whoever misses a step stops all others at the next."""

    step: int  # optimizer steps done
    stage: Stage = Stage.COMPLETE


GENERATIONS = 100_000  # of one attempt, at most; so that groups count on over attempts


@dataclass(frozen=True)
class Membership:
    """A worker's place in one generation of its group.

    ``position`` None: nobody has a state; all begin from the newest checkpoint, or from the start. Else ``source`` is the rank that stands there and
    whose state all take over, or None when all stand there already.
    """

    generation: int
    rank: int
    world_size: int
    position: Position | None = None
    source: int | None = None
    store: MeetingPoint = None
    writer: int | None = None  # larger than that of every group of this job before; None: to be found in storage
    told_through: int = -1  # what the controller knows already (``reports.mark_of``)
    environment: Mapping[str, str] = field(default_factory=dict)  # variables of a script: its job and its run in MLflow


class Work(IntEnum):
    """What a worker is at, in the order of a step: when a group hangs, the worker furthest behind is the one to look at."""

    BUILD = 0
    WAIT = 1  # for the next generation
    JOIN = 2
    DATA = 3
    FORWARD = 4
    EXCHANGE = 5  # backward pass with all-reduce: waits for the others
    UPDATE = 6
    EVALUATE = 7
    SAVE = 8
    FINISH = 9
    SCRIPT = 10  # a user's script runs, which has its own idea of a step


class GroupBrokenError(Exception):
    """A peer is lost, or hangs, and there is nobody who forms another group."""


class MisplacedError(Exception):
    """The group was formed on a state that this worker was thought to have and has not: an answer from before another group was believed."""


class RegroupError(Exception):
    """All workers agreed to form the next group after the step that they have just done."""


class DismissedError(Exception):
    """This worker is no longer needed."""


class Link(Protocol):
    """A worker's line to whoever forms the groups."""

    script_pid: int | None  # of the process in which a user's script trains

    def next_group(self, position: Position | None, broken: str | None) -> Membership:
        """Waits for the next generation. ``position`` None: this worker has no state of its own. ``broken``: what broke the last group; None: this
        is the first, or leaving was agreed.

        Raises GroupBrokenError when nobody forms groups here, DismissedError when the worker is not needed any more.
        """

    def joining(self, cut: Callable[[], None]) -> None:
        """``cut`` frees the training thread from whatever it waits for in its group; may be called from any thread from now on."""

    def at(self, work: Work, step: int) -> None:
        """A sign of life: what this worker does from now on, after so many steps. Called several times a step."""

    def stop_requested(self) -> StopMode | None: ...

    def regroup_requested(self) -> bool: ...

    def told_through(self) -> int:
        """The mark up to which what this group measured is known to the controller."""


class Alone:
    """The link of a process that nobody watches over: it has one group, and ends with it."""

    script_pid: int | None = None

    def __init__(
        self,
        rank: int,
        world_size: int,
        stop_requested: Callable[[], StopMode | None] = lambda: None,
        store: MeetingPoint = None,
    ) -> None:
        self._membership = Membership(1, rank, world_size, store=store)
        self.stop_requested = stop_requested

    def next_group(self, position: Position | None, broken: str | None) -> Membership:
        if broken is not None:
            raise GroupBrokenError(f"the group of workers broke: {broken}")
        return self._membership

    def joining(self, cut: Callable[[], None]) -> None: ...

    def at(self, work: Work, step: int) -> None: ...

    def regroup_requested(self) -> bool:
        return False

    def told_through(self) -> int:
        return 1 << 62  # what is reported is known: it was written down
