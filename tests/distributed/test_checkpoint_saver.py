"""Checkpoints that are written while training goes on: what they hold, when they count, and what every rank hears of them."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.distributed.checkpointing import (
    backward,
    everything,
    found_step,
    problem_of,
    saver,
    trained_model,
    verify,
    write,
)
from tests.distributed.processes import Processes
from workers import checkpoints
from workers.checkpoint_folders import MANIFEST
from workers.checkpoint_saver import Saver
from workers.checkpoints import Damaged, Failed, Saved

pytestmark = pytest.mark.distributed

CPU = torch.device("cpu")


def loaded(root: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
    checkpoint, damaged = checkpoints.newest(root)
    assert checkpoint is not None
    assert not damaged
    checkpoints.load(checkpoint, model, optimizer, CPU)
    return everything(model, optimizer)


def same(one: list[Any], other: list[Any]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def ended(writer: Saver, rank_votes: Callable[[], tuple[float, float, float]] | None = None) -> Saved | Failed:
    """Steps without any work, as the loop makes them, until something has become of the checkpoint. One process."""
    deadline = time.monotonic() + 30
    while (result := writer.agreed(*(rank_votes or writer.votes)())) is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return result


# --- one process ------------------------------------------------------------------------------------------------------


def test_it_is_published_by_votes_alone(tmp_path: Path) -> None:
    writer = saver(tmp_path)
    assert (writer.in_flight, writer.votes(), writer.settle(None)) == (None, (0.0, 0.0, 0.0), None)
    writer.begin(20, *trained_model(0), {"answer": 42}, {"eval/loss": 1.0}, "healthy")
    assert writer.in_flight == 20
    result = ended(writer)
    assert isinstance(result, Saved)
    assert found_step(tmp_path) == 20
    assert (result.step, result.metrics, result.verdict) == (20, {"eval/loss": 1.0}, "healthy")
    files = [file for file in Path(result.path).iterdir() if file.name != MANIFEST]
    assert {file.name for file in files} == {"part-0000.distcp", ".metadata", "state.json"}
    assert result.bytes == sum(file.stat().st_size for file in files)
    assert 0 < result.blocked_seconds <= result.seconds
    assert writer.votes() == (0.0, 0.0, 0.0)


def test_votes_given_before_it_began_do_not_end_it(tmp_path: Path) -> None:
    """Without this the first answer after ``begin`` would say: nobody is writing, so it is published."""
    writer = saver(tmp_path)
    votes = writer.votes()
    writer.begin(20, *trained_model(0), {}, {}, "unknown")
    assert writer.agreed(*votes) is None
    assert writer.in_flight == 20
    assert isinstance(writer.settle(None), Saved)


def test_it_holds_the_state_of_its_step_whatever_comes_after(tmp_path: Path) -> None:
    """The gradients are there already and copying takes long, so that ``before_update`` must wait for it. Batch norm's buffers change in the
    forward pass, before that."""
    model, optimizer = trained_model(0, width=200_000)
    writer = saver(tmp_path)
    for step in (1, 2):
        backward(model, step)
        expected = [value.clone() for value in everything(model, optimizer)]
        writer.begin(step, model, optimizer, {}, {}, "unknown")
        model.get_buffer("1.running_mean").fill_(7.0)
        writer.before_update()
        optimizer.step()
        assert not same(expected, everything(model, optimizer))
        assert isinstance(writer.settle(None), Saved)
        assert same(expected, loaded(tmp_path, *trained_model(9, steps=0, width=200_000)))


def test_one_that_is_begun_while_another_is_in_flight_is_a_mistake(tmp_path: Path) -> None:
    writer = saver(tmp_path)
    writer.begin(1, *trained_model(0), {}, {}, "unknown")
    with pytest.raises(AssertionError, match="step 1 is still in flight"):
        writer.begin(2, *trained_model(0), {}, {}, "unknown")
    writer.settle(None)


def test_what_is_abandoned_is_never_published(tmp_path: Path) -> None:
    write(tmp_path, 10)
    for generation in range(2, 12):
        writer = saver(tmp_path, generation=generation)
        writer.begin(20, *trained_model(0, width=5000), {}, {}, "unknown")
        writer.abandon()
        assert writer.in_flight is None
    for thread in threading.enumerate():
        if thread.name.startswith("checkpoint-"):
            thread.join(30)
    assert found_step(tmp_path) == 10
    assert not list(tmp_path.glob(f"*/{MANIFEST}.partial"))
    write(tmp_path, 30, generation=12)
    assert [path.name[:15] for path in sorted(tmp_path.iterdir())] == ["step-0000000010", "step-0000000030"]


def test_a_damaged_one_of_the_same_step_and_generation_is_replaced(tmp_path: Path) -> None:
    folder = write(tmp_path, 20, seed=1)
    (folder / "part-0000.distcp").write_bytes(b"half")
    (folder / "part-0001.distcp").write_bytes(b"of a rank that is no more")
    assert isinstance(verify(folder), Damaged)
    assert write(tmp_path, 20, seed=2) == folder
    assert same(everything(*trained_model(2)), loaded(tmp_path, *trained_model(9, steps=0)))
    assert not (folder / "part-0001.distcp").exists()


# --- killed -----------------------------------------------------------------------------------------------------------

FORKING = """
import os, sys, torch
import torch.distributed.checkpoint
from tests.distributed.checkpointing import saver, trained_model
torch.set_num_threads(1)
model, optimizer = trained_model(0, width=20_000)
for line in sys.stdin:
    generation, step = map(int, line.split())
    if os.fork() == 0:
        writer = saver(sys.argv[1], generation=generation)
        print(os.getpid(), flush=True)
        while True:
            step += 1
            writer.begin(step, model, optimizer, {}, {}, "unknown")
            print("begun", step, flush=True)
            writer.settle(None)
            print("published", step, flush=True)
    os.wait()
    print("killed", flush=True)
"""


def test_killed_at_any_moment_the_last_published_one_is_the_newest(tmp_path: Path) -> None:
    """A new process writes checkpoint after checkpoint until it is killed; so sixteen times."""
    chance = random.Random(5)
    steps = {"begun": 0, "published": 0}
    command = [sys.executable, "-c", FORKING, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        for generation in range(1, 17):
            print(generation, steps["begun"], file=parent.stdin, flush=True)
            victim = int(parent.stdout.readline())
            for _ in range(chance.randrange(1, 4)):
                said(parent.stdout.readline(), steps)
            time.sleep(chance.uniform(0, 0.06))
            os.kill(victim, signal.SIGKILL)
            while (line := parent.stdout.readline()) != "killed\n":
                said(line, steps)
            checkpoint, damaged = checkpoints.newest(tmp_path)
            assert not damaged
            found = checkpoint.step if checkpoint else 0
            assert steps["published"] <= found <= steps["begun"]  # it may not have come to say so
        parent.stdin.close()
    assert steps["published"] > 0
    assert checkpoint is not None
    checkpoints.load(checkpoint, *trained_model(1, steps=0, width=20_000), CPU)


def said(line: str, steps: dict[str, int]) -> None:
    what, step = line.split()
    steps[what] = int(step)


LEAVING = """
import pathlib, sys, time
from tests.distributed.checkpointing import saver, trained_model
model, optimizer = trained_model(0, width=300_000)
saver(sys.argv[1]).begin(1, model, optimizer, {}, {}, "unknown")
while not list(pathlib.Path(sys.argv[1]).glob("*/part-*.distcp")):
    time.sleep(0.001)
"""


def test_a_process_that_ends_meanwhile_ends_well(tmp_path: Path) -> None:
    """As after an exception in the training: a thread inside of torch must not crash the interpreter that is being taken down."""
    ended = subprocess.run([sys.executable, "-c", LEAVING, str(tmp_path)], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert found_step(tmp_path) is None
    assert not list(tmp_path.glob("*/part-*.distcp"))


# --- no room ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no disk can be mounted here: {made.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_fails_the_checkpoint_and_nothing_else(small_disk: Path) -> None:
    write(small_disk, 10)
    writer = saver(small_disk)
    writer.begin(20, *trained_model(0, width=20_000), {}, {}, "unknown")
    failed = problem_of(ended(writer))
    assert failed.storage_full
    assert failed.here
    assert "step 20" in failed.problem
    assert str(small_disk) in failed.problem
    assert "No space left" in failed.problem
    assert found_step(small_disk) == 10
    writer.begin(30, *trained_model(0), {}, {}, "unknown")  # a smaller one fits: the half-written one takes no room
    assert isinstance(writer.settle(None), Saved)
    assert found_step(small_disk) == 30
    assert not list(small_disk.glob("step-0000000020-*"))


def save_on_full_disk(rank: int, world_size: int, root: Path, full_rank: int, settling: bool) -> tuple[Failed, bool]:
    """One rank's disk takes no file of more than 8 kB. Also: whether the next checkpoint can be written."""
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))  # of each, one rank writes the weight
    optimizer = torch.optim.SGD(model.parameters())
    writer = saver(root, rank, world_size)
    previous = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if rank == full_rank:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, previous[1]))
    try:
        writer.begin(5, model, optimizer, {}, {}, "unknown")
        failed = problem_of(writer.settle(None) if settling else by_votes(writer))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, previous)
    writer.begin(6, model, optimizer, {}, {}, "unknown")
    return failed, isinstance(by_votes(writer), Saved)


def by_votes(writer: Saver) -> Saved | Failed:
    """As the training loop does: one all-reduce a step."""
    while True:
        sums = torch.tensor(writer.votes(), dtype=torch.float64)
        dist.all_reduce(sums)
        result = writer.agreed(*sums.tolist())
        if result is not None:
            return result
        time.sleep(0.002)


@pytest.mark.parametrize("settling", [False, True])
@pytest.mark.parametrize("full_rank", [0, 1])
def test_a_full_disk_of_one_rank_is_told_on_every_rank(
    processes: Processes, tmp_path: Path, full_rank: int, settling: bool
) -> None:
    """Catches a rank that waits for another which has given up: the processes would hang."""
    write(tmp_path, 4)
    answers = processes.run(2, tmp_path, save_on_full_disk, tmp_path, full_rank, settling)
    for rank, (failed, next_one) in enumerate(answers):
        assert failed.storage_full
        assert failed.here == (rank == full_rank)
        assert "step 5 could not be written" in failed.problem
        assert str(tmp_path) in failed.problem
        assert next_one
    assert "File too large" in answers[full_rank][0].problem
    if settling:
        assert answers[0][0].problem == answers[1][0].problem
    assert found_step(tmp_path) == 6


def save_where_nothing_can_be_made(rank: int, world_size: int, root: Path) -> Failed:
    writer = saver(root / "file", rank, world_size)
    model = nn.Linear(2, 2)
    writer.begin(5, model, torch.optim.SGD(model.parameters()), {}, {}, "unknown")
    return problem_of(writer.settle(None))


def test_a_folder_that_cannot_be_made_is_told_on_every_rank(processes: Processes, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    answers = processes.run(2, tmp_path, save_where_nothing_can_be_made, tmp_path)
    assert len({failed.problem for failed in answers}) == 1
    assert "step 5 could not be written" in answers[0].problem
    assert not any(failed.storage_full for failed in answers)


def save_into_different_folders(rank: int, world_size: int, root: Path) -> Failed:
    writer = saver(root / str(rank), rank, world_size)
    model = nn.Linear(2, 2)
    writer.begin(5, model, torch.optim.SGD(model.parameters()), {}, {}, "unknown")
    return problem_of(writer.settle(None))


def test_a_folder_that_is_not_shared_is_noticed(processes: Processes, tmp_path: Path) -> None:
    """Two machines whose local disks happen to have the same path: half of the tensors would be missing."""
    answers = processes.run(2, tmp_path, save_into_different_folders, tmp_path)
    assert all("part-0001.json" in failed.problem for failed in answers)
    assert found_step(tmp_path / "0") is None


# --- several ranks ----------------------------------------------------------------------------------------------------


def save_with_all(rank: int, world_size: int, root: Path) -> Saved:
    model, optimizer = trained_model(0, width=1000)
    writer = saver(root, rank, world_size)
    writer.begin(20, model, optimizer, {"answer": rank}, {}, "unknown")
    result = by_votes(writer)
    assert isinstance(result, Saved)
    return result


def load_on_all(rank: int, world_size: int, root: Path) -> bool:
    return same(everything(*trained_model(0, width=1000)), loaded(root, *trained_model(rank + 1, steps=0, width=1000)))


def test_every_rank_writes_its_share_and_any_number_of_ranks_reads_it(processes: Processes, tmp_path: Path) -> None:
    results = processes.run(2, tmp_path, save_with_all, tmp_path / "root")
    folder = Path(results[0].path)
    parts = [(folder / f"part-000{rank}.distcp").stat().st_size for rank in (0, 1)]
    assert min(parts) > 0.7 * max(parts)
    assert results[1].bytes == parts[1]
    for world_size in (1, 3):
        assert processes.run(world_size, tmp_path, load_on_all, tmp_path / "root") == [True] * world_size


def train_sharded(rank: int, world_size: int, root: Path) -> list[Any]:
    """Saves between two steps of FSDP2; the second step is made while the thread copies."""
    model, optimizer = sharded_model(world_size)
    writer = saver(root, rank, world_size)
    expected: list[Any] = []
    for step in range(3):
        backward(model, 10 * step + rank)
        writer.before_update()
        optimizer.step()
        if step == 1:
            expected = full(model, optimizer)
            writer.begin(20, model, optimizer, {}, {}, "unknown")
    assert isinstance(by_votes(writer), Saved)
    assert not same(expected, full(model, optimizer))
    return expected


def sharded_model(world_size: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3)
    )  # 7 and 3 rows: shards of different sizes, some empty
    fully_shard(model, mesh=init_device_mesh("cpu", (world_size,)))
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


def full(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
    """Everything that ``everything`` gives, gathered from all ranks."""
    return [
        value.full_tensor() if hasattr(value, "full_tensor") else value.clone()
        for value in everything(model, optimizer)
    ]


def load_sharded(rank: int, world_size: int, root: Path) -> list[Any]:
    model, optimizer = sharded_model(world_size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    loaded(root, model, optimizer)
    return full(model, optimizer)


def load_plain(rank: int, world_size: int, root: Path) -> list[Any]:
    model = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3))
    return loaded(root, model, torch.optim.AdamW(model.parameters(), lr=0.01))


def test_shards_are_saved_and_loaded_under_another_number_of_ranks_and_strategy(
    processes: Processes, tmp_path: Path
) -> None:
    expected = processes.run(2, tmp_path, train_sharded, tmp_path / "root")[0]
    for world_size, load in ((2, load_sharded), (3, load_sharded), (4, load_sharded), (1, load_plain)):
        for found in processes.run(world_size, tmp_path, load, tmp_path / "root"):
            assert same(expected, found)


def hand_over_shards(rank: int, world_size: int) -> bool:
    """What a survivor's shards are put back into is sharded in the same way."""
    giver, taker = sharded_model(world_size), sharded_model(world_size)
    backward(giver[0], rank)
    giver[1].step()
    copies = {name: value.detach().clone() for name, value in checkpoints.tensors_of(*giver)[0].items()}
    checkpoints.restore(*taker, copies, checkpoints.tensors_of(*giver)[1])
    return same(full(*giver), full(*taker))


def test_shards_are_put_back(processes: Processes, tmp_path: Path) -> None:
    assert processes.run(2, tmp_path, hand_over_shards) == [True, True]


def save_plain(rank: int, world_size: int, root: Path) -> list[Any]:
    model = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    backward(model, 1)
    optimizer.step()
    writer = saver(root)
    writer.begin(20, model, optimizer, {}, {}, "unknown")
    assert isinstance(writer.settle(None), Saved)
    return everything(model, optimizer)


def test_whole_tensors_are_loaded_into_shards(processes: Processes, tmp_path: Path) -> None:
    expected = processes.run(1, tmp_path, save_plain, tmp_path / "root")[0]
    for found in processes.run(2, tmp_path, load_sharded, tmp_path / "root"):
        assert same(expected, found)


def save_replicated_shards(rank: int, world_size: int, root: Path) -> list[str]:
    """Two replicas of two shards each (HSDP): each shard is written once."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    model = nn.Linear(6, 8)
    fully_shard(model, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("replica", "shard")))
    writer = saver(root, rank, world_size)
    writer.begin(20, model, torch.optim.SGD(model.parameters()), {}, {}, "unknown")
    result = by_votes(writer)
    assert isinstance(result, Saved), result
    torch.manual_seed(0)
    plain, other = nn.Linear(6, 8), nn.Linear(6, 8)
    loaded(root, other, torch.optim.SGD(other.parameters()))
    assert torch.equal(plain.weight, other.weight)
    return sorted(path.name for path in Path(result.path).iterdir() if path.stat().st_size > 0)


def test_replicas_of_shards_are_written_once(processes: Processes, tmp_path: Path) -> None:
    names = processes.run(4, tmp_path, save_replicated_shards, tmp_path / "root")[0]
    assert names == [".metadata", "manifest.json", "part-0000.distcp", "part-0001.distcp", "state.json"]
