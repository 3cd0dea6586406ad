"""Samples that are left out on a real Ray: by themselves and for good, through lost workers, pauses and groups that change."""

from __future__ import annotations

import os
import signal
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.broken_scans import CODE, LOUD, NAN, scans_job, write_scans
from tests.distributed.test_class_weights import rare_digits
from tests.distributed.test_class_weights import spec as rare_spec
from tests.integration.groups import at_work
from tests.integration.test_changing_groups import losses
from workers import launcher
from workers.repair.requests import ask
from workers.replay import replay
from workers.reports import ReasonCode, StopMode
from workers.step_ledger import StepLedger

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_driver")]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    with zipfile.ZipFile(tmp_path / "bundle.zip", "w") as archive:
        archive.writestr("scans.py", CODE)
    return tmp_path / "bundle.zip"


def scans(folder: Path, allow: list[str], nan: Any = NAN, loud: Any = (), **parts: Any) -> dict[str, Any]:
    return scans_job(write_scans(folder, nan, loud), {"file": "file-1"}, allow, workers={"count": 2}, **parts)


def test_a_job_with_broken_samples_ends_well(groups: Any, bundle: Path, tmp_path: Path) -> None:
    """One in a hundred, so that hardly a batch is without: without consent to touch the data no rate and no clipping mends it, and leaving out
    updates leaves none."""
    nan = tuple(range(0, 1400, 100))
    parts: dict[str, Any] = {"training": {"steps": 300, "batch_size": 480}}
    for allow in ([], ["live"]):
        sick = groups(scans(tmp_path, allow, nan, **parts), bundle=bundle).finished()
        assert sick.outcome.code is ReasonCode.NONFINITE, sick.outcome
    group = groups(scans(tmp_path, ["live", "data"], nan, **parts), bundle=bundle)
    end = group.finished()
    assert end.outcome.code is ReasonCode.COMPLETED, end.outcome
    assert end.outcome.detail["metrics"]["eval/accuracy"] > 0.9
    assert {each["code"] for each in end.outcome.detail["health"]["findings"]} <= {"data_starvation", "batch_size"}
    acts = [event.data["repair"]["act"] for event in group.events("repair.done")]
    assert {sample for act in acts for sample in act["leaves_out"] or ()} == set(nan)
    assert "14 samples whose own loss or gradient is no number (0, 100, 200" in group.events("repair.done")[0].message
    assert len({event.data["parameters_sha256"] for event in group.events("training.finished")}) == 1
    losses(group)


def test_later_groups_and_attempts_leave_them_out_too(groups: Any, bundle: Path, tmp_path: Path) -> None:
    """A worker is killed, the group shrinks, the job is paused and goes on; people leave out one more meanwhile."""
    spec = scans(
        tmp_path, ["live", "data"], loud=LOUD, training={"steps": 6000, "batch_size": 96}, checkpoint={"every_steps": 200, "keep_last": 50},
        evaluation={"every_steps": 1000, "best": "eval/accuracy", "mode": "max"},
    )  # fmt: skip
    first = groups(spec, bundle=bundle)
    seen = first.until("the repair", lambda seen: any(event.type == "repair.done" for event in seen.events))
    os.kill(at_work(seen)[0].pid, signal.SIGKILL)
    first.until("the recovery", lambda seen: seen.recoveries)
    ask(first.folder.requests_path, "steer", "key test", leave_out=[5])
    first.until("what people asked", lambda seen: any("key test" in event.message for event in seen.events))
    first.reshape(1)
    first.until("one worker", lambda seen: len(at_work(seen)) == 1)
    launcher.stop(first.name, StopMode.PAUSE)
    paused = first.finished()
    assert paused.outcome.code is ReasonCode.PAUSED
    second = groups(spec, bundle=bundle, job_id=first.job_id, number=2)
    end = second.finished()
    assert end.outcome.code is ReasonCode.COMPLETED, end.outcome
    assert end.outcome.detail["metrics"]["eval/accuracy"] > 0.9
    assert len({event.data["parameters_sha256"] for event in second.events("training.finished")}) == 1
    told = [event for group in (first, second) for event in group.events("repair.done")]
    acts = [event.data["repair"]["act"] for event in told]
    out = {sample for act in acts for sample in act["leaves_out"] or ()}
    assert {*NAN, 5} <= out <= {*NAN, *LOUD, 5}
    ledger = StepLedger(second.folder)
    began, last = ledger.groups[-1].begins, end.outcome.detail["steps"]
    assert began > 0
    assert {group.world_size for group in ledger.groups} == {1, 2}
    assert ledger.left_out(None) == tuple(sorted(out))
    for step in (began + 1, last):
        taken = {index for rank in (0, 1) for index in ledger.step(step).of_rank(rank).indices.tolist()}
        assert not taken & {*NAN, 5}
        found = replay(second.folder, step, bundle)
        assert found["compared"]["same"] is True, found["compared"]


def test_classes_stay_weighed_when_a_worker_is_lost(groups: Any, tmp_path: Path) -> None:
    spec = rare_spec(
        rare_digits(tmp_path), ["data"], workers=2, training={"steps": 2500, "batch_size": 96}, evaluation={"every_steps": 500},
        checkpoint={"every_steps": 500, "keep_last": 50},
    )  # fmt: skip
    group = groups(spec.model_dump(mode="json"))
    seen = group.until("the weights", lambda seen: any(event.type == "repair.done" for event in seen.events))
    os.kill(at_work(seen)[0].pid, signal.SIGKILL)
    group.until("the recovery", lambda seen: seen.recoveries)
    end = group.finished()
    assert end.outcome.code is ReasonCode.COMPLETED, end.outcome
    assert end.outcome.detail["metrics"]["eval/f1"] > 0.8
    (told,) = group.events("repair.done")
    assert (
        "weights the loss by class, from 0.795 for the most frequent (146 samples) to 29 for the rarest (4)"
        in told.message
    )
    assert len({event.data["parameters_sha256"] for event in group.events("training.finished")}) == 1
    found = replay(group.folder, 2400)
    assert found["compared"]["same"] is True, found["compared"]
