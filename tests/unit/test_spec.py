"""The job specification: strict, complete in its complaints, and honest about what is not there yet."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.problems import SpecError, shorten
from workers.spec import JobSpec, parse_spec

pytestmark = pytest.mark.unit

DIGITS: dict[str, Any] = {"name": "d", "task": {"kind": "image_classification", "data": {"source": "digits"}}}


def problems(document: object) -> dict[str, str]:
    with pytest.raises(SpecError) as caught:
        parse_spec(document)
    return {problem.path: str(problem) for problem in caught.value.problems}


def test_name_and_task_are_enough() -> None:
    spec = parse_spec(DIGITS)
    assert spec.training.length == ("epochs", 10)
    assert spec.workers.threads_per_worker == 1


def test_all_problems_come_at_once_with_path_and_value() -> None:
    found = problems(
        {
            "name": "",
            "task": {"kind": "image_classification", "data": {"source": "npz"}, "model": {"architecture": "mpl"}},
            "training": {"epochs": "7", "batch_size": True},
            "optimizer": {"learning_rate": float("nan"), "name": "lion"},
            "workers": {"count": 2.0},
            "foo": 1,
        }
    )
    assert set(found) == {
        "name",
        "task.data.path",
        "task.model.architecture",
        "training.epochs",
        "training.batch_size",
        "optimizer.learning_rate",
        "optimizer.name",
        "workers.count",
        "foo",
    }
    assert "got '7'" in found["training.epochs"]
    assert "unknown field" in found["foo"]
    assert "required" in found["task.data.path"]
    assert "mlp" in found["task.model.architecture"]


@pytest.mark.parametrize(
    "change",
    [
        {"training": {"precision": "fp16"}},
    ],
    ids=str,
)
def test_what_is_not_there_yet_is_refused_and_says_so(change: dict[str, Any]) -> None:
    assert any("not available yet" in text for text in problems(DIGITS | change).values())


def test_what_may_be_repaired() -> None:
    assert parse_spec(DIGITS).health.mode == "advise"
    health = parse_spec(DIGITS | {"health": {"mode": "repair"}}).health
    assert (health.allow, health.budget.repairs, health.budget.extra_steps) == (["live"], 8, 1.0)
    earlier = {"mode": "advise", "allow": None, "budget": None}
    assert parse_spec(DIGITS | {"health": earlier}).health.allow == ["live"], "jobs of earlier versions say null"
    written = parse_spec(DIGITS | {"health": {"mode": "observe"}}).model_dump(mode="json")
    assert parse_spec(written).health.mode == "observe", "what was written can be read"


@pytest.mark.parametrize(
    ("health", "path", "said"),
    [
        ({"mode": "advise", "budget": {"repairs": 2}}, "health", "budget means something with mode repair only"),
        ({"mode": "repair", "allow": []}, "health.allow", "at least 1"),
        ({"mode": "repair", "allow": ["live", "labels"]}, "health.allow[1]", "'data'"),
        ({"mode": "repair", "budget": {"repairs": 0}}, "health.budget.repairs", "greater than or equal to 1"),
        ({"mode": "repair", "budget": {"lr_floor": 0}}, "health.budget.lr_floor", "greater than 0"),
    ],
    ids=str,
)
def test_what_may_not_be_said_of_repairs(health: dict[str, Any], path: str, said: str) -> None:
    found = problems(DIGITS | {"health": health})
    assert said in found[path]


def test_what_probes_may_cost() -> None:
    assert parse_spec(DIGITS).gradients.overhead_budget == 0.02
    assert parse_spec(DIGITS | {"gradients": {"overhead_budget": None}}).gradients.overhead_budget == 0.02  # old jobs
    assert parse_spec(DIGITS | {"gradients": {"overhead_budget": 0}}).gradients.overhead_budget == 0
    assert (
        "less than or equal to 1"
        in problems(DIGITS | {"gradients": {"overhead_budget": 2}})["gradients.overhead_budget"]
    )


def test_strategy_and_compile() -> None:
    spec = parse_spec(DIGITS)
    assert (spec.workers.strategy, spec.training.compile) == ("ddp", False)
    spec = parse_spec(DIGITS | {"training": {"compile": True}, "workers": {"min": 1, "max": 4, "strategy": "fsdp"}})
    assert (spec.workers.strategy, spec.training.compile) == ("fsdp", True)


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"training": {"epochs": 1, "steps": 1}}, "training"),
        ({"training": {"batch_size": 3, "accumulate": 2}, "workers": {"count": 2}}, "job"),
        ({"optimizer": {"name": "sgd", "betas": [0.9, 0.99]}}, "optimizer"),
        ({"optimizer": {"name": "sgd", "nesterov": True}}, "optimizer"),
        ({"optimizer": {"learning_rate": -1}}, "optimizer.learning_rate"),
        ({"training": {"epochs": 10**40}}, "training.epochs"),
        ({"training": {"batch_size": 0}}, "training.batch_size"),
        ({"training": {"compile": "yes"}}, "training.compile"),
        ({"workers": {"count": 0}}, "workers.count"),
        ({"workers": {"strategy": "zero"}}, "workers.strategy"),
        ({"metadata": {"k" * 65: "v"}}, None),
        ({"metadata": {str(i): "v" for i in range(17)}}, "metadata"),
        ({"name": "a\nb"}, "name"),
        ({"name": "a\x1b[31m"}, "name"),
        ({"name": "\ud800"}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"deadline_seconds": 0}, "deadline_seconds"),
        ({"evaluation": {"best": "loss"}}, "evaluation.best"),
    ],
    ids=str,
)
def test_out_of_range(change: dict[str, Any], path: str | None) -> None:
    found = problems(DIGITS | change)
    assert path is None or (path if path != "job" else "") in found


KEYS = st.sampled_from(["name", "task", "kind", "data", "source", "training", "workers", "x"])
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(DOCUMENTS)
def test_any_document_is_a_job_or_a_clear_refusal(document: object) -> None:
    """Would catch a validator that crashes on a shape that it did not think of."""
    found: SpecError | None = None
    try:
        parse_spec(document)
    except SpecError as error:
        found = error
    if found is not None:
        assert found.problems
        assert all(problem.message and len(str(problem)) < 1000 for problem in found.problems)
        str(found).encode()  # no lone surrogate on its way to a log


def test_a_spec_survives_json() -> None:
    spec = parse_spec(DIGITS)
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec


def test_errors_cross_processes() -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec({})
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.problems == caught.value.problems


def test_shown_values_are_short_and_harmless() -> None:
    assert len(shorten("x" * 10_000)) <= 80
    assert "\x1b" not in shorten("\x1b[31m")
    assert shorten(10**5000) == "an integer of more than 30 digits"
    assert shorten({str(i): i for i in range(100)}) == "an object of 100 entries"
