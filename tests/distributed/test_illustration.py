"""What a task shows after evaluations: by the right workers, kept once, and without a trace in the training."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.distributed.processes import Processes
from tests.distributed.toys import FEATURES, Memory, Toy, ToyTask, job
from workers import artifacts, sharding
from workers.membership import Alone, MeetingPoint
from workers.reports import ReasonCode
from workers.train import RunContext, run

pytestmark = pytest.mark.distributed


class DrawingTask(ToyTask):
    """Draws with every generator there is, and counts how often it was asked. ``fault``: what goes wrong."""

    def __init__(self, toy: Toy, fault: str | None) -> None:
        super().__init__(toy)
        self.fault, self.asked = fault, 0

    def illustrate(self, model: nn.Module, device: torch.device) -> Mapping[str, bytes]:
        self.asked += 1
        assert not model.training
        assert not torch.is_grad_enabled()
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        points = torch.rand(8, FEATURES) + random.random() + np.random.random()
        outputs = model(points)
        if self.fault == "raises":
            raise ArithmeticError("no picture today")
        name = "../weights.txt" if self.fault == "bad name" else "outputs.txt"
        return {name: repr(outputs.sum(0).tolist()).encode()}


def trained(
    rank: int,
    world_size: int,
    strategy: str,
    folder: Path,
    fault: str | None = None,
    draws: bool = True,
    kept: bool = True,
    meeting: MeetingPoint = None,
) -> tuple[dict[str, Any], Memory, int]:
    """(what is known of the end, what was told, how often this rank was asked to draw)."""
    sharding.SMALLEST_UNIT = 1  # each layer communicates
    toy = Toy(dropout=0.3, normalization=True)
    task = DrawingTask(toy, fault) if draws else ToyTask(toy)
    memory = Memory()
    spec = job(
        training={"epochs": 2}, evaluation={"every_steps": 3}, workers={"count": world_size, "strategy": strategy}
    )
    context = RunContext(
        device=torch.device("cpu"),
        reporter=memory,
        link=Alone(rank, world_size, lambda: None, meeting),
        checkpoints=str(folder.parent / f"checkpoints-{fault}-{draws}"),
        model_folder=folder.parent / f"model-{fault}-{draws}",
        artifacts_folder=folder if kept else None,
    )
    outcome = run(task, spec, context)
    assert outcome.code is ReasonCode.COMPLETED
    return dict(outcome.detail), memory, getattr(task, "asked", 0)


trained.forms_its_own_group = True  # type: ignore[attr-defined]

EVIDENCE = ("parameters_sha256", "gradients_sha256", "samples_sha256")


@pytest.mark.parametrize(("world_size", "strategy"), [(1, "ddp"), (2, "ddp"), (2, "fsdp")])
def test_training_is_the_same_with_and_without(
    processes: Processes, tmp_path: Path, world_size: int, strategy: str
) -> None:
    """Bit for bit, also where nothing can be shown. Catches generators that move, a mode that stays, gradients that are left, a rank that
    is asked once more or less than the others, and one that is not asked at all."""
    folder = tmp_path / "artifacts"
    drawn = processes.run(world_size, tmp_path, trained, strategy, folder)
    plain = processes.run(world_size, tmp_path, trained, strategy, folder, None, False)
    raising = processes.run(world_size, tmp_path, trained, strategy, folder, "raises")
    for (with_pictures, _, _), (without, _, _), (broken, _, _) in zip(drawn, plain, raising, strict=True):
        assert {key: with_pictures[key] for key in EVIDENCE} == {key: without[key] for key in EVIDENCE}
        assert {key: broken[key] for key in EVIDENCE} == {key: without[key] for key in EVIDENCE}
    assert drawn[0][1].series("train/loss") == plain[0][1].series("train/loss")
    assert drawn[0][1].series("eval/loss") == plain[0][1].series("eval/loss")

    steps = [3, 6, 9, 10]
    assert [asked for _, _, asked in drawn] == [4] + [4 if strategy == "fsdp" else 0] * (world_size - 1)
    assert artifacts.steps(folder) == steps
    written = drawn[0][1].found("artifacts.written")
    assert [(event["step"], event["files"]) for event in written] == [(step, ["outputs.txt"]) for step in steps]
    assert not drawn[0][1].found("artifacts.failed")
    contents = [(folder / found.path).read_bytes() for found in artifacts.every(folder)]
    assert len(set(contents)) == 4  # the model moves

    failed = raising[0][1].found("artifacts.failed")
    assert [event["step"] for event in failed] == [3]  # told once, tried each time
    assert failed[0]["problem"] == "ArithmeticError: no picture today"
    assert raising[0][2] == 4
    assert not raising[0][1].found("artifacts.written")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_files_that_cannot_be_kept_are_told(processes: Processes, tmp_path: Path, strategy: str) -> None:
    folder = tmp_path / "artifacts"
    results = processes.run(2, tmp_path, trained, strategy, folder, "bad name")
    (failed,) = results[0][1].found("artifacts.failed")
    assert "file name '../weights.txt'" in failed["problem"]
    assert not folder.exists()
    assert not list(tmp_path.glob("*.txt"))


def test_a_disk_that_is_full_does_not_stop_the_run(processes: Processes, tmp_path: Path) -> None:
    """A file where the folder should be stands for it: it cannot be written either."""
    (tmp_path / "artifacts").write_text("in the way")
    ((_, memory, asked),) = processes.run(1, tmp_path, trained, "ddp", tmp_path / "artifacts")
    assert asked == 4
    assert "NotADirectoryError" in memory.found("artifacts.failed")[0]["problem"]


def test_nobody_is_asked_where_nothing_is_kept(processes: Processes, tmp_path: Path) -> None:
    ((_, memory, asked),) = processes.run(1, tmp_path, trained, "ddp", tmp_path / "artifacts", None, True, False)
    assert asked == 0
    assert len(memory.found("evaluation")) == 4
