"""Checkpoints in an object store: a server that speaks S3, in a process of its own, on loopback."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from upath import UPath

from tests.distributed.checkpointing import everything, found_step, problem_of, saver, trained_model, write
from tests.distributed.processes import Processes
from tests.distributed.test_checkpoint_saver import load_on_all, save_with_all
from tests.helpers import end_tree, free_port, listens, wait_for
from tests.integration.api_service import running_service
from workers import checkpoints, storage
from workers.checkpoint_folders import MANIFEST, Retention, complete
from workers.checkpoints import Damaged

pytestmark = pytest.mark.integration

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for("the S3 server", lambda: listens(port), 60)
        yield f"http://127.0.0.1:{port}"
    finally:
        end_tree(process)


@pytest.fixture(scope="module")
def environment(server: str) -> Iterator[None]:
    """As an operator sets it, also for the processes that the tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield


@pytest.fixture
def bucket(environment: None, request: pytest.FixtureRequest) -> str:
    name = f"bucket-{abs(hash(request.node.name))}"
    storage.folder_at(f"s3://{name}").fs.mkdir(name)
    return f"s3://{name}"


@pytest.fixture
def processes(environment: None) -> Iterator[Processes]:
    found = Processes()
    yield found
    found.close()


def same(one: list[Any], other: list[Any]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def objects(url: str) -> set[str]:
    folder = storage.folder_at(url)
    return {path.removeprefix(folder.path).lstrip("/") for path in folder.fs.find(folder.path)}


def test_what_was_saved_comes_back_bit_for_bit(bucket: str) -> None:
    root = f"{bucket}/of a/job"
    assert checkpoints.newest(root) == (None, [])
    write(root, 10)
    write(root, 20, seed=5, verdict="healthy")
    loaded = trained_model(9, steps=0)
    checkpoint, damaged = checkpoints.newest(root)
    assert checkpoint is not None
    assert not damaged
    assert str(checkpoint.path) == f"{root}/step-0000000020-g000001"
    assert checkpoints.load(checkpoint, *loaded, CPU)["answer"] == 42
    assert same(everything(*trained_model(5)), everything(*loaded))


def test_the_copy_that_was_verified_is_the_one_that_is_loaded(bucket: str) -> None:
    """Fetched once, and gone afterwards; a second load fetches and verifies anew."""
    write(bucket, 10)
    checkpoint, _ = checkpoints.newest(bucket)
    assert checkpoint is not None
    part = checkpoint.path / "part-0000.distcp"
    whole = part.read_bytes()
    part.write_bytes(whole[:-1])
    checkpoints.load(checkpoint, *trained_model(9, steps=0), CPU)
    with pytest.raises(checkpoints.CheckpointError, match=r"part-0000\.distcp has \d+ bytes instead of"):
        checkpoints.load(checkpoint, *trained_model(9, steps=0), CPU)


def test_damaged_and_unfinished_ones_are_passed_over(bucket: str) -> None:
    for step in (10, 20, 30, 40, 50):
        write(bucket, step)
    folder = {found.step: found.folder for found in complete(storage.folder_at(bucket))}
    part = folder[20] / "part-0000.distcp"
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    (folder[30] / ".metadata").unlink()
    (folder[40] / MANIFEST).write_bytes((folder[40] / MANIFEST).read_bytes()[:-9])
    (folder[50] / MANIFEST).unlink()
    checkpoint, damaged = checkpoints.newest(bucket)
    assert checkpoint is not None
    assert checkpoint.step == 10
    assert [type(found) for found in damaged] == [Damaged] * 3
    assert [found.path.name[:15] for found in damaged] == [f"step-00000000{step}" for step in (40, 30, 20)]


def test_several_ranks_write_and_another_number_reads(processes: Processes, bucket: str, tmp_path: Path) -> None:
    processes.run(2, tmp_path, save_with_all, bucket)
    for world_size in (1, 3):
        assert processes.run(world_size, tmp_path, load_on_all, bucket) == [True] * world_size


def test_retention_leaves_nothing_else(bucket: str) -> None:
    keep = Retention(keep_last=1, keep_best=1, best="eval/loss", mode="min")
    (storage.folder_at(bucket) / "step-0000000005-g000001" / "part-0000.distcp").write_bytes(b"half")
    for step, loss in ((10, 3.0), (20, 1.0), (30, 2.0), (40, 4.0)):
        write(bucket, step, loss=loss, keep=keep)
    assert {path.split("/")[0][:15] for path in objects(bucket)} == {"step-0000000020", "step-0000000040"}


def test_a_large_file_goes_up_in_parts(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "UPLOAD_BYTES", 5 * 2**20)  # the smallest that S3 takes
    model, optimizer = trained_model(3, width=150_000)
    writer = saver(bucket)
    writer.begin(10, model, optimizer, {}, {}, "unknown")
    assert writer.settle(None) is not None
    other = trained_model(9, steps=0, width=150_000)
    checkpoint, _ = checkpoints.newest(bucket)
    assert checkpoint is not None
    checkpoints.load(checkpoint, *other, CPU)
    assert same(everything(model, optimizer), everything(*other))


def test_a_store_that_cannot_be_written_is_told(environment: None) -> None:
    writer = saver("s3://no-such-bucket/job")
    writer.begin(10, *trained_model(3), {}, {}, "unknown")
    failed = problem_of(writer.settle(None))
    assert "s3://no-such-bucket/job/step-0000000010-g000001" in failed.problem
    assert not failed.storage_full
    assert found_step("s3://no-such-bucket/job") is None


def test_the_api_lists_and_gives_them(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAINRULE_CHECKPOINTS", f"{bucket}/all")
    with running_service(tmp_path) as service:
        job = service.submit()
        url = f"/v1/jobs/{job}/checkpoints"
        assert service.get(url).json()["data"] == []
        write(f"{bucket}/all/{job}", 10, verdict="healthy")
        (listed,) = service.get(url).json()["data"]
        assert (listed["id"], listed["verdict"]) == ("ckpt-0000000010", "healthy")
        for file in listed["files"]:
            answer = service.get(f"{url}/{listed['id']}/files/{file['path']}")
            assert (
                answer.content
                == (UPath(f"{bucket}/all/{job}") / f"step-0000000010-g000001/{file['path']}").read_bytes()
            )
            assert int(answer.headers["content-length"]) == file["bytes"]
        for missing in (MANIFEST, "..", "../x", "part-0009.distcp"):
            assert service.get(f"{url}/{listed['id']}/files/{missing}").status_code == 404
        storage.folder_at(f"{bucket}/all/{job}/step-0000000010-g000001/state.json").unlink()
        assert service.get(f"{url}/{listed['id']}/files/state.json").status_code == 404
