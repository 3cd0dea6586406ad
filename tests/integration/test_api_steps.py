"""Single steps of a job over REST and the command line: which samples formed one, and doing it again."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.keys import create_key
from service.values import Role
from tests.integration.api_service import Service, error_of, running_service, served
from tests.integration.commands import chainrule, job_file

pytestmark = pytest.mark.integration

CELLS: dict[str, Any] = {
    "name": "cells",
    "task": {
        "kind": "tabular",
        "data": {"source": "breast_cancer"},
        "model": {"architecture": "mlp", "hidden": [8], "dropout": 0.2},
    },
    "training": {"steps": 20, "batch_size": 16, "accumulate": 2},
    "workers": {"threads": 1},
    "checkpoint": {"every_steps": 5},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, str, str]]:
    """A service, its address, and a job whose folder has what a training of its own leaves (the cluster is in memory, and trains nothing)."""
    with running_service(tmp_path_factory.mktemp("home"), steps=None) as running, served(running.app) as url:
        job_id = running.submit(**CELLS)
        running.run_until(job_id, "running")
        line = [sys.executable, "-m", "workers.train", job_file(tmp_path_factory.mktemp("job"), **CELLS)]
        output = str(running.folder(job_id).path)
        subprocess.run([*line, "--output", output], check=True, timeout=120, capture_output=True)
        yield running, url, job_id


@pytest.fixture
def service(trained: tuple[Service, str, str], monkeypatch: pytest.MonkeyPatch) -> Service:
    running, url, _ = trained
    monkeypatch.setenv("CHAINRULE_URL", url)
    monkeypatch.setenv("CHAINRULE_API_KEY", running.key)
    return running


@pytest.fixture
def job(trained: tuple[Service, str, str]) -> str:
    return trained[2]


def digest(path: Path) -> dict[str, str]:
    return {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(path.rglob("*")) if f.is_file()}


def test_a_step_is_what_was_recorded_and_the_samples_that_formed_it(service: Service, job: str) -> None:
    found = service.get(f"/v1/jobs/{job}/steps/7", headers=service.key_of(Role.VIEWER)).json()
    series = service.get(f"/v1/jobs/{job}/metrics?keys=train/loss,gradient/norm,train/learning_rate").json()["data"]
    recorded = {each["key"]: each["points"][6]["value"] for each in series}
    assert (found["object"], found["job_id"], found["step"], found["attempt"], found["epoch"]) == (
        "job.step",
        job,
        7,
        1,
        0,
    )
    assert (found["loss"], found["gradient_norm"]) == (recorded["train/loss"], recorded["gradient/norm"])
    assert found["learning_rate"] == recorded["train/learning_rate"]
    assert (found["workers"], found["accumulate"], found["samples"]) == (1, 2, 16)
    (rank,) = found["ranks"]
    assert (rank["rank"], rank["samples"], rank["microbatches"], rank["left_out"]) == (0, 16, [8, 8], 0)
    assert len(set(rank["indices"])) == 16
    assert all(name.startswith("row ") and name.endswith(" of breast_cancer") for name in rank["names"])


def test_more_samples_than_asked_for_are_left_out(service: Service, job: str) -> None:
    whole = service.get(f"/v1/jobs/{job}/steps/7").json()["ranks"][0]
    (rank,) = service.get(f"/v1/jobs/{job}/steps/7?max_samples=3").json()["ranks"]
    assert (rank["indices"], rank["names"]) == (whole["indices"][:3], whole["names"][:3])
    assert (rank["samples"], rank["left_out"]) == (16, 13)
    refused = service.get(f"/v1/jobs/{job}/steps/7?max_samples=0")
    assert (refused.status_code, error_of(refused)["param"]) == (400, "max_samples")


@pytest.mark.parametrize("step", ["21", "1000000"])
def test_steps_that_were_not_made_are_not_found(service: Service, job: str, step: str) -> None:
    answer = service.get(f"/v1/jobs/{job}/steps/{step}")
    assert answer.status_code == 404
    assert error_of(answer)["param"] == "step"
    assert "steps 1 to 20" in error_of(answer)["message"]


def test_what_is_no_step_and_whose_job_it_is(service: Service, job: str) -> None:
    for step in ("0", "-1", "x", "1.5", "99999999999999999999"):
        assert service.get(f"/v1/jobs/{job}/steps/{step}").status_code in (400, 404), step
    assert service.get(f"/v1/jobs/{job}/steps/1", headers=service.key_of(Role.ADMIN, "elsewhere")).status_code == 404
    young = service.submit()
    answer = service.get(f"/v1/jobs/{young}/steps/1")
    assert (answer.status_code, "none yet" in error_of(answer)["message"]) == (404, True)
    service.post(f"/v1/jobs/{young}/kill")


def test_scripts_have_steps_of_their_own(service: Service, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("print('hello')\n")
    task = {"kind": "script", "code": {"path": str(tmp_path)}, "entry": "train.py"}
    script = service.submit(name="own", task=task)
    answer = service.get(f"/v1/jobs/{script}/steps/1")
    assert (answer.status_code, "is a script" in error_of(answer)["message"]) == (409, True)
    result = chainrule("replay", script, "1", "--home", str(service.settings.home))
    assert (result.exit_code, "is a script" in result.stderr) == (2, True)
    service.post(f"/v1/jobs/{script}/kill")


def test_the_command_shows_a_step(service: Service, job: str) -> None:
    result = chainrule("step", job, "7", "--max-samples", "2")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "step 7, epoch 1, attempt 1: 16 samples on 1 worker, 2 microbatches each"
    assert lines[2].endswith("and 14 more")
    assert json.loads(chainrule("step", job, "7", "--json").stdout)["step"] == 7
    assert chainrule("step", job, "99").exit_code == 1


@pytest.mark.parametrize("by", ["id", "folder"])
def test_a_step_is_done_again(service: Service, job: str, by: str, capfd: pytest.CaptureFixture[str]) -> None:
    """By hand where it stands; nothing of the job changes."""
    folder = service.folder(job).path
    before = digest(folder)
    named = [job, "8", "--home", str(service.settings.home)] if by == "id" else [str(folder), "8"]
    result = chainrule("replay", *named, "--json")
    assert result.exit_code == 0, capfd.readouterr().err
    found = json.loads(result.stdout)
    assert found["compared"]["same"] is True
    assert found["compared"]["layers"] == 2
    assert found["loss"] == service.get(f"/v1/jobs/{job}/steps/8").json()["loss"]
    assert digest(folder) == before
    if by == "folder":
        text = chainrule("replay", *named).stdout
        assert "Equal to what was recorded, bit by bit" in text
        assert chainrule("replay", str(folder), "21").exit_code == 2
        assert "there is no step 21" in capfd.readouterr().err


def test_where_the_folder_is_not_one_is_told(service: Service, job: str, tmp_path: Path) -> None:
    result = chainrule("replay", job, "8", "--home", str(tmp_path))
    assert (result.exit_code, "not on this machine" in result.stderr) == (3, True)
    other = {"Authorization": f"Bearer {create_key(service.store, name='x', role=Role.VIEWER, project='y')[1]}"}
    assert service.get(f"/v1/jobs/{job}/steps/8", headers=other).status_code == 404
