"""From which checkpoint a paused job goes on: what the API takes, what the scheduler passes on, what real workers do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from tests.integration.api_service import Service, error_of, running_service
from tests.integration.groups import long
from workers import launcher
from workers.acting import accepted
from workers.checkpoint_folders import Manifest, folder_of, stored, write_manifest
from workers.reports import Outcome, ReasonCode, StopMode

pytestmark = pytest.mark.integration


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with running_service(tmp_path, steps=None) as running:
        yield running


def paused_job(service: Service, code: ReasonCode = ReasonCode.CRITICAL_PAUSE) -> str:
    job = service.submit()
    service.run_until(job, "running")
    service.cluster.finish(f"{job}.1", Outcome(code, "paused after step 7 because of loss_spike: it jumped."))
    service.run_until(job, "paused")
    return job


def saved(service: Service, job: str, step: int, verdict: str) -> None:
    folder = folder_of(UPath(service.folder(job).checkpoints_root), step, 100_001)
    folder.mkdir(parents=True)
    files = tuple(stored(name, b"x") for name in ("state.json", ".metadata"))
    write_manifest(Manifest(folder, step, 100_001, time.time(), 1, {"eval/loss": 0.5}, verdict, files))


def healthy_from(service: Service, job: str) -> int:
    service.run_until(job, "running")
    controllers = service.cluster.controllers
    return controllers[max(name for name in controllers if name.startswith(job))].launch.healthy_from


def test_after_a_critical_pause_it_goes_on_from_the_last_healthy_one(service: Service) -> None:
    job = paused_job(service)
    shown = service.get(f"/v1/jobs/{job}").json()
    assert (shown["status"], shown["reason"]["code"], shown["reason"]["whose"]) == (
        "paused",
        "critical_pause",
        "numerics",
    )
    assert "loss_spike" in shown["reason"]["message"]
    assert service.post(f"/v1/jobs/{job}/resume").json()["status"] == "queued"
    assert healthy_from(service, job) == 2
    (told,) = (e for e in service.get(f"/v1/jobs/{job}/events").json()["data"] if e["type"] == "job.resume_requested")
    assert (told["message"], told["data"]) == (
        "resume was requested, from the last healthy checkpoint",
        {"from": "healthy"},
    )


def test_after_other_pauses_from_the_newest(service: Service) -> None:
    job = paused_job(service, ReasonCode.STORAGE_FULL)
    service.post(f"/v1/jobs/{job}/resume")
    assert healthy_from(service, job) == 0


def test_the_user_may_choose(service: Service) -> None:
    job = paused_job(service)
    service.post(f"/v1/jobs/{job}/resume", json={"from": "latest"})
    assert healthy_from(service, job) == 0
    other = paused_job(service, ReasonCode.STORAGE_FULL)
    saved(service, other, 10, "healthy")
    saved(service, other, 20, "critical")
    listed = service.get(f"/v1/jobs/{other}/checkpoints").json()["data"]
    assert [(each["step"], each["verdict"]) for each in listed] == [(10, "healthy"), (20, "critical")]
    assert service.post(f"/v1/jobs/{other}/resume", json={"from": "healthy"}).status_code == 200
    assert healthy_from(service, other) == 2


def test_a_healthy_one_must_be_there(service: Service) -> None:
    job = paused_job(service)
    answer = service.post(f"/v1/jobs/{job}/resume", json={"from": "healthy"})
    assert answer.status_code == 409
    assert "it has none at all" in error_of(answer)["message"]
    saved(service, job, 20, "critical")
    assert (
        "step 20 is critical" in error_of(service.post(f"/v1/jobs/{job}/resume", json={"from": "healthy"}))["message"]
    )
    assert service.get(f"/v1/jobs/{job}").json()["status"] == "paused"


@pytest.mark.parametrize("body", [{"from": "best"}, {"start": "healthy"}, {"from": 7}, []], ids=str)
def test_bad_choices_are_named(service: Service, body: Any) -> None:
    job = paused_job(service)
    answer = service.post(f"/v1/jobs/{job}/resume", json=body)
    assert answer.status_code == 422, answer.text
    assert service.get(f"/v1/jobs/{job}").json()["status"] == "paused"


@pytest.mark.usefixtures("ray_driver")
def test_real_workers_are_paused_and_go_back_to_where_all_was_well(groups: Any) -> None:
    """The rate climbs until training diverges."""
    spec = long(
        training={"steps": 4000, "batch_size": 96},
        optimizer={"name": "sgd", "learning_rate": 60},
        schedule={"name": "constant", "warmup_steps": 4000},
        checkpoint={"every_steps": 20, "keep_last": 200},
        evaluation={"every_steps": 4000},
        health={"on_critical": "pause"},
    )
    first = groups(spec)
    end = first.finished()
    assert end.outcome.code is ReasonCode.CRITICAL_PAUSE, end.outcome
    assert len({event.data["step"] for event in first.events("training.finished")}) == 1, "both after the same step"
    found = end.outcome.detail["critical"][0]
    assert found["code"] in end.outcome.message
    assert (found["code"], found.get("rank")) in accepted(first.folder)
    kept = {each.step: each.verdict for each in first.folder.checkpoints()}
    assert all(verdict == "critical" for step, verdict in kept.items() if step >= found["first_bad_step"]), kept
    healthy = max(step for step, verdict in kept.items() if verdict == "healthy")
    second = groups(spec, job_id=first.job_id, number=2, healthy_from=2)
    second.until("its start", lambda _: second.events("training.resumed"))
    (resumed,) = second.events("training.resumed")
    assert (resumed.data["step"], resumed.data["verdict"]) == (healthy, "healthy")
    launcher.stop(second.name, StopMode.KILL)
    second.finished()
