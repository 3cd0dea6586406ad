"""Scripts that know nothing of Chainrule, as jobs on a real Ray: two workers, real process groups, real signals."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.helpers import wait_for
from workers import artifacts, launcher
from workers.repair.requests import ask
from workers.reports import ReasonCode, StopMode
from workers.watch.diagnosis import diagnose
from workers.watch.stored import from_folder

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_driver")]

SCRIPTS = str(Path(__file__).parents[1] / "scripts")


def script(entry: str, *arguments: str, count: int = 2, **changes: Any) -> dict[str, Any]:
    """Every step is measured: a test's steps are too short for a budget."""
    task = {"kind": "script", "code": {"path": SCRIPTS}, "entry": entry, "arguments": list(arguments)}
    return {"name": entry, "task": task | {"overhead_budget": 1.0} | changes, "workers": {"count": count}}


def log(group: Any, rank: int, attempt: int = 1) -> str:
    return str(group.folder.log_path(attempt, rank).read_text())


def test_a_bare_loop_is_watched(groups: Any) -> None:
    group = groups(script("bare_loop.py", "--steps", "40", "--save", "outputs", steps=40))
    seen = group.finished()
    assert seen.outcome.code is ReasonCode.COMPLETED, seen.outcome
    assert seen.outcome.message == "the script ended with exit code 0 after 40 optimizer steps"
    series = group.folder.series()
    assert list(series["train/loss"].steps) == list(range(1, 41))
    assert set(series["train/learning_rate"].values) == {0.05}
    matrix = group.folder.gradient_matrix()
    assert matrix.layers == ("0", "2", "4")
    assert matrix.norms.shape == (40, 3)
    total = np.sqrt(np.square(matrix.norms.astype(np.float64)).sum(axis=1))
    np.testing.assert_allclose(total, series["gradient/norm"].values, rtol=1e-5)
    assert seen.health["verdict"] == "healthy", seen.health
    assert (seen.progress.step, seen.progress.steps) == (40, 40)
    (kept,) = artifacts.every(group.folder.artifacts_path)
    assert (kept.step, kept.name) == (40, "weights.pt")
    assert kept.bytes == (group.folder.path / "outputs" / "weights.pt").stat().st_size > 1000
    assert re.search(r"^20\S+Z step 30 loss \d", log(group, 0), re.MULTILINE), "lines with their time"


def test_a_lightning_script_is_watched(groups: Any) -> None:
    """Lightning calls its optimizers with a closure, in which the backward pass is."""
    group = groups(script("lightning_fit.py", "30", "0.05"))
    seen = group.finished()
    assert seen.outcome.code is ReasonCode.COMPLETED, seen.outcome
    assert list(group.folder.series()["train/loss"].steps) == list(range(1, 31))
    assert group.folder.gradient_matrix().layers == ("network.0", "network.2", "network.4")
    assert seen.health["verdict"] == "healthy", seen.health


def test_a_hugging_face_trainer_is_watched_and_says_how_far_it_is(groups: Any) -> None:
    group = groups(script("hugging_face_trainer.py", "24", "1e-3"))
    seen = group.finished()
    assert seen.outcome.code is ReasonCode.COMPLETED, seen.outcome
    series = group.folder.series()
    assert list(series["train/loss"].steps) == list(range(1, 25)), "optimizer steps, not microbatches"
    assert "transformer.h.1.attn.c_proj" in group.folder.gradient_matrix().layers
    assert seen.health["verdict"] == "healthy", seen.health
    assert (seen.progress.step, seen.progress.steps, seen.progress.eta_seconds) == (24, 24, 0.0), (
        "as it posted at its end"
    )
    assert 1.0 < series["script/train_loss"].values[-1] < 4.0


@pytest.mark.parametrize(
    ("entry", "mood", "code"),
    [
        ("sick_bare_loop.py", "deep_sigmoid", "vanishing_gradient"),
        ("sick_lightning.py", "high_rate", "lr_too_high"),
        ("sick_trainer.py", "dead_relu", "dying_relu"),
        ("sick_bare_loop.py", "uncleared", "grad_accumulation"),
    ],
)
def test_a_sick_one_is_found_out_and_diagnosed_again(groups: Any, entry: str, mood: str, code: str) -> None:
    """More of them, without a cluster: tests/distributed/test_sick_scripts.py."""
    group = groups(script(entry, mood, "120", count=1, steps=120))
    seen = group.finished()
    assert seen.outcome.code is ReasonCode.COMPLETED, seen.outcome
    assert seen.health["findings"][0]["code"] == code, seen.health
    assert next(event.data["finding"]["code"] for event in group.events("finding.raised")) == code
    (facts,) = group.events("facts")
    assert facts.data["loss"]["function"] == "cross_entropy"
    assert diagnose(from_folder(group.folder)).findings[0].code == code


@pytest.mark.parametrize(("act", "code"), [("pause", ReasonCode.CRITICAL_PAUSE), ("stop", ReasonCode.CRITICAL_FINDING)])
def test_something_critical_ends_the_scripts_of_all_workers(groups: Any, act: str, code: ReasonCode) -> None:
    """Would catch a worker whose script goes on, and an end by SIGTERM that is told as a fault of the script's."""
    endless = script("bare_loop.py", "--lr", "3.0", "--steps", "1000000", resumable=True)
    group = groups(endless | {"health": {"on_critical": act}})
    seen = group.finished()
    assert seen.outcome.code is code, seen.outcome
    (first, *_) = seen.outcome.detail["critical"]
    assert first["code"] in ("lr_too_high", "exploding_gradient")
    assert first["code"] in seen.outcome.message
    assert {event.data["rank"] for event in group.events("script.stopping")} == {0, 1}
    assert not any(psutil.pid_exists(event.data["pid"]) for event in group.events("script.started"))


def test_an_exploding_one_is_found_out(groups: Any) -> None:
    group = groups(script("bare_loop.py", "--lr", "3.0", "--steps", "60"))
    seen = group.finished()
    assert seen.outcome.code is ReasonCode.COMPLETED, "what a script does is its own matter; the finding is told"
    assert seen.health["verdict"] == "critical", seen.health
    (finding,) = seen.health["findings"]
    assert finding["code"] in ("lr_too_high", "exploding_gradient")


def test_all_ranks_are_repaired_in_the_same_step(groups: Any) -> None:
    """Would catch a rank that leaves out an update, or changes its rate, by itself: its weights would be others."""
    repaired = {"health": {"mode": "repair", "on_critical": "continue"}}
    group = groups(script("not_a_number.py", "plain", "4000", steps=4000) | repaired)
    group.until("its steps", lambda seen: seen.progress is not None and seen.progress.step > 20)
    ask(group.folder.requests_path, "steer", "key", learning_rate=1e-3, clip_norm=0.05)
    seen = group.finished()
    assert seen.outcome.code is ReasonCode.COMPLETED, seen.outcome
    (done,) = group.events("repair.done")
    assert 20 < done.data["step"] < 4000
    rates = group.folder.series()["train/learning_rate"]
    assert set(rates.values[rates.steps <= done.data["step"]]) == {0.01}
    np.testing.assert_allclose(rates.values[rates.steps > done.data["step"]], 1e-3)
    said = [re.search(r"sound (\S+) left out (\d+) weights (\S+)", log(group, rank)) for rank in (0, 1)]
    first, second = (found.groups() for found in said if found is not None)
    assert first == second
    assert first[:2] == ("True", "400")
    assert not group.events("repair.limited")


def test_an_exit_code_is_a_reason(groups: Any) -> None:
    """Would catch the blame on rank 0, whose collective breaks because rank 1 is gone."""
    end = groups(script("moods.py", "exit")).finished()
    assert end.outcome.code is ReasonCode.USER_ERROR, end.outcome
    assert end.outcome.message == "rank 1: the script ended with exit code 3"
    assert "no more data here" in end.outcome.detail["traceback"]
    assert not end.recoveries


def test_a_hang_is_ended_with_stacks(groups: Any) -> None:
    group = groups(script("moods.py", "hang", hang_seconds=6))
    end = group.finished()
    assert end.outcome.code is ReasonCode.HUNG, end.outcome
    (hung,) = group.events("script.hung")
    assert "moods.py" in hung.data["stacks"]["1"]
    assert re.search(r"rank 1 after step 0 in <module> \((work/)?moods\.py:\d+\)", end.outcome.message), (
        end.outcome.message
    )


def test_a_lost_worker_starts_the_scripts_again(groups: Any) -> None:
    group = groups(script("moods.py", "restart"))
    seen = group.until("both", lambda seen: len([e for e in seen.events if e.type == "script.started"]) == 2)
    pids = {event.data["pid"] for event in seen.events if event.type == "script.started"}
    os.kill(next(worker.pid for worker in seen.workers if worker.rank == 1), signal.SIGKILL)
    end = group.finished()
    assert end.outcome.code is ReasonCode.COMPLETED, end.outcome
    (recovery,) = end.recoveries
    assert (list(recovery.ranks), recovery.source) == ([1], "start")
    assert {path.name for path in (group.folder.path / "outputs").iterdir()} == {"rank-0.txt", "rank-1.txt"}
    assert not any(psutil.pid_exists(pid) for pid in pids), "no script outlives its worker"


def test_cancel_is_heard_and_then_enforced(groups: Any) -> None:
    group = groups(script("moods.py", "stop", count=1, grace_seconds=1))
    group.until("its word", lambda _: group.folder.log_path(1, 0).exists() and "child" in log(group, 0))
    child = int(re.search(r"child (\d+)", log(group, 0))[1])  # type: ignore[index]
    launcher.stop(group.name, StopMode.CANCEL)
    end = group.finished()
    assert end.outcome.code is ReasonCode.CANCELLED
    assert end.outcome.detail["signal"] == signal.SIGKILL
    assert "not yet" in log(group, 0)
    assert not psutil.pid_exists(child), "what it has started ends with it"


def test_kill_leaves_nothing(groups: Any) -> None:
    group = groups(script("moods.py", "stop", count=1))
    group.until("its word", lambda _: group.folder.log_path(1, 0).exists() and "child" in log(group, 0))
    child = int(re.search(r"child (\d+)", log(group, 0))[1])  # type: ignore[index]
    group.until("its start", lambda seen: any(event.type == "script.started" for event in seen.events))
    (started,) = group.events("script.started")
    launcher.stop(group.name, StopMode.KILL)
    assert group.finished(10).outcome.code is ReasonCode.KILLED
    wait_for(
        "the script's end", lambda: not psutil.pid_exists(started.data["pid"]) and not psutil.pid_exists(child), 10
    )


def test_a_crash_in_native_code_is_named(groups: Any) -> None:
    end = groups(script("moods.py", "crash", count=1)).finished()
    assert end.outcome.code is ReasonCode.USER_ERROR
    assert "SIGSEGV" in end.outcome.message


def test_what_it_logs_to_mlflow_is_on_the_jobs_run(groups: Any, mlflow_server: Any) -> None:
    group = groups(script("moods.py", "mlflow", count=1), mlflow_url=mlflow_server.url)
    seen = group.finished()
    assert seen.outcome.code is ReasonCode.COMPLETED, seen.outcome
    from mlflow import MlflowClient

    client = MlflowClient(mlflow_server.url)
    run = client.get_run(seen.links["mlflow"].rpartition("/")[2])
    assert run.data.metrics["my_own"] == 42.0
    assert run.data.tags["chainrule.job_id"] == group.job_id
