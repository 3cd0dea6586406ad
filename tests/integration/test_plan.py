"""A dry run: what a job will take, from a process that really builds its model; nothing is created."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from api.cli.main import app
from service import plans
from service.settings import Settings
from tests.integration.api_service import DIGITS, Service, error_of, running_service, served
from workers.spec import parse_spec

pytestmark = pytest.mark.integration

MLP = {"kind": "image_classification", "data": {"source": "digits"}, "model": {"architecture": "mlp", "hidden": [32]}}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    settings = Settings(home=tmp_path_factory.mktemp("home"), cpu_price=0.06, accelerator="L4", plan_memory=6 << 30)
    with running_service(settings.home, settings=settings) as running:
        yield running


def test_a_dry_run_answers_with_a_plan_and_creates_nothing(service: Service) -> None:
    spec = DIGITS | {"task": MLP, "workers": {"count": 2}, "training": {"epochs": 3, "batch_size": 96}}
    answer = service.post("/v1/jobs?dry_run=true", json=spec)
    assert answer.status_code == 200, answer.text
    plan = answer.json()
    assert (plan["object"], plan["computed"], plan["message"]) == ("plan", True, None)
    parameters = 64 * 32 + 32 + 32 * 10 + 10
    assert (plan["parameters"], plan["trained_parameters"]) == (parameters, parameters)
    assert (plan["samples"], plan["steps"], plan["microbatch"]) == (1437, 45, 48)
    memory = plan["memory"]
    assert memory["weights"] == memory["gradients"] == 4 * parameters
    assert memory["optimizer"] >= 2 * 4 * parameters  # adamw
    assert memory["total"] == sum(size for part, size in memory.items() if part != "total")
    # Two for each weight of a matrix and sample, forward; as much again for its gradient; the same for the inputs of all but the first layer.
    assert plan["flops_per_step"] == 96 * (2 * 2 * (64 * 32 + 32 * 10) + 2 * 32 * 10)
    assert plan["price"] == pytest.approx(plan["seconds"] / 3600 * 2 * 0.06)
    assert {(row["strategy"], row["workers"]) for row in plan["layouts"]} == {
        ("ddp", 1), ("fsdp", 2), ("ddp", 4), ("fsdp", 4), ("ddp", 8), ("fsdp", 8)
    }  # fmt: skip
    assert service.job_count() == 0


def test_a_folder_called_like_ours_where_the_service_stands_is_not_asked(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / "__init__.py").write_text("raise SystemExit('somebody else')\n")
    monkeypatch.chdir(tmp_path)
    plan = service.post("/v1/jobs?dry_run=true", json=DIGITS | {"task": MLP}).json()
    assert plan["computed"], plan


def test_a_job_that_does_not_fit_is_told_what_does(service: Service) -> None:
    """Computed, not canned: a layout that is named has to fit by the plan of its own."""
    big = MLP | {"model": {"architecture": "mlp", "hidden": [2048] * 8}}
    spec: dict[str, Any] = DIGITS | {"task": big, "workers": {"count": 1, "memory": 600 << 20}}
    plan = service.post("/v1/jobs?dry_run=true", json=spec).json()
    assert plan["fits"] is False
    assert plan["advice"][0].startswith("Does not fit: a worker needs")
    assert "workers.memory is 600 MiB" in plan["advice"][0]
    (way,) = [line for line in plan["advice"] if "workers.strategy fsdp" in line]
    count = int(way.partition(" with ")[2].split()[0])
    named = next(row for row in plan["layouts"] if (row["strategy"], row["workers"]) == ("fsdp", count))
    assert named["fits"] is True
    fewer = [row for row in plan["layouts"] if row["strategy"] == "fsdp" and row["workers"] < count]
    assert not any(row["fits"] for row in fewer)


TEMPLATE = Path(__file__).parents[2] / "workers" / "template"


def test_a_task_of_the_users_own_has_a_plan(service: Service) -> None:
    """Where the API is reached from this machine only; elsewhere nobody's code runs beside its keys."""
    task = {"kind": "custom", "code": {"path": str(TEMPLATE)}, "factory": "digits:build", "arguments": {"hidden": 64}}
    plan = service.post("/v1/jobs?dry_run=true", json=DIGITS | {"task": task}).json()
    assert (plan["computed"], plan["message"]) == (True, None)
    assert plan["parameters"] == 2 * (64 * 64 + 64) + 64 * 10 + 10
    open_to_all = service.settings.model_copy(update={"api_host": "0.0.0.0"})
    refused = plans.plan(parse_spec(DIGITS | {"task": task}), open_to_all)
    assert refused.plan is None
    assert "not run where the API runs" in str(refused.message)
    packages = task | {"code": {"path": str(TEMPLATE), "requirements": ["einops==0.8.1"]}}
    installed = plans.plan(parse_spec(DIGITS | {"task": packages}), service.settings)
    assert "packages that are installed on its workers only" in str(installed.message)


def test_a_script_has_no_plan_and_says_so(service: Service, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("print('hello')")
    task = {"kind": "script", "code": {"path": str(tmp_path)}, "entry": "train.py"}
    answer = service.post("/v1/jobs?dry_run=true", json=DIGITS | {"task": task})
    assert answer.status_code == 200, answer.text
    plan = answer.json()
    assert plan["computed"] is False
    assert plan["message"] == "The plan cannot be computed: what a script trains is known only when it runs."
    assert plan["memory"] is None


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"training": {"batch_size": 0}}, "training.batch_size"),
        ({"task": MLP | {"data": {"source": "npz", "path": "/nonexistent.npz"}}}, "task.data.path"),
        ({"training": {"batch_size": 5000}}, "training.batch_size"),
    ],
)
def test_a_bad_job_is_refused_as_without_a_dry_run(service: Service, changes: dict[str, Any], param: str) -> None:
    answer = service.post("/v1/jobs?dry_run=true", json=DIGITS | changes)
    assert answer.status_code == 422, answer.text
    assert error_of(answer)["param"] == param


@pytest.mark.parametrize("query", ["dry_run=yes", "dry_run=1", "dryrun=true", "dry_run="])
def test_a_misspelt_dry_run_creates_no_job(service: Service, query: str) -> None:
    answer = service.post(f"/v1/jobs?{query}", json=DIGITS)
    assert answer.status_code == 400, answer.text
    error_of(answer)
    assert service.job_count() == 0


def test_a_plan_that_cannot_be_computed_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = parse_spec(DIGITS | {"task": MLP})
    late = plans.plan(spec, Settings(home=tmp_path, plan_timeout_seconds=0.2))
    assert (late.plan, late.message) == (None, "The plan cannot be computed: it takes longer than 0.2 s.")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    dead = plans.plan(spec, Settings(home=tmp_path))
    assert dead.plan is None
    assert "its process ended with status 1" in str(dead.message)


def test_the_command_shows_a_plan(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "job.json"
    path.write_text(json.dumps(DIGITS | {"task": MLP, "workers": {"count": 1, "memory": 1 << 20}}))
    with served(service.app) as url:
        monkeypatch.setenv("CHAINRULE_URL", url)
        monkeypatch.setenv("CHAINRULE_API_KEY", service.key)
        result = CliRunner().invoke(app, ["plan", str(path)], catch_exceptions=False)
        assert result.exit_code == 1  # it does not fit
        assert "Does not fit" in result.stdout
        assert "ddp x 1" in result.stdout
