"""What becomes of a job in which something critical is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from workers.acting import Acting, accept, accepted
from workers.jobfolder import JobFolder
from workers.problems import SpecError
from workers.reports import REASONS, Outcome, ReasonCode, StopMode
from workers.spec import parse_spec
from workers.stopping import Stopping

pytestmark = pytest.mark.unit


def finding(code: str = "exploding_gradient", severity: str = "critical", rank: int | None = None) -> dict[str, Any]:
    return {"code": code, "severity": severity, "rank": rank, "explanation": f"{code} was seen."}


def test_only_what_is_critical_counts_and_only_for_jobs_that_say_so() -> None:
    for wish, findings in (("continue", [finding()]), ("stop", [finding(severity="warning")]), ("stop", [])):
        acting = Acting(wish)  # type: ignore[arg-type]  # one of them
        acting.hear(findings)
        assert not acting.found
    acting = Acting("stop")
    acting.hear([finding("slow_layer", "warning"), finding()])
    assert [each["code"] for each in acting.found] == ["exploding_gradient"]
    assert not acting.pauses
    outcome = acting.outcome("after step 7 of 9")
    assert outcome.message == "stopped after step 7 of 9 because of exploding_gradient: exploding_gradient was seen."
    assert REASONS[outcome.code].status == "failed"


def test_what_was_found_stays_found_until_all_have_stopped() -> None:
    """Would catch a rank that asked the others to stop and then names nothing."""
    acting = Acting("pause")
    acting.hear([finding()])
    acting.hear([])
    assert acting.pauses


def test_a_job_is_paused_once_for_a_finding(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path, "job-1")
    for code, rank in (("exploding_gradient", None), ("rank_differs", 1)):
        acting = Acting("pause", accepted(folder))
        acting.hear([finding(code, rank=rank), finding()])
        outcome = acting.outcome("after step 7")
        assert outcome.code is ReasonCode.CRITICAL_PAUSE
        accept(folder, outcome)
        accept(folder, outcome)  # by a controller that was restarted at its end
    assert accepted(folder) == {("exploding_gradient", None), ("rank_differs", 1)}
    acting = Acting("pause", accepted(folder))
    acting.hear([finding(), finding("rank_differs", rank=1), finding("slow_layer", "warning")])
    assert not acting.found
    acting.hear([finding("slow_layer")])  # it was a warning when the job was resumed: it has become worse
    assert [each["code"] for each in acting.found] == ["slow_layer"]


def test_other_ends_accept_nothing(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path, "job-1")
    accept(folder, Outcome(ReasonCode.CRITICAL_FINDING, "", {"critical": [finding()]}))
    assert accepted(folder) == frozenset()


@pytest.mark.parametrize(
    ("wish", "mode", "ends"),
    [("pause", StopMode.PAUSE, ReasonCode.PAUSED), ("stop", StopMode.CANCEL, ReasonCode.CANCELLED)],
)
def test_scripts_that_were_stopped_end_with_what_was_found(wish: Any, mode: StopMode, ends: ReasonCode) -> None:
    acting, stopping = Acting(wish), Stopping()
    acting.hear([finding()])
    stopping.ask_because(acting.outcome("after step 7"))
    assert stopping.mode is mode
    again = Stopping()
    again.restore(stopping.document())  # by a controller that was restarted meanwhile
    for each in (stopping, again):
        found = each.as_asked(Outcome(ends, "sent SIGTERM", {"signal": 15}))
        assert found.code is acting.outcome("").code
        assert found.detail == {"signal": 15, "critical": [finding()]}
        assert each.as_asked(Outcome(ReasonCode.HUNG, "hangs")).code is ReasonCode.HUNG
        assert each.ended("by force").code is found.code


def test_a_stop_that_was_asked_for_before_stays_what_it_is() -> None:
    acting, stopping = Acting("stop"), Stopping()
    acting.hear([finding()])
    assert stopping.ask(StopMode.PAUSE)
    stopping.ask_because(acting.outcome("after step 7"))
    assert stopping.ended("now").code is ReasonCode.PAUSED
    assert not stopping.ask(StopMode.PAUSE)
    assert stopping.ask(StopMode.KILL)


def test_who_cancels_a_job_that_is_being_paused_has_it_cancelled() -> None:
    """Would catch a cancel that becomes a pause for a finding, from which nobody resumes."""
    acting, stopping = Acting("pause"), Stopping()
    acting.hear([finding()])
    stopping.ask_because(acting.outcome("after step 7"))
    assert stopping.mode is StopMode.PAUSE
    assert stopping.ask(StopMode.CANCEL)
    assert stopping.ended("now").code is ReasonCode.CANCELLED


def test_a_controller_of_an_earlier_version_remembers_no_reason() -> None:
    stopping = Stopping()
    stopping.restore(None)
    assert stopping.mode is None


def test_a_script_that_would_begin_anew_cannot_be_paused() -> None:
    task = {"kind": "script", "code": {"path": "/code"}, "entry": "train.py"}
    for wish, resumable in (("stop", False), ("pause", True)):
        parse_spec({"name": "x", "task": task | {"resumable": resumable}, "health": {"on_critical": wish}})
    with pytest.raises(SpecError, match=r"task\.resumable"):
        parse_spec({"name": "x", "task": task, "health": {"on_critical": "pause"}})
