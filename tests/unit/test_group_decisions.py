"""What a controller concludes from its workers: who is to blame, the next group, who is missing, who hangs; and that it comes to rest."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers import group_decisions as decisions
from workers.group_decisions import COMING, GONE, PATIENCE_SECONDS, Recoveries, Seat, State, View
from workers.membership import Position, Stage, Work
from workers.reports import Outcome, ReasonCode
from workers.worker_link import Activity, Failure

pytestmark = pytest.mark.unit

DONE = Outcome(ReasonCode.COMPLETED, "all steps done")
OWN = Failure(ReasonCode.USER_ERROR, "ValueError: wrong", "Traceback ...")
HERE, BEHIND = Position(7), Position(6)


def member(number: int, rank: int | None, state: State = "running", **facts: Any) -> Seat:
    """``joined`` is the present generation, 3, unless it is said otherwise."""
    return Seat(number, rank, state, **({"joined": 3 if rank is not None else 0} | facts))


def waiting(number: int, rank: int | None, position: Position | None = None, **facts: Any) -> Seat:
    return member(number, rank, "waiting", position=position, **facts)


def view(*seats: Seat, wanted: int = 2, **facts: Any) -> View:
    usual: dict[str, Any] = {"generation": 3, "forming": False, "wanted": wanted, "fewest": wanted, "seats": seats}
    return View(**(usual | facts))


def forming(*seats: Seat, wanted: int = 2, **facts: Any) -> View:
    return view(*seats, wanted=wanted, **({"forming": True} | facts))


# --- the end ----------------------------------------------------------------------------------------------------------


def test_the_end_is_that_of_rank_0_when_nobody_has_anything_left_to_do() -> None:
    done, other = member(1, 0, "done", outcome=DONE), member(2, 1, "done", outcome=DONE)
    assert decisions.conclude(view(member(1, 0), member(2, 1))) is None
    assert decisions.conclude(view(done, member(2, 1))) is None, "rank 1 has still something to tell"
    assert decisions.conclude(view(member(1, 0), other)) is None
    assert decisions.conclude(view(done, other)) == DONE
    assert decisions.conclude(view(done, other, member(3, None, "building"))) == DONE


def test_a_death_after_rank_0_is_done_changes_nothing() -> None:
    done = member(1, 0, "done", outcome=DONE)
    assert decisions.conclude(view(done, member(2, 1, "lost"))) == DONE
    assert decisions.conclude(view(replace(done, state="lost"), member(2, 1, "lost"))) == DONE
    rank_0_lost = view(member(1, 0, "lost"), member(2, 1, "done", outcome=DONE))
    assert decisions.conclude(rank_0_lost) is None
    assert decisions.broke(rank_0_lost), "nobody has written the model"


def test_an_own_error_ends_the_job_with_rank_and_traceback() -> None:
    failed = member(2, 1, "failed", failure=OWN)
    outcome = decisions.conclude(view(waiting(1, 0, HERE), failed))
    assert outcome is not None
    assert (outcome.code, outcome.message) == (ReasonCode.USER_ERROR, "rank 1: ValueError: wrong")
    assert outcome.detail == {"rank": 1, "traceback": "Traceback ..."}
    newcomer = member(3, None, "failed", failure=OWN)
    outcome = decisions.conclude(view(member(1, 0), failed, newcomer))
    assert outcome is not None
    assert outcome.message == "rank 1 (and 1 more): ValueError: wrong"
    outcome = decisions.conclude(forming(member(1, 0), newcomer))
    assert outcome is not None
    assert outcome.message == "worker 3: ValueError: wrong"


@pytest.mark.parametrize(
    ("seats", "expected"),
    [
        ([member(1, 0), member(2, 1)], False),
        ([member(1, 0), member(2, 1, "lost")], True),
        ([member(1, 0), waiting(2, 1, HERE)], True),  # its group broke before the others noticed
        ([member(1, 0), waiting(2, 1, HERE, joined=2)], False),  # was told to join, and has not said so yet
        ([member(1, 0), member(2, 1), member(3, None, "lost")], False),
        ([member(1, 0, "done"), member(2, 1)], False),
    ],
)
def test_when_a_group_has_come_apart(seats: list[Seat], expected: bool) -> None:
    assert decisions.broke(view(*seats)) == expected
    assert not decisions.broke(forming(*seats))


# --- forming ----------------------------------------------------------------------------------------------------------


def formed(found: View) -> tuple[list[int], Position | None, int | None] | None:
    formation = decisions.form(found)
    return None if formation is None else (list(formation.members), formation.position, formation.source)


def test_the_first_group_begins_when_all_are_there() -> None:
    assert formed(forming(waiting(1, None))) is None
    assert formed(forming(waiting(1, None), member(2, None, "building"), forming_seconds=3600)) is None
    assert formed(forming(waiting(1, None), waiting(2, None))) == ([1, 2], None, None)


def test_survivors_keep_their_ranks_and_the_replacement_gets_the_free_one() -> None:
    seats = [member(1, 0, "lost"), waiting(2, 1, HERE), waiting(3, 2, HERE), waiting(4, None)]
    assert formed(forming(*seats, wanted=3)) == ([4, 2, 3], HERE, 1)
    assert formed(forming(waiting(2, 1, HERE), waiting(3, 2, HERE))) == ([3, 2], HERE, None), "ranks have no holes"


def test_the_state_comes_from_whoever_came_furthest() -> None:
    stepped = Position(7, Stage.STEPPED)
    assert formed(forming(waiting(1, 0, BEHIND), waiting(2, 1, HERE))) == ([1, 2], HERE, 1)
    assert formed(forming(waiting(1, 0, HERE), waiting(2, 1, stepped))) == ([1, 2], HERE, 0)
    assert formed(forming(waiting(1, 0, stepped), waiting(2, 1, BEHIND))) == ([1, 2], stepped, 0)
    assert formed(forming(waiting(1, 0, HERE), waiting(2, 1, HERE))) == ([1, 2], HERE, None)


def test_one_more_joins_when_only_one_that_leaves_has_the_state() -> None:
    """All others are new: the group is larger for a moment, and the next one is without it."""
    leaving = waiting(1, 0, HERE, leaving=True)
    first = forming(leaving, member(2, 1, "lost"), waiting(3, None), waiting(4, None))
    assert formed(first) == ([1, 4, 3], HERE, 0) or formed(first) == ([1, 3, 4], HERE, 0)
    behind = forming(leaving, waiting(2, 1, BEHIND), waiting(3, None))
    assert formed(behind) is not None
    assert 1 in decisions.form(behind).members  # type: ignore[union-attr]
    same = forming(leaving, waiting(2, 1, HERE), waiting(3, None))
    assert formed(same) == ([3, 2], HERE, 1)
    then = view(replace(leaving, state="running"), member(3, 1), member(4, 2))
    assert decisions.should_regroup(then)


def test_an_elastic_job_goes_on_with_fewer_when_it_takes_too_long() -> None:
    seats = [waiting(1, 0, HERE), waiting(2, 1, HERE), member(3, 2, "lost"), member(4, None, "placed")]
    soon, late = PATIENCE_SECONDS - 1, PATIENCE_SECONDS + 1
    assert formed(forming(*seats, wanted=3, fewest=2, forming_seconds=soon)) is None
    assert formed(forming(*seats, wanted=3, fewest=2, forming_seconds=late)) == ([1, 2], HERE, None)
    assert formed(forming(*seats, wanted=4, fewest=3, forming_seconds=1e6)) is None
    assert formed(forming(member(1, 0, "lost"), wanted=3, fewest=1, forming_seconds=1e6)) is None


def test_who_has_not_noticed_that_the_group_is_over_is_waited_for() -> None:
    """It may have come a step further than all others."""
    seats = [waiting(1, 0, HERE), member(2, 1, "running"), member(3, 2, "lost"), waiting(4, None), waiting(5, None)]
    assert formed(forming(*seats, wanted=2, fewest=1, forming_seconds=1e6)) is None
    seats[1] = waiting(2, 1, Position(8))
    assert formed(forming(*seats, wanted=2)) == ([1, 2], Position(8), 1)


def test_a_replacement_on_its_way_is_preferred_to_one_that_leaves() -> None:
    seats = [waiting(1, 0, HERE, leaving=True), waiting(2, 1, HERE), member(3, None, "building")]
    assert formed(forming(*seats)) is None
    assert formed(forming(*seats, forming_seconds=PATIENCE_SECONDS + 1)) == ([1, 2], HERE, None)
    seats[2] = waiting(3, None)
    assert formed(forming(*seats)) == ([3, 2], HERE, 1)


# --- changing ---------------------------------------------------------------------------------------------------------


def test_how_many_to_place_and_whom_nobody_needs() -> None:
    group = [member(1, 0), member(2, 1)]
    assert decisions.missing(view(*group)) == 0
    assert decisions.missing(view(*group, wanted=5)) == 3
    assert decisions.missing(view(*group, member(3, None, "placed"), wanted=3)) == 0
    assert decisions.missing(view(member(1, 0, leaving=True), member(2, 1))) == 1
    assert decisions.missing(view(member(1, 0, "lost"), member(2, 1), member(3, None, "lost"))) == 1
    newcomers = [member(3, None, "placed"), waiting(4, None), waiting(5, None, leaving=True)]
    assert decisions.surplus(view(*group, *newcomers)) == [3, 4, 5]
    assert decisions.surplus(view(*group, *newcomers, wanted=3)) == [4, 5]
    assert decisions.surplus(view(*group, *newcomers, wanted=4)) == [5]
    assert decisions.surplus(view(*group, wanted=1)) == [], "members of a group leave it by agreement only"


@pytest.mark.parametrize(
    ("seats", "wanted", "expected"),
    [
        ([member(1, 0), member(2, 1)], 2, False),
        ([member(1, 0), member(2, 1)], 1, True),
        ([member(1, 0), member(2, 1)], 3, False),  # nobody is there yet
        ([member(1, 0), member(2, 1), waiting(3, None)], 3, True),
        ([member(1, 0), member(2, 1), waiting(3, None), member(4, None, "building")], 4, False),
        ([member(1, 0), member(2, 1), waiting(3, None), waiting(4, None)], 4, True),
        ([member(1, 0, leaving=True), member(2, 1)], 2, False),
        ([member(1, 0, leaving=True), member(2, 1), member(3, None, "starting")], 2, False),
        ([member(1, 0, leaving=True), member(2, 1), waiting(3, None)], 2, True),
        ([member(1, 0, leaving=True), member(2, 1), member(3, 2)], 2, True),  # it was there for its state only
        ([member(1, 0, leaving=True), member(2, 1)], 1, True),
        ([member(1, 0), waiting(2, 1, joined=2), waiting(3, None)], 3, False),  # has not begun yet
        ([member(1, 0), member(2, 1, "done"), waiting(3, None)], 3, False),
        ([member(1, 0), member(2, 1, "lost"), waiting(3, None)], 2, False),
    ],
)
def test_when_a_group_is_left_for_another(seats: list[Seat], wanted: int, expected: bool) -> None:
    assert decisions.should_regroup(view(*seats, wanted=wanted)) == expected
    assert not decisions.should_regroup(forming(*seats, wanted=wanted))


# --- hanging ----------------------------------------------------------------------------------------------------------


def at(number: int, rank: int, work: Work, seconds: float, step: int = 40, silent: float = 0.0) -> Seat:
    return member(number, rank, activity=Activity(int(work), step, seconds), silent_seconds=silent)


def test_a_frozen_worker_is_named_when_the_group_stands_still() -> None:
    seats = at(1, 0, Work.EXCHANGE, 7), at(2, 1, Work.FORWARD, 7, silent=7)
    assert decisions.hung(view(*seats, still_seconds=7, step_seconds=0.1)) == {2: "no answer for 7 s"}
    assert decisions.hung(view(*seats, still_seconds=1, step_seconds=0.1)) == {}, (
        "the group moves: only the answer is late"
    )
    frozen_in_wait = waiting(2, 1, HERE, silent_seconds=8.0)
    assert decisions.hung(view(seats[0], frozen_in_wait, still_seconds=8, step_seconds=0.1)) == {2: "no answer for 8 s"}
    assert decisions.hung(forming(seats[0], frozen_in_wait, still_seconds=8, step_seconds=0.1)) == {}


def test_a_frozen_worker_holds_up_the_forming_of_a_group_too() -> None:
    frozen = at(2, 1, Work.EXCHANGE, 9, silent=9)
    found = forming(waiting(1, 0, HERE), frozen, member(3, 2, "lost"), still_seconds=9, step_seconds=0.1)
    assert list(decisions.hung(found)) == [2]


@pytest.mark.parametrize("work", [Work.FORWARD, Work.EXCHANGE, Work.UPDATE])
def test_the_one_furthest_behind_is_to_blame(work: Work) -> None:
    """All others wait in their all-reduce for it."""
    others = at(1, 0, Work.EXCHANGE, 12, step=41), at(3, 2, Work.EXCHANGE, 12, step=41)
    found = decisions.hung(view(others[0], at(2, 1, work, 12), others[1], wanted=3, still_seconds=12, step_seconds=0.1))
    assert found == {2: f"no progress for 12 s in {work.name.lower()} after step 40"}


def test_when_all_wait_for_each_other_all_are_named() -> None:
    seats = at(1, 0, Work.EXCHANGE, 12), at(2, 1, Work.EXCHANGE, 13)
    assert set(decisions.hung(view(*seats, still_seconds=12, step_seconds=0.1))) == {1, 2}


def test_long_steps_and_slow_data_are_no_hang() -> None:
    forward = at(1, 0, Work.FORWARD, 30), at(2, 1, Work.EXCHANGE, 30)
    assert list(decisions.hung(view(*forward, still_seconds=30, step_seconds=0.5))) == [1]
    assert decisions.hung(view(*forward, still_seconds=30, step_seconds=7.0)) == {}, "less than five steps"
    data = at(1, 0, Work.DATA, 30), at(2, 1, Work.EXCHANGE, 30)
    assert decisions.hung(view(*data, still_seconds=30, step_seconds=0.1)) == {}, (
        "who waits for the reader is not to blame"
    )
    late = at(1, 0, Work.DATA, 61), at(2, 1, Work.EXCHANGE, 61)
    assert list(decisions.hung(view(*late, still_seconds=61, step_seconds=0.1))) == [1]
    for work in (Work.BUILD, Work.SAVE, Work.FINISH):
        assert decisions.hung(view(at(1, 0, work, 300), at(2, 1, work, 300), still_seconds=300, step_seconds=0.1)) == {}


def test_nobody_hangs_while_the_first_step_is_compiled() -> None:
    seats = at(1, 0, Work.FORWARD, 55, step=0, silent=55), at(2, 1, Work.EXCHANGE, 500, step=0)
    assert decisions.hung(view(*seats, still_seconds=55)) == {}
    assert list(decisions.hung(view(*seats, still_seconds=55, step_seconds=0.1))) == [1]
    silent = at(1, 0, Work.FORWARD, 61, step=0, silent=61), seats[1]
    assert list(decisions.hung(view(*silent, still_seconds=61))) == [1]


def test_nobody_is_blamed_who_cannot_be_compared() -> None:
    """One of the members has not begun, or has said nothing yet: it may be the one that is behind."""
    stuck = at(1, 0, Work.EXCHANGE, 30)
    assert decisions.hung(view(stuck, waiting(2, 1, joined=2), still_seconds=30, step_seconds=0.1)) == {}
    assert decisions.hung(view(stuck, member(2, 1), still_seconds=30, step_seconds=0.1)) == {}


# --- trying again -----------------------------------------------------------------------------------------------------


def test_recoveries_are_limited_only_when_they_lead_nowhere() -> None:
    recoveries = Recoveries()
    for step in range(100):
        recoveries = recoveries.another(step)
        assert recoveries.exhausted(3, {"1": "killed"}) is None
    for _ in range(2):
        recoveries = recoveries.another(99)
    outcome = recoveries.exhausted(3, {"1": "killed"})
    assert outcome is not None
    assert outcome.code is ReasonCode.NO_PROGRESS
    assert "lost 3 times in a row" in outcome.message
    assert "rank 1: killed" in outcome.message
    assert recoveries.total == 102


def test_a_step_that_was_done_before_is_no_new_one() -> None:
    """The state went back to a checkpoint, and is lost each time before it gets as far as it was."""
    recoveries = Recoveries()
    for step in (50, 20, 50):
        recoveries = recoveries.another(step)
    assert recoveries.exhausted(3, {}) is not None
    assert recoveries.another(51).exhausted(3, {}) is None


# --- of any view ------------------------------------------------------------------------------------------------------

POSITIONS = st.builds(Position, st.sampled_from([6, 7]), st.sampled_from(Stage))
STATES = st.sampled_from(["placed", "starting", "building", "waiting", "running", "lost", "dismissed"])


@st.composite
def views(draw: st.DrawFn) -> View:
    size = draw(st.integers(0, 4))
    ranks = [*draw(st.permutations(range(size))), *[None] * draw(st.integers(0, 4))]
    seats = []
    for number, rank in enumerate(draw(st.permutations(ranks)), start=1):
        states = STATES.filter(lambda state: state not in COMING) if rank is not None else STATES
        state: Any = draw(states.filter(lambda state: state != "running") if rank is None else states)
        # Newcomers have no state; who is left out of a group is dismissed at once.
        position = draw(st.none() | POSITIONS) if state == "waiting" and rank is not None else None
        seats.append(member(number, rank, state, position=position, leaving=draw(st.booleans())))
    wanted = draw(st.integers(1, 5))
    seconds = st.sampled_from([0.0, PATIENCE_SECONDS + 1])
    return View(3, draw(st.booleans()), wanted, draw(st.integers(1, wanted)), seats, draw(seconds))


@settings(deadline=None)
@given(views())
def test_any_group_that_is_formed_is_sound(found: View) -> None:
    formation = decisions.form(replace(found, forming=True))
    if formation is None:
        return
    seats = {seat.number: seat for seat in found.seats}
    chosen = [seats[number] for number in formation.members]
    assert len({seat.number for seat in chosen}) == len(chosen)
    assert all(seat.state == "waiting" for seat in chosen)
    assert not any(seat.state == "running" for seat in found.group)
    assert found.fewest <= len(chosen) <= found.wanted + 1
    states = [seat.position for seat in found.seats if seat.position is not None]
    assert formation.position == max(states, default=None), "no state is thrown away"
    if formation.source is None:
        assert {seat.position for seat in chosen} == {formation.position}
    else:
        assert chosen[formation.source].position == formation.position is not None
    for rank, seat in enumerate(chosen):
        assert seat.rank in (None, rank) or seat.rank >= len(chosen), "ranks are kept"
    if len(chosen) > found.wanted:
        best = [seat for seat in chosen if seat.position == formation.position]
        assert len(best) == 1, "one more only when nobody else has the state"


@settings(deadline=None)
@given(views())
def test_any_change_is_needed_and_possible(found: View) -> None:
    staying = [seat for seat in found.seats if seat.state not in GONE and not seat.leaving]
    coming = [seat for seat in staying if seat.rank is None and seat.state in COMING]
    surplus = decisions.surplus(found)
    kept = [seat for seat in staying if seat.number not in surplus]
    assert decisions.missing(found) == max(0, found.wanted - len(staying))
    assert all(seat.rank is None for seat in found.seats if seat.number in surplus)
    assert len(kept) >= min(found.wanted, len(staying)), "nobody is dismissed who is needed"
    if decisions.should_regroup(found):
        in_group = [seat for seat in staying if seat.rank is not None]
        assert not found.forming
        assert all(seat.state == "running" for seat in found.group)
        assert len(in_group) > found.wanted or not coming, "somebody who is needed is still coming"
        assert len(in_group) > found.wanted or len(staying) >= found.wanted


# --- the controller's loop --------------------------------------------------------------------------------------------


@dataclass
class Worker:
    """One that really is there, as far as the decisions can tell."""

    number: int
    rank: int | None = None
    state: State = "placed"
    joined: int = 0
    position: Position | None = None
    leaving: bool = False
    asked: bool = False  # to regroup

    def seat(self) -> Seat:
        position = self.position if self.state == "waiting" else None
        return Seat(self.number, self.rank, self.state, self.joined, position, self.leaving)


@dataclass
class Job:
    """A controller that does what is decided, and workers that do what they are told, each after a while."""

    wanted: int
    fewest: int
    workers: list[Worker] = field(default_factory=list)
    generation: int = 0
    forming_since: int | None = 0
    now: int = 0  # seconds
    next_number: int = 1
    begins_at: Position | None = None

    def view(self) -> View:
        since = self.forming_since
        seats = [worker.seat() for worker in self.workers]
        fewest = min(self.fewest, self.wanted)
        return View(
            self.generation, since is not None, self.wanted, fewest, seats, 0.0 if since is None else self.now - since
        )

    def group(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.rank is not None]

    def look(self) -> bool:
        """What the controller does when it looks; whether it did anything."""
        before = (self.generation, self.forming_since, [worker.number for worker in self.workers])
        if decisions.broke(self.view()):
            self.forming_since = self.now
        surplus = decisions.surplus(self.view())
        missing = decisions.missing(self.view())
        self.workers = [worker for worker in self.workers if worker.number not in surplus]
        for _ in range(missing):
            self.workers.append(Worker(self.next_number))
            self.next_number += 1
        asked = False
        if self.forming_since is not None:
            self.form()
        elif decisions.should_regroup(self.view()):
            asked = True
            for worker in self.group():
                worker.asked = True
        return asked or before != (self.generation, self.forming_since, [worker.number for worker in self.workers])

    def form(self) -> None:
        formation = decisions.form(self.view())
        if formation is None:
            return
        states = [worker.position for worker in self.workers if worker.position and worker.state not in GONE]
        assert formation.position == max(states, default=None), "a living worker has come further"
        self.generation += 1
        self.forming_since = None
        self.begins_at = formation.position or Position(0)
        for worker in self.workers:
            ranks = [rank for rank, number in enumerate(formation.members) if number == worker.number]
            worker.rank = ranks[0] if ranks else None
        self.workers = [
            worker
            for worker in self.workers
            if worker.rank is not None or worker.state in COMING  # the others are dismissed, or dead
        ]

    def move(self, worker: Worker) -> None:
        """The next thing that happens to this worker."""
        steps: dict[State, State] = {"placed": "starting", "starting": "building", "building": "waiting"}
        if worker.state in steps:
            worker.state = steps[worker.state]
        elif worker.state == "waiting" and worker.rank is not None and worker.joined < self.generation:
            worker.state, worker.joined, worker.position = "running", self.generation, self.begins_at
            worker.asked = False
        elif worker.state == "running":
            self.step(worker)

    def step(self, worker: Worker) -> None:
        """All do a step and find out what they were asked for, or this one finds out that its group is over."""
        group = self.group()
        if any(
            other.state in GONE or (other.state == "waiting" and other.joined == self.generation) for other in group
        ):
            worker.state = "waiting"
        elif all(other.state == "running" for other in group):
            asked = any(other.asked for other in group)
            for other in group:
                assert other.position is not None
                other.position = Position(other.position.step + 1)
                if asked:
                    other.state = "waiting"

    def die(self, worker: Worker) -> None:
        worker.state, worker.position = "lost", None

    def die_in_a_step(self, worker: Worker) -> None:
        """After another one has done it: one is a step ahead."""
        group = self.group()
        if all(other.state == "running" for other in group) and worker in group and len(group) > 1:
            ahead = next(other for other in group if other is not worker)
            assert ahead.position is not None
            ahead.position = Position(ahead.position.step + 1, Stage.STEPPED)
        self.die(worker)

    def settle(self) -> None:
        """Until nothing is left to do, while nothing else happens."""
        started, quiet = self.generation, 0
        for _ in range(100):
            quiet = 0 if self.look() else quiet + 1
            states = [worker.state for worker in self.workers]
            for worker in list(self.workers):
                if worker.state != "running":
                    self.move(worker)
            running = next((worker for worker in self.group() if worker.state == "running"), None)
            if running is not None:
                for worker in self.group():
                    if worker.state == "running":
                        self.move(worker)
                        break
            self.now += 1
            if quiet > 10 and states == [worker.state for worker in self.workers]:
                break
        assert quiet > 10, f"no rest: {self}"
        assert self.generation <= started + 4, f"too many groups: {self}"


MOVES = st.lists(
    st.tuples(
        st.sampled_from(["look", "look", "move", "move", "move", "die", "die in a step", "drain", "undrain", "resize"]),
        st.integers(0, 7),
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=300)
@given(st.integers(1, 4), st.integers(1, 4), MOVES)
def test_whatever_happens_the_group_becomes_what_is_wanted_and_then_rests(
    wanted: int, fewest: int, moves: list[tuple[str, int]]
) -> None:
    """Catches groups that are formed and left again and again, workers that are placed and dismissed in turn, states that get lost, and a
    group that waits for something that never happens."""
    job = Job(wanted, fewest)
    for kind, number in moves:
        job.now += 1
        worker = job.workers[number % len(job.workers)] if job.workers else None
        if kind == "look":
            job.look()
        elif kind == "resize":
            job.wanted = 1 + number % 4
        elif worker is None or worker.state in GONE:
            continue
        elif kind == "move":
            job.move(worker)
        elif kind == "die":
            job.die(worker)
        elif kind == "die in a step":
            job.die_in_a_step(worker)
        else:
            worker.leaving = kind == "drain" and worker.state != "placed"
    job.settle()
    found = job.view()
    assert sorted(seat.rank for seat in found.seats if seat.rank is not None) == list(range(job.wanted))
    living = [seat for seat in found.seats if seat.state not in GONE]
    assert all(seat.state == "running" and seat.rank is not None and not seat.leaving for seat in living)
    assert not found.forming
    assert not decisions.should_regroup(found)
    assert decisions.missing(found) == 0
    assert decisions.surplus(found) == []


@pytest.mark.parametrize("wanted", [2, 3, 4])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_death_in_a_step_that_another_has_done_costs_no_step(wanted: int, victim: int) -> None:
    job = Job(wanted, wanted)
    job.settle()
    before = job.group()[0].position
    assert before is not None
    assert before.step > 0
    job.die_in_a_step(job.group()[victim])
    job.settle()
    assert job.begins_at == Position(before.step + 1, Stage.STEPPED)
    assert len(job.group()) == wanted
