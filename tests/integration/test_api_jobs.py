"""Jobs over HTTP: submit, list, follow through their life, cancel, kill; keys, roles and projects."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.settings import Settings
from service.values import Role
from tests.helpers import free_port
from tests.integration.api_service import DIGITS, Service, error_of, running_service

pytestmark = pytest.mark.integration


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with running_service(tmp_path) as running:
        yield running


def test_a_job_lives_from_queued_to_succeeded(service: Service) -> None:
    created = service.post("/v1/jobs", json=DIGITS)
    assert created.status_code == 201
    job = created.json()
    assert created.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["object"], job["status"], job["attempt"], job["reason"]) == ("job", "queued", 0, None)
    assert job["spec"]["training"]["batch_size"] == 128  # defaults are filled in
    service.run_until(job["id"], "running")
    running = service.get(f"/v1/jobs/{job['id']}").json()
    assert running["attempt"] == 1
    assert running["started_at"].endswith("Z")
    service.run_until(job["id"], "succeeded")
    done = service.get(f"/v1/jobs/{job['id']}").json()
    assert done["reason"] == {"code": "completed", "message": "all steps done", "whose": "nobody", "retryable": False}
    assert set(done["progress"]) == {"step", "steps", "epoch", "eta_seconds", "samples_per_second"}
    assert done["latest"]["train/loss"] == pytest.approx(0.25)
    assert set(done["links"]) == {"mlflow", "dashboard"}
    attempts = service.get(f"/v1/jobs/{job['id']}/attempts").json()
    assert [attempt["number"] for attempt in attempts["data"]] == [1]
    assert attempts["data"][0]["reason"]["code"] == "completed"


def test_the_same_job_as_yaml(service: Service) -> None:
    body = (
        "name: digits\ntask: {kind: image_classification, data: {source: digits}}\noptimizer: {learning_rate: 1e-3}\n"
    )
    created = service.post("/v1/jobs", content=body, headers={"Content-Type": "application/x-yaml; charset=utf-8"})
    assert created.status_code == 201, created.text
    assert created.json()["spec"]["optimizer"]["learning_rate"] == 0.001


def test_every_problem_is_told_at_once(service: Service) -> None:
    wrong = DIGITS | {"is_admin": True, "training": {"batch_size": "7", "epochs": 0}, "workers": {"count": 10**6}}
    answer = service.post("/v1/jobs", json=wrong)
    assert answer.status_code == 422
    error = error_of(answer)
    assert {problem["path"] for problem in error["problems"]} == {
        "is_admin", "training.batch_size", "training.epochs", "workers.count",
    }  # fmt: skip
    assert all(problem["path"] in error["message"] for problem in error["problems"])
    assert error["param"] == error["problems"][0]["path"]
    assert service.job_count() == 0


def test_lists_come_in_pages(service: Service) -> None:
    jobs = [service.submit(name=f"job {number}") for number in range(5)]
    seen: list[str] = []
    page = service.get("/v1/jobs?limit=2").json()
    while True:
        assert page["object"] == "list"
        assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
        seen += [job["id"] for job in page["data"]]
        if not page["has_more"]:
            break
        page = service.get(f"/v1/jobs?limit=2&after={page['last_id']}").json()
    assert seen == jobs[::-1]  # newest first, none twice, none left out
    oldest = service.get("/v1/jobs?order=asc&limit=2").json()["data"]
    assert [job["id"] for job in oldest] == jobs[:2]
    assert [job["id"] for job in service.get("/v1/jobs?name=job 3").json()["data"]] == [jobs[3]]
    service.post(f"/v1/jobs/{jobs[4]}/kill")
    service.run_until(jobs[4], "cancelled")
    cancelled = service.get("/v1/jobs?status=cancelled").json()
    assert [job["id"] for job in cancelled["data"]] == [jobs[4]]
    assert service.get("/v1/jobs?name=nobody").json() == {
        "object": "list", "data": [], "has_more": False, "first_id": None, "last_id": None,
    }  # fmt: skip


@pytest.mark.parametrize(("action", "code"), [("cancel", "cancelled"), ("kill", "killed")])
def test_stopping_a_running_job(service: Service, action: str, code: str) -> None:
    service.cluster.steps = None
    job = service.submit()
    service.run_until(job, "running")
    answer = service.post(f"/v1/jobs/{job}/{action}")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelling")
    service.run_until(job, "cancelled")
    ended = service.get(f"/v1/jobs/{job}").json()
    assert ended["reason"]["code"] == code
    for again in ("cancel", "kill"):  # after the end: 200, and nothing changes
        answer = service.post(f"/v1/jobs/{job}/{again}")
        assert (answer.status_code, answer.json()) == (200, ended)


def test_an_idempotency_key_makes_one_job(service: Service) -> None:
    headers = {"Idempotency-Key": "nightly-1"}
    first = service.post("/v1/jobs", json=DIGITS, headers=headers)
    # The same meaning in another layout is the same request.
    text = '{ "task": {"data": {"source": "digits"}, "kind": "image_classification"}, "name": "digits" }'
    second = service.post("/v1/jobs", content=text, headers=headers | {"Content-Type": "application/json"})
    assert first.status_code == second.status_code == 201
    assert first.json()["id"] == second.json()["id"]
    other = service.post("/v1/jobs", json=DIGITS | {"name": "other"}, headers=headers)
    assert other.status_code == 409
    assert other.headers["x-should-retry"] == "false"
    assert error_of(other)["code"] == "idempotency_key_reused"
    assert service.job_count() == 1


def test_concurrent_requests_with_one_key_make_one_job(service: Service) -> None:
    def create(_: int) -> str:
        return str(service.post("/v1/jobs", json=DIGITS, headers={"Idempotency-Key": "same"}).json()["id"])

    with ThreadPoolExecutor(8) as threads:
        made = set(threads.map(create, range(16)))
    assert len(made) == 1
    assert service.job_count() == 1


def test_foreign_jobs_do_not_exist(service: Service) -> None:
    job = service.submit()
    stranger = service.key_of(Role.ADMIN, project="other")
    absent = service.client.get("/v1/jobs/job-000000000000000000000000", headers=stranger)
    for method, suffix in [
        ("GET", ""), ("POST", "/cancel"), ("POST", "/kill"), ("GET", "/events"), ("GET", "/events?stream=true"),
        ("GET", "/logs"), ("GET", "/metrics"), ("GET", "/gradients"), ("GET", "/checkpoints"), ("GET", "/attempts"),
        ("GET", "/model"), ("GET", "/model/files/model.safetensors"), ("GET", "/checkpoints/ckpt-0000000001/files/x"),
    ]:  # fmt: skip
        answer = service.client.request(method, f"/v1/jobs/{job}{suffix}", headers=stranger)
        assert answer.status_code == 404, suffix
        assert error_of(answer)["code"] == error_of(absent)["code"] == "not_found"
    assert service.client.get("/v1/jobs", headers=stranger).json()["data"] == []
    after = service.client.get(f"/v1/jobs?after={job}", headers=stranger)
    assert after.status_code == 400
    assert service.get(f"/v1/jobs/{job}").json()["status"] == "queued"


def test_a_viewer_looks_and_a_member_acts(service: Service) -> None:
    job = service.submit()
    viewer, member = service.key_of(Role.VIEWER), service.key_of(Role.MEMBER)
    assert service.client.get(f"/v1/jobs/{job}", headers=viewer).status_code == 200
    for path in ("/v1/jobs", f"/v1/jobs/{job}/cancel", f"/v1/jobs/{job}/kill"):
        answer = service.client.post(path, headers=viewer, json=DIGITS)
        assert answer.status_code == 403
        assert error_of(answer)["type"] == "permission_error"
    for path in ("model/files/a", "checkpoints/ckpt-0000000001/files/a"):
        assert service.client.get(f"/v1/jobs/{job}/{path}", headers=viewer).status_code == 403
    assert service.client.post("/v1/jobs", headers=member, json=DIGITS).status_code == 201
    assert service.client.post(f"/v1/jobs/{job}/cancel", headers=member).status_code == 200


def test_a_revoked_key_opens_nothing(service: Service) -> None:
    from service.keys import create_key, revoke_key

    key, secret = create_key(service.store, name="short-lived", role=Role.MEMBER)
    headers = {"Authorization": f"Bearer {secret}"}
    assert service.client.get("/v1/jobs", headers=headers).status_code == 200
    revoke_key(service.store, key.id)
    assert service.client.get("/v1/jobs", headers=headers).status_code == 401


def test_more_workers_than_the_cluster_has_are_refused(service: Service) -> None:
    service.run_pass()  # from now on the size of the cluster is known: two processors
    answer = service.post("/v1/jobs", json=DIGITS | {"workers": {"count": 3}})
    assert answer.status_code == 422
    assert error_of(answer)["param"] == "workers"
    assert service.job_count() == 0


def test_events_in_pages_and_both_directions(service: Service) -> None:
    job = service.submit()
    service.run_until(job, "succeeded")
    everything = service.get(f"/v1/jobs/{job}/events").json()
    assert [event["sequence"] for event in everything["data"]] == list(range(1, len(everything["data"]) + 1))
    assert everything["data"][0]["type"] == "job.created"
    statuses = [event["data"]["to"] for event in everything["data"] if event["type"] == "job.status"]
    assert statuses[-1] == "succeeded"
    page = service.get(f"/v1/jobs/{job}/events?limit=2").json()
    assert page["has_more"] is True
    for after in (page["last_id"], "2"):  # an id and a sequence number mean the same
        rest = service.get(f"/v1/jobs/{job}/events?after={after}").json()
        assert rest["data"] == everything["data"][2:]
        assert rest["has_more"] is False
    newest = service.get(f"/v1/jobs/{job}/events?order=desc&limit=1").json()
    assert newest["data"] == everything["data"][-1:]


def test_the_cluster_is_shown_as_the_scheduler_saw_it(service: Service) -> None:
    before = service.get("/v1/cluster").json()
    assert before["reachable"] is False
    assert service.client.get("/readyz").status_code == 503
    service.run_pass()
    after = service.get("/v1/cluster").json()
    assert after["reachable"] is True
    assert after["scheduler"]["alive"] is True
    assert after["nodes"] == [
        {
            "id": "node-0", "address": "10.0.0.1", "total": {"cpus": 2.0, "gpus": 0.0, "memory": 2**33},
            "draining": False, "cordoned": False, "reason": None, "cordoned_at": None,
        }
    ]  # fmt: skip
    ready = service.client.get("/readyz")
    assert (ready.status_code, ready.json()["ready"]) == (200, True)


def test_readiness_names_what_is_missing(service: Service) -> None:
    answer = service.client.get("/readyz")
    assert answer.status_code == 503
    assert error_of(answer)["code"] == "not_ready"
    checks = answer.json()["checks"]
    assert {part: check["ok"] for part, check in checks.items()} == {
        "database": True, "scheduler": False, "cluster": False,
    }  # fmt: skip
    assert service.client.get("/healthz").status_code == 200


def test_readiness_tells_of_mlflow_and_does_not_need_it(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, mlflow_url=f"http://127.0.0.1:{free_port()}")
    with running_service(tmp_path, settings=settings) as service:
        service.run_pass()
        answer = service.client.get("/readyz")
        assert (answer.status_code, answer.json()["ready"]) == (200, True)
        tracking = answer.json()["checks"]["tracking"]
        assert tracking["ok"] is False
        assert "MLflow does not answer" in tracking["message"]
        assert str(settings.mlflow_url) not in answer.text


def test_metrics_for_operators(service: Service) -> None:
    job = service.submit()
    service.get(f"/v1/jobs/{job}")
    assert service.client.get("/metrics").status_code == 401
    text = service.get("/metrics").text
    assert 'chainrule_http_requests_total{method="POST",route="/v1/jobs",status="201"} 1.0' in text
    assert 'chainrule_http_requests_total{method="GET",route="/v1/jobs/{job_id}",status="200"} 1.0' in text
    assert 'chainrule_jobs{status="queued"} 1.0' in text
    assert "chainrule_open_streams 0.0" in text
    assert job not in text
