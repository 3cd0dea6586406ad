"""Data is looked at by a real controller before it takes workers, in a process of its own."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray

from tests.helpers import wait_for
from tests.integration.groups import DIGITS
from workers import launcher
from workers.ray_names import NAMESPACE, controller_name
from workers.reports import ReasonCode, StopMode

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_driver")]


def job(folder: Path, *, leaked: int = 0, wrong_label: bool = False, **changes: Any) -> dict[str, Any]:
    """Two classes, dark and bright; ``leaked`` of the 60 evaluation images are training images."""
    random = np.random.default_rng(0)
    labels = {"train": np.arange(240) % 2, "test": np.arange(60) % 2}
    pixels = {
        part: random.integers(0, 100, (len(each), 8, 8)) + 150 * each[:, None, None] for part, each in labels.items()
    }
    pixels["test"][:leaked] = pixels["train"][:leaked]
    if wrong_label:
        labels["train"][17] = 5
    arrays = {f"x_{part}": each.astype(np.uint8) for part, each in pixels.items()}
    arrays |= {f"y_{part}": each.astype(np.uint8) for part, each in labels.items()}
    np.savez(folder / "images.npz", **arrays)  # type: ignore[arg-type]  # numpy's stub takes every keyword for its allow_pickle
    data = {"source": "npz", "path": str(folder / "images.npz"), "classes": 2}
    task = {"kind": "image_classification", "data": data, "model": {"architecture": "mlp", "hidden": [16]}}
    return DIGITS | {"task": task, "training": {"epochs": 3, "batch_size": 24}} | changes


def test_a_finding_is_on_the_job_and_it_trains(groups: Any, tmp_path: Path) -> None:
    """Would catch findings that the workers' verdict on the gradients wipes out."""
    group = groups(job(tmp_path, leaked=30))
    seen = group.finished()
    assert seen.outcome.code is ReasonCode.COMPLETED, seen.outcome
    assert any(event.type == "health.verdict" for event in seen.events), "the gradients were judged after the data"
    (finding,) = seen.health["findings"]
    assert (finding["code"], finding["severity"], finding["first_bad_step"]) == (
        "train_evaluation_overlap",
        "warning",
        0,
    )
    assert finding["evidence"]["shared"] == 30
    assert seen.health["verdict"] == "warning"
    types = [event.type for event in seen.events]
    assert types.index("data.checked") < types.index("data.finding") < types.index("workers.started")
    (checked,) = group.events("data.checked")
    assert checked.data["summary"]["samples"] == {"training": 240, "evaluation": 60}
    (told,) = group.events("data.finding")
    assert (told.level, told.data["code"]) == ("warning", "train_evaluation_overlap")


def test_a_later_attempt_does_not_look_again(groups: Any, tmp_path: Path) -> None:
    first = groups(job(tmp_path, leaked=30, training={"steps": 4000, "batch_size": 24}))
    first.until_step(5)
    launcher.stop(first.name, StopMode.PAUSE)
    assert first.finished().outcome.code is ReasonCode.PAUSED
    spec = job(tmp_path, leaked=30, training={"steps": 4000, "batch_size": 24})
    second = groups(spec, job_id=first.job_id, number=2)
    seen = second.until("its start", lambda seen: any(event.type == "workers.started" for event in seen.events))
    launcher.stop(second.name, StopMode.CANCEL)
    assert not second.events("data.checked")
    assert [finding["code"] for finding in seen.health["findings"]] == ["train_evaluation_overlap"]


def test_data_that_cannot_be_used_takes_no_worker(groups: Any, tmp_path: Path) -> None:
    group = groups(job(tmp_path, wrong_label=True))
    seen = group.finished(30)
    assert seen.outcome.code is ReasonCode.BAD_DATA
    assert "task.data.train_labels: label 5 of row 17 is out of range; allowed is 0 to 1" in seen.outcome.message
    assert not seen.workers
    types = {event.type for event in seen.events}
    assert "data.unusable" in types
    assert not {"workers.started", "worker.failed", "worker.lost"} & types
    assert not list((group.folder.path / "logs").glob("*")), "no worker has printed anything"


def test_the_look_can_be_left_out(groups: Any, tmp_path: Path) -> None:
    group = groups(job(tmp_path, leaked=30, health={"data_checks": False}))
    seen = group.finished()
    assert seen.outcome.code is ReasonCode.COMPLETED
    assert seen.health["verdict"] == "healthy"
    assert not seen.health["findings"]
    assert not group.events("data.checked")


def test_a_reader_that_does_not_end_stops_nobody(groups: Any, tmp_path: Path) -> None:
    """A named pipe that nobody writes to: whoever opens it waits. A cancel must not wait with it."""
    spec = job(tmp_path)
    path = tmp_path / "images.npz"
    path.unlink()
    os.mkfifo(path)
    group = groups(spec)
    group.until("the controller", lambda seen: seen.phase == "starting")
    controller = ray.get_actor(controller_name(group.name), namespace=NAMESPACE)
    parent = psutil.Process(ray.get(controller.pid.remote()))
    reader = wait_for(
        "the reader", lambda: next((p for p in parent.children() if "workers.data_checks" in p.cmdline()), None), 10
    )
    time.sleep(1.0)  # in which workers would be taken, were they not to wait
    assert not group.observe().workers
    launcher.stop(group.name, StopMode.CANCEL)
    assert group.finished(10).outcome.code is ReasonCode.CANCELLED
    wait_for("the reader's end", lambda: not reader.is_running() or reader.status() == psutil.STATUS_ZOMBIE, 10)
