"""How fast a group moves, seen by somebody who looks now and then."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from workers import pace

pytestmark = pytest.mark.unit


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


def look(found: pace.Pace, clock: Clock, seconds: float, step: int) -> None:
    clock.now += seconds
    found.saw(step)


def test_seconds_a_step_are_the_median_of_what_was_seen(clock: Clock) -> None:
    found = pace.Pace()
    look(found, clock, 30, 1)
    assert found.step_seconds is None, "nobody saw when the first step began"
    look(found, clock, 1, 11)
    assert found.step_seconds == pytest.approx(0.1)
    look(found, clock, 0.5, 11)
    look(found, clock, 0.5, 16)
    assert found.step_seconds == pytest.approx((0.1 + 0.2) / 2)
    look(found, clock, 60, 17)  # an evaluation, say
    look(found, clock, 1, 27)
    assert found.step_seconds == pytest.approx((0.1 + 0.2) / 2)


def test_standing_still(clock: Clock) -> None:
    found = pace.Pace()
    look(found, clock, 2, 0)
    assert found.still_seconds == 2
    look(found, clock, 1, 5)
    assert found.still_seconds == 0
    look(found, clock, 3, 5)
    assert found.still_seconds == 3


def test_what_it_takes_to_form_a_group_is_no_step(clock: Clock) -> None:
    found = pace.Pace()
    look(found, clock, 0.1, 1)
    look(found, clock, 0.1, 2)
    clock.now += 50
    found.restart()
    assert found.still_seconds == 0
    look(found, clock, 7, 3)
    assert found.still_seconds == 0
    look(found, clock, 0.1, 4)
    assert found.step_seconds == pytest.approx(0.1)


def test_a_group_that_does_steps_again_moves(clock: Clock) -> None:
    """Its state came from a checkpoint that is older than what was seen last."""
    found = pace.Pace()
    look(found, clock, 1, 80)
    clock.now += 5
    found.restart()
    look(found, clock, 1, 80)  # told before the loss
    look(found, clock, 9, 50)
    assert found.still_seconds == 0
    look(found, clock, 2, 52)
    assert found.still_seconds == 0
    assert found.step_seconds == pytest.approx(1)
