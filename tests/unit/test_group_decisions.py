"""What a controller concludes: the guilty rank and its cause, never a peer's collateral error."""

from __future__ import annotations

import pytest

from workers.group_decisions import End, GoOn, Recover, Recoveries, Seen, conclude
from workers.reports import Outcome, ReasonCode
from workers.worker import Failure

pytestmark = pytest.mark.unit

DONE = Outcome(ReasonCode.COMPLETED, "all steps done")
CLOSED = Failure(ReasonCode.USER_ERROR, "RuntimeError: Connection closed by peer", "...", collateral=True)
OWN = Failure(ReasonCode.USER_ERROR, "ValueError: wrong", "Traceback ...", collateral=False)


def seen(**parts: object) -> Seen:
    return Seen(**({"world_size": 2, "done": {}, "failed": {}, "dead": {}} | parts))  # type: ignore[arg-type]


def test_nothing_happened() -> None:
    assert conclude(seen()) == GoOn()
    assert conclude(seen(done={0: DONE})) == GoOn(), "rank 1 has still something to tell"


def test_all_done() -> None:
    assert conclude(seen(done={0: DONE, 1: DONE})) == End(DONE)


def test_a_death_after_rank_0_is_done_changes_nothing() -> None:
    assert conclude(seen(done={0: DONE}, dead={1: "killed"})) == End(DONE)
    assert conclude(seen(done={1: DONE}, dead={0: "killed"})) == Recover({0: "killed"})


def test_an_own_error_ends_the_job_with_rank_and_traceback() -> None:
    end = conclude(seen(failed={0: CLOSED, 1: OWN}))
    assert isinstance(end, End)
    assert end.outcome.message == "rank 1: ValueError: wrong"
    assert end.outcome.detail == {"rank": 1, "traceback": "Traceback ..."}


def test_peers_errors_wait_for_the_death_that_they_tell_of() -> None:
    early = seen(failed={0: CLOSED}, seconds_since_first_failure=0.5)
    assert conclude(early) == GoOn()
    assert conclude(seen(failed={0: CLOSED}, dead={1: "killed"})) == Recover({1: "killed"})
    assert isinstance(conclude(seen(failed={0: CLOSED}, seconds_since_first_failure=4.0)), Recover)


def test_recoveries_are_limited_only_when_they_lead_nowhere() -> None:
    recoveries = Recoveries()
    for step in range(100):
        recoveries = recoveries.another(step)
        assert recoveries.exhausted(3, {1: "killed"}) is None
    for _ in range(2):
        recoveries = recoveries.another(99)
    outcome = recoveries.exhausted(3, {1: "killed"})
    assert outcome is not None
    assert outcome.code is ReasonCode.NO_PROGRESS
    assert "rank 1: killed" in outcome.message
    assert recoveries.total == 102
