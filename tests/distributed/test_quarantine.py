"""Samples that are no numbers, or far beyond all others, are found out one by one and left out: by all ranks from the same step on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.broken_scans import CODE, LOUD, NAN, scans_job, write_scans
from tests.distributed.processes import Processes
from tests.distributed.toys import Memory, Result, context_in, job
from workers import recording, run_repairs
from workers.jobfolder import JobFolder
from workers.kinds.image_data import DigitsData
from workers.membership import Alone, MeetingPoint
from workers.repair.requests import ask
from workers.replay import replay
from workers.replay_text import shown
from workers.reports import Outcome, ReasonCode, StopMode
from workers.sources.arrays import read_digits
from workers.spec import JobSpec, code_of, parse_spec
from workers.standalone import FolderReporter, SilentReporter
from workers.step_ledger import StepLedger
from workers.tasks.base import Batch, Datasets, ModelFacts
from workers.train import RunContext, run, train
from workers.user_code import provide

pytestmark = pytest.mark.distributed

GROUPS = [(1, "ddp"), (2, "ddp"), (2, "fsdp"), (3, "ddp")]


class Pixels:
    def __init__(self, inputs: np.ndarray, labels: np.ndarray) -> None:
        self.inputs, self.labels = torch.from_numpy(inputs), torch.from_numpy(labels)
        self.read: list[int] = []  # samples, in the order in which training asked for them

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Sequence[int], *, seed: int) -> Batch:
        self.read.extend(indices)
        return {"x": self.inputs[list(indices)], "y": self.labels[list(indices)]}


class Digits:
    """scikit-learn's, with some samples that a broken scanner has made: no numbers, or a million times as large."""

    def __init__(self, nan: Sequence[int] = NAN, loud: Sequence[int] = ()) -> None:
        images = read_digits(DigitsData(source="digits"))
        self.parts = []
        for part in (images.train, images.evaluation):
            inputs = (part.pixels.reshape(-1, 64) / 16).astype(np.float32)
            self.parts.append(Pixels(inputs, part.labels))
        self.parts[0].inputs[list(nan), 5] = float("nan")
        self.parts[0].inputs[list(loud)] *= 1e6

    def datasets(self) -> Datasets:
        return Datasets(*self.parts)

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        losses = F.cross_entropy(model(batch["x"]), batch["y"], reduction="none")
        return losses.sum(), torch.tensor(float(len(losses)))

    def evaluate(self, model: nn.Module, batch: Batch) -> Mapping[str, tuple[Tensor, Tensor]]:
        logits = model(batch["x"])
        count = torch.tensor(float(len(logits)))
        return {
            "loss": (F.cross_entropy(logits, batch["y"], reduction="sum"), count),
            "accuracy": ((logits.argmax(1) == batch["y"]).sum(), count),
        }

    def facts(self) -> ModelFacts:
        return ModelFacts((64,), tuple(map(str, range(10))))


def spec(allow: Sequence[str], workers: int = 1, strategy: str = "ddp", **parts: Any) -> JobSpec:
    return job(
        training={"epochs": 8, "batch_size": 96, **parts.pop("training", {})},
        workers={"count": workers, "strategy": strategy},
        optimizer={"name": "sgd", "momentum": 0.9, "learning_rate": 0.1},
        evaluation={"every_steps": 30},
        health={"mode": "repair", "allow": list(allow)} if allow else {"mode": "advise"},
        **parts,
    )


def trained(
    rank: int,
    world_size: int,
    job_spec: JobSpec,
    folder: Path,
    bad: tuple[Sequence[int], Sequence[int]] = (NAN, ()),
    stop_after: int | None = None,
    wishes: Sequence[Mapping[str, Any]] = (),
    meeting: MeetingPoint = None,
) -> Result:
    """Judged after each step. ``wishes``: what people ask for, all at once before the first step."""
    memory, asked = Memory(), 0

    def stop_requested() -> StopMode | None:
        nonlocal asked
        asked += 1
        return StopMode.PAUSE if asked == stop_after else None

    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"FLUSH_SECONDS": 0.0, "LOOKS": 1e9, "LOOK_SHARE": 1e9}.items():
            patch.setattr(recording, name, value)
        patch.setattr(run_repairs, "ASK_SECONDS", 0.0)
        patch.setattr(run_repairs, "SNAPSHOT_SHARE", 1e9)
        for wish in wishes if rank == 0 else ():
            ask(folder / "requests", **wish)
        context = context_in(
            folder, memory, Alone(rank, world_size, stop_requested, meeting), requests=folder / "requests"
        )
        task = Digits(*bad)
        return Result(run(task, job_spec, context), memory, [task.parts[0].read])


trained.forms_its_own_group = True  # type: ignore[attr-defined]  # told to Processes


def acts(result: Result, type: str = "repair.done") -> list[Mapping[str, Any]]:
    return [data["repair"]["act"] for data in result.memory.found(type)]


def accuracy(result: Result) -> float:
    return float(result.outcome.detail["metrics"]["eval/accuracy"])


@pytest.mark.parametrize(("workers", "strategy"), GROUPS)
def test_samples_that_are_no_numbers_are_left_out(
    processes: Processes, tmp_path: Path, workers: int, strategy: str
) -> None:
    sick = trained(0, 1, spec([]), tmp_path / "sick")
    assert sick.outcome.code is ReasonCode.NONFINITE, "it fails by itself"
    ends = processes.run(workers, tmp_path, trained, spec(["live", "data"], workers, strategy), tmp_path / "mended")
    assert {end.outcome.code for end in ends} == {ReasonCode.COMPLETED}
    (act,) = acts(ends[0])
    assert act["leaves_out"] == list(NAN)
    assert (act["rewind"], act["consent"], act["probation"]) == (None, "data", 0)
    assert accuracy(ends[0]) > 0.9
    open_still = {finding["code"] for finding in ends[0].outcome.detail["health"]["findings"]}
    assert open_still <= {"data_starvation"}, "nothing of those samples is held against the run"
    for name in ("parameters_sha256", "gradients_sha256", "steps"):
        assert len({end.outcome.detail[name] for end in ends}) == 1, name


def test_one_two_and_three_workers_train_on_the_same_samples(processes: Processes, tmp_path: Path) -> None:
    """Those that were left out in the steps before, those that fill their places after it."""
    read = []
    for workers in (1, 2, 3):
        ends = processes.run(workers, tmp_path, trained, spec(["data"], workers), tmp_path / str(workers))
        (act,) = acts(ends[0])
        steps = ends[0].outcome.detail["steps"]
        read.append((act["step"], act["leaves_out"], steps, ends[0].memory.series("train/learning_rate")))
    assert read[0] == read[1] == read[2]


def test_samples_far_beyond_all_others_are_left_out_and_the_weights_are_those_from_before(tmp_path: Path) -> None:
    bad: tuple[Sequence[int], Sequence[int]] = ((), LOUD)
    sick = trained(0, 1, spec([]), tmp_path / "sick", bad)
    end = trained(0, 1, spec(["data"]), tmp_path / "mended", bad)
    assert not accuracy(sick) > 0.5, "it fails by itself"
    (act,) = acts(end)
    assert act["leaves_out"] == list(LOUD)
    assert act["rewind"] is not None
    assert act["probation"] > 0, "it is on trial"
    assert acts(end, "repair.kept")
    assert accuracy(end) > 0.9


# --- what goes on with the list ---------------------------------------------------------------------------------------


def test_a_run_goes_on_from_a_checkpoint_without_them(processes: Processes, tmp_path: Path) -> None:
    """One worker is paused and two go on: the samples of a run that was never paused, and bit for bit its weights on as many workers."""
    parts: dict[str, Any] = {"checkpoint": {"every_steps": 10, "keep_last": 20}}
    whole = trained(0, 1, spec(["data"], **parts), tmp_path / "whole")
    first = trained(0, 1, spec(["data"], **parts), tmp_path / "two", stop_after=47)
    assert first.outcome.code is ReasonCode.PAUSED
    assert acts(first)
    second = trained(0, 1, spec(["data"], **parts), tmp_path / "two")
    assert second.outcome.detail["parameters_sha256"] == whole.outcome.detail["parameters_sha256"]
    assert not acts(second), "they are known"
    assert not set(NAN) & set(second.read[0])

    trained(0, 1, spec(["data"], **parts), tmp_path / "grown", stop_after=47)
    grown = processes.run(2, tmp_path, trained, spec(["data"], 2, **parts), tmp_path / "grown")
    assert not acts(grown[0])
    assert not {*NAN} & {*grown[0].read[0], *grown[1].read[0]}
    assert accuracy(grown[0]) == pytest.approx(accuracy(whole), abs=0.02)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_people_name_them_and_take_them_in_again(processes: Processes, tmp_path: Path, strategy: str) -> None:
    """In any mode. Nothing of weights and rate is touched."""
    wishes: list[Mapping[str, Any]] = [
        {"kind": "steer", "by": "key test", "leave_out": [5, 6, 1436]},
        {"kind": "steer", "by": "key test", "take_in": [6], "clip_norm": 2.0},
        {"kind": "steer", "by": "key test", "take_in": [7]},
        {"kind": "steer", "by": "key test", "leave_out": [1437]},
        {"kind": "steer", "by": "key test", "leave_out": list(range(1400))},
    ]
    ends = processes.run(2, tmp_path, trained, spec([], 2, strategy), tmp_path, ((), ()), None, wishes)
    first, second = acts(ends[0])
    assert (first["leaves_out"], first["code"], first["consent"]) == ([5, 6, 1436], "asked", "data")
    assert (second["takes_in"], second["clip"], second["step"]) == ([6], 2.0, first["step"] + 1)
    refused = [said for said in ends[0].memory.messages if "is not done" in said]
    assert "sample 7 is not left out" in refused[0]
    assert "there is no sample 1437; allowed is 0 to 1436" in refused[1]
    assert "36 of 1437 samples would be left; a batch needs 96" in refused[2]
    assert len({end.outcome.detail["parameters_sha256"] for end in ends}) == 1
    read = [*ends[0].read[0], *ends[1].read[0]]
    assert read.count(6) > 3
    assert read.count(5) + read.count(1436) <= 2, "before it was asked, if at all"


def test_undoing_takes_them_in_again_with_the_weights_from_before(tmp_path: Path) -> None:
    wishes: list[Mapping[str, Any]] = [
        {"kind": "steer", "by": "key test", "leave_out": [5, 6]},
        {"kind": "undo", "by": "key test", "number": 1},
    ]
    end = trained(0, 1, spec([]), tmp_path / "undone", ((), ()), None, wishes)
    assert acts(end, "repair.undone")
    read = end.read[0]
    assert read.count(5) > 6
    assert read.count(6) > 6


def test_a_new_job_begins_with_the_list_of_an_old_one(processes: Processes, tmp_path: Path) -> None:
    job_spec = spec([], 2, training={"leave_out": list(NAN)})
    ends = processes.run(2, tmp_path, trained, job_spec, tmp_path)
    assert accuracy(ends[0]) > 0.9
    assert not {*NAN} & {*ends[0].read[0], *ends[1].read[0]}
    assert not acts(ends[0])


# --- what is not touched ----------------------------------------------------------------------------------------------


def test_more_than_one_in_a_hundred_is_for_people(tmp_path: Path) -> None:
    many = (tuple(range(0, 300, 10)), ())
    end = trained(0, 1, spec(["live", "data"]), tmp_path, many)
    assert not acts(end)
    (said,) = [each for each in end.memory.messages if "is not repaired" in each]
    assert "30 of 1,437 samples are at fault, and more than 1 % are for people to decide about" in said


def test_without_consent_it_is_said_what_would_allow_it(tmp_path: Path) -> None:
    end = trained(0, 1, spec(["live"]), tmp_path)
    assert not acts(end)
    assert any("health.allow would have to name data" in said for said in end.memory.messages)


def test_a_job_that_is_well_is_the_same_bit_by_bit(tmp_path: Path) -> None:
    plain = trained(0, 1, spec([]), tmp_path / "a", ((), ()))
    mended = trained(0, 1, spec(["live", "data"]), tmp_path / "b", ((), ()))
    assert not acts(mended)
    assert mended.outcome.detail["parameters_sha256"] == plain.outcome.detail["parameters_sha256"]


# --- done again -------------------------------------------------------------------------------------------------------


def from_file(
    rank: int,
    world_size: int,
    job_spec: JobSpec,
    path: Path,
    wishes: Sequence[Mapping[str, Any]] = (),
    stop_after: int | None = None,
    meeting: MeetingPoint = None,
) -> Outcome:
    """As ``python -m workers.train`` does it, judged after each step. ``stop_after``: steps after which it is paused."""
    folder, asked = JobFolder.at(path), 0

    def stop_requested() -> StopMode | None:
        nonlocal asked
        asked += 1
        return StopMode.PAUSE if asked == stop_after else None

    if rank == 0:
        folder.create(job_spec.model_dump_json())
        for wish in wishes:
            ask(folder.requests_path, **wish)
    own = code_of(job_spec)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"FLUSH_SECONDS": 0.0, "LOOKS": 1e9, "LOOK_SHARE": 1e9}.items():
            patch.setattr(recording, name, value)
        patch.setattr(run_repairs, "ASK_SECONDS", 0.0)
        patch.setattr(run_repairs, "SNAPSHOT_SHARE", 1e9)
        context = RunContext(
            torch.device("cpu"),
            FolderReporter(folder) if rank == 0 else SilentReporter(),
            Alone(rank, world_size, stop_requested, meeting),
            folder.checkpoints_root,
            folder.model_path,
            code=provide(own, None, path / f"code-{rank}") if own is not None else None,
            requests=folder.requests_path,
        )
        return train(job_spec, context)


from_file.forms_its_own_group = True  # type: ignore[attr-defined]  # told to Processes


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all tests: a process imports a module once."""
    folder = tmp_path_factory.mktemp("code")
    (folder / "scans.py").write_text(CODE)
    return folder


@pytest.mark.parametrize(("workers", "strategy"), GROUPS)
def test_steps_before_and_after_it_are_done_again_bit_by_bit(
    processes: Processes, tmp_path: Path, code: Path, workers: int, strategy: str
) -> None:
    parts: dict[str, Any] = {"workers": {"count": workers, "strategy": strategy, "threads": 1}}
    document = scans_job(write_scans(tmp_path, NAN, LOUD), {"path": str(code)}, ["data"], **parts)
    path = tmp_path / "job"
    processes.run(workers, tmp_path, from_file, parse_spec(document | {"checkpoint": {"every_steps": 25}}), path)
    folder = JobFolder.at(path)
    told = [event["data"]["repair"]["act"] for event in folder.events(1) if event["type"] == "repair.done"]
    out = {sample for act in told for sample in act["leaves_out"] or ()}
    assert out == {*NAN, *LOUD}
    ledger = StepLedger(folder)
    last = max(act["step"] for act in told)
    assert ledger.step(last + 1).plan.left_out == tuple(sorted(out))
    assert ledger.step(1).plan.left_out == ()
    for step in {told[0]["step"] + 1, last + 1, 118}:
        found = replay(folder, step)
        compared = found["compared"]
        assert compared["same"] is True, shown(found)
        samples = {index for rank in range(workers) for index in ledger.step(step).of_rank(rank).indices.tolist()}
        assert not samples & out or step <= last


def test_what_people_left_out_is_done_again(tmp_path: Path) -> None:
    """Behind a checkpoint that has the list, and from before it."""
    task = {"kind": "image_classification", "data": {"source": "digits"}, "model": {"architecture": "mlp"}}
    job_spec = parse_spec({
        "name": "digits", "task": task, "training": {"steps": 24, "batch_size": 96, "leave_out": [7]}, "checkpoint": {"every_steps": 10},
    })  # fmt: skip
    wishes = [
        {"kind": "steer", "by": "key test", "leave_out": [5, 6]},
        {"kind": "steer", "by": "key test", "take_in": [7]},
    ]
    from_file(0, 1, job_spec, tmp_path / "job", wishes)
    folder = JobFolder.at(tmp_path / "job")
    assert [StepLedger(folder).step(step).plan.left_out for step in (2, 3, 4, 24)] == [(7,), (5, 6, 7), (5, 6), (5, 6)]
    for step in (1, 3, 4, 9, 18):
        assert replay(folder, step)["compared"]["same"] is True
