"""Stopped at any step and gone on with, a run ends with bit-equal weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.processes import Processes
from tests.distributed.toys import Result, Toy, job, train_toy
from workers.reports import ReasonCode
from workers.spec import JobSpec

pytestmark = pytest.mark.distributed

TOY = Toy(dropout=0.3, normalization=True)
STEPS = 15


def spec(workers: int = 1, **parts: Any) -> JobSpec:
    """Everything that has a state: moments, a schedule, evaluations mid-epoch, early stopping that does not trigger."""
    settings: dict[str, Any] = {
        "training": {"epochs": 3, "batch_size": 12, "accumulate": 2, "clip_norm": 1.0},
        "optimizer": {"name": "adamw", "learning_rate": 0.02, "weight_decay": 0.1},
        "schedule": {"name": "cosine", "warmup_steps": 4},
        "evaluation": {"every_steps": 2, "early_stopping": {"patience": 3}},
        "workers": {"count": workers},
    }
    return job(**{**settings, **parts})


def same_end(undisturbed: Result, resumed: Result) -> None:
    assert resumed.outcome.code == undisturbed.outcome.code
    for key in ("steps", "parameters_sha256"):
        assert resumed.outcome.detail[key] == undisturbed.outcome.detail[key], key
    evaluations = {key for key in undisturbed.outcome.detail["metrics"] if key.startswith("eval/")}
    for key in evaluations:
        assert resumed.outcome.detail["metrics"][key] == undisturbed.outcome.detail["metrics"][key]


def train(toy: Toy, job_spec: JobSpec, folder: Path, stop_after: int | None = None) -> Result:
    return train_toy(0, 1, toy, job_spec, folder, stop_after)


def test_stopped_at_each_step(tmp_path: Path) -> None:
    undisturbed = train(TOY, spec(), tmp_path / "whole")
    assert undisturbed.outcome.detail["steps"] == STEPS
    for step in range(1, STEPS):
        folder = tmp_path / str(step)
        stopped = train(TOY, spec(), folder, stop_after=step)
        assert (stopped.outcome.code, stopped.outcome.detail["steps"]) == (ReasonCode.CANCELLED, step)
        assert stopped.outcome.detail["parameters_sha256"] != undisturbed.outcome.detail["parameters_sha256"]
        resumed = train(TOY, spec(), folder)
        assert resumed.memory.found("training.resumed") == [{"step": step}]
        same_end(undisturbed, resumed)
        curve = {**stopped.memory.rows, **resumed.memory.rows}
        for number, row in undisturbed.memory.rows.items():
            assert curve[number]["train/loss"] == row["train/loss"]
            assert curve[number].get("eval/loss") == row.get("eval/loss")


def test_stopped_after_every_step(tmp_path: Path) -> None:
    undisturbed = train(TOY, spec(), tmp_path / "whole")
    for _ in range(STEPS - 1):
        assert train(TOY, spec(), tmp_path / "pieces", stop_after=1).outcome.code is ReasonCode.CANCELLED
    same_end(undisturbed, train(TOY, spec(), tmp_path / "pieces", stop_after=1))


@pytest.mark.parametrize(
    "optimizer",
    [
        {"name": "sgd"},
        {"name": "sgd", "momentum": 0.9, "nesterov": True},
        {"name": "adam"},
        {"name": "nadam"},
        {"name": "radam"},
        {"name": "adamax"},
        {"name": "rmsprop", "momentum": 0.5},
        {"name": "adagrad"},
        {"name": "adadelta"},
    ],
    ids=lambda optimizer: "-".join(map(str, optimizer.values())),
)
def test_each_optimizers_state_is_kept(tmp_path: Path, optimizer: dict[str, Any]) -> None:
    job_spec = spec(optimizer={"learning_rate": 0.01, **optimizer})
    undisturbed = train(TOY, job_spec, tmp_path / "whole")
    train(TOY, job_spec, tmp_path / "pieces", stop_after=7)
    same_end(undisturbed, train(TOY, job_spec, tmp_path / "pieces"))


def test_a_stop_does_not_change_when_training_ends_early(tmp_path: Path) -> None:
    """Catches an evaluation that is left out on the step of the stop, and a patience that starts anew."""
    toy = Toy(untaught=True)
    job_spec = spec(
        training={"epochs": 20, "batch_size": 12}, evaluation={"every_steps": 2, "early_stopping": {"patience": 3}}
    )
    undisturbed = train(toy, job_spec, tmp_path / "whole")
    assert undisturbed.outcome.code is ReasonCode.EARLY_STOPPED
    end = undisturbed.outcome.detail["steps"]
    for step in range(max(1, end - 7), end):
        train(toy, job_spec, tmp_path / str(step), stop_after=step)
        same_end(undisturbed, train(toy, job_spec, tmp_path / str(step)))


@pytest.mark.parametrize("early", [False, True])
def test_a_run_that_was_over_ends_the_same_way_again(tmp_path: Path, early: bool) -> None:
    """Its process may have died after the last checkpoint and before it told anybody."""
    toy = Toy(untaught=early)
    job_spec = spec(training={"epochs": 20, "batch_size": 12}) if early else spec()
    first = train(toy, job_spec, tmp_path)
    again = train(toy, job_spec, tmp_path)
    same_end(first, again)
    assert again.memory.rows.keys() <= first.memory.rows.keys()
    assert again.outcome.detail["model"] == str(tmp_path / "model")


def test_asked_to_stop_in_the_last_step_it_is_complete(tmp_path: Path) -> None:
    result = train(TOY, spec(), tmp_path, stop_after=STEPS)
    assert (result.outcome.code, result.outcome.detail["steps"]) == (ReasonCode.COMPLETED, STEPS)


@pytest.mark.parametrize("step", [1, 5, 6, 14])
def test_two_workers(processes: Processes, tmp_path: Path, step: int) -> None:
    """Also mid-epoch and on the ragged last batch; the rank that is asked to stop need not be the first."""
    for name in ("whole", "pieces"):
        (tmp_path / name).mkdir()
    whole = processes.run(2, tmp_path, train_toy, TOY, spec(2), tmp_path / "whole")
    stopped = processes.run(2, tmp_path, train_toy, TOY, spec(2), tmp_path / "pieces", step, step % 2)
    assert [(r.outcome.code, r.outcome.detail["steps"]) for r in stopped] == [(ReasonCode.CANCELLED, step)] * 2
    resumed = processes.run(2, tmp_path, train_toy, TOY, spec(2), tmp_path / "pieces")
    for before, after in zip(whole, resumed, strict=True):
        same_end(before, after)


def test_a_checkpoint_is_continued_by_another_number_of_workers(processes: Processes, tmp_path: Path) -> None:
    toy = Toy(normalization=True)  # dropout differs between numbers of workers
    whole = train(toy, spec(), tmp_path / "whole")
    processes.run(2, tmp_path, train_toy, toy, spec(2), tmp_path / "pieces", 7)
    resumed = train(toy, spec(), tmp_path / "pieces")
    assert resumed.memory.series("train/loss") == pytest.approx(whole.memory.series("train/loss")[7:], rel=1e-4)
    processes.run(3, tmp_path, train_toy, toy, spec(3), tmp_path / "three", 7)
    two = processes.run(2, tmp_path, train_toy, toy, spec(2), tmp_path / "three")[0]
    assert two.memory.series("train/loss") == pytest.approx(whole.memory.series("train/loss")[7:], rel=1e-4)


def test_the_verdict_knows_the_steps_before_the_stop(tmp_path: Path) -> None:
    """Five more steps say nothing by themselves, and a loss that is low already would look like one that never moves."""
    job_spec = spec(training={"epochs": 6, "batch_size": 12}, optimizer={"name": "adamw", "learning_rate": 0.02})
    undisturbed = train(TOY, job_spec, tmp_path / "whole")
    assert undisturbed.outcome.detail["health"]["verdict"] == "healthy"
    train(TOY, job_spec, tmp_path / "pieces", stop_after=25)
    resumed = train(TOY, job_spec, tmp_path / "pieces")
    assert resumed.outcome.detail["health"] == undisturbed.outcome.detail["health"]
