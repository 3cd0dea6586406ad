"""A checkpoint is loaded whole and as it was written, or not at all."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from tests.distributed.checkpointing import everything, found_step, trained_model, verify, write
from workers import checkpoints
from workers.checkpoint_folders import MANIFEST, Manifest
from workers.checkpoints import CheckpointError, Damaged

pytestmark = pytest.mark.distributed

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("original"), 20)


@pytest.fixture
def copied(original: Path, tmp_path: Path) -> Path:
    """A checkpoint of step 20 that a test may damage, beside a good one of step 10."""
    write(tmp_path, 10, seed=1)
    return Path(shutil.copytree(original, tmp_path / original.name))


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
    before = [value.clone() for value in model.state_dict().values()]
    with pytest.raises(CheckpointError, match=r"size mismatch for model\.0\.weight"):
        checkpoints.load(checkpoint, model, torch.optim.AdamW(model.parameters()), CPU)
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))


def test_a_model_with_other_names_is_refused(copied: Path) -> None:
    checkpoint, _ = checkpoints.newest(copied.parent)
    assert checkpoint is not None
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(CheckpointError, match="another model"):
        checkpoints.load(checkpoint, model, torch.optim.AdamW(model.parameters()), CPU)


def test_weights_and_optimizer_state_are_filled_in_place(copied: Path) -> None:
    checkpoint, _ = checkpoints.newest(copied.parent)
    assert checkpoint is not None
    loaded = trained_model(seed=7)
    addresses = [value.data_ptr() for value in everything(*loaded)]
    checkpoints.load(checkpoint, *loaded, CPU)
    assert [value.data_ptr() for value in everything(*loaded)] == addresses
    pairs = zip(everything(*trained_model(seed=0)), everything(*loaded), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_torchs_own_tools_read_it(original: Path, tmp_path: Path) -> None:
    dcp_to_torch_save(original, tmp_path / "state.pt")
    read = torch.load(tmp_path / "state.pt", weights_only=True)
    model, optimizer = trained_model(seed=0)
    tensors, _ = checkpoints.tensors_of(model, optimizer)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


def files_of(path: Path) -> list[Path]:
    found = sorted(file for file in path.rglob("*") if file.is_file())
    assert {file.name for file in found} >= {MANIFEST, "state.json", ".metadata"}
    return found


def positions(size: int) -> list[int]:
    chance = random.Random(size)
    return sorted({0, 1, size // 2, size - 2, size - 1, *(chance.randrange(size) for _ in range(6))})


def test_a_torn_file_is_refused_and_the_older_checkpoint_taken(copied: Path) -> None:
    for file in files_of(copied):
        whole = file.read_bytes()
        for length in positions(len(whole)):
            file.write_bytes(whole[:length])
            assert isinstance(verify(copied), Damaged), f"{file.name} cut to {length} bytes"
            assert found_step(copied.parent) == 10
        file.write_bytes(whole + b" ")
        if file.name != MANIFEST:
            assert found_step(copied.parent) == 10, f"{file.name} with something appended"
        file.write_bytes(whole)
        assert found_step(copied.parent) == 20


def test_a_flipped_bit_is_refused(copied: Path) -> None:
    for file in files_of(copied):
        if file.name == MANIFEST:
            continue
        whole = file.read_bytes()
        for position in positions(len(whole)):
            flipped = bytearray(whole)
            flipped[position] ^= 0x10
            file.write_bytes(flipped)
            assert isinstance(verify(copied), Damaged), f"{file.name} at {position}"
        file.write_bytes(whole)
    assert found_step(copied.parent) == 20


def test_a_zeroed_tail_is_refused(copied: Path) -> None:
    """As a crash leaves a file whose size was durable before its bytes."""
    for file in files_of(copied):
        whole = file.read_bytes()
        for position in positions(len(whole)):
            torn = whole[:position] + b"\0" * (len(whole) - position)
            if torn == whole:
                continue  # it ended in zeros
            file.write_bytes(torn)
            assert isinstance(verify(copied), Damaged), f"{file.name} from {position}"
            assert found_step(copied.parent) == 10
        file.write_bytes(whole)


def test_swapped_files_are_refused(copied: Path) -> None:
    files = files_of(copied)
    for one, other in itertools.pairwise(files):
        first, second = one.read_bytes(), other.read_bytes()
        one.write_bytes(second)
        other.write_bytes(first)
        assert isinstance(verify(copied), Damaged), (one.name, other.name)
        assert found_step(copied.parent) == 10
        one.write_bytes(first)
        other.write_bytes(second)


def test_no_flipped_bit_of_the_manifest_changes_what_is_loaded(copied: Path) -> None:
    """It has no digest of its own: it must be refused, or say the same of step and files."""
    manifest = copied / MANIFEST
    whole = manifest.read_bytes()
    before = verify(copied)
    assert isinstance(before, Manifest)
    refused = 0
    for position in range(len(whole)):
        for bit in (0, 3, 5):
            flipped = bytearray(whole)
            flipped[position] ^= 1 << bit
            manifest.write_bytes(flipped)
            found = verify(copied)
            if isinstance(found, Damaged):
                refused += 1
                continue
            assert (found.key, found.files) == (before.key, before.files)
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
        lambda path: edit(path, format=3),
        lambda path: edit(path, step=11),
        lambda path: edit(path, step="20"),
        lambda path: edit(path, generation=2),
        lambda path: edit(path, metrics=None),
        lambda path: edit(path, verdict=None),
        lambda path: edit(path, created_at="today"),
        lambda path: edit(path, files=[{"path": 1, "bytes": 1, "sha256": ""}]),
        lambda path: edit(path, files={}),
        lambda path: path.rename(path.with_name("step-0000000021-g000001")),
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


@pytest.mark.parametrize("outside", ["../step-0000000010-g000001/state.json", "/etc/hostname", ".."])
def test_a_manifest_cannot_name_files_outside(copied: Path, outside: str) -> None:
    manifest = json.loads((copied / MANIFEST).read_text())
    content = (copied / outside).read_bytes() if outside != ".." else b""
    entry = {"path": outside, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit(copied, files=[*manifest["files"], entry])
    found = verify(copied)
    assert isinstance(found, Damaged)
    assert "outside" in found.problem


def test_without_a_manifest_it_is_no_checkpoint_and_no_damage(copied: Path) -> None:
    """What a process that dies while writing leaves behind."""
    (copied / MANIFEST).unlink()
    (copied.parent / "step-0000000030-g000001").mkdir()
    (copied.parent / "something else").mkdir()
    checkpoint, damaged = checkpoints.newest(copied.parent)
    assert (checkpoint and checkpoint.step, damaged) == (10, [])
    assert checkpoints.newest(copied.parent / "nothing") == (None, [])


def test_the_newest_healthy_one_is_found_when_asked_for(tmp_path: Path) -> None:
    for step, verdict in ((10, "healthy"), (20, "healthy"), (30, "vanishing_gradient"), (40, "unknown")):
        write(tmp_path, step, verdict=verdict)
    checkpoint, _ = checkpoints.newest(tmp_path, healthy_before=10**6)
    assert checkpoint is not None
    assert (checkpoint.step, checkpoint.verdict) == (20, "healthy")
    assert found_step(tmp_path) == 40


def test_of_one_step_the_later_generation_is_taken(tmp_path: Path) -> None:
    for generation in (1, 3, 2):
        write(tmp_path, 10, seed=generation, loss=generation, generation=generation)
    checkpoint, _ = checkpoints.newest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.metrics == {"eval/loss": 3}
