"""What a script job may say, and what of it is looked at before the job is accepted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from workers.problems import SpecError
from workers.sources.inspect import inspect_data
from workers.spec import JobSpec, parse_spec

pytestmark = pytest.mark.unit


def job(folder: str | Path = "/code", **changes: Any) -> dict[str, Any]:
    task = {"kind": "script", "code": {"path": str(folder)}, "entry": "train.py"} | changes
    return {"name": "mine", "task": task, "workers": {"count": 2}}


def problems(document: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(SpecError) as caught:
        parse_spec(document)
    return {problem.path: problem.message for problem in caught.value.problems}


@pytest.mark.parametrize(
    ("changes", "path", "said"),
    [
        ({"entry": "../train.py"}, "task.entry", "beneath the code's folder"),
        ({"entry": "/train.py"}, "task.entry", "beneath the code's folder"),
        ({"output": "a/../../b"}, "task.output", "beneath the code's folder"),
        ({"entry": None}, "task", "give entry"),
        ({"module": "package.train"}, "task", "give entry"),
        ({"entry": None, "module": "package/train"}, "task.module", "pattern"),
        ({"environment": {"RANK": "0"}}, "task.environment", "RANK is set by the service"),
        ({"environment": {"TORCHELASTIC_RUN_ID": "x"}}, "task.environment", "set by the service"),
        ({"environment": {"1A": "x"}}, "task.environment.1A", "pattern"),
        ({"arguments": [["--lr"]]}, "task.arguments[0]", "should be a valid"),
        ({"hang_seconds": 0}, "task.hang_seconds", "greater than or equal to 1"),
        ({"steps": 0}, "task.steps", "greater than or equal to 1"),
        ({"overhead_budget": 0}, "task.overhead_budget", "greater than 0"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(changes: dict[str, Any], path: str, said: str) -> None:
    found = problems(job(**changes))
    assert any(where.startswith(path) and said in message for where, message in found.items()), found


@pytest.mark.parametrize("part", ["training", "optimizer", "schedule", "checkpoint", "evaluation"])
def test_parts_that_mean_nothing_are_refused(part: str) -> None:
    found = problems(job() | {part: {}})
    assert found == {part: f"{part} means nothing for a task of kind script, whose own code decides that; leave it out"}


@pytest.mark.parametrize("workers", [{"min": 1, "max": 2}, {"count": 2, "strategy": "fsdp"}], ids=str)
def test_how_its_workers_train_a_script_decides(workers: dict[str, Any]) -> None:
    assert "fixed count and no strategy" in problems(job() | {"workers": workers})[""]


@pytest.mark.parametrize(
    ("changes", "health", "said"),
    [
        ({}, {"allow": ["live", "architecture"]}, "health.allow architecture is not possible for a script, whose own code makes its model"),
        ({}, {"allow": ["weights"]}, "allowed is live"),
        ({"observe": False}, {}, "needs task.observe: true, not false"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_repaired_in_a_script_is_refused(
    changes: dict[str, Any], health: dict[str, Any], said: str
) -> None:
    (message,) = problems(job(**changes) | {"health": {"mode": "repair"} | health}).values()
    assert said in message


def test_a_script_may_be_repaired_around_its_steps() -> None:
    assert parse_spec(job() | {"health": {"mode": "repair", "allow": ["live"]}}).health.mode == "repair"


def test_a_job_that_was_written_can_be_read_again() -> None:
    spec = parse_spec(job(arguments=["--lr", 1e-3, 5]))
    document = spec.model_dump(mode="json")
    assert "training" not in document
    assert JobSpec.model_validate(document) == spec
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("files", "changes", "path", "said"),
    [
        ({}, {}, "task.entry", "the code has no train.py"),
        ({"train.py": "x = 1\nif x\n"}, {}, "task.entry", "train.py line 2: expected ':'"),
        ({"train.py": "a\0b"}, {}, "task.entry", "train.py: source code string cannot contain null bytes"),
        ({"train.py": "", "outputs": ""}, {}, "task.output", "outputs is a file of the code"),
        ({"train.py": ""}, {"entry": None, "module": "package"}, "task.module", "the code has no package.py"),
        (
            {"package/a.py": ""},
            {"entry": None, "module": "package"},
            "task.module",
            "the code has no package.py; at its top are 'package/'",
        ),
    ],
    ids=str,
)
def test_a_script_is_looked_at(
    tmp_path: Path, files: dict[str, str], changes: dict[str, Any], path: str, said: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (problem,) = inspect_data(parse_spec(job(tmp_path, **changes)))
    assert problem.path == path
    assert said in problem.message


def test_what_is_right_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("print('\\d')\n")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "train.py").write_text("")
    assert not inspect_data(parse_spec(job(tmp_path)))
    assert not inspect_data(parse_spec(job(tmp_path, entry=None, module="package.train")))
    (problem,) = inspect_data(parse_spec(job(tmp_path / "nowhere")))
    assert problem.path == "task.code.path"
