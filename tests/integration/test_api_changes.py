"""Jobs that are changed in their course over HTTP, who worked for them, and nodes that are taken out of use."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from service.values import Role
from tests.integration.api_service import DIGITS, Service, error_of, running_service

pytestmark = pytest.mark.integration


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with running_service(tmp_path, steps=None) as running:
        yield running


def running_job(service: Service, **fields: Any) -> str:
    job = service.submit(**fields)
    service.run_until(job, "running")
    return job


def test_a_job_is_paused_and_goes_on(service: Service) -> None:
    job = running_job(service)
    for _ in range(2):  # the second changes nothing
        answer = service.post(f"/v1/jobs/{job}/pause")
        assert (answer.status_code, answer.json()["status"]) == (200, "pausing")
    service.run_until(job, "paused")
    paused = service.get(f"/v1/jobs/{job}").json()
    assert (paused["reason"]["code"], paused["finished_at"], paused["workers"]) == ("paused", None, [])
    assert service.get("/v1/cluster").json()["used"]["cpus"] == 0, "everything is free"
    for _ in range(2):
        assert service.post(f"/v1/jobs/{job}/resume").json()["status"] == "queued"
    service.run_until(job, "running")
    events = service.get(f"/v1/jobs/{job}/events").json()["data"]
    types = [event["type"] for event in events]
    assert types.count("job.pause_requested") == types.count("job.resume_requested") == 1
    first, second = service.get(f"/v1/jobs/{job}/attempts").json()["data"]
    assert (first["status"], first["reason"]["code"]) == ("paused", "paused")
    assert (second["number"], second["status"], second["reason"]) == (2, "running", None)


def test_a_job_in_the_queue_leaves_it_and_comes_back(service: Service) -> None:
    job = service.submit()
    paused = service.post(f"/v1/jobs/{job}/pause").json()
    assert (paused["status"], paused["reason"]["code"], paused["finished_at"]) == ("paused", "paused", None)
    assert service.get("/v1/jobs?status=paused").json()["data"][0]["id"] == job
    service.run_pass()
    assert service.get(f"/v1/jobs/{job}").json()["status"] == "paused", "nobody asked for it to go on"
    again = service.post(f"/v1/jobs/{job}/resume").json()
    assert (again["status"], again["reason"]) == ("queued", None)
    service.run_until(job, "running")


@pytest.mark.parametrize("action", ["pause", "resume"])
def test_what_has_ended_or_is_ending_cannot_be_paused_or_resumed(service: Service, action: str) -> None:
    job = running_job(service)
    service.post(f"/v1/jobs/{job}/cancel")
    for status in ("cancelling", "cancelled"):
        service.run_until(job, status)
        answer = service.post(f"/v1/jobs/{job}/{action}")
        assert answer.status_code == 409
        assert error_of(answer)["code"] == "conflict"
        assert answer.headers["x-should-retry"] == "false"


def test_a_job_is_changed_while_it_runs(service: Service) -> None:
    job = running_job(service, metadata={"team": "a", "run": "7"})
    answer = service.patch(
        f"/v1/jobs/{job}", json={"priority": 5, "metadata": {"team": "b"}, "workers": {"min": 1, "max": 2}}
    )
    assert answer.status_code == 200, answer.text
    changed = service.get(f"/v1/jobs/{job}").json()
    assert changed == answer.json() | {"progress": changed["progress"], "latest": changed["latest"]}
    assert (changed["priority"], changed["metadata"], changed["status"]) == (5, {"team": "b"}, "running")
    workers = changed["spec"]["workers"]
    assert (workers["count"], workers["min"], workers["max"], workers["cpus"]) == (None, 1, 2, 1.0)
    fixed = service.patch(f"/v1/jobs/{job}", json={"workers": {"count": 2}}).json()
    assert (fixed["spec"]["workers"]["count"], fixed["spec"]["workers"]["min"], fixed["priority"]) == (2, None, 5)
    as_yaml = service.patch(f"/v1/jobs/{job}", content="priority: -3", headers={"Content-Type": "application/yaml"})
    assert as_yaml.json()["priority"] == -3


def test_a_job_that_has_ended_takes_metadata_only(service: Service) -> None:
    job = running_job(service)
    service.post(f"/v1/jobs/{job}/kill")
    service.run_until(job, "cancelled")
    assert service.patch(f"/v1/jobs/{job}", json={"metadata": {"kept": "no"}}).json()["metadata"] == {"kept": "no"}
    for change in ({"priority": 1}, {"workers": {"count": 2}}):
        answer = service.patch(f"/v1/jobs/{job}", json=change)
        assert answer.status_code == 409
        assert error_of(answer)["code"] == "conflict"


def test_who_worked_and_what_was_recovered(service: Service) -> None:
    before = datetime.now(UTC)
    job = running_job(service, workers={"count": 2})
    service.cluster.recover(f"{job}.1")
    service.run_until(job, "recovering")
    service.run_until(job, "running")
    (attempt,) = service.get(f"/v1/jobs/{job}/attempts").json()["data"]
    assert (attempt["object"], attempt["number"], attempt["status"], attempt["reason"]) == (
        "job.attempt",
        1,
        "running",
        None,
    )
    assert attempt["workers"] == 3
    (recovery,) = attempt["recoveries"]
    assert service.get(f"/v1/jobs/{job}").json()["recoveries"] == 1
    lost_at = datetime.fromisoformat(recovery.pop("lost_at"))
    assert before <= lost_at + timedelta(seconds=1) <= before + timedelta(minutes=1)
    assert recovery == {"ranks": [1], "cause": "killed", "step": recovery["step"], "source": "memory", "seconds": 1.0}

    page = service.get(f"/v1/jobs/{job}/workers").json()
    assert (page["object"], page["has_more"]) == ("list", False)
    lost, *at_work = page["data"]
    assert len({worker["id"] for worker in page["data"]}) == 3
    assert (lost["object"], lost["job_id"], lost["attempt"], lost["rank"]) == ("job.worker", job, 1, 1)
    assert (lost["node"], lost["node_id"], lost["device"]) == ("10.0.0.1", "node-0", "cpu")
    assert (lost["state"], lost["why"]) == ("lost", "killed")
    for moment in (lost["started_at"], lost["ended_at"]):
        assert before - timedelta(seconds=1) <= datetime.fromisoformat(moment) <= before + timedelta(minutes=1)
    assert [(worker["rank"], worker["state"], worker["ended_at"]) for worker in at_work] == [
        (0, "running", None), (1, "running", None),
    ]  # fmt: skip
    shown = service.get(f"/v1/jobs/{job}").json()["workers"]
    assert [(worker["pid"], worker["node_id"]) for worker in shown] == [(each["pid"], "node-0") for each in at_work]

    for query, count in (
        ("attempt=1", 3),
        ("state=running", 2),
        ("attempt=1&state=lost", 1),
        ("attempt=2", 0),
        ("state=left", 0),
    ):
        assert len(service.get(f"/v1/jobs/{job}/workers?{query}").json()["data"]) == count, query
    service.post(f"/v1/jobs/{job}/kill")
    service.run_until(job, "cancelled")
    (attempt,) = service.get(f"/v1/jobs/{job}/attempts").json()["data"]
    assert (attempt["status"], attempt["reason"]["code"]) == ("cancelled", "killed")


def test_a_node_is_taken_out_of_use_and_put_back(service: Service) -> None:
    service.run_pass()
    for reason in ("new memory on Monday", "new memory on Tuesday"):
        (node,) = service.post("/v1/cluster/nodes/node-0/cordon", json={"reason": reason}).json()["nodes"]
        assert (node["draining"], node["cordoned"], node["reason"]) == (True, True, reason)
        assert node["cordoned_at"].endswith("Z")
    assert service.get("/v1/cluster").json()["nodes"] == [node]
    job = service.submit()
    service.run_pass()
    assert service.get(f"/v1/jobs/{job}").json()["status"] == "queued", "nothing new goes there"
    for _ in range(2):
        (node,) = service.post("/v1/cluster/nodes/node-0/uncordon").json()["nodes"]
        assert (node["draining"], node["cordoned"], node["reason"], node["cordoned_at"]) == (False, False, None, None)
    service.run_until(job, "running")
    assert service.post("/v1/cluster/nodes/node-0/cordon").status_code == 200, "a body is not needed"


def test_roles_and_projects(service: Service) -> None:
    service.run_pass()
    job = service.submit()
    viewer, member, admin = (service.key_of(role) for role in (Role.VIEWER, Role.MEMBER, Role.ADMIN))
    outsider = service.key_of(Role.ADMIN, project="another")
    changes = [("POST", f"/v1/jobs/{job}/pause"), ("POST", f"/v1/jobs/{job}/resume"), ("PATCH", f"/v1/jobs/{job}")]
    nodes = [("POST", "/v1/cluster/nodes/node-0/cordon"), ("POST", "/v1/cluster/nodes/node-0/uncordon")]

    def status(method: str, path: str, headers: dict[str, str]) -> int:
        body: Any = {"json": {"priority": 1}} if method == "PATCH" else {}
        code: int = service.client.request(method, path, headers=headers, **body).status_code
        return code

    for each in changes:
        assert [status(*each, who) for who in (viewer, member, admin, outsider)] == [403, 200, 200, 404], each
    for each in nodes:
        assert [status(*each, who) for who in (viewer, member, admin)] == [403, 403, 200], each
    for path in (f"/v1/jobs/{job}/attempts", f"/v1/jobs/{job}/workers"):
        assert [status("GET", path, who) for who in (viewer, outsider)] == [200, 404], path
    refused = service.client.patch(f"/v1/jobs/{job}", headers=viewer, content=b"junk")
    assert error_of(refused)["code"] == "forbidden", "who may not do it need not hear what is wrong with the body"


def test_every_change_answers_before_a_scheduler_is_there(service: Service) -> None:
    job = service.post("/v1/jobs", json=DIGITS).json()["id"]
    assert service.patch(f"/v1/jobs/{job}", json={"priority": 1}).json()["priority"] == 1
    assert service.post("/v1/cluster/nodes/node-0/cordon").status_code == 404, "no node is known yet"
