"""The first steps of a job on one worker: what they find, and that the training does not know of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.test_standalone import JOB, PYTHON, start
from tests.distributed.toys import Memory, Toy, ToyTask, context_in, job, train_toy
from workers.membership import Alone
from workers.preflight.run import STEPS, Probe, on_one_worker
from workers.reports import Outcome
from workers.spec import JobSpec

pytestmark = pytest.mark.distributed


def tried(spec: JobSpec, folder: Path, toy: Toy | None = None) -> Outcome:
    context = context_in(folder, Memory(), Alone(0, 1))
    run = Probe(ToyTask(toy or Toy()), on_one_worker(spec), context)
    try:
        return run.train()
    finally:
        run.close()


def codes(outcome: Outcome) -> dict[str, str]:
    return {finding["code"]: finding["severity"] for finding in outcome.detail["health"]["findings"]}


def spec(**parts: Any) -> JobSpec:
    return job(training={"epochs": 40, "batch_size": 12}, **parts)


def test_a_healthy_job_is_tried_and_nothing_is_left(tmp_path: Path) -> None:
    outcome = tried(spec(checkpoint={"every_steps": 1}, evaluation={"every_steps": 1}), tmp_path)
    assert outcome.detail["steps"] == STEPS
    assert not {"warning", "critical"} & set(codes(outcome).values()), codes(outcome)
    assert outcome.detail["health"]["verdict"] in ("healthy", "unknown")
    assert not list(tmp_path.iterdir())


def test_a_short_job_is_tried_to_its_end_and_no_model_is_made(tmp_path: Path) -> None:
    outcome = tried(job(training={"epochs": 1, "batch_size": 12}), tmp_path)
    assert (outcome.detail["steps"], outcome.detail["model"]) == (5, None)
    assert not list(tmp_path.iterdir())


def test_a_rate_far_too_high_is_found(tmp_path: Path) -> None:
    outcome = tried(spec(optimizer={"name": "sgd", "learning_rate": 1e4}), tmp_path)
    assert "critical" in codes(outcome).values(), codes(outcome)


def test_a_loss_that_is_no_number_is_found(tmp_path: Path) -> None:
    outcome = tried(spec(), tmp_path, Toy(broken_loss_from=8))
    assert codes(outcome)["nonfinite_gradient"] == "critical"


def test_one_of_many_has_its_share_of_the_batch() -> None:
    tried_as = on_one_worker(spec(workers={"count": 4, "strategy": "fsdp"}, health={"on_critical": "stop"}))
    assert (tried_as.training.batch_size, tried_as.workers.most, tried_as.workers.strategy) == (3, 1, "ddp")
    assert tried_as.health.on_critical == "continue"
    assert tried_as.training.epochs == 40


def test_the_training_after_it_is_the_same_bit_by_bit(tmp_path: Path) -> None:
    toy, one = Toy(dropout=0.3, normalization=True), spec(checkpoint={"every_steps": 10})
    alone = train_toy(0, 1, toy, one, tmp_path / "alone")
    tried(one, tmp_path / "after", toy)
    after = train_toy(0, 1, toy, one, tmp_path / "after")
    assert after.outcome.detail["parameters_sha256"] == alone.outcome.detail["parameters_sha256"]
    assert after.memory.series("train/loss") == alone.memory.series("train/loss")
    assert after.memory.rows.keys() == alone.memory.rows.keys()


def test_without_a_service_too(tmp_path: Path) -> None:
    text = JOB.replace("adamw, learning_rate: 1e-2", "sgd, learning_rate: 1e5")
    assert text != JOB
    run = start(PYTHON, tmp_path, text + "health: {preflight: true, on_critical: stop}\n")
    assert run.returncode == 1, run.stderr
    assert "critical_finding: stopped before its training began because of" in run.stdout
    assert not (tmp_path / "output/metrics").exists()
    assert not (tmp_path / "output/checkpoints").exists()
