"""What was done to a job that failed, over REST and the command line, and asking for it to be undone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service import usage
from service.values import Caller, Role
from tests.integration.api_service import Service, error_of, running_service
from workers.jobfolder import JobFolder, append_lines
from workers.repair.acts import Act, Entry
from workers.repair.requests import asked

pytestmark = pytest.mark.integration

FINDING = {
    "code": "lr_too_high", "severity": "critical", "first_bad_step": 41, "layer": "head", "rank": None,
    "evidence": {"loss": 11.4}, "explanation": "The loss is 11.4.", "suggestion": "Lower it", "consequences": [],
}  # fmt: skip


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("home"), steps=None) as running:
        yield running


@pytest.fixture
def job(service: Service) -> Iterator[str]:
    job_id = service.submit(health={"mode": "repair", "allow": ["live", "architecture"]})
    service.run_until(job_id, "running")
    yield job_id
    service.post(f"/v1/jobs/{job_id}/kill")
    service.run_until(job_id, "cancelled")


def entry(number: int, state: Any = "trial", **of_act: Any) -> dict[str, Any]:
    act = Act(
        number, 54, "lr_too_high", "live", "multiplies the learning rate by 0.02", rewind=48, rate=0.02, probation=30
    )
    found = Entry(Act(**{**act.document(), **of_act}), state, FINDING, {"train/loss": 11.4})
    if state != "trial":
        found.after, found.ended = {"train/loss": 0.83}, 84
    return found.document()


def told(service: Service, job: str, type: str, repair: dict[str, Any]) -> None:
    service.tell(job, f"repair.{type}", {"step": 54, "repair": repair})


def test_a_job_to_which_nothing_was_done(service: Service, job: str) -> None:
    assert service.get(f"/v1/jobs/{job}/repairs").json() == {
        "object": "job.repairs", "job_id": job, "mode": "repair", "allow": ["live", "architecture"], "repairs": [],
        "skipped_updates": 0, "not_repaired": [], "lost_steps": 0, "lost_worker_hours": 0.0, "saved_worker_hours": 0.0,
    }  # fmt: skip
    other = service.submit()
    assert service.get(f"/v1/jobs/{other}/repairs").json()["allow"] == []
    service.post(f"/v1/jobs/{other}/kill")


def test_each_repair_is_as_it_was_told_last(service: Service, job: str) -> None:
    told(service, job, "done", entry(1))
    told(service, job, "taken_back", entry(1, "taken_back"))
    told(service, job, "done", entry(2, instead_of=1))
    told(service, job, "kept", entry(2, "kept", instead_of=1))
    service.tell(job, "repair.skipped", {"step": 60, "skipped": 10})
    service.tell(job, "repair.none", {"step": 70, "code": "label_error"})
    service.tell(job, "repair.none", {"step": 70, "code": "vanishing_gradient"})
    service.judge(job, verdict="warning", sentence="", findings=[{**FINDING, "code": "label_error"}])
    found = service.get(f"/v1/jobs/{job}/repairs", headers=service.key_of(Role.VIEWER)).json()
    assert [(each["number"], each["state"], each["instead_of"]) for each in found["repairs"]] == [
        (1, "taken_back", None), (2, "kept", 1)
    ]  # fmt: skip
    second = found["repairs"][1]
    assert (second["step"], second["rewind"], second["rate"], second["code"]) == (54, 48, 0.02, "lr_too_high")
    assert (second["before"], second["after"], second["ended"]) == ({"train/loss": 11.4}, {"train/loss": 0.83}, 84)
    assert second["finding"]["explanation"] == "The loss is 11.4."
    assert found["skipped_updates"] == 10
    assert found["not_repaired"] == ["told"], "what has passed needs no repair"
    assert service.get(f"/v1/jobs/{job}/repairs", headers=service.key_of(Role.ADMIN, "elsewhere")).status_code == 404


def test_the_newest_that_holds_is_undone_first(service: Service, job: str) -> None:
    told(service, job, "kept", entry(1, "kept"))
    told(service, job, "taken_back", entry(2, "taken_back"))
    told(service, job, "done", entry(3))
    refused = service.post(f"/v1/jobs/{job}/repairs/1/undo")
    assert (refused.status_code, error_of(refused)["param"]) == (409, "number")
    assert "repair 3" in error_of(refused)["message"]
    assert "taken back, because it did not help" in error_of(service.post(f"/v1/jobs/{job}/repairs/2/undo"))["message"]
    unknown = service.post(f"/v1/jobs/{job}/repairs/9/undo")
    assert (unknown.status_code, "it has 1, 2, 3" in error_of(unknown)["message"]) == (404, True)
    assert asked(service.folder(job).requests_path, []) == [], "nothing is asked of the job"
    answer = service.post(f"/v1/jobs/{job}/repairs/3/undo")
    assert answer.status_code == 202
    (request,) = asked(service.folder(job).requests_path, [])
    assert (request.id, request.kind, request.number) == (answer.json()["id"], "undo", 3)
    events = service.get(f"/v1/jobs/{job}/events?limit=100").json()["data"]
    assert events[-1]["type"] == "repair.asked"
    assert "undo repair 3" in events[-1]["message"]
    assert service.post(f"/v1/jobs/{job}/repairs/3/undo", headers=service.key_of(Role.VIEWER)).status_code == 403


def test_rate_and_clipping_are_asked_of_a_job_that_runs(service: Service, job: str) -> None:
    spec = service.get(f"/v1/jobs/{job}").json()["spec"]
    answer = service.patch(
        f"/v1/jobs/{job}", json={"optimizer": {"learning_rate": 0.01}, "training": {"clip_norm": 2.0}, "priority": 3}
    )
    assert answer.status_code == 200
    assert answer.json()["priority"] == 3
    assert answer.json()["spec"]["optimizer"] == spec["optimizer"], "as it was submitted"
    (request,) = asked(service.folder(job).requests_path, [])
    assert (request.kind, request.learning_rate, request.clip_norm) == ("steer", 0.01, 2.0)
    assert asked(service.folder(job).requests_path, [request.id]) == []


def test_nothing_is_asked_of_a_job_that_has_ended(service: Service) -> None:
    job = service.submit()
    service.post(f"/v1/jobs/{job}/kill")
    service.run_until(job, "cancelled")
    told(service, job, "done", entry(1))
    refused = service.post(f"/v1/jobs/{job}/repairs/1/undo")
    assert (refused.status_code, error_of(refused)["param"]) == (409, "job_id")
    assert service.patch(f"/v1/jobs/{job}", json={"optimizer": {"learning_rate": 0.1}}).status_code == 409
    assert not service.folder(job).requests_path.exists()


def test_what_a_sickness_has_cost_and_a_repair_saved(service: Service, job: str) -> None:
    """One worker, steps of 3.6 s: lost from the first bad step to the repair, saved from there."""
    rows = [
        {"step": step, "timestamp": 0.0, "values": {"train/loss": 1.0, "train/step_seconds": 3.6}}
        for step in range(1, 101)
    ]
    append_lines(service.folder(job).metrics_path(1), rows)
    service.tell(job, "finding.raised", {"step": 50, "finding": {**FINDING, "first_bad_step": 41}})
    service.tell(job, "finding.cleared", {"step": 60, "finding": FINDING}, "info")
    told(service, job, "done", entry(1, step=60))
    found = service.get(f"/v1/jobs/{job}/repairs").json()
    assert (found["lost_steps"], found["saved_worker_hours"]) == (20, 0.0)
    assert found["lost_worker_hours"] == pytest.approx(0.02)
    told(service, job, "kept", entry(1, "kept", step=60))
    assert service.get(f"/v1/jobs/{job}/repairs").json()["saved_worker_hours"] == pytest.approx(0.04)


def test_what_all_jobs_of_a_project_have_cost(service: Service, tmp_path: Path) -> None:
    """Kept in the database: it is still known when a job has ended and its folder is gone. Another project has its own."""
    before = service.get("/v1/usage").json()
    job = service.submit(workers={"count": 2})
    service.run_until(job, "running")
    rows = [
        {"step": step, "timestamp": 0.0, "values": {"train/loss": 1.0, "train/step_seconds": 36.0}}
        for step in range(1, 101)
    ]
    append_lines(service.folder(job).metrics_path(1), rows)

    def added() -> list[Any]:
        now = service.get("/v1/usage").json()
        names = ("trained_worker_hours", "lost_worker_hours", "saved_worker_hours", "lost_steps", "repaired_jobs")
        return [pytest.approx(now[name] - before[name]) for name in names]

    assert added() == [2.0, 0.0, 0.0, 0, 0]
    service.tell(job, "finding.raised", {"step": 50, "finding": {**FINDING, "first_bad_step": 41}})
    service.tell(job, "finding.cleared", {"step": 60, "finding": FINDING}, "info")
    told(service, job, "done", entry(1, step=60))
    assert added() == [2.0, 0.4, 0.0, 20, 0]
    told(service, job, "kept", entry(1, "kept", step=60))
    assert added() == [2.0, 0.4, 0.8, 20, 1]
    service.post(f"/v1/jobs/{job}/kill")
    service.run_until(job, "cancelled")
    shutil.move(service.folder(job).path, tmp_path)
    assert added() == [2.0, 0.4, 0.8, 20, 1]
    other = service.get("/v1/usage", headers=service.key_of(Role.VIEWER, "another")).json()
    assert (other["project"], other["jobs"], other["trained_worker_hours"]) == ("another", 0, 0.0)


def test_what_a_job_has_cost_is_kept_when_its_attempt_is_over(service: Service) -> None:
    """Nobody asked before its folder was gone."""
    job = service.submit()
    service.run_until(job, "running")
    row = {"step": 1, "timestamp": 0.0, "values": {"train/loss": 1.0, "train/step_seconds": 7200.0}}
    append_lines(service.folder(job).metrics_path(1), [row])
    before = usage.of_project(
        service.store, Caller("key", "default", Role.VIEWER), lambda _: JobFolder(Path("/nowhere"), job)
    )
    service.post(f"/v1/jobs/{job}/kill")
    service.run_until(job, "cancelled")
    for _ in range(5):
        service.run_pass()
    shutil.rmtree(service.folder(job).path)
    assert service.get("/v1/usage").json()["trained_worker_hours"] >= before.trained_seconds / 3600 + 2.0
