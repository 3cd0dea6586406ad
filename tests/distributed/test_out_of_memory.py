"""Memory that really runs out: the kernel refuses a process more than it was allowed."""

from __future__ import annotations

import contextlib
import re
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.distributed.processes import Processes
from tests.distributed.toys import Memory, Toy, ToyTask, job
from workers.membership import Alone
from workers.memory import is_out_of_memory
from workers.tasks.base import Batch
from workers.train import RunContext, run

pytestmark = pytest.mark.distributed

WIDTH = 2_000_000  # what malloc gives back to the kernel at once is above 32 MB


class Hungry(ToyTask):
    """Takes ``width`` floats a sample in the forward pass and as many in the backward pass, for numbers that are the toy's own."""

    def __init__(self, toy: Toy, width: int = WIDTH) -> None:
        super().__init__(toy)
        self.width = width

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        loss, count = super().loss(model, batch)
        weight = 0.0 * next(model.parameters()).sum()
        return loss + 0.0 * weight.expand(len(batch["x"]), self.width).exp().sum(), count


@contextlib.contextmanager
def at_most(more_bytes: int) -> Iterator[None]:
    """This process gets ``more_bytes`` of memory more than it has."""
    torch.ones(1000).exp().sum()  # threads and buffers that come with the first call are there
    found = re.search(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (int(found[1]) * 1024 + more_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def trained(
    rank: int, world_size: int, folder: Path, more_bytes: int | None, training: dict[str, Any], width: int = WIDTH
) -> Any:
    """(detail, or the error's sentences; halvings; losses) of two epochs of 64 samples in steps of 32."""
    toy = Toy(samples=64, evaluation_samples=0, normalization=True)
    spec = job(training={"epochs": 2, "batch_size": 32, **training})
    memory = Memory()
    context = RunContext(torch.device("cpu"), memory, Alone(rank, world_size), str(folder), folder / "model")
    with at_most(more_bytes) if more_bytes else contextlib.nullcontext():
        try:
            found: Any = run(Hungry(toy, width), spec, context).detail
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            found = [str(error), *getattr(error, "__notes__", [])]
    return found, memory.found("memory.microbatch_halved"), memory.series("train/loss")


@pytest.fixture
def processes() -> Iterator[Processes]:
    """New ones: what others have freed before them would count as room."""
    found = Processes()
    yield found
    found.close()


MORE = (
    270 << 20
)  # a whole step needs 512 MB at once, a half of it 256 MB, a quarter 128 MB, and the process itself some 80 MB


def test_the_microbatch_is_halved_until_it_fits(processes: Processes, tmp_path: Path) -> None:
    """And everything is as if it had been so small from the start: the broken steps left no trace, in batch norm either."""
    (found,) = processes.run(1, tmp_path, trained, tmp_path / "auto", MORE, {"microbatch": "auto"})
    detail, halvings, losses = found
    assert [event["accumulate"] for event in halvings] == [2, 4]
    assert {event["step"] for event in halvings} == {0}
    (small,) = processes.run(1, tmp_path, trained, tmp_path / "small", None, {"accumulate": 4})
    assert losses == small[2]
    assert len(losses) == 4
    assert detail["parameters_sha256"] == small[0]["parameters_sha256"]


def test_without_auto_the_error_says_what_helps(processes: Processes, tmp_path: Path) -> None:
    (found,) = processes.run(1, tmp_path, trained, tmp_path / "fixed", MORE, {})
    assert found[1] == []
    assert "training.microbatch auto" in " ".join(found[0])


def test_a_single_sample_that_does_not_fit_ends_it(processes: Processes, tmp_path: Path) -> None:
    training = {"microbatch": "auto", "batch_size": 2}
    (found,) = processes.run(1, tmp_path, trained, tmp_path / "single", 200 << 20, training, 30_000_000)
    assert [event["accumulate"] for event in found[1]] == [2]
    assert "single samples already" in " ".join(found[0])
