"""The life of a job as a table."""

from __future__ import annotations

import pytest

from service.states import ENDS, TRANSITIONS, reason_summary
from service.values import Reason, Status
from workers.reports import REASONS, ReasonCode

pytestmark = pytest.mark.unit


def reachable(start: Status) -> set[Status]:
    found, ahead = {start}, [start]
    while ahead:
        for status in TRANSITIONS[ahead.pop()] - found:
            found.add(status)
            ahead.append(status)
    return found


def test_every_status_has_its_row_and_can_be_reached() -> None:
    assert set(TRANSITIONS) == set(Status)
    assert reachable(Status.QUEUED) == set(Status)


def test_every_status_leads_to_an_end_and_ends_lead_nowhere() -> None:
    for status in Status:
        assert status.ended == (status in ENDS) == (not TRANSITIONS[status])
        assert status.ended or {Status.FAILED, Status.CANCELLED} <= TRANSITIONS[status]


def test_no_status_follows_itself() -> None:
    assert all(status not in following for status, following in TRANSITIONS.items())


def test_success_needs_training() -> None:
    before = {status for status, following in TRANSITIONS.items() if Status.SUCCEEDED in following}
    assert before == {Status.RUNNING, Status.RECOVERING, Status.PAUSING, Status.CANCELLING}


def test_a_cancel_is_not_undone() -> None:
    assert TRANSITIONS[Status.CANCELLING] == ENDS


@pytest.mark.parametrize("code", list(ReasonCode))
def test_every_reason_says_whose_matter_it_is(code: ReasonCode) -> None:
    summary = reason_summary(Reason(code, "why", {}))
    assert summary["whose"] == REASONS[code].whose
    status = Status(REASONS[code].status)
    assert status.ended or status is Status.PAUSED
