"""The commands that follow a job against the real API over HTTP, and what they tell of its findings."""

from __future__ import annotations

import io
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import api.cli.follow
import api.client
from tests.integration.api_service import Service, wait_for
from tests.integration.commands import chainrule, finished, job_file

pytestmark = pytest.mark.integration


@pytest.fixture
def service(commanded: Service) -> Service:
    return commanded


def test_following_a_job_that_is_paused_ends_with_a_code_of_its_own(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on only when somebody resumes it: a script must not wait for that for ever, nor take it for a failure."""
    monkeypatch.setattr(api.cli.follow, "PAUSE_SECONDS", 0.3)
    job_id = service.submit()
    pausing = threading.Timer(0.5, lambda: service.post(f"/v1/jobs/{job_id}/pause"))
    pausing.start()
    result = chainrule("resume", job_id, "--follow")
    pausing.join()
    assert result.exit_code == 4, result.output
    assert f"chainrule resume {job_id}" in result.stdout
    chainrule("kill", job_id)


def test_a_job_that_is_resumed_at_once_is_followed_on(service: Service) -> None:
    job_id = service.submit()
    service.post(f"/v1/jobs/{job_id}/pause")

    def on() -> None:
        time.sleep(0.6)
        service.post(f"/v1/jobs/{job_id}/resume")
        service.run_until(job_id, "succeeded")

    going_on = threading.Thread(target=on)
    going_on.start()
    with api.client.Client.from_environment() as client:
        assert api.cli.follow.follow(client, job_id)["status"] == "succeeded"
    going_on.join()


@pytest.mark.parametrize(
    ("as_json", "ending", "code"), [(False, "succeeded", 0), (True, "succeeded", 0), (True, "cancelled", 1)]
)
def test_following_a_job_to_its_end(service: Service, tmp_path: Path, as_json: bool, ending: str, code: int) -> None:
    """What is shown on the way goes to standard error where a program reads standard output."""
    before = service.job_count()

    def schedule() -> None:
        wait_for(lambda: service.job_count() > before)
        job_id = service.get("/v1/jobs?limit=1").json()["data"][0]["id"]
        if ending == "cancelled":
            service.post(f"/v1/jobs/{job_id}/cancel")
        service.run_until(job_id, ending)

    scheduling = threading.Thread(target=schedule)
    scheduling.start()
    result = chainrule("submit", job_file(tmp_path), "--follow", *(["--json"] if as_json else []))
    scheduling.join(timeout=30)
    assert result.exit_code == code, result.output
    if as_json:
        assert json.loads(result.stdout)["status"] == ending
        assert "was accepted" in result.stderr
    else:
        assert f"): {ending}" in result.stdout
        assert not result.stderr


def test_ctrl_c_ends_the_following_not_the_job(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupted)
    result = chainrule("submit", job_file(tmp_path), "--follow")
    monkeypatch.undo()
    assert result.exit_code == 130
    job_id = result.stdout.split()[0]
    assert f"chainrule cancel {job_id}" in result.stdout
    assert service.get(f"/v1/jobs/{job_id}").json()["status"] == "queued"


def test_following_outlives_an_api_that_is_away(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is restarted within seconds, and a user who has gone home would have lost the display for nothing."""
    job_id = finished(service)
    whole = api.client.Client.get_job
    times = iter([api.client.NoServiceError("away"), api.client.NoServiceError("away"), None])

    def flaky(self: api.client.Client, wanted: str) -> Any:
        if error := next(times, None):
            raise error
        return whole(self, wanted)

    monkeypatch.setattr(api.client.Client, "get_job", flaky)
    with api.client.Client.from_environment() as client:
        assert api.cli.follow.follow(client, job_id)["status"] == "succeeded"


FINDING = {
    "code": "lr_too_high", "severity": "critical", "first_bad_step": 41, "layer": "head", "rank": None,
    "evidence": {"largest_update_ratio": 0.62}, "explanation": "The loss is 11.4. It was 2.3.", "suggestion": "Lower it",
    "consequences": ["dying_relu in act"],
}  # fmt: skip


def tell(service: Service, job_id: str, type: str, step: int) -> None:
    service.tell(job_id, type, {"step": step, "finding": FINDING})
    service.judge(job_id, verdict="critical", sentence=FINDING["explanation"], findings=[FINDING])


def test_health_of_a_sick_job(service: Service) -> None:
    job_id = finished(service)
    tell(service, job_id, "finding.raised", 52)
    result = chainrule("health", job_id)
    assert result.exit_code == 1
    for said in (
        "critical: The loss is 11.4.\n", "lr_too_high (critical), first at step 41, layer head", "0.62 of the weights  (healthy: about 0.001",
        "What helps: Lower it", "Follows from it: dying_relu in act", "step 52  raised   lr_too_high (critical)",
    ):  # fmt: skip
        assert said in result.stdout
    assert json.loads(chainrule("health", job_id, "--json").stdout)["findings"] == [FINDING]


def test_findings_are_told_as_they_come_and_pass(service: Service) -> None:
    """To who follows a job, and to who follows its health; the verdict's event, which says the same, is not."""
    job_id = service.submit()
    tell(service, job_id, "finding.raised", 52)
    tell(service, job_id, "health.verdict", 52)
    tell(service, job_id, "finding.cleared", 90)
    service.run_until(job_id, "succeeded")
    with api.client.Client.from_environment() as client:
        console = Console(file=io.StringIO(), highlight=False, soft_wrap=True)
        api.cli.follow.follow(client, job_id, console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert (
        said.count(
            "step 52: lr_too_high (critical), first at step 41, layer head: The loss is 11.4.\n  What helps: Lower it\n"
        )
        == 1
    )
    assert "step 90: lr_too_high has passed\n" in said
    assert "told" not in said
    followed = chainrule("health", job_id, "--follow").stdout
    assert followed.count("lr_too_high (critical), first at step 41") == 0  # told before, in the history
    assert "step 90  cleared  lr_too_high" in followed
