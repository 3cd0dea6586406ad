"""The commands against the real API over HTTP: what they print, for people and for programs, and how they exit."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import api.client
from service.keys import create_key
from service.values import Role
from tests.integration.api_service import DIGITS, Service
from tests.integration.commands import chainrule, finished, job_file
from workers import artifacts

pytestmark = pytest.mark.integration


@pytest.fixture
def service(commanded: Service) -> Service:
    return commanded


def test_asking_the_service_loads_no_library_of_arrays(service: Service) -> None:
    """In a process of its own, as a shell starts it: NumPy alone would take longer than the rest of the command."""
    for command in (["--help"], ["jobs"]):
        line = [sys.executable, "-X", "importtime", "-m", "api.cli.main", *command]
        run = subprocess.run(line, capture_output=True, text=True, timeout=60, check=True)
        loaded = {each.rpartition("|")[2].strip() for each in run.stderr.splitlines()}
        assert "typer" in loaded
        assert not loaded & {"numpy", "pandas", "upath", "pyarrow"}


@pytest.mark.parametrize(
    "command",
    [
        ["jobs"],
        ["show", "JOB"],
        ["events", "JOB"],
        ["logs", "JOB"],
        ["metrics", "JOB"],
        ["attempts", "JOB"],
        ["workers", "JOB"],
        ["artifacts", "JOB"],
        ["health", "JOB"],
        ["diagnose", "JOB"],
        ["usage"],
        ["cluster"],
        ["cancel", "JOB"],
        ["kill", "JOB"],
    ],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_every_command_answers_people_and_programs(service: Service, command: list[str], as_json: bool) -> None:
    job_id = finished(service)
    result = chainrule(*(job_id if word == "JOB" else word for word in command), *(["--json"] if as_json else []))
    assert result.exit_code == 0, result.output
    if as_json:
        for line in result.stdout.splitlines():
            assert isinstance(json.loads(line), dict)
    elif command[0] in ("jobs", "show", "cancel", "kill"):
        assert job_id in result.stdout


def test_a_job_is_paused_changed_and_resumed(service: Service) -> None:
    job_id = service.submit(name="pausable")
    paused = chainrule("pause", job_id)
    assert (paused.exit_code, paused.stdout) == (0, f"{job_id} is paused\n")
    changed = chainrule(
        "update", job_id, "--workers", "1:2", "--priority", "7", "--metadata", "team=a", "--metadata", "x=="
    )
    assert (changed.exit_code, changed.stdout) == (0, f"{job_id} is paused, priority 7, workers 1 to 2\n")
    document = service.get(f"/v1/jobs/{job_id}").json()
    assert document["metadata"] == {"team": "a", "x": "="}
    assert f"chainrule resume {job_id}" in chainrule("show", job_id).stdout
    resumed = chainrule("resume", job_id, "--json")
    assert json.loads(resumed.stdout)["status"] == "queued"
    fixed = chainrule("update", job_id, "--workers", "2", "--json")
    assert json.loads(fixed.stdout)["spec"]["workers"]["count"] == 2
    chainrule("kill", job_id)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "nothing to change"),
        (["--workers", "many"], "'many' is neither a number"),
        (["--workers", "1:"], "'1:' is neither"),
        (["--workers", "-1"], "'-1' is neither"),
        (["--workers", "1:2:3"], "neither"),
        (["--metadata", "team"], "KEY=VALUE"),
        (["--priority", "5000"], "priority"),
    ],
    ids=str,
)
def test_changes_that_cannot_be_are_not_sent(service: Service, options: list[str], said: str) -> None:
    job_id = service.submit()
    result = chainrule("update", job_id, *options)
    assert result.exit_code == 2
    assert said in result.stderr
    refused = chainrule("update", job_id, "--workers", "3:2")
    assert refused.exit_code == 1
    assert "workers" in refused.stderr
    chainrule("kill", job_id)


def test_who_worked_is_a_table(service: Service) -> None:
    job_id = finished(service)
    attempts = chainrule("attempts", job_id).stdout.splitlines()
    assert attempts[0].split()[:2] == ["attempt", "status"]
    assert attempts[1].split()[:2] == ["1", "succeeded"]
    assert "all steps done" in attempts[1]
    workers = chainrule("workers", job_id).stdout.splitlines()
    cells = workers[1].split()
    assert (cells[:3], cells[4:6]) == (["1", "0", "done"], ["10.0.0.1", "node-0"])
    assert "all steps done" in workers[1]
    assert "no such workers" in chainrule("workers", job_id, "--attempt", "9").stdout
    assert chainrule("workers", job_id, "--state", "dead").exit_code == 1
    waiting = service.submit()
    assert "has not been started" in chainrule("attempts", waiting).stdout
    chainrule("kill", waiting)


@pytest.mark.parametrize("name", ["node-0", "node", "10.0.0.1"])
def test_a_node_is_named_by_what_is_at_hand(service: Service, name: str) -> None:
    service.run_pass()
    cordoned = chainrule("cordon", name, "--reason", "new [bold]memory[/]")
    assert (cordoned.exit_code, cordoned.stdout.split()[0]) == (0, "node-0")
    assert re.search(r"node-0 .*cordoned .*: new \[bold\]memory\[/\]", chainrule("cluster").stdout)
    back = chainrule("uncordon", name, "--json")
    assert json.loads(back.stdout)["nodes"][0]["cordoned"] is False


def test_a_node_that_is_not_there(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    service.run_pass()
    for name in ("nodes", "", "10.0.0"):
        result = chainrule("cordon", name)
        assert result.exit_code == 2
        assert "node-0 (10.0.0.1)" in result.stderr
    _, member = create_key(service.store, name="works", role=Role.MEMBER, project="default")
    monkeypatch.setenv("CHAINRULE_API_KEY", member)
    refused = chainrule("cordon", "node-0")
    assert refused.exit_code == 1
    assert "admin" in refused.stderr


def test_ids_are_never_cut(service: Service) -> None:
    """They are there to be copied, also out of a file."""
    job_id = service.submit(name="a name so long that it leaves no room for anything else at all ")
    assert job_id in chainrule("jobs").stdout
    chainrule("kill", job_id)


def test_submit_for_programs_prints_the_job_and_nothing_else(service: Service, tmp_path: Path) -> None:
    result = chainrule("submit", job_file(tmp_path), "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["status"] == "queued"


def test_a_file_with_problems_is_not_sent(service: Service, tmp_path: Path) -> None:
    before = service.job_count()
    result = chainrule("submit", job_file(tmp_path, training={"epochs": 1.5}, workers={"count": 0}, foo=1))
    assert result.exit_code == 2
    for field in ("training.epochs", "workers.count", "foo", "3 problems"):
        assert field in result.stderr
    assert chainrule("submit", str(tmp_path / "none.yaml")).exit_code == 2
    assert service.job_count() == before


def test_what_the_service_refuses_is_shown_problem_by_problem(service: Service, tmp_path: Path) -> None:
    data = {"source": "npz", "path": str(tmp_path / "none.npz")}
    result = chainrule("submit", job_file(tmp_path, task=DIGITS["task"] | {"data": data}))
    assert result.exit_code == 1
    assert "task.data.path" in result.stderr
    assert "none.npz" in result.stderr


def test_relative_paths_are_those_of_the_job_file(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of the folder where the user stands, and not of the service's."""
    (tmp_path / "jobs").mkdir()
    monkeypatch.chdir(tmp_path)
    task = DIGITS["task"] | {"data": {"source": "npz", "path": "none.npz"}}
    result = chainrule("submit", job_file(tmp_path / "jobs", task=task))
    assert str(tmp_path / "jobs" / "none.npz") in result.stderr
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    task["data"]["path"] = "~/none.npz"
    result = chainrule("submit", job_file(tmp_path / "jobs", task=task))
    assert str(tmp_path / "me" / "none.npz") in result.stderr


def test_a_terminal_does_not_obey_what_a_job_prints(service: Service) -> None:
    """ESC ] 0 sets the title of a terminal, others answer on its keyboard; U+202E turns the rest of the line round."""
    job_id = finished(service)
    path = service.folder(job_id).log_path(1, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    evil = "\x1b]0;owned\x07 \u202e [bold red]not markup[/] \x9b31m \u2028 end"
    path.write_text(f"2026-11-23T19:00:00.123Z {evil}\n", encoding="utf-8")
    for follow in ([], ["--follow"]):
        result = chainrule("logs", job_id, *follow)
        assert result.exit_code == 0, result.output
        assert "rank 0:" in result.stdout
        assert "[bold red]not markup[/]" in result.stdout
        assert result.stdout.rstrip().endswith("end")
        assert not set(result.stdout) & {"\x1b", "\x07", "\u202e", "\x9b"}
    assert json.loads(chainrule("logs", job_id, "--json").stdout)["text"] == evil


@pytest.mark.parametrize(
    "command",
    [
        "show",
        "health",
        "diagnose",
        "events",
        "logs",
        "metrics",
        "attempts",
        "workers",
        "pause",
        "resume",
        "cancel",
        "kill",
    ],
)
def test_an_unknown_job_is_exit_code_1(service: Service, command: str) -> None:
    result = chainrule(command, "job-000000000000000000000000")
    assert result.exit_code == 1
    assert "job-000000000000000000000000" in result.stderr


def test_a_wrong_key_and_a_key_that_may_not(service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _, viewer = create_key(service.store, name="looks", role=Role.VIEWER, project="default")
    monkeypatch.setenv("CHAINRULE_API_KEY", viewer)
    assert chainrule("jobs").exit_code == 0
    assert chainrule("submit", job_file(tmp_path)).exit_code == 1
    monkeypatch.setenv("CHAINRULE_API_KEY", "wrong")
    assert chainrule("jobs").exit_code == 1


def test_nobody_there_is_exit_code_3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(api.client, "FIRST_PAUSE_SECONDS", 0.0)
    monkeypatch.setenv("CHAINRULE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("CHAINRULE_API_KEY", "key")
    result = chainrule("jobs", "--home", str(tmp_path))
    assert result.exit_code == 3
    assert "http://127.0.0.1:9 does not answer" in result.stderr


@pytest.mark.parametrize("command", [["api"], ["up"]], ids=lambda command: command[0])
def test_keys_do_not_cross_the_network_in_the_clear_unasked(command: list[str], tmp_path: Path) -> None:
    home = tmp_path / "home"
    result = chainrule(*command, "--host", "0.0.0.0", "--home", str(home))
    assert result.exit_code == 2
    assert "--insecure" in result.stderr
    assert not home.exists()


@pytest.mark.parametrize("command", ["up", "api", "scheduler"])
def test_settings_that_cannot_be_are_said_before_anything_starts(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAINRULE_LEASE_SECONDS", "soon")
    result = chainrule(command, "--home", str(tmp_path / "home"))
    assert result.exit_code == 2
    assert "CHAINRULE_LEASE_SECONDS" in result.stderr
    assert not (tmp_path / "home").exists()


def test_a_certificate_needs_its_key(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("")
    result = chainrule("api", "--home", str(tmp_path / "home"), "--tls-certificate", str(tmp_path / "cert.pem"))
    assert result.exit_code == 2
    assert "--tls-key" in result.stderr


def test_doctor_sees_a_secret_that_others_can_read(tmp_path: Path) -> None:
    (tmp_path / "admin.key").write_text("x")
    (tmp_path / "admin.key").chmod(0o644)
    result = chainrule("doctor", "--json", "--home", str(tmp_path))
    checks = {check["name"]: check for check in json.loads(result.stdout)}
    assert result.exit_code == 1
    assert not checks["admin.key"]["ok"]
    assert checks["torch"]["ok"]


def test_artifacts_are_listed_and_downloaded(service: Service, tmp_path: Path) -> None:
    job_id = service.submit()
    folder = service.folder(job_id).artifacts_path
    artifacts.write(folder, 10, {"samples.txt": b"one"})
    artifacts.write(folder, 20, {"samples.txt": b"two", "grid.png": bytes(range(256))})
    listed = chainrule("artifacts", job_id)
    assert [line.split()[0] for line in listed.stdout.splitlines()] == [
        "file", "step-0000000010/samples.txt", "step-0000000020/grid.png", "step-0000000020/samples.txt"
    ]  # fmt: skip
    (row,) = map(json.loads, chainrule("artifacts", job_id, "--step", "10", "--json").stdout.splitlines())
    assert (row["path"], row["bytes"]) == ("step-0000000010/samples.txt", 3)
    out = tmp_path / "a folder"
    result = chainrule("artifacts", job_id, "--download", str(out))
    assert (result.exit_code, result.stdout) == (0, f"3 files in {out}\n")
    for path in ("step-0000000010/samples.txt", "step-0000000020/samples.txt", "step-0000000020/grid.png"):
        assert (out / path).read_bytes() == (folder / path).read_bytes()
    (tmp_path / "in the way").write_text("")
    refused = chainrule("artifacts", job_id, "--download", str(tmp_path / "in the way"))
    assert refused.exit_code == 1
    assert "cannot be written" in refused.stderr


def test_a_service_cannot_choose_where_a_file_lands(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = {"data": [{"path": "../../evil.txt"}], "has_more": False}
    monkeypatch.setattr(api.client.Client, "artifacts", lambda *_, **__: page)
    result = chainrule("artifacts", "job-1", "--download", str(tmp_path / "a" / "b"))
    assert result.exit_code == 1
    assert "no artifact's" in result.stderr
    assert list(tmp_path.rglob("evil.txt")) == []


def test_a_plan_of_code_leaves_no_file_behind(service: Service) -> None:
    template = Path(__file__).parents[2] / "workers" / "template" / "job.yaml"
    result = chainrule("plan", str(template), "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["parameters"] > 0
    assert "uploaded" in result.stderr
    assert service.get("/v1/files").json()["data"] == []
