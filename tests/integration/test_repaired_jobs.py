"""Jobs that are mended on a real Ray: through the controller, with workers that are lost while it happens."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow.artifacts import download_artifacts

from tests.conftest import MlflowServer
from tests.integration.groups import DIGITS, at_work
from tests.integration.test_changing_groups import losses
from workers.repair.requests import ask
from workers.reports import ReasonCode

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_driver")]

MOMENTS = int(os.environ.get("CHAINRULE_TEST_MOMENTS", "1"))  # of each strategy; the figures in RESULTS.md are of 10


def sick(strategy: str = "ddp", **changes: Any) -> dict[str, Any]:
    """Fails at once, with steps of some 10 ms."""
    spec = DIGITS | {
        "task": DIGITS["task"] | {"model": {"architecture": "mlp", "hidden": [512, 512]}},
        "training": {"steps": 300, "batch_size": 128},
        "optimizer": {"name": "sgd", "momentum": 0.9, "learning_rate": 20.0},
        "workers": {"count": 2, "strategy": strategy},
        "evaluation": {"every_steps": 50},
        "checkpoint": {"every_steps": 25},
        "health": {"mode": "repair"},
    }
    return spec | changes


def test_a_sick_job_ends_well_and_says_what_happened(groups: Any, mlflow_server: MlflowServer, tmp_path: Path) -> None:
    group = groups(sick(), mlflow_url=mlflow_server.url)
    end = group.finished()
    assert end.outcome.code is ReasonCode.COMPLETED
    assert end.outcome.detail["metrics"]["eval/accuracy"] > 0.9
    done, kept = group.events("repair.done"), group.events("repair.kept")
    assert done
    assert kept
    assert "On trial" not in done[0].message
    assert "multiplies the learning rate by" in done[0].message
    assert end.outcome.detail["steps"] > 300
    losses(group)
    run = end.links["mlflow"].rpartition("/")[2]
    found = download_artifacts(
        run_id=run, artifact_path="health/repairs.json", tracking_uri=mlflow_server.url, dst_path=str(tmp_path)
    )
    repairs = json.loads(Path(found).read_text())
    assert [each["act"]["number"] for each in repairs] == list(range(1, len(repairs) + 1))
    (held,) = (each for each in repairs if each["state"] == "kept")
    assert held["after"]["train/loss"] < 1, "before, it may have been no number, which is left out"


@pytest.mark.parametrize("moment", range(MOMENTS))
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_worker_that_is_killed_while_a_repair_is_made(groups: Any, strategy: str, moment: int) -> None:
    """Neither hangs nor leaves ranks apart: all have done it, or it is decided anew."""
    group = groups(sick(strategy))
    seen = group.until("the finding", lambda seen: any(event.type == "finding.raised" for event in seen.events))
    victim = at_work(seen)[moment % 2]
    time.sleep(random.Random(moment).uniform(0, 0.25))
    os.kill(victim.pid, signal.SIGKILL)
    end = group.finished()
    assert end.outcome.code is ReasonCode.COMPLETED
    assert end.outcome.detail["metrics"]["eval/accuracy"] > 0.9
    assert end.recoveries
    ends = group.events("training.finished")
    assert len({event.data["rank"] for event in ends}) == 2
    assert len({event.data["parameters_sha256"] for event in ends}) == 1
    assert len({event.data["gradients_sha256"] for event in ends}) == 1
    losses(group)


def test_what_people_ask_reaches_the_job_and_holds_after_a_worker_is_lost(groups: Any) -> None:
    group = groups(sick(optimizer={"learning_rate": 1e-3}, training={"steps": 700, "batch_size": 128}))
    group.until_step(30)
    ask(group.folder.requests_path, "steer", "key test", learning_rate=5e-4)
    seen = group.until("the change", lambda seen: any(event.type == "repair.done" for event in seen.events))
    os.kill(at_work(seen)[0].pid, signal.SIGKILL)
    group.until("the recovery", lambda seen: seen.recoveries)
    end = group.finished()
    (told,) = group.events("repair.done")
    assert "as key test asked" in told.message
    assert end.outcome.detail["metrics"]["train/learning_rate"] == pytest.approx(5e-4)


def test_a_worker_that_comes_later_has_the_changed_model(groups: Any) -> None:
    """Would catch a newcomer that builds the model as the job says, and a group that waits for it."""
    task = DIGITS["task"] | {
        "model": {"architecture": "mlp", "hidden": [64] * 16, "activation": "sigmoid", "normalization": "none"}
    }
    spec = sick(
        task=task,
        training={"steps": 1500, "batch_size": 128},  # long enough for several looks
        optimizer={"learning_rate": 3e-3},
        health={"mode": "repair", "allow": ["architecture"]},
    )
    group = groups(spec)
    seen = group.until("the new model", lambda seen: any(event.type == "repair.done" for event in seen.events))
    os.kill(at_work(seen)[1].pid, signal.SIGKILL)
    group.until("the recovery", lambda seen: seen.recoveries)
    end = group.finished()
    assert end.outcome.code is ReasonCode.COMPLETED
    assert end.outcome.detail["metrics"]["eval/accuracy"] > 0.85
    assert "normalised after every hidden layer" in group.events("repair.done")[0].message
    assert len({event.data["parameters_sha256"] for event in group.events("training.finished")}) == 1
    losses(group)
