"""What a controller concludes from what it saw of its workers: pure functions, no Ray.

A worker is a *member* from its placement to its end. Some of the members form the *group* of the present generation; the others are newcomers, which
wait for the next. ``forming``: there is no group at work.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from workers.membership import Position, Stage, Work
from workers.reports import Outcome, ReasonCode
from workers.worker_link import Activity, Failure

FROZEN_SECONDS = 6.0  # without any answer, while the group does not move
FROZEN_FIRST_SECONDS = 60.0  # the same before the first steps, in which a compiler may be at work
STUCK_SECONDS = 10.0  # within one part of a step; or so many times a step:
STUCK_STEPS = 5.0
SLOW_SECONDS = 60.0  # for parts that others than the group decide about: reading data, evaluating
START_SECONDS = 600.0  # for what is done once: building, joining, the first step, a last checkpoint, an export
PATIENCE_SECONDS = 5.0  # for which an elastic job waits for a replacement before it goes on with fewer

State = Literal["placed", "starting", "building", "waiting", "running", "done", "failed", "lost", "dismissed"]
COMING = frozenset({"placed", "starting", "building"})
GONE = frozenset({"lost", "dismissed"})


@dataclass(frozen=True)
class Seat:
    """One member at one moment."""

    number: int  # in the order of placement
    rank: int | None  # in the group of the present generation; None: not in it
    state: State
    joined: int = 0  # newest generation that it has joined
    position: Position | None = None  # of one that waits and has a state
    leaving: bool = False  # is where the group should not be any more
    activity: Activity | None = None
    silent_seconds: float = 0.0  # for which it has not answered
    outcome: Outcome | None = None
    failure: Failure | None = None


@dataclass(frozen=True)
class View:
    generation: int
    forming: bool
    wanted: int  # workers
    fewest: int
    seats: Sequence[Seat]
    forming_seconds: float = 0.0
    still_seconds: float = 0.0  # for which no step was done
    step_seconds: float | None = None  # of a usual step; None: not known yet
    compiles: bool = False  # a compiler may begin its work at any step

    @property
    def group(self) -> list[Seat]:
        return [seat for seat in self.seats if seat.rank is not None]


# --- the end ----------------------------------------------------------------------------------------------------------


def conclude(view: View) -> Outcome | None:
    """A worker's own error ends the job; so does the end of rank 0, once no other has anything left to do."""
    failed = {seat.number: seat for seat in view.seats if seat.failure is not None}
    if failed:
        seat = failed[min(failed, key=lambda number: (_failed_at(failed[number]), number))]
        assert seat.failure is not None
        who = f"rank {seat.rank}" if seat.rank is not None else f"worker {seat.number}"
        others = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        detail = {"rank": seat.rank, "traceback": seat.failure.traceback}
        return Outcome(seat.failure.code, f"{who}{others}: {seat.failure.message}", detail)
    group = view.group
    first = next((seat for seat in group if seat.rank == 0), None)
    if first is not None and first.outcome and all(seat.state == "done" or seat.state in GONE for seat in group):
        return first.outcome  # rank 0 has written everything; a death after that changes nothing
    return None


def _failed_at(seat: Seat) -> float:
    return seat.failure.at if seat.failure else 0.0


def broke(view: View) -> bool:
    """Whether the group at work has come apart: a member is gone, or left it."""
    return not view.forming and any(
        seat.state in GONE or (seat.state == "waiting" and seat.joined == view.generation) for seat in view.group
    )


# --- forming ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Formation:
    """The next group: number of each member by rank, and where they begin."""

    members: Sequence[int]
    position: Position | None
    source: int | None  # rank


def form(view: View) -> Formation | None:
    """The next group, when it can begin: all that are wanted wait for it, or, for an elastic job, waiting for more has taken too long."""
    ready = [seat for seat in view.seats if seat.state == "waiting"]
    busy = [seat for seat in view.group if seat.state == "running"]  # have not noticed yet that their group is over
    coming = [seat for seat in view.seats if seat.state in COMING]
    late = view.forming_seconds > PATIENCE_SECONDS and len(ready) >= view.fewest
    if busy or not ready or (len(ready) < view.wanted and not late):
        return None
    if coming and len([seat for seat in ready if not seat.leaving]) < view.wanted and not late:
        return None
    return formation(_chosen(ready, view.wanted))


def _chosen(ready: Sequence[Seat], wanted: int) -> list[Seat]:
    """Those that stay before those that leave, old ones before new ones; whoever has come furthest is among them, even if that is one more."""
    order = sorted(ready, key=lambda seat: (seat.leaving, seat.rank is None, seat.rank or 0, seat.number))
    chosen = order[:wanted]
    best = max((seat.position for seat in ready if seat.position is not None), default=None)
    if best is not None and all(seat.position != best for seat in chosen):
        chosen.append(next(seat for seat in order if seat.position == best))
    return chosen


def formation(chosen: Sequence[Seat]) -> Formation:
    """Everybody keeps its rank where possible: random numbers depend on it."""
    size = len(chosen)
    ranks: dict[int, Seat] = {}
    for seat in chosen:
        if seat.rank is not None and seat.rank < size:
            ranks[seat.rank] = seat
    placed = {seat.number for seat in ranks.values()}
    rest = iter(seat for seat in chosen if seat.number not in placed)
    seats = [ranks[rank] if rank in ranks else next(rest) for rank in range(size)]
    best = max((seat.position for seat in seats if seat.position is not None), default=None)
    source = None
    if best is not None and any(seat.position != best for seat in seats):
        source = next(rank for rank, seat in enumerate(seats) if seat.position == best)
    return Formation([seat.number for seat in seats], best, source)


# --- changing ---------------------------------------------------------------------------------------------------------


def missing(view: View) -> int:
    """How many workers to place."""
    there = [seat for seat in view.seats if seat.state not in GONE and not seat.leaving]
    return max(0, view.wanted - len(there))


def surplus(view: View) -> list[int]:
    """Newcomers that nobody needs any more."""
    staying = [seat for seat in view.group if seat.state not in GONE and not seat.leaving]
    newcomers = [seat for seat in view.seats if seat.rank is None and seat.state not in GONE]
    needed = max(0, view.wanted - len(staying))
    kept = [seat.number for seat in newcomers if not seat.leaving][:needed]
    return [seat.number for seat in newcomers if seat.number not in kept]


def should_regroup(view: View) -> bool:
    """Whether the group at work should be left, by agreement, for another one that can begin at once."""
    if view.forming or any(seat.state != "running" for seat in view.group):
        return False
    staying = [seat for seat in view.group if not seat.leaving]
    waiting = [seat for seat in view.seats if seat.rank is None and seat.state == "waiting" and not seat.leaving]
    coming = [seat for seat in view.seats if seat.rank is None and seat.state in COMING and not seat.leaving]
    if len(staying) > view.wanted:
        return True
    if coming or len(staying) + len(waiting) < view.wanted:
        return False
    return bool(waiting) or len(view.group) > len(staying)


# --- hanging ----------------------------------------------------------------------------------------------------------


def hung(view: View) -> Mapping[int, str]:
    """Members that hold all others up: number -> what is known of it."""
    members = [seat for seat in view.group if seat.state == "running" or (not view.forming and seat.state == "waiting")]
    limit = FROZEN_FIRST_SECONDS if view.step_seconds is None or view.compiles else FROZEN_SECONDS
    frozen = {
        seat.number: f"no answer for {seat.silent_seconds:.0f} s"
        for seat in members
        if seat.silent_seconds > limit and view.still_seconds > limit
    }
    if frozen:
        return frozen
    running = [seat for seat in members if seat.state == "running" and seat.activity is not None]
    stuck = [seat for seat in running if seat.activity and seat.activity.seconds > _limit(seat.activity, view)]
    if not stuck or len(running) < len(members):
        return {}
    behind = min((seat.activity.step, seat.activity.work) for seat in running if seat.activity)
    return {
        seat.number: f"no progress for {seat.activity.seconds:.0f} s in {Work(seat.activity.work).name.lower()} after step {seat.activity.step}"
        for seat in stuck
        if seat.activity and (seat.activity.step, seat.activity.work) == behind
    }


def silent_seconds(view: View) -> float:
    """For how long no worker's script has given a sign of life: a step, or output. 0 when none of them runs."""
    members = [seat for seat in view.group if seat.state == "running"]
    scripts = [seat.activity for seat in members if seat.activity is not None and seat.activity.work == Work.SCRIPT]
    return min((activity.seconds for activity in scripts), default=0.0) if len(scripts) == len(members) else 0.0


def _limit(activity: Activity, view: View) -> float:
    if activity.work == Work.SCRIPT:
        return math.inf  # ``silent_seconds``, and what its job says of it
    if activity.work in (Work.JOIN, Work.DATA, Work.EVALUATE):
        return SLOW_SECONDS
    if activity.work not in (Work.FORWARD, Work.EXCHANGE, Work.UPDATE) or view.step_seconds is None or view.compiles:
        return START_SECONDS
    return max(STUCK_SECONDS, STUCK_STEPS * view.step_seconds)


# --- trying again -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recoveries:
    """Counts recoveries; those without a new step between them are limited."""

    total: int = 0
    fruitless: int = 0
    step_at_last: int = -1

    def another(self, step: int) -> Recoveries:
        fruitless = self.fruitless + 1 if step <= self.step_at_last else 1
        return Recoveries(self.total + 1, fruitless, max(step, self.step_at_last))

    def exhausted(self, limit: int, causes: Mapping[str, str]) -> Outcome | None:
        if self.fruitless < limit or self.total < limit:
            return None
        said = "; ".join(f"rank {rank}: {cause}" for rank, cause in sorted(causes.items()))
        return Outcome(
            ReasonCode.NO_PROGRESS,
            f"workers were lost {self.fruitless} times in a row without a new step between; last: {said}",
        )


def position_of(step_and_stage: tuple[int, int] | None) -> Position | None:
    return None if step_and_stage is None else Position(step_and_stage[0], Stage(step_and_stage[1]))
