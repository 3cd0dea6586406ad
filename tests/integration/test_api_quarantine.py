"""Samples that a job leaves out, over REST and the command line: which ones, and asking for others."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.values import Role
from tests.integration.api_service import Service, error_of, running_service, served
from tests.integration.commands import chainrule, job_file
from workers.jobfolder import append_lines
from workers.repair.acts import Act, Entry
from workers.repair.requests import asked

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, str, str, Path]]:
    """A service, its address, a job whose folder has what a training of its own leaves (the cluster is in memory, and trains nothing), its table."""
    table = tmp_path_factory.mktemp("data") / "rows.csv"
    table.write_text("a,b,y\n" + "".join(f"{n % 7},{n * n % 11},{n % 2}\n" for n in range(60)))
    data = {"source": "csv", "path": str(table), "target": "y"}
    spec: dict[str, Any] = {
        "name": "rows",
        "task": {"kind": "tabular", "data": data, "objective": "classification"},
        "training": {"steps": 20, "batch_size": 12, "leave_out": [2]},
        "workers": {"threads": 1},
    }
    with running_service(tmp_path_factory.mktemp("home"), steps=None) as running, served(running.app) as url:
        job_id = running.submit(**spec)
        running.run_until(job_id, "running")
        line = [sys.executable, "-m", "workers.train", job_file(tmp_path_factory.mktemp("job"), **spec)]
        folder = running.folder(job_id)
        subprocess.run([*line, "--output", str(folder.path)], check=True, timeout=120, capture_output=True)
        act = Act(1, 4, "nonfinite_data", "data", "leaves out 2 samples", leaves_out=[7, 30])
        row = {"sequence": 99, "timestamp": 2e9, "level": "info", "type": "repair.done", "message": "", "source": None}
        append_lines(folder.events_path(1), [row | {"data": {"step": 4, "repair": Entry(act, "kept", {}).document()}}])
        yield running, url, job_id, table


@pytest.fixture
def service(trained: tuple[Service, str, str, Path], monkeypatch: pytest.MonkeyPatch) -> Service:
    running, url, _, _ = trained
    monkeypatch.setenv("CHAINRULE_URL", url)
    monkeypatch.setenv("CHAINRULE_API_KEY", running.key)
    return running


@pytest.fixture
def job(trained: tuple[Service, str, str, Path]) -> str:
    return trained[2]


def test_each_has_its_name_and_since_when(service: Service, job: str) -> None:
    found = service.get(f"/v1/jobs/{job}/quarantine", headers=service.key_of(Role.VIEWER)).json()
    assert (found["object"], found["samples"]) == ("job.quarantine", 48)
    assert [(each["sample"], each["since_step"], each["repair"]) for each in found["left_out"]] == [
        (2, 0, None), (7, 4, 1), (30, 4, 1)
    ]  # fmt: skip
    step = service.get(f"/v1/jobs/{job}/steps/5").json()
    assert step["quarantined"] == [2, 7, 30]
    assert service.get(f"/v1/jobs/{job}/steps/4").json()["quarantined"] == [2]
    taken = [index for rank in step["ranks"] for index in rank["indices"]]
    assert not {2, 7, 30} & set(taken)
    shown = chainrule("quarantine", job).stdout
    assert "3 of 48 training samples are left out." in shown
    assert f"7, {found['left_out'][1]['name']}: since step 4, repair 1" in " ".join(shown.split())
    assert "left out: 2, 7, 30" in chainrule("step", job, "5").stdout


def test_samples_are_named_by_index_or_as_a_step_shows_them(service: Service, job: str) -> None:
    requests = service.folder(job).requests_path
    ranks = service.get(f"/v1/jobs/{job}/steps/5").json()["ranks"]
    index, name = ranks[0]["indices"][0], ranks[0]["names"][0]
    answer = service.post(f"/v1/jobs/{job}/quarantine", json={"leave_out": [name, 0], "take_in": [7]})
    assert answer.status_code == 202
    first = asked(requests, [])[-1]
    assert (first.id, first.kind) == (answer.json()["id"], "steer")
    assert (first.leave_out, first.take_in) == ([index, 0], [7])
    said = service.get(f"/v1/jobs/{job}/events?limit=100").json()["data"][-1]
    assert said["type"] == "repair.asked"
    assert f"leave out {index}, 0 and take in 7" in said["message"]
    assert chainrule("quarantine", job, "--leave-out", name, "--leave-out", "11").exit_code == 0
    assert asked(requests, [])[-1].leave_out == [index, 11]


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({}, "body", "at least one of leave_out, take_in"),
        ({"leave_out": []}, "leave_out", "at least 1"),
        ({"leave_out": [3, 48]}, "leave_out[1]", "allowed is 0 to 47 (got 48)"),
        ({"leave_out": [True]}, "leave_out[0]", "a sample's index, from 0 on, or its name"),
        ({"leave_out": ["row 7"]}, "leave_out[0]", "no training sample is called so (got 'row 7')"),
        ({"take_in": [8]}, "take_in[0]", "is not left out; left out are: 2, 7, 30 (got 8)"),
        ({"leave_out": list(range(40))}, "leave_out", "8 of 48 samples would be left; a batch needs 12"),
        ({"rows": [1]}, "rows", "unknown field"),
    ],
)
def test_what_is_wrong_is_named(service: Service, job: str, body: dict[str, Any], param: str, said: str) -> None:
    before = len(asked(service.folder(job).requests_path, []))
    answer = service.post(f"/v1/jobs/{job}/quarantine", json=body)
    assert answer.status_code == 422
    assert error_of(answer)["param"] == param
    assert said in error_of(answer)["message"]
    assert len(asked(service.folder(job).requests_path, [])) == before


def test_who_may_and_when(service: Service, job: str) -> None:
    path = f"/v1/jobs/{job}/quarantine"
    assert service.post(path, json={"leave_out": [1]}, headers=service.key_of(Role.VIEWER)).status_code == 403
    assert service.get(path, headers=service.key_of(Role.ADMIN, "elsewhere")).status_code == 404
    young = service.submit()
    assert service.get(f"/v1/jobs/{young}/quarantine").json()["left_out"] == []
    refused = service.post(f"/v1/jobs/{young}/quarantine", json={"leave_out": [1]})
    assert refused.status_code == 409
    assert "has not begun to train" in error_of(refused)["message"]
    assert "No sample is left out." in chainrule("quarantine", young).stdout
    service.post(f"/v1/jobs/{young}/kill")
