"""What the thread that trains and the controller say to each other, whoever is first."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from tests.helpers import wait_for
from workers.membership import DismissedError, Membership, Position, Stage, Work
from workers.reports import StopMode
from workers.worker_link import WorkerLink

pytestmark = pytest.mark.unit


def link() -> WorkerLink:
    return WorkerLink(threading.Condition())


def group(generation: int, rank: int = 0, position: Position | None = None, told_through: int = -1) -> Membership:
    return Membership(generation, rank, 2, position, told_through=told_through)


def joined(found: WorkerLink, membership: Membership, position: Position | None = None) -> None:
    found.give(membership)
    assert found.next_group(position, None) == membership


class Asking:
    """A thread that waits for the next group."""

    def __init__(self, found: WorkerLink, position: Position | None = None, broken: str | None = None) -> None:
        self.answer: Any = None
        self._thread = threading.Thread(target=self._ask, args=(found, position, broken), daemon=True)
        self._thread.start()
        wait_for("the question", lambda: found.state == "waiting", 10)

    def _ask(self, found: WorkerLink, position: Position | None, broken: str | None) -> None:
        try:
            self.answer = found.next_group(position, broken)
        except DismissedError as error:
            self.answer = error

    def answered(self) -> Any:
        self._thread.join(10)
        assert not self._thread.is_alive(), "it still waits"
        return self.answer


def test_a_worker_waits_for_its_group() -> None:
    found = link()
    asking = Asking(found, Position(7, Stage.STEPPED), "rank 1 is gone")
    seen = found.seen()
    assert (seen.state, seen.generation, seen.position, seen.broken) == ("waiting", 0, (7, 0), "rank 1 is gone")
    assert (seen.activity.work, seen.activity.step) == (Work.WAIT, 7)
    assert found.rank is None
    found.give(group(1, rank=1))
    assert asking.answered() == group(1, rank=1)
    seen = found.seen()
    assert (seen.state, seen.generation, seen.position, seen.broken) == ("running", 1, None, None)
    assert found.rank == 1


def test_a_group_may_be_there_before_it_is_waited_for() -> None:
    found = link()
    found.give(group(1))
    found.give(group(2, rank=1))  # the first came to nothing before this worker heard of it
    assert found.next_group(None, None) == group(2, rank=1)


def test_a_group_of_an_older_generation_is_passed_over() -> None:
    """Messages may come late, or a second time."""
    found = link()
    joined(found, group(2))
    found.give(group(1))
    found.give(group(2))
    asking = Asking(found)
    found.give(group(2))
    assert found.state == "waiting"
    found.give(group(3))
    assert asking.answered() == group(3)


def test_a_worker_that_waits_can_be_dismissed() -> None:
    found = link()
    asking = Asking(found)
    found.give(None)
    assert isinstance(asking.answered(), DismissedError)
    found = link()
    joined(found, group(1))
    found.give(None)
    found.give(group(2))
    with pytest.raises(DismissedError):
        found.next_group(Position(3), None)


def test_the_first_step_of_a_generation_is_noted_once() -> None:
    found = link()
    joined(found, group(1, position=Position(7)))
    for work, step in ((Work.JOIN, 5), (Work.DATA, 7), (Work.FORWARD, 7), (Work.EXCHANGE, 7), (Work.UPDATE, 7)):
        found.at(work, step)
        assert found.seen().stepped_at is None
    before, version = time.time(), found.version
    found.at(Work.DATA, 8)
    noted = found.seen().stepped_at
    assert noted is not None
    assert before <= noted <= time.time()
    assert found.version == version + 1
    found.at(Work.FORWARD, 8)
    found.at(Work.DATA, 9)
    assert (found.seen().stepped_at, found.version) == (noted, version + 1)
    joined(found, group(2, position=Position(9)), Position(9))
    found.at(Work.DATA, 9)
    assert found.seen().stepped_at is None


def test_where_a_group_begins_that_reads_a_checkpoint_is_where_its_first_step_is() -> None:
    found = link()
    joined(found, group(1))
    found.at(Work.JOIN, 0)
    found.at(Work.DATA, 50)
    found.at(Work.FORWARD, 50)
    assert found.seen().stepped_at is None
    found.at(Work.DATA, 51)
    assert found.seen().stepped_at is not None


def test_the_version_changes_with_what_a_controller_wants_to_hear() -> None:
    """It waits for that; signs of life it reads now and then."""
    found = link()
    versions = [found.version]

    def changed() -> bool:
        versions.append(found.version)
        return versions[-1] != versions[-2]

    found.now("building")
    assert changed()
    joined(found, group(1, position=Position(3)))
    assert changed()
    found.at(Work.FORWARD, 3)
    found.give(group(2))
    found.stop = StopMode.PAUSE
    assert not changed()
    found.at(Work.DATA, 4)
    assert changed()
    found.now("done")
    assert changed()


def test_who_waits_for_news_is_woken() -> None:
    changed = threading.Condition()
    found, heard = WorkerLink(changed), threading.Event()

    def wait() -> None:
        with changed:
            changed.wait_for(lambda: found.version != 0, timeout=10)
            heard.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    found.now("failed")
    thread.join(5)
    assert heard.is_set()


def test_a_group_is_cut_by_its_generation() -> None:
    found, cuts = link(), []
    joined(found, group(2))
    found.joining(lambda: cuts.append(2))
    found.cut(1)
    found.cut(3)
    assert cuts == []
    found.cut(2)
    assert cuts == [2]
    joined(found, group(3))
    found.cut(2)
    assert cuts == [2], "the group of 2 is left already"


def test_a_group_may_be_cut_before_it_is_joined() -> None:
    """Else the worker would wait for a peer that is dead until the group's timeout."""
    found, cuts = link(), []
    joined(found, group(2))
    found.cut(2)
    found.joining(lambda: cuts.append(2))
    assert cuts == [2]


def test_a_question_to_regroup_is_about_one_group() -> None:
    found = link()
    found.ask_to_regroup(0)
    assert not found.regroup_requested()
    joined(found, group(1))
    found.ask_to_regroup(1)
    assert found.regroup_requested()
    joined(found, group(2))
    found.ask_to_regroup(1)
    assert not found.regroup_requested(), "it came late"
    found.ask_to_regroup(2)
    assert found.regroup_requested()


def test_what_is_told_never_becomes_less() -> None:
    found = link()
    joined(found, group(1, told_through=20))
    assert found.told_through() == 20
    joined(found, group(2, told_through=8))
    assert found.told_through() == 20


def test_activity_is_the_newest_sign_of_life() -> None:
    found = link()
    found.at(Work.DATA, 4)
    found.at(Work.EXCHANGE, 4)
    time.sleep(0.02)
    activity = found.seen().activity
    assert (activity.work, activity.step) == (Work.EXCHANGE, 4)
    assert 0.02 <= activity.seconds < 5
