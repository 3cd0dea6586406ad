"""The look at data in its own process: whatever becomes of that process, the job goes on or ends with a reason."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.helpers import wait_for
from workers.acting import Acting, accept, accepted
from workers.data_checks.control import DataControl
from workers.jobfolder import JobFolder
from workers.ledger import Ledger
from workers.reports import Outcome, ReasonCode
from workers.spec import JobSpec, parse_spec

pytestmark = pytest.mark.unit


def job(path: Path, **health: Any) -> JobSpec:
    data = {"source": "npz", "path": str(path)}
    return parse_spec({"name": "x", "task": {"kind": "image_classification", "data": data}, "health": health})


def write(path: Path, *, last_label: int = 1, classes: int = 2) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (100, 6, 6), dtype=np.uint8)
    labels = np.arange(100) % classes
    labels[-1] = last_label
    np.savez(path, x_train=pixels, y_train=labels, x_test=pixels[:40], y_test=labels[:40])
    return path


def waiting_pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def started(spec: JobSpec, folder: Path, **more: Any) -> tuple[DataControl, Ledger]:
    place = JobFolder(folder, "job-1")
    ledger = Ledger(place, 1)
    return DataControl(spec, place, ledger, Acting(spec.health.on_critical, accepted(place)), look=True, **more), ledger


def ended(control: DataControl) -> Outcome | None:
    outcomes: list[Outcome | None] = []

    def over() -> bool:
        outcomes.append(control.outcome())
        return not control.pending

    wait_for("the end of the look", over, 30)
    return outcomes[-1]


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE}


def test_findings_are_told_and_kept_for_later_attempts(tmp_path: Path) -> None:
    control, ledger = started(job(write(tmp_path / "x.npz")), tmp_path)
    assert control.pending
    assert ended(control) is None
    assert [event.type for event in ledger.events] == ["data.checked", "data.finding"]
    assert ledger.health["verdict"] == "warning"
    assert [finding["code"] for finding in ledger.health["findings"]] == ["train_evaluation_overlap"]
    again, later = started(job(tmp_path / "x.npz"), tmp_path)
    assert not again.pending, "no second look"
    assert later.health == ledger.health
    assert not later.events[2:]


def one_class(path: Path) -> Path:
    """Critical: there is nothing to learn."""
    return write(path, last_label=0, classes=1)


def test_what_is_critical_ends_a_job_that_says_so_before_it_takes_workers(tmp_path: Path) -> None:
    path = one_class(tmp_path / "x.npz")
    assert ended(started(job(path), tmp_path / "goes on")[0]) is None
    outcome = ended(started(job(path, on_critical="stop"), tmp_path / "stops")[0])
    assert outcome is not None
    assert outcome.code is ReasonCode.CRITICAL_FINDING
    assert outcome.message.startswith("stopped before the first step because of class_missing: ")


def test_a_paused_job_is_not_paused_again_for_the_same_data(tmp_path: Path) -> None:
    spec = job(one_class(tmp_path / "x.npz"), on_critical="pause")
    outcome = ended(started(spec, tmp_path)[0])
    assert outcome is not None
    assert outcome.code is ReasonCode.CRITICAL_PAUSE
    again = started(spec, tmp_path)[0].outcome()  # of a controller that was restarted before it could end the job
    assert again == outcome
    accept(JobFolder(tmp_path, "job-1"), outcome)
    assert started(spec, tmp_path)[0].outcome() is None


def test_unusable_data_is_an_end(tmp_path: Path) -> None:
    control, ledger = started(job(write(tmp_path / "x.npz", last_label=-1)), tmp_path)
    outcome = ended(control)
    assert outcome is not None
    assert outcome.code is ReasonCode.BAD_DATA
    assert outcome.message.startswith("task.data.train_labels: label -1 of row 99 is out of range")
    assert [event.type for event in ledger.events] == ["data.unusable"]


def test_a_look_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    before = children()
    control, ledger = started(job(waiting_pipe(tmp_path / "x.npz")), tmp_path, seconds=1.5)
    assert ended(control) is None
    (told,) = ledger.events
    assert (told.type, told.level) == ("data.unchecked", "info")
    assert "takes longer than 2 s" in told.message
    assert children() == before


def test_a_process_that_dies_is_told(tmp_path: Path) -> None:
    before = children()
    control, ledger = started(job(waiting_pipe(tmp_path / "x.npz")), tmp_path)
    (child,) = children() - before
    os.kill(child, signal.SIGKILL)
    assert ended(control) is None
    (told,) = ledger.events
    assert told.type == "data.unchecked"
    assert "its process ended with status -9" in told.message


def test_it_ends_with_the_controller(tmp_path: Path) -> None:
    before = children()
    control, _ = started(job(waiting_pipe(tmp_path / "x.npz")), tmp_path)
    assert children() - before
    control.end()
    wait_for("the child's end", lambda: children() == before, 10)


def test_what_does_not_fit_into_memory_is_not_called_bad(tmp_path: Path) -> None:
    """Would catch an archive that is said to be broken because the look had no room for it."""
    large = np.zeros((8_000, 256, 256), np.uint8)  # 500 MiB, packed to almost nothing
    np.savez_compressed(tmp_path / "x.npz", x_train=large, y_train=np.arange(8_000) % 2)
    data = {"source": "npz", "path": str(tmp_path / "x.npz"), "evaluation_images": None, "evaluation_labels": None}
    spec = parse_spec({"name": "x", "task": {"kind": "image_classification", "data": data}})
    limited = f"import resource, runpy; resource.setrlimit(resource.RLIMIT_DATA, 2 * ({400 << 20},)); "
    run = subprocess.run(
        [sys.executable, "-c", limited + "runpy.run_module('workers.data_checks', run_name='__main__')"],
        input=spec.model_dump_json().encode(),
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=60,
        check=True,
    )
    report = json.loads(run.stdout)
    assert (report["problem"], report["unchecked"]) == (None, "it does not fit into the memory for this look")
