"""``chainrule up`` and what is done with it: over curl, and while its processes are killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.product import CHAINRULE, Product, environment, wait_until_nothing_is_left
from tests.helpers import wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

LONG: dict[str, Any] = {
    "name": "long",
    "task": {
        "kind": "image_classification",
        "data": {"source": "digits"},
        "model": {"architecture": "mlp", "hidden": [32]},
    },
    "training": {"steps": 3000, "batch_size": 96},
    "workers": {"count": 2},
    "evaluation": {"every_steps": 500},
}


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """One for the module: starting it takes about 8 s. Ended with Ctrl-C, after which nothing may be left."""
    product = Product(tmp_path_factory.mktemp("up") / "home")
    try:
        product.wait_until_ready()
        yield product
    finally:
        product.end(signal.SIGINT)
        wait_until_nothing_is_left(product.home)


def test_everything_through_curl(product: Product) -> None:
    """With nothing but what the OpenAPI page says: submit its example, follow it, read metrics and gradients, cancel another."""
    page = product.curl(f"{product.url}/openapi.json")
    body = page["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]
    example = next(iter(body["examples"].values()))["value"] if "examples" in body else body["example"]
    import json

    job = product.curl(
        "-X", "POST", "-H", "Content-Type: application/json", "-d", json.dumps(example), f"{product.url}/v1/jobs"
    )
    assert job["object"] == "job", job
    address = f"{product.url}/v1/jobs/{job['id']}"
    stream = subprocess.run(
        [
            "curl",
            "-sSN",
            "-m",
            "120",
            "-H",
            f"Authorization: Bearer {product.key}",
            "-H",
            "Accept: text/event-stream",
            f"{address}/events",
        ],
        capture_output=True,
        text=True,
        timeout=150,
        check=True,
    ).stdout
    assert "event: done" in stream
    numbers = [int(line[3:]) for line in stream.splitlines() if line.startswith("id:")]
    assert numbers[: len(set(numbers))] == list(range(1, len(set(numbers)) + 1)), "a hole, or an event told twice"
    assert product.curl(address)["status"] == "succeeded"
    series = product.curl(f"{address}/metrics?keys=train/loss,gradient/norm")["data"]
    assert {item["key"] for item in series} == {"train/loss", "gradient/norm"}
    assert all(item["points"] for item in series)
    matrix = product.curl(f"{address}/gradients?max_points=10")
    assert len(matrix["norms"]) == len(matrix["steps"]) == 10
    assert all(len(row) == len(matrix["layers"]) for row in matrix["norms"])
    assert product.curl(f"{address}/checkpoints")["data"]

    other = product.curl(
        "-X", "POST", "-H", "Content-Type: application/json", "-d", json.dumps(LONG), f"{product.url}/v1/jobs"
    )
    product.until(other["id"], "training", lambda job: job["progress"] and job["progress"]["step"] > 10)
    assert product.curl("-X", "POST", f"{product.url}/v1/jobs/{other['id']}/cancel")["id"] == other["id"]
    ended = product.until(other["id"], "the cancel", lambda job: job["status"] == "cancelled")
    assert ended["reason"]["code"] == "cancelled"
    again = product.curl("-X", "POST", f"{product.url}/v1/jobs/{other['id']}/cancel")
    assert (again["status"], again["finished_at"]) == ("cancelled", ended["finished_at"])


def test_api_and_scheduler_killed_while_a_job_trains(product: Product) -> None:
    """No job lost, none run twice, training never stopped."""
    job = product.http.post("/v1/jobs", json=LONG).json()
    queued = product.http.post(
        "/v1/jobs", json=LONG | {"name": "waits", "training": {"steps": 20, "batch_size": 96}}
    ).json()
    seen = product.until(job["id"], "training", lambda job: job["progress"] and job["progress"]["step"] > 50)
    pids = sorted(worker["pid"] for worker in seen["workers"])
    for role in ("scheduler", "api", "scheduler"):
        before = product.role(role)
        os.kill(before.pid, signal.SIGKILL)
        wait_for(f"a new {role}", lambda role=role, before=before: _another(product, role, before))  # type: ignore[misc]
    seen = product.until(job["id"], "progress", lambda job: job["progress"]["step"] > seen["progress"]["step"] + 50)
    if seen["status"] == "running":
        assert sorted(worker["pid"] for worker in seen["workers"]) == pids
    for each in (job, queued):
        ended = product.until(each["id"], "the end", lambda job: job["status"] in ("succeeded", "failed"), 150)
        assert ended["status"] == "succeeded", ended["reason"]
        assert ended["attempt"] == 1
        events = product.http.get(f"/v1/jobs/{each['id']}/events?limit=100").json()["data"]
        types = [event["type"] for event in events]
        assert types.count("training.started") == 1
        assert types.count("workers.started") == 1
        assert sorted(event["sequence"] for event in events) == list(range(1, len(events) + 1))


def test_only_this_machine_can_reach_anything_of_it(product: Product) -> None:
    """Ray, by itself, listens on every interface, the store at which the workers of a group meet does too."""
    job = product.http.post("/v1/jobs", json=LONG).json()
    seen = product.until(job["id"], "training", lambda job: job["progress"] and job["progress"]["step"] > 1)
    workers = {worker["pid"] for worker in seen["workers"]}
    listeners = {}
    for process in psutil.Process(product.process.pid).children(recursive=True):
        try:
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    listeners[process.pid, process.name(), connection.laddr.port] = connection.laddr.ip
        except psutil.NoSuchProcess:
            continue
    product.http.post(f"/v1/jobs/{job['id']}/kill")
    assert workers & {pid for pid, _, _ in listeners}, "the scan did not see the workers"
    local = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
    assert not {who: ip for who, ip in listeners.items() if ip not in local}
    product.until(job["id"], "the end", lambda job: job["status"] == "cancelled")


@pytest.mark.parametrize(
    ("part", "number"),
    [("ray", signal.SIGKILL), ("gcs_server", signal.SIGKILL), ("raylet", signal.SIGTERM)],
    ids=["the head is killed", "its GCS is killed", "its raylet is asked to end"],
)
def test_ray_dies_while_a_job_trains(product: Product, part: str, number: int) -> None:
    """All of Ray goes, also what it left behind, and comes again; everything else stays; the job goes on from a checkpoint."""
    spec = LONG | {"name": "survives", "training": {"steps": 1200, "batch_size": 96}, "checkpoint": {"every_steps": 50}}
    job = product.http.post("/v1/jobs", json=spec).json()
    product.until(job["id"], "training", lambda job: job["progress"] and job["progress"]["step"] > 150)
    head = product.role("ray")
    daemons = head.children(recursive=True)
    assert {"gcs_server", "raylet"} <= {process.name() for process in daemons}
    others = {name: product.role(name).pid for name in ("api", "scheduler", "mlflow")}
    victim = head if part == "ray" else next(process for process in daemons if process.name() == part)
    victim.send_signal(number)
    wait_for("the end of its daemons", lambda: not any(process.is_running() for process in (head, *daemons)))
    missing = wait_for("the loss to be told", lambda: _refusal(product), 60)
    assert missing["checks"]["cluster"]["ok"] is False
    assert "cluster" in missing["error"]["message"]
    assert missing["checks"]["database"]["ok"]
    assert missing["checks"]["scheduler"]["ok"]
    ended = product.until(job["id"], "the end", lambda job: job["status"] in ("succeeded", "failed"), 150)
    assert ended["status"] == "succeeded", ended["reason"]
    assert ended["attempt"] == 2
    events = product.http.get(f"/v1/jobs/{job['id']}/events?limit=100").json()["data"]
    (resumed,) = (event for event in events if event["type"] == "training.resumed")
    assert resumed["data"]["step"] >= 100
    assert product.http.get("/readyz").status_code == 200
    assert {name: product.role(name).pid for name in others} == others
    first, second = product.http.get(f"/v1/jobs/{job['id']}/attempts").json()["data"]
    assert (first["status"], first["reason"]["code"], second["status"]) == ("failed", "cluster_lost", "succeeded")


def _refusal(product: Product) -> dict[str, Any] | None:
    answer = product.http.get("/readyz")
    return None if answer.status_code == 200 else answer.json()


def test_a_paused_job_holds_nothing_and_goes_on(product: Product) -> None:
    """Through the command line, as the user has it."""
    spec = LONG | {"name": "paused", "training": {"steps": 1500, "batch_size": 96}}
    job = product.http.post("/v1/jobs", json=spec).json()
    seen = product.until(job["id"], "training", lambda job: job["progress"] and job["progress"]["step"] > 50)
    pids = [worker["pid"] for worker in seen["workers"]]
    assert "is pausing" in product.chainrule("pause", job["id"])
    paused = product.until(job["id"], "the pause", lambda job: job["status"] == "paused")
    assert paused["finished_at"] is None
    wait_for("the end of its workers", lambda: not any(psutil.pid_exists(pid) for pid in pids))
    assert product.http.get("/v1/cluster").json()["used"]["cpus"] == 0
    step = paused["progress"]["step"]
    assert step < 1500
    assert f"chainrule resume {job['id']}" in product.chainrule("show", job["id"])
    assert "succeeded" in product.chainrule("resume", job["id"], "--follow")
    events = product.http.get(f"/v1/jobs/{job['id']}/events?limit=1000").json()["data"]
    (resumed,) = (event for event in events if event["type"] == "training.resumed")
    assert resumed["data"]["step"] == step, "a step was lost, or done twice"
    (series,) = product.http.get(f"/v1/jobs/{job['id']}/metrics?keys=train/loss&max_points=10000").json()["data"]
    assert [point["step"] for point in series["points"]] == list(range(1, 1501))
    workers = product.http.get(f"/v1/jobs/{job['id']}/workers").json()["data"]
    assert sorted((worker["attempt"], worker["rank"]) for worker in workers) == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert set(pids) == {worker["pid"] for worker in workers if worker["attempt"] == 1}
    assert product.chainrule("workers", job["id"]).count("127.0.0.1") == 4


def test_mlflow_killed_while_a_job_trains(product: Product) -> None:
    """Training does not notice, and MLflow has every point in the end."""
    spec = LONG | {"name": "tracked", "training": {"steps": 800, "batch_size": 96}}
    job = product.http.post("/v1/jobs", json=spec).json()
    product.until(job["id"], "training", lambda job: job["progress"] and job["progress"]["step"] > 50)
    before = product.role("mlflow")
    server = before.children(recursive=True)
    for process in server:  # the server itself, whose parent then ends
        process.kill()
    wait_for("a new server", lambda: _another(product, "mlflow", before))
    wait_for("readiness to say so", lambda: product.http.get("/readyz").json()["checks"]["tracking"]["ok"], 60)
    ended = product.until(job["id"], "the end", lambda job: job["status"] in ("succeeded", "failed"), 120)
    assert (ended["status"], ended["attempt"]) == ("succeeded", 1)
    assert not any(process.is_running() for process in server)

    def types() -> set[str]:
        events = product.http.get(f"/v1/jobs/{job['id']}/events?limit=1000").json()["data"]
        return {event["type"] for event in events}

    wait_for("MLflow to have everything", lambda: "tracking.complete" in types(), 60)
    found = types()
    assert not found & {"worker.lost", "training.resumed"}


def _another(product: Product, role: str, before: psutil.Process) -> bool:
    try:
        return product.role(role).pid != before.pid
    except AssertionError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_however_up_ends(tmp_path: Path, number: int) -> None:
    """With a job in training, whose workers are detached from everything."""
    product = Product(tmp_path / "home")
    try:
        product.wait_until_ready()
        job = product.http.post("/v1/jobs", json=LONG).json()
        product.until(job["id"], "training", lambda job: job["progress"] and job["progress"]["step"] > 1)
    finally:
        product.end(number)
        wait_until_nothing_is_left(product.home)
    if number == signal.SIGTERM:
        assert not (product.home / "service.json").exists()


def test_a_killed_guardian_takes_everything_with_it(tmp_path: Path) -> None:
    product = Product(tmp_path / "home")
    try:
        product.wait_until_ready()
        (guardian,) = psutil.Process(product.process.pid).children()
        os.kill(guardian.pid, signal.SIGKILL)
        assert product.process.wait(timeout=60) == 2
        assert "guardian" in product.output.read_text()
    finally:
        product.end(signal.SIGKILL)
        wait_until_nothing_is_left(product.home)


def test_a_taken_home_is_said(product: Product) -> None:
    run = subprocess.run(
        [*CHAINRULE, "up"], env=environment(product.home), capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 2
    assert str(product.home) in run.stderr
    assert str(product.process.pid) in run.stderr


def test_a_taken_port_is_said(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        run = subprocess.run(
            [*CHAINRULE, "up", "--port", port],
            env=environment(tmp_path / "home"),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert run.returncode == 2
    assert f"--port {port}" in run.stderr
    wait_until_nothing_is_left(tmp_path / "home", 5)
