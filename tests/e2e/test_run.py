"""What ``make run`` does, and the command line against a service that runs."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.product import CHAINRULE, environment, marked, wait_until_nothing_is_left, where_the_user_stands
from tests.helpers import wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_run_trains_the_digits_and_stops_everything(tmp_path: Path) -> None:
    home = tmp_path / "home"
    run = subprocess.run(
        [*CHAINRULE, "run", str(EXAMPLES / "digits.yaml")],
        env=environment(home),
        cwd=where_the_user_stands(tmp_path),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert not marked(home)
    accuracy = re.search(r"evaluation\s+accuracy ([0-9.]+)", run.stdout)
    assert accuracy, run.stdout
    assert float(accuracy[1]) >= 0.97
    assert re.search(r"health\s+healthy: ", run.stdout)
    assert re.search(r"MLflow run\s+http://127.0.0.1:\d+/#/experiments/\d+/runs/[0-9a-f]{32}", run.stdout)
    (folder,) = (home / "storage" / "jobs").iterdir()
    assert str(folder) in run.stdout

    finished = [json.loads(line) for line in (folder / "events/attempt-0001.jsonl").read_text().splitlines()]
    ends = {event["data"]["rank"]: event["data"] for event in finished if event["type"] == "training.finished"}
    assert set(ends) == {0, 1}, "two ranks took part"
    assert ends[0]["gradients_sha256"] == ends[1]["gradients_sha256"]
    assert abs(ends[0]["samples_seen"] - ends[1]["samples_seen"]) <= 15 * 23, "each saw half of every batch"

    predicts(folder / "model")


def predicts(folder: Path) -> None:
    """The exported model, loaded as MLflow loads it, knows the held-out digits."""
    import mlflow.pyfunc

    from workers.kinds.image_data import DigitsData
    from workers.sources.arrays import read_digits

    held_out = read_digits(DigitsData(source="digits")).evaluation
    answers = mlflow.pyfunc.load_model(str(folder)).predict(held_out.pixels)
    assert np.mean(answers["class"].to_numpy() == held_out.labels) >= 0.97


def test_ctrl_c_stops_the_run_and_its_job(tmp_path: Path) -> None:
    """Else the next run would first train what was given up."""
    home, shown = tmp_path / "home", tmp_path / "shown"
    job = tmp_path / "job.json"
    data = {"kind": "image_classification", "data": {"source": "digits"}}
    job.write_text(json.dumps({"name": "long", "task": data, "training": {"steps": 100_000, "batch_size": 64}}))
    with shown.open("wb") as output:
        run = subprocess.Popen(
            [*CHAINRULE, "run", str(job)], env=environment(home), stdout=output, stderr=subprocess.STDOUT
        )
    try:
        wait_for("training", lambda: re.search(r"step [1-9]\d*/100000", shown.read_text()), 120)
        run.send_signal(signal.SIGINT)
        assert run.wait(timeout=60) == 130
    finally:
        run.kill()
        run.wait()
        wait_until_nothing_is_left(home)
    assert not (home / "service.json").exists()
    with closing(sqlite3.connect(home / "chainrule.db")) as database:
        assert database.execute("SELECT desired FROM jobs").fetchall() == [("kill",)]


def test_a_job_file_with_problems_starts_nothing(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("name: x\ntask: {kind: script}\ntraining: {epochs: 1.5}\nfoo: 1\n")
    run = subprocess.run(
        [*CHAINRULE, "run", str(job)],
        env=environment(tmp_path / "home"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 2
    for field in ("task", "training.epochs", "foo"):
        assert field in run.stderr
    assert not (tmp_path / "home").exists()


def test_without_a_service_the_client_says_what_to_do(tmp_path: Path) -> None:
    run = subprocess.run(
        [*CHAINRULE, "jobs"],
        env=environment(tmp_path / "home"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 3
    assert "chainrule up" in run.stderr
