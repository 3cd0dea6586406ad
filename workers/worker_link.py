"""What the thread that trains and the controller know of each other: kept in the worker, written by the one, asked for by the other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from workers.membership import DismissedError, Work
from workers.outbox import Report
from workers.reports import Outcome, Progress, ReasonCode, StopMode

State = Literal["idle", "building", "waiting", "running", "done", "failed", "dismissed"]


@dataclass(frozen=True)
class Failure:
    """An exception that ended a worker's training."""

    code: ReasonCode
    message: str
    traceback: str
    at: float = 0.0  # of a script's end, in seconds since the epoch: whose came first is the cause


@dataclass(frozen=True)
class Activity:
    """The newest sign of life of the thread that trains."""

    work: int  # workers.membership.Work
    step: int  # optimizer steps done
    seconds: float  # for how long it has been at it


@dataclass(frozen=True)
class Poll:
    state: State
    generation: int  # the newest that this worker has joined, 0 before the first
    position: tuple[int, int] | None  # (step, stage) of a worker that waits and has a state
    broken: str | None  # what broke its last group
    activity: Activity
    stepped_at: float | None  # when (seconds since the epoch) the first step of this generation was done
    reports: Sequence[Report]
    progress: Progress | None
    version: int  # changes with state, generation and stepped_at
    outcome: Outcome | None = None
    failure: Failure | None = None


class WorkerLink:
    """What the thread that trains and the controller know of each other (``workers.membership.Link``)."""

    def __init__(self, changed: threading.Condition) -> None:
        self._changed = changed
        self.state: State = "idle"
        self.version = 0
        self.rank: int | None = None
        self.regroup = False
        self.stop: StopMode | None = None
        self.told = -1
        self.script_pid: int | None = None
        self._activity = (0, 0, time.monotonic())
        self._generation = 0
        self._given: Any = None  # the membership to take up next
        self._dismissed = False
        self._position: tuple[int, int] | None = None
        self._broken: str | None = None
        self._joined_step = 0
        self._stepped_at: float | None = None
        self._cut: Callable[[], None] | None = None
        self._cut_generation = 0  # the newest that is to be let go
        self._outcome: Outcome | None = None
        self._failure: Failure | None = None

    # --- for the thread that trains -----------------------------------------------------------------------------------

    def next_group(self, position: Any, broken: str | None) -> Any:
        with self._changed:
            self._cut, self.rank = None, None
            self._position = None if position is None else (position.step, int(position.stage))
            self._broken, self.regroup = broken, False
            self.at(Work.WAIT, position.step if position else 0)
            self._now("waiting")
            self._changed.wait_for(lambda: self._given is not None or self._dismissed)
            if self._dismissed:
                raise DismissedError
            given, self._given = self._given, None
            self._generation, self.rank = given.generation, given.rank
            self.told = max(self.told, given.told_through)
            self._joined_step = given.position.step if given.position else -1
            self._stepped_at = self._broken = None
            self._now("running")
            return given

    def joining(self, cut: Callable[[], None]) -> None:
        self._cut = cut
        if self._cut_generation == self._generation:  # it was to be let go before it was joined
            cut()

    def at(self, work: int, step: int) -> None:
        self._activity = (int(work), step, time.monotonic())
        if self._stepped_at is None and self.state == "running":
            self._note_first_step(work, step)

    def _note_first_step(self, work: int, step: int) -> None:
        if self._joined_step < 0 and work in (Work.DATA, Work.FORWARD):
            self._joined_step = step  # where the checkpoint was, or the start
        if 0 <= self._joined_step < step:
            with self._changed:
                self._stepped_at = time.time()
                self._now("running")

    def stop_requested(self) -> StopMode | None:
        return self.stop

    def regroup_requested(self) -> bool:
        return self.regroup

    def told_through(self) -> int:
        return self.told

    # --- for the actor ------------------------------------------------------------------------------------------------

    @property
    def activity_step(self) -> int:
        return self._activity[1]

    def now(self, state: State, *, outcome: Outcome | None = None, failure: Failure | None = None) -> None:
        with self._changed:
            self._outcome, self._failure = outcome, failure
            self._now(state)

    def _now(self, state: State) -> None:
        self.state = state
        self.version += 1
        self._changed.notify_all()

    def give(self, membership: Any) -> None:
        with self._changed:
            if membership is None:
                self._dismissed = True
            elif membership.generation > self._generation:
                self._given = membership
            self._changed.notify_all()

    def ask_to_regroup(self, generation: int) -> None:
        with self._changed:  # a question that comes late is about a group that was left already
            self.regroup = self.regroup or (generation == self._generation and self.state == "running")

    def cut(self, generation: int) -> None:
        self._cut_generation = max(self._cut_generation, generation)
        cut = self._cut
        if generation == self._generation and cut is not None:
            cut()

    def seen(self) -> Poll:
        with self._changed:
            work, step, since = self._activity
            return Poll(
                state=self.state,
                generation=self._generation,
                position=self._position if self.state == "waiting" else None,
                broken=self._broken,
                activity=Activity(work, step, time.monotonic() - since),
                stepped_at=self._stepped_at,
                reports=(),
                progress=None,
                version=self.version,
                outcome=self._outcome,
                failure=self._failure,
            )
