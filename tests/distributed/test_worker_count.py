"""The number of workers changes neither the samples of a step nor the loss curve, and all ranks hold the same model."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.distributed.processes import Processes
from tests.distributed.toys import Result, Toy, job, train_toy

pytestmark = pytest.mark.distributed


@dataclass(frozen=True)
class Case:
    toy: Toy = field(default_factory=Toy)
    training: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, Any] = field(default_factory=dict)


# 50 samples in batches of 12: the last batch of an epoch has two samples, so of three workers one gets none of it.
CASES = {
    "plain": Case(),
    "batch norm": Case(Toy(normalization=True)),
    "accumulation": Case(training={"accumulate": 3}),
    "batch norm and accumulation": Case(Toy(normalization=True), {"accumulate": 4}),
    "last batch of one sample": Case(Toy(samples=49, normalization=True)),
    "terms are not samples": Case(Toy(counts_weights=True), {"accumulate": 2, "clip_norm": 0.5}),
    "clipping and momentum": Case(
        training={"clip_norm": 0.3}, parts={"optimizer": {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9}}
    ),
}


def trained(processes: Processes, world_size: int, folder: Path, case: Case) -> list[Result]:
    folder.mkdir()
    spec = job(training=dict(case.training), workers={"count": world_size}, **case.parts)
    return processes.run(world_size, folder, train_toy, case.toy, spec, folder)


@pytest.mark.parametrize("name", CASES)
def test_any_number_of_workers_gives_the_same_curve(processes: Processes, tmp_path: Path, name: str) -> None:
    """Catches means of means on ragged shares, statistics of batch norm by rank, and a stand-in sample that counts."""
    runs = {count: trained(processes, count, tmp_path / str(count), CASES[name]) for count in (1, 2, 3)}
    (alone,) = runs[1]
    assert len(alone.memory.series("train/loss")) == 15
    for count in (2, 3):
        first = runs[count][0]
        for key in ("train/loss", "gradient/norm", "eval/loss"):
            np.testing.assert_allclose(first.memory.series(key), alone.memory.series(key), rtol=1e-4, err_msg=key)
        assert first.memory.series("eval/accuracy") == alone.memory.series("eval/accuracy")
        for digest in ("parameters_sha256", "gradients_sha256"):
            assert len({result.outcome.detail[digest] for result in runs[count]}) == 1, digest


def test_the_same_samples_in_the_same_order(processes: Processes, tmp_path: Path) -> None:
    """What the data set was really asked for, batch by batch."""
    case = Case(Toy(samples=48), {"accumulate": 2})
    runs = {count: trained(processes, count, tmp_path / str(count), case) for count in (1, 2, 3)}
    (alone,) = runs[1]
    for count in (2, 3):
        together = [
            sorted(chain.from_iterable(parts)) for parts in zip(*(result.read for result in runs[count]), strict=True)
        ]
        assert together == [sorted(batch) for batch in alone.read]
        seen = [result.outcome.detail["samples_seen"] for result in runs[count]]
        assert seen == [3 * 48 // count] * count  # each rank its share of every batch
        assert len({result.outcome.detail["samples_sha256"] for result in runs[count]}) == count


def test_early_stopping_is_agreed(processes: Processes, tmp_path: Path) -> None:
    case = Case(
        Toy(untaught=True),
        {"epochs": 20},
        {
            "optimizer": {"name": "adamw", "learning_rate": 0.05},
            "evaluation": {"every_steps": 2, "early_stopping": {"patience": 2}},
        },
    )
    runs = {count: trained(processes, count, tmp_path / str(count), case) for count in (1, 2)}
    outcomes = [(result.outcome.code, result.outcome.detail["steps"]) for count in (1, 2) for result in runs[count]]
    assert set(outcomes) == {("early_stopped", outcomes[0][1])}
    assert outcomes[0][1] < 100
