"""A step that is done again is the step that was made: bit by bit, also by several workers and behind a pause; and nothing of the job changes."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.distributed.processes import Processes
from tests.distributed.toys import Toy, train_toy
from tests.distributed.toys import job as toy_job
from workers import recording, run_repairs
from workers.batches import plan_of, seed_everything
from workers.jobfolder import JobFolder
from workers.membership import Alone, DismissedError, MeetingPoint, Membership, Position
from workers.repair import repairs
from workers.repair.requests import ask
from workers.replay import main, replay
from workers.replay_run import CannotBeRedoneError
from workers.replay_text import shown
from workers.reports import Outcome, StopMode
from workers.spec import JobSpec, parse_spec
from workers.standalone import FolderReporter, SilentReporter
from workers.step_ledger import NoSuchStepError, UnknownStepError, samples_of
from workers.tasks import build_task
from workers.train import RunContext, train

pytestmark = pytest.mark.distributed


def job(workers: int = 1, strategy: str = "ddp", **parts: Any) -> JobSpec:
    """With everything that a step may draw or carry on: dropout, batch norm, moments, a schedule, microbatches, clipping."""
    settings: dict[str, Any] = {
        "name": "cells",
        "task": {
            "kind": "tabular",
            "data": {"source": "breast_cancer"},
            "model": {"architecture": "mlp", "hidden": [16, 8], "dropout": 0.1, "normalization": "batch"},
        },
        "training": {"steps": 24, "batch_size": 32, "accumulate": 2, "clip_norm": 0.5},
        "optimizer": {"learning_rate": 0.01},
        "schedule": {"name": "cosine", "warmup_steps": 4},
        "checkpoint": {"every_steps": 5, "keep_last": 3},
        "workers": {"count": workers, "threads": 1, "strategy": strategy},
    }
    return parse_spec({**settings, **parts})


def trained(
    rank: int,
    world_size: int,
    spec: JobSpec,
    path: Path,
    stop_after: int | None = None,
    requests: Path | None = None,
    link: Alone | None = None,
    meeting: MeetingPoint = None,
) -> Outcome:
    """As ``python -m workers.train`` does it. ``stop_after``: steps after which it is paused."""
    folder, asked = JobFolder.at(path), 0
    if rank == 0:
        folder.create(spec.model_dump_json())

    def stop_requested() -> StopMode | None:
        nonlocal asked
        asked += 1
        return StopMode.PAUSE if asked == stop_after else None

    context = RunContext(
        torch.device("cpu"),
        FolderReporter(folder) if rank == 0 else SilentReporter(),
        link or Alone(rank, world_size, stop_requested, meeting),
        folder.checkpoints_root,
        folder.model_path,
        requests=requests,
    )
    return train(spec, context)


trained.forms_its_own_group = True  # type: ignore[attr-defined]  # told to Processes


def contents(path: Path) -> dict[str, str]:
    return {
        str(file.relative_to(path)): f"{file.stat().st_mtime_ns} {hashlib.sha256(file.read_bytes()).hexdigest()}"
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def same(found: dict[str, Any], layers: int = 5) -> None:
    compared = found["compared"]
    assert compared["same"] is True, shown(found)
    assert compared["layers"] == layers
    assert set(compared["recorded"]) == {"loss", "norm", "learning_rate"}


@pytest.mark.parametrize(("workers", "strategy"), [(1, "ddp"), (2, "ddp"), (2, "fsdp")])
def test_a_step_done_again_has_the_same_bits(processes: Processes, tmp_path: Path, workers: int, strategy: str) -> None:
    """The run was paused and went on in between; the first step has no checkpoint before it, and the last has one right before it."""
    spec = job(workers, strategy)
    processes.run(workers, tmp_path, trained, spec, tmp_path / "job", 7)
    processes.run(workers, tmp_path, trained, spec, tmp_path / "job")
    before = contents(tmp_path / "job")
    begins = {}
    for step in (3, 9, 21):
        found = replay(JobFolder.at(tmp_path / "job"), step)
        same(found)
        begins[step] = found["begins"]
        assert found["world_size"] == workers
        assert sum(rank["samples"] for rank in found["ranks"]) == 32
        assert [call["shape"][0] for call in found["forward"]] == [32] * len(found["forward"]), "of all ranks"
    assert begins == {3: 0, 9: 0, 21: 20}, "those of steps 5 and 7 were removed since"
    assert contents(tmp_path / "job") == before


def test_more_than_two_workers_add_up_in_the_order_of_then(processes: Processes, tmp_path: Path) -> None:
    """Where an element lies in a bucket decides it, and the first step of a group has other buckets than the later ones."""
    spec = job(
        3,
        training={"steps": 6, "batch_size": 33},
        task={**job().task.model_dump(), "model": {"architecture": "mlp", "hidden": [700, 600]}},
        checkpoint={"every_steps": 4},
    )
    processes.run(3, tmp_path, trained, spec, tmp_path / "job")
    for step in (5, 6):
        same(replay(JobFolder.at(tmp_path / "job"), step), layers=3)


class Shrinking(Alone):
    """Two workers, of which the first goes on alone after some steps, with what it has in memory."""

    def __init__(self, rank: int, store: MeetingPoint, after: int) -> None:
        super().__init__(rank, 2, store=store)
        self._rank, self._after, self._asked = rank, after, 0

    def next_group(self, position: Position | None, broken: str | None) -> Membership:
        if position is None:
            return super().next_group(position, broken)
        if self._rank:
            raise DismissedError
        return Membership(2, 0, 1, position)

    def regroup_requested(self) -> bool:
        self._asked += 1
        return self._asked == self._after


def shrinking(rank: int, world_size: int, spec: JobSpec, path: Path, after: int, meeting: MeetingPoint = None) -> None:
    with contextlib.suppress(DismissedError):
        trained(rank, world_size, spec, path, link=Shrinking(rank, meeting, after))


shrinking.forms_its_own_group = True  # type: ignore[attr-defined]  # told to Processes


def test_steps_of_groups_that_changed_are_made_by_as_many_workers(processes: Processes, tmp_path: Path) -> None:
    spec = job(2)
    processes.run(2, tmp_path, shrinking, spec, tmp_path / "job", 18)
    found = replay(JobFolder.at(tmp_path / "job"), 20)
    same(found)
    assert (found["begins"], found["world_size"]) == (15, 1)
    same(replay(JobFolder.at(tmp_path / "job"), 18))


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    trained(0, 1, job(), tmp_path / "job")
    newest = sorted((tmp_path / "job" / "checkpoints").iterdir())[-2]
    (newest / "part-0000.distcp").write_bytes(b"torn")
    found = replay(JobFolder.at(tmp_path / "job"), 22)
    same(found)
    assert found["begins"] == 15
    assert newest.name in found["passed_over"][0]


def test_what_differs_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As if it had been trained elsewhere, with other samples."""
    trained(0, 1, job(training={"steps": 4, "batch_size": 32}), tmp_path / "job")
    folder = JobFolder.at(tmp_path / "job")
    events = folder.events_path(1)
    events.write_text(events.read_text().replace(torch.__version__, "1.0"))
    folder.create(job(training={"steps": 4, "batch_size": 32, "seed": 1}).model_dump_json())
    assert main([str(tmp_path / "job"), "3"]) == 1
    said = capsys.readouterr().out
    assert "Different from what was recorded" in said
    assert f"torch was 1.0, is {torch.__version__}" in said


def test_the_table_is_the_chain_rule(tmp_path: Path) -> None:
    """Of three layers with ReLU between them and cross-entropy behind, by hand: dL/dz3 = (softmax - onehot) / N, and from there on
    dL/dW = (dL/dz)^T h, dL/db = sum of dL/dz, dL/dh = dL/dz W, dL/dz = dL/dh where z > 0. Weights change by rate x gradient."""
    spec = job(
        task={**job().task.model_dump(), "model": {"architecture": "mlp", "hidden": [7, 5]}},
        training={"steps": 1, "batch_size": 16, "seed": 3},
        optimizer={"name": "sgd", "learning_rate": 0.1},
        schedule={"name": "constant"},
    )
    trained(0, 1, spec, tmp_path / "job")
    found = replay(JobFolder.at(tmp_path / "job"), 1)
    same(found, layers=3)

    task = build_task(spec.task, spec.training.seed)
    data = task.datasets().train
    seed_everything(spec.training.seed)
    weights = {name: value.double().numpy() for name, value in task.model().state_dict().items()}
    rows = plan_of(spec, len(data)).step_indices(0)
    batch = data.batch(rows.tolist(), seed=0)
    x, y = batch["features"].double().numpy(), batch["targets"].numpy()

    z1 = x @ weights["linear1.weight"].T + weights["linear1.bias"]
    h1 = np.maximum(z1, 0)
    z2 = h1 @ weights["linear2.weight"].T + weights["linear2.bias"]
    h2 = np.maximum(z2, 0)
    z3 = h2 @ weights["output.weight"].T + weights["output.bias"]
    p = np.exp(z3) / np.exp(z3).sum(1, keepdims=True)
    loss = -np.log(p[np.arange(16), y]).mean()
    d3 = (p - np.eye(2)[y]) / 16
    e2 = d3 @ weights["output.weight"]
    d2 = e2 * (z2 > 0)
    e1 = d2 @ weights["linear2.weight"]
    d1 = e1 * (z1 > 0)

    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    forward = {row["module"]: row for row in found["forward"]}
    given = {"linear1": z1, "relu1": h1, "linear2": z2, "relu2": h2, "output": z3}
    assert [row["module"] for row in found["forward"] if row["module"] in given] == list(given), "in the order of calls"
    for name, value in given.items():
        assert forward[name]["shape"] == list(value.shape)
        assert forward[name]["mean"] == pytest.approx(value.mean(), rel=1e-4, abs=1e-6), name
        assert forward[name]["deviation"] == pytest.approx(value.std(), rel=1e-4), name
        assert forward[name]["zeros"] == (value == 0).mean(), name

    backward = {row["module"]: row for row in found["backward"]}
    assert [row["module"] for row in found["backward"]] == [row["module"] for row in found["forward"]][::-1]
    for name, value in {"output": d3, "relu2": e2, "linear2": d2, "relu1": e1, "linear1": d1}.items():
        assert backward[name]["gradient"] == pytest.approx(np.linalg.norm(value), rel=1e-4), name
    gradients = {
        "output.weight": d3.T @ h2, "output.bias": d3.sum(0), "linear2.weight": d2.T @ h1, "linear2.bias": d2.sum(0),
        "linear1.weight": d1.T @ x, "linear1.bias": d1.sum(0),
    }  # fmt: skip
    shown_of = {each["name"]: each["gradient"] for row in found["backward"] for each in row["parameters"]}
    assert shown_of == {name: pytest.approx(np.linalg.norm(value), rel=1e-4) for name, value in gradients.items()}
    for update in found["updates"]:
        before, change = np.linalg.norm(weights[update["name"]]), 0.1 * np.linalg.norm(gradients[update["name"]])
        assert update["update"] == pytest.approx(change, rel=1e-3), update["name"]
        wanted = pytest.approx(change / before, rel=1e-3) if before else None  # biases begin with 0
        assert update["ratio"] == wanted, update["name"]
    text = shown(found)
    places = [text.index(title) for title in ("SAMPLES", "FORWARD", "LOSS", "BACKWARD", "UPDATE", "COMPARED")]
    assert places == sorted(places)


def test_the_ledger_names_the_samples_that_were_read(processes: Processes, tmp_path: Path) -> None:
    """Also of the last batch of an epoch, whose two samples are fewer than there are microbatches."""
    spec = toy_job(training={"epochs": 2, "batch_size": 12, "accumulate": 3}, workers={"count": 2})
    results = processes.run(2, tmp_path, train_toy, Toy(), spec, tmp_path)
    plan = plan_of(spec, 50)
    for rank, result in enumerate(results):
        read = iter(result.read)
        for step in range(1, plan.steps + 1):
            found = samples_of(plan, step, rank, 2, 3)
            parts = [next(read) for _ in range(min(3, len(plan.step_indices(step - 1))))]
            if len(found.microbatches) == len(parts):  # no stand-in of an empty share, which counts nothing
                assert found.indices.tolist() == [index for part in parts for index in part]
                assert list(found.microbatches) == list(map(len, parts))
        both = [index for each in (0, 1) for index in samples_of(plan, 5, each, 2, 3).indices.tolist()]
        assert sorted(both) == sorted(plan.step_indices(4).tolist()), "each sample once"


# --- repairs ----------------------------------------------------------------------------------------------------------


def repaired(path: Path, monkeypatch: pytest.MonkeyPatch, keep: int, steps: int = 120) -> list[dict[str, Any]]:
    """A rate far too high is brought down, with earlier weights, while it trains; events of what was done."""
    monkeypatch.setattr(recording, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(recording, "LOOKS", 10_000)
    monkeypatch.setattr(recording, "LOOK_SHARE", 1e9)
    monkeypatch.setattr(recording, "FLUSH_SECONDS", 0.0)
    monkeypatch.setattr(run_repairs, "SNAPSHOT_SHARE", 1e9)
    spec = job(
        training={"steps": steps, "batch_size": 32},
        optimizer={"name": "sgd", "momentum": 0.9, "learning_rate": 100.0},
        schedule={"name": "constant"},
        health={"mode": "repair"},
        checkpoint={"every_steps": 10, "keep_last": keep},
    )
    trained(0, 1, spec, path)
    return [event for event in JobFolder.at(path).events(1) if event["type"].startswith("repair.")]


def test_repairs_are_done_again_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = repaired(tmp_path / "job", monkeypatch, keep=100)
    acts = [event["data"]["repair"]["act"] for event in told if event["type"] == "repair.done"]
    assert acts, told
    for act in acts[:2]:
        found = replay(JobFolder.at(tmp_path / "job"), act["step"] + 3)
        assert found["repairs"], "one lies between the checkpoint and the step"
        assert found["begins"] <= (act["rewind"] or 0)
        same(found)


def test_a_step_after_a_comparison_that_was_lost_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights are those of the end of an earlier trial, from memory; nobody is asked a second time which was better."""
    with monkeypatch.context() as patch:
        patch.setattr(repairs, "is_doubtful", lambda first, score: True)
        patch.setattr(repairs, "better", lambda challenger, champion, by: False)
        told = repaired(tmp_path / "job", monkeypatch, keep=100, steps=240)
    last = next(event["data"] for event in told if event["data"].get("repair", {}).get("returned") is not None)
    assert last["repair"]["act"]["against"]
    folder = JobFolder.at(tmp_path / "job")
    for kept in folder.checkpoints():  # those of the rivals and after them would make it easy
        if kept.step >= last["repair"]["returned"]:
            shutil.rmtree(str(kept.folder))
    found = replay(folder, last["repair"]["ended"] + 3)
    assert found["begins"] <= last["repair"]["returned"]
    same(found)


def test_a_repair_whose_snapshot_is_gone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the start left one could always begin there: the record of who made the first steps is what is missing here."""
    told = repaired(tmp_path / "job", monkeypatch, keep=100)
    act = next(event["data"]["repair"]["act"] for event in told if event["type"] == "repair.done")
    folder = JobFolder.at(tmp_path / "job")
    rows = folder.events_path(1).read_text()
    folder.events_path(1).write_text(rows.replace('"act":{"number":1,', '"act":{"number":1,"other":2,'))
    with pytest.raises(CannotBeRedoneError, match=f"repair 1 after step {act['step']}"):
        replay(folder, act["step"] + 1)


def test_what_people_asked_for_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_repairs, "ASK_SECONDS", 0.0)
    ask(tmp_path / "requests", "steer", "key test", learning_rate=0.002, clip_norm=0.1)
    trained(0, 1, job(), tmp_path / "job", requests=tmp_path / "requests")
    found = replay(JobFolder.at(tmp_path / "job"), 4)
    same(found)
    assert len(found["repairs"]) == 1


# --- refused ----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_done_again_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnknownStepError, match=r"job\.json"):
        replay(JobFolder.at(tmp_path), 1)
    trained(0, 1, job(training={"steps": 2, "batch_size": 32}), tmp_path / "job")
    for step in (0, 3):
        with pytest.raises(NoSuchStepError, match="steps 1 to 2"):
            replay(JobFolder.at(tmp_path / "job"), step)
    script = {"kind": "script", "code": {"path": "."}, "entry": "train.py"}
    JobFolder.at(tmp_path / "script").create(f'{{"name": "s", "task": {str(script).replace(chr(39), chr(34))}}}')
    with pytest.raises(UnknownStepError, match="is a script"):
        replay(JobFolder.at(tmp_path / "script"), 1)
    assert main([str(tmp_path / "job"), "9"]) == 2
    assert "there is no step 9" in capsys.readouterr().err
