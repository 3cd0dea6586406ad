"""A checkpoint is loaded whole and as it was written, or not at all."""

from __future__ import annotations

import json
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.distributed.processes import Processes
from workers import checkpoints
from workers.checkpoints import MANIFEST, CheckpointError, Damaged

pytestmark = pytest.mark.distributed

CPU = torch.device("cpu")


def trained_model(seed: int, steps: int = 2) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(10, 6)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def write(root: Path, step: int, seed: int = 0, loss: float = 1.0) -> Path:
    model, optimizer = trained_model(seed)
    state = {"best": loss, "answer": 42}
    metrics = {"eval/loss": loss}
    return checkpoints.save(root, step, model, optimizer, state, metrics, rank=0, world_size=1, group=None).path


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
    state = optimizer.state_dict()["state"]
    return [*model.state_dict().values(), *(value for of in state.values() for value in of.values())]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("original"), 20)


@pytest.fixture
def copied(original: Path, tmp_path: Path) -> Path:
    """A checkpoint of step 20 that a test may damage, beside a good one of step 10."""
    write(tmp_path, 10, seed=1)
    return Path(shutil.copytree(original, tmp_path / original.name))


def chosen_step(root: Path) -> int | None:
    checkpoint, _ = checkpoints.newest(root)
    return checkpoint.step if checkpoint else None


def test_what_was_saved_comes_back_bit_for_bit(tmp_path: Path) -> None:
    saved = trained_model(seed=0)
    write(tmp_path, 20)
    loaded = trained_model(seed=7, steps=0)  # as a new process has it: no optimizer state yet
    checkpoint, damaged = checkpoints.newest(tmp_path)
    assert checkpoint is not None
    assert not damaged
    state = checkpoints.load(checkpoint, *loaded, CPU)
    assert state == {"step": 20, "best": 1.0, "answer": 42}
    pairs = list(zip(everything(*saved), everything(*loaded), strict=True))
    assert len(pairs) == 2 * 2 + 5 + 3 * 6
    assert all(torch.equal(before, after) for before, after in pairs)


def test_a_model_of_another_shape_is_refused(copied: Path) -> None:
    checkpoint, _ = checkpoints.newest(copied.parent)
    assert checkpoint is not None
    model = nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 3))
    with pytest.raises(RuntimeError, match="size mismatch"):
        checkpoints.load(checkpoint, model, torch.optim.AdamW(model.parameters()), CPU)


def files_of(path: Path) -> list[Path]:
    found = sorted(file for file in path.rglob("*") if file.is_file())
    assert {file.name for file in found} >= {MANIFEST, "state.json", ".metadata"}
    return found


def positions(size: int) -> list[int]:
    return sorted({0, 1, size // 3, size // 2, size - 2, size - 1})


def test_a_torn_file_is_refused_and_the_older_checkpoint_taken(copied: Path) -> None:
    for file in files_of(copied):
        whole = file.read_bytes()
        for length in positions(len(whole)):
            file.write_bytes(whole[:length])
            assert isinstance(checkpoints.verify(copied), Damaged), f"{file.name} cut to {length} bytes"
            assert chosen_step(copied.parent) == 10
        file.write_bytes(whole + b" ")
        if file.name != MANIFEST:
            assert chosen_step(copied.parent) == 10, f"{file.name} with something appended"
        file.write_bytes(whole)
        assert chosen_step(copied.parent) == 20


def test_a_flipped_bit_is_refused(copied: Path) -> None:
    for file in files_of(copied):
        if file.name == MANIFEST:
            continue
        whole = file.read_bytes()
        for position in positions(len(whole)):
            flipped = bytearray(whole)
            flipped[position] ^= 0x10
            file.write_bytes(flipped)
            assert isinstance(checkpoints.verify(copied), Damaged), f"{file.name} at {position}"
        file.write_bytes(whole)
    assert chosen_step(copied.parent) == 20


def test_no_flipped_bit_of_the_manifest_changes_what_is_loaded(copied: Path) -> None:
    """It has no digest of its own: it must be refused, or say the same of step and files."""
    manifest = copied / MANIFEST
    whole = manifest.read_bytes()
    before = json.loads(whole)
    refused = 0
    for position in range(len(whole)):
        for bit in (0, 3, 5):
            flipped = bytearray(whole)
            flipped[position] ^= 1 << bit
            manifest.write_bytes(flipped)
            found = checkpoints.verify(copied)
            if isinstance(found, Damaged):
                refused += 1
                continue
            assert (found["step"], found["files"]) == (before["step"], before["files"])
    assert refused > len(whole)
    manifest.write_bytes(whole)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / ".metadata").unlink(),
        lambda path: (path / "state.json").unlink(),
        lambda path: next(path.glob("*.distcp")).unlink(),
        lambda path: (path / MANIFEST).write_text("[]"),
        lambda path: (path / MANIFEST).write_bytes(b"\xff\xfe"),
        lambda path: edit(path, files=[]),
        lambda path: edit(path, format=2),
        lambda path: edit(path, step=11),
        lambda path: edit(path, step="20"),
        lambda path: edit(path, metrics=None),
        lambda path: path.rename(path.with_name("step-0000000021")),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_passed_over_and_told(copied: Path, damage: Callable[[Path], Any]) -> None:
    damage(copied)
    checkpoint, damaged = checkpoints.newest(copied.parent)
    assert checkpoint is not None
    assert checkpoint.step == 10
    assert len(damaged) == 1
    assert damaged[0].problem


def edit(path: Path, **changes: Any) -> None:
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps({**manifest, **changes}))


@pytest.mark.parametrize("outside", ["../step-0000000010/state.json", "/etc/hostname"])
def test_a_manifest_cannot_name_files_outside(copied: Path, outside: str) -> None:
    manifest = json.loads((copied / MANIFEST).read_text())
    target = copied / outside
    entry = {"path": outside, "bytes": target.stat().st_size, "sha256": checkpoints.sha256(target)}
    edit(copied, files=[*manifest["files"], entry])
    found = checkpoints.verify(copied)
    assert isinstance(found, Damaged)
    assert "outside" in found.problem


def test_without_a_manifest_it_is_no_checkpoint_and_no_damage(copied: Path) -> None:
    """What a process that dies while writing leaves behind."""
    (copied / MANIFEST).unlink()
    checkpoint, damaged = checkpoints.newest(copied.parent)
    assert (checkpoint and checkpoint.step, damaged) == (10, [])
    assert checkpoints.newest(copied.parent / "nothing") == (None, [])


def test_the_remains_of_a_dead_attempt_are_replaced(tmp_path: Path) -> None:
    remains = checkpoints.folder_of(tmp_path, 20)
    remains.mkdir()
    (remains / "__9_0.distcp").write_bytes(b"half")
    path = write(tmp_path, 20)
    assert not (path / "__9_0.distcp").exists()
    assert chosen_step(tmp_path) == 20


def steps_left(root: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in root.glob("step-*"))


@pytest.mark.parametrize(
    ("keep_last", "keep_best", "mode", "left"),
    [
        (1, 0, "min", [50]),
        (2, 1, "min", [20, 40, 50]),
        (1, 2, "max", [10, 30, 50]),
        (9, 0, "min", [10, 20, 30, 40, 50]),
    ],
)
def test_retention(tmp_path: Path, keep_last: int, keep_best: int, mode: str, left: list[int]) -> None:
    for step, loss in ((10, 9.0), (20, 1.0), (30, 5.0), (40, 3.0), (50, 2.0)):
        write(tmp_path, step, loss=loss)
    checkpoints.prune(tmp_path, keep_last=keep_last, keep_best=keep_best, best="eval/loss", mode=mode)
    assert steps_left(tmp_path) == left


def test_retention_removes_older_remains_but_not_what_is_being_written(tmp_path: Path) -> None:
    for step in (10, 30):
        checkpoints.folder_of(tmp_path, step).mkdir()
    write(tmp_path, 20)
    checkpoints.prune(tmp_path, keep_last=1, keep_best=0, best="eval/loss", mode="min")
    assert steps_left(tmp_path) == [20, 30]


def save_on_full_disk(rank: int, world_size: int, root: Path, full_rank: int) -> str:
    """One rank's disk takes no file of more than 4 kB."""
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))  # DCP gives one weight to each rank to write
    optimizer = torch.optim.SGD(model.parameters())
    previous = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if rank == full_rank:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, previous[1]))
    try:
        checkpoints.save(root, 5, model, optimizer, {}, {}, rank=rank, world_size=world_size, group=None)
    except CheckpointError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, previous)
    return "written"


@pytest.mark.parametrize("full_rank", [0, 1])
def test_a_full_disk_is_told_on_every_rank_and_leaves_no_checkpoint(
    processes: Processes, tmp_path: Path, full_rank: int
) -> None:
    """Catches a rank that waits for another which has given up: the processes would hang."""
    write(tmp_path, 4)
    answers = processes.run(2, tmp_path, save_on_full_disk, tmp_path, full_rank)
    assert all("step 5 could not be written" in answer for answer in answers), answers
    assert chosen_step(tmp_path) == 4


def save_where_nothing_can_be_made(rank: int, world_size: int, root: Path) -> str:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters())
    with pytest.raises(CheckpointError) as caught:
        checkpoints.save(root / "file", 5, model, optimizer, {}, {}, rank=rank, world_size=world_size, group=None)
    return str(caught.value)


def test_a_folder_that_cannot_be_made_is_told_on_every_rank(processes: Processes, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    answers = processes.run(2, tmp_path, save_where_nothing_can_be_made, tmp_path)
    assert len(set(answers)) == 1
    assert "step 5 could not be written" in answers[0]
