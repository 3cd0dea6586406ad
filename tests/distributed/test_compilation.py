"""A compiled model trains like the same model uncompiled."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._C._distributed_c10d import FileStore

from tests.distributed import processes as group
from tests.distributed.processes import Processes
from tests.distributed.toys import Result, Toy, job, train_toy
from workers import batches, parallel, sharding
from workers.membership import MeetingPoint
from workers.process_group import ProcessGroup
from workers.reports import ReasonCode
from workers.spec import JobSpec

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for the CPU needs g++"),
    pytest.mark.timeout(600),  # compilers take their time on a busy machine
]

CPU = torch.device("cpu")
GROUP = ProcessGroup(CPU)
SGD = {"optimizer": {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9}}


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "TIMEOUT_SECONDS", 300.0)


def programs() -> int:
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def train_and_count(
    rank: int, world_size: int, toy: Toy, spec: JobSpec, folder: Path, meeting: MeetingPoint = None
) -> tuple[Result, int]:
    sharding.SMALLEST_UNIT = 1 << 20  # other tests split the toy
    before = programs()
    result = train_toy(rank, world_size, toy, spec, folder, meeting=meeting)
    return result, programs() - before


train_and_count.forms_its_own_group = True  # type: ignore[attr-defined]  # told to Processes


def same_curve(eager: Result, compiled: Result, tolerance: float) -> None:
    for key in ("train/loss", "gradient/norm", "eval/loss"):
        np.testing.assert_allclose(
            compiled.memory.series(key), eager.memory.series(key), rtol=tolerance, atol=1e-6, err_msg=key
        )
    assert compiled.memory.layers == eager.memory.layers


# 50 samples in batches of 12: the last batch of an epoch has two, one for each of two workers.
@pytest.mark.parametrize(
    ("world_size", "strategy", "toy", "training", "expected"),
    [
        (1, "ddp", Toy(normalization=True), {"accumulate": 2}, 2),
        (1, "ddp", Toy(), {"precision": "bf16"}, 2),
        (2, "ddp", Toy(normalization=True), {"accumulate": 2, "clip_norm": 0.5}, 4),
        (2, "fsdp", Toy(normalization=True), {}, 3),
    ],
)
def test_the_same_curve_and_few_programs(
    processes: Processes,
    tmp_path: Path,
    world_size: int,
    strategy: str,
    toy: Toy,
    training: dict[str, Any],
    expected: int,
) -> None:
    """One program for training, one for evaluation, and where batch norm goes over the workers one for a single sample and
    one for a stand-in. Catches one for each size of a batch, and none at all."""
    results = {}
    for compiled in (False, True):
        folder = tmp_path / str(compiled)
        folder.mkdir()
        spec = job(
            training={**training, "compile": compiled}, workers={"count": world_size, "strategy": strategy}, **SGD
        )
        results[compiled] = processes.run(world_size, folder, train_and_count, toy, spec, folder)
    assert [count for _, count in results[False]] == [0] * world_size
    for (eager, _), (result, count) in zip(results[False], results[True], strict=True):
        # Compiled, what lies between two operations is not rounded to bf16 each time.
        same_curve(eager, result, 0.02 if training.get("precision") == "bf16" else 1e-4)
        assert count == expected
    assert len({result.outcome.detail["gradients_sha256"] for result, _ in results[True]}) == 1


def test_names_checkpoints_and_the_stop_are_as_ever(processes: Processes, tmp_path: Path) -> None:
    """What one run leaves, the other goes on with."""
    undisturbed = train_toy(0, 1, Toy(), job(**SGD), tmp_path / "whole")
    for first in (True, False):
        folder = tmp_path / str(first)
        stopped = train_toy(0, 1, Toy(), job(training={"compile": first}, **SGD), folder, 7)
        assert stopped.outcome.code is ReasonCode.CANCELLED
        resumed = train_toy(0, 1, Toy(), job(training={"compile": not first}, **SGD), folder)
        assert resumed.memory.found("training.resumed") == [{"step": 7}]
        assert resumed.memory.series("train/loss") == pytest.approx(undisturbed.memory.series("train/loss")[7:], 1e-4)


def several_groups(rank: int, world_size: int, store: str, compiled: bool) -> list[float]:
    """Losses of one model in a group of two, alone, and in two again with swapped ranks; several buckets of gradients."""
    torch.manual_seed(0)
    layers = [nn.Linear(8, 512, bias=False), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 700), nn.Linear(700, 2)]
    model = parallel.prepare(nn.Sequential(*layers), CPU)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for generation, size in enumerate((2, 1, 2)):
        GROUP.leave()
        rank = 1 - rank
        if size > 1:
            GROUP.join(rank, size, FileStore(f"{store}-{generation}", size), 200.0)
        wrapped = parallel.distribute(model, CPU, size, "ddp", compiled=compiled)
        for step, samples in enumerate((8, 5)):
            x = torch.randn(samples, 8, generator=torch.Generator().manual_seed(step))
            mine = x[batches.share(np.arange(samples), rank if size > 1 else 0, size)]
            loss = wrapped(mine).square().sum() * (size / samples)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total = loss.detach() / size
            if size > 1:
                torch.distributed.all_reduce(total)
            losses.append(total.item())
        parallel.dissolve(wrapped)
    return losses


def test_a_compiled_model_goes_through_several_groups(processes: Processes, tmp_path: Path) -> None:
    """Its programs all-reduce for batch norm: in the group of now, not in the one for which they were compiled."""
    eager = processes.run(2, tmp_path, several_groups, str(tmp_path / "eager"), False)
    compiled = processes.run(2, tmp_path, several_groups, str(tmp_path / "compiled"), True)
    assert compiled[0] == pytest.approx(eager[0], rel=1e-4)
    assert compiled[1] == pytest.approx(eager[0], rel=1e-4)


WITHOUT = """
from pathlib import Path
import sys
from tests.distributed.toys import Toy, job, train_toy
from workers.tasks.base import BadDataError
try:
    train_toy(0, 1, Toy(), job(training={"compile": True}), Path(sys.argv[1]))
except BadDataError as error:
    print("BadDataError:", error)
"""


def test_without_a_compiler_the_field_is_named(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    environment.pop("CXX", None)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(tmp_path / "run")],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "BadDataError: training.compile: the model cannot be compiled here" in done.stdout, done.stderr
    assert "compiler" in done.stdout


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return torch.tanh(x) + bias


def test_an_odd_batch_of_one_sample_starts_no_compiler() -> None:
    from workers.compilation import compile_in_place

    model = TwoInputs()
    compile_in_place([model])
    bias, before = torch.ones(1, 3), programs()
    sizes = (4, 1, 6, 1, 2)
    for size in sizes:
        x = torch.randn(size, 3)
        torch.testing.assert_close(model(x, bias=bias), torch.tanh(x) + 1)
    assert programs() - before == 1
    compile_in_place([model])  # the next group
    model(torch.randn(5, 3), bias)
    alone = TwoInputs()
    compile_in_place([alone])
    before = programs()
    alone(torch.randn(1, 3), bias)  # where every batch has one, that is compiled
    assert programs() - before == 1
