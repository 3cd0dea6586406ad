"""The deployment of docker-compose.yml, as real processes on hosts of their own."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deployment import compose, hosts
from tests.deployment.images import Image
from tests.deployment.topology import CLIENT, Topology
from tests.helpers import wait_for

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not hosts.is_possible(), reason="hosts of their own need root (network namespaces)"),
]

WORKERS = ("ray-worker-1", "ray-worker-2")


@pytest.fixture(scope="module")
def topology(built: Mapping[str, Image]) -> Iterator[Topology]:
    folder = Path(tempfile.mkdtemp(prefix="cr-topology-"))
    folder.chmod(0o755)
    (folder / "data").mkdir()
    try:
        with Topology(compose.config(folder, CHAINRULE_DATA=str(folder / "data")), built, folder, workers=2) as running:
            yield running
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def spread(topology: Topology) -> str:
    """A job file whose workers each fill a machine."""
    job = {
        "name": "spread",
        "task": {
            "kind": "image_classification",
            "data": {"source": "digits"},
            "model": {"architecture": "mlp", "hidden": [256, 256]},
        },
        "training": {"steps": 3000, "batch_size": 256},
        "workers": {"min": 1, "max": 2, "cpus": os.cpu_count()},
        "checkpoint": {"every_steps": 500},
        "evaluation": {"every_steps": 1500},
    }
    topology.folder.joinpath("spread.yaml").write_text(yaml.safe_dump(job))
    return "/srv/jobs/spread.yaml"


def test_the_job_file_of_the_laptop_trains_here(topology: Topology) -> None:
    """examples/digits.yaml, which `make run` trains, unchanged."""
    run = topology.command_line("submit", "/srv/examples/digits.yaml", "--follow", "--json")
    assert run.returncode == 0, f"{run.stdout[-3000:]}{run.stderr[-3000:]}"
    job = json.loads(run.stdout.splitlines()[-1])
    assert job["status"] == "succeeded"
    assert job["latest"]["eval/accuracy"] > 0.95


def test_a_machine_is_lost_in_mid_job(topology: Topology, spread: str) -> None:
    """Two machines train; one of them is gone at once. Each step is there once, checkpoints are on S3, the series in MLflow."""
    job_id = topology.json("submit", spread)["id"]
    places = wait_for("workers on both machines", lambda: at_work_on(topology, job_id, 2), 120)
    addresses = {topology.hosts[name].addresses["cluster"]: name for name in WORKERS}
    assert {addresses[place] for place in places} == set(WORKERS)
    wait_for("some steps", lambda: (topology.json("show", job_id)["progress"] or {}).get("step", 0) > 300, 120)
    kept, lost = places[0], addresses[places[1]]
    topology.hosts[lost].end()
    wait_for("one that goes on alone", lambda: at_work_on(topology, job_id, 1) == [kept], 120)
    topology.start(lost)  # as the restart policy does
    run = topology.command_line("events", job_id, "--follow", "--json", seconds=600)
    assert run.returncode == 0, run.stderr
    job = topology.json("show", job_id)
    assert job["status"] == "succeeded", job
    assert job["attempt"] == 1, "it went on, and did not begin again"
    assert job["recoveries"] >= 1
    steps = steps_in_mlflow(topology, job)
    assert steps == list(range(1, 3001))
    assert objects_in_s3(topology, job_id)
    topology.wait_until_healthy("ray-worker")


def test_what_trains_cannot_reach_the_database(topology: Topology) -> None:
    code = """
import socket
try:
    socket.create_connection(("%s", 5432), 2)
    print("true")
except OSError:
    print("false")
"""
    address = topology.hosts["postgres"].addresses["control"]
    assert topology.python("ray-worker-1", code % address) is False
    assert topology.python("api", code % address) is True, "guards the guard"


def test_nothing_of_a_job_runs_beside_the_scheduler(topology: Topology) -> None:
    """Its machine is a node of the cluster, without torch; nodes that jobs may use are the others."""
    nodes = topology.json("cluster")["nodes"]
    addresses = {node["address"] for node in nodes}
    assert topology.hosts["scheduler"].addresses["cluster"] not in addresses
    assert {topology.hosts[name].addresses["cluster"] for name in WORKERS} <= addresses


def at_work_on(topology: Topology, job_id: str, count: int) -> list[str] | None:
    """Addresses of the machines of the workers, by rank, when there are just so many and they train."""
    workers: list[dict[str, Any]] = topology.json("workers", job_id)["data"]
    found = [worker for worker in workers if worker["state"] == "running"]
    if len(found) != count or not all(worker["node"] for worker in found):
        return None
    return [worker["node"] for worker in sorted(found, key=lambda worker: worker["rank"])]


def steps_in_mlflow(topology: Topology, job: Mapping[str, Any]) -> list[int]:
    """Of the training loss, as the server has it; also twice what is there twice."""
    run = job["links"]["mlflow"].rpartition("/")[2]
    code = f"""
import json
from mlflow import MlflowClient
history = MlflowClient("http://mlflow:5000").get_metric_history("{run}", "train/loss")
print(json.dumps(sorted(point.step for point in history)))
"""
    found: list[int] = topology.python(CLIENT, code)
    return found


def objects_in_s3(topology: Topology, job_id: str) -> list[str]:
    code = f"""
import boto3, json
pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket="chainrule", Prefix="checkpoints/{job_id}/")
print(json.dumps([entry["Key"] for page in pages for entry in page.get("Contents", [])]))
"""
    found: list[str] = topology.python("mlflow", code)
    return found
