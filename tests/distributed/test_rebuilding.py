"""A run that no live change mends begins anew with a repaired model, on all ranks alike; whoever comes later has that model too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.processes import Processes
from tests.distributed.test_acting_together import looking
from tests.distributed.test_repairing import asking_of, nothing_is_better, record, told
from tests.distributed.toys import Result, Toy, job
from workers import run_repairs
from workers.repair.patches import Patch, to_json
from workers.reports import ReasonCode
from workers.spec import JobSpec

pytestmark = pytest.mark.distributed

STEPS = 240  # 20 in an epoch
DEEP = Toy(samples=240, evaluation_samples=60, deep=True)


def spec(allow: list[str], workers: int = 2, strategy: str = "ddp", repairs: int = 8, **parts: Any) -> JobSpec:
    return job(
        training={"epochs": 12, "batch_size": 12},
        workers={"count": workers, "strategy": strategy},
        optimizer={"name": "adamw", "learning_rate": 3e-3},
        evaluation={"every_steps": 20},
        health={"mode": "repair", "allow": allow, "budget": {"repairs": repairs}},
        **parts,
    )


def accuracy(result: Result) -> float:
    return float(result.outcome.detail["metrics"]["eval/accuracy"])


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_net_that_no_gradient_passes_begins_anew_with_normalisations(
    processes: Processes, tmp_path: Path, strategy: str
) -> None:
    live = processes.run(2, tmp_path, looking, DEEP, spec(["live"], strategy=strategy), tmp_path / "live")
    anew = spec(["live", "architecture"], strategy=strategy, repairs=1)  # so that no other model is compared with it
    ends = processes.run(2, tmp_path, looking, DEEP, anew, tmp_path / "anew")
    assert accuracy(live[0]) < 0.5, "nothing live helps"
    assert live[0].memory.found("repair.none")
    assert {end.outcome.code for end in ends} == {ReasonCode.COMPLETED}
    assert accuracy(ends[0]) > 0.8
    assert len({end.outcome.detail["parameters_sha256"] for end in ends}) == 1
    assert len({end.outcome.detail["gradients_sha256"] for end in ends}) == 1
    (act,) = (each["act"] for each in told(ends[0], "repair.done"))
    assert {patch["kind"] for patch in act["patches"]} == {"normalise"}
    assert {end.outcome.detail["steps"] for end in ends} == {STEPS + act["step"]}, "it has all its steps"
    assert ends[0].memory.layers[-2:] == ("20.1", "22"), "norms of the new layers are told"
    (facts, others) = ends[0].memory.found("facts")
    assert len(others["layers"]) > len(facts["layers"])


def test_a_run_goes_on_from_a_checkpoint_of_the_changed_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_repairs, "SNAPSHOT_SHARE", 1e9)  # at the same steps in both, however long they take
    parts: dict[str, Any] = {"workers": 1, "checkpoint": {"every_steps": 10, "keep_last": 100}}
    whole = looking(0, 1, DEEP, spec(["architecture"], **parts), tmp_path / "whole")
    last = told(whole, "repair.kept")[-1]["ended"]
    first = looking(0, 1, DEEP, spec(["architecture"], **parts), tmp_path / "two", stop_after=last + 15)
    assert first.outcome.code is ReasonCode.CANCELLED
    second = looking(0, 1, DEEP, spec(["architecture"], **parts), tmp_path / "two")
    assert second.outcome.detail["steps"] == whole.outcome.detail["steps"]
    assert {each.steps for each in second.memory.progressed} == {whole.outcome.detail["steps"]}, "its length is known"
    assert second.outcome.detail["parameters_sha256"] == whole.outcome.detail["parameters_sha256"]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_undoing_brings_the_model_before_back(processes: Processes, tmp_path: Path, strategy: str) -> None:
    wish = {"kind": "undo", "by": "key test", "number": 1}
    ends = processes.run(2, tmp_path, asking_of, DEEP, spec(["architecture"], strategy=strategy), tmp_path, [wish])
    (result, seen), (_, seen_by_other) = ends
    (undone,) = told(result, "repair.undone")
    assert undone["act"]["patches"]
    assert seen[1][1] == seen[0][0], "weights are what they were, of the model that was"
    assert seen == seen_by_other
    assert len({end.outcome.detail["parameters_sha256"] for end, _ in ends}) == 1


def test_models_that_do_not_help_leave_the_first_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a run that goes back to the second model with the names of the first: its weights would be zero."""
    plans = iter([["0"], ["2"]])  # a norm behind one of the first of eleven layers

    def planned(*_: Any) -> list[dict[str, Any]]:
        return to_json([Patch("normalise", layer, {"norm": "batch"}) for layer in next(plans, [])])

    monkeypatch.setattr(run_repairs, "planned", planned)
    end, seen = asking_of(0, 1, DEEP, spec(["architecture"], workers=1), tmp_path, [])
    tried = [each["act"]["number"] for each in told(end, "repair.done")]
    assert tried == [1, 2]
    assert [each["act"]["number"] for each in told(end, "repair.taken_back")] == tried
    assert seen[-1][1] == seen[0][0], "weights are what they were before the first of them"
    assert end.outcome.code is ReasonCode.COMPLETED


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_after_a_model_that_does_no_better_the_run_goes_on_with_the_one_that_helped(
    processes: Processes, tmp_path: Path, strategy: str
) -> None:
    """Would catch weights that are put back into a model of other names."""
    job_spec = spec(["architecture"], strategy=strategy, repairs=2)
    (result, seen), (_, seen_by_other) = processes.run(2, tmp_path, nothing_is_better, DEEP, job_spec, tmp_path)
    assert seen == seen_by_other
    champion, rival = record(result)
    assert (champion.state, rival.state, rival.act.against) == ("kept", "taken_back", 1)
    assert champion.act.plan != rival.act.plan
    assert seen[2][1] == seen[1][0], "weights are those of the end of the first one's trial, of its model"
    assert accuracy(result) > 0.8
