"""Facts of real runs: told once, kept over a resumption, and without a trace in the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.processes import Processes
from tests.distributed.toys import CLASSES, Memory, Toy, job, train_toy
from workers import train
from workers.watch.facts_json import from_json

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(("workers", "strategy"), [(1, "ddp"), (2, "ddp"), (2, "fsdp")])
def test_told_once(processes: Processes, tmp_path: Path, workers: int, strategy: str) -> None:
    spec = job(workers={"count": workers, "strategy": strategy})
    results = processes.run(workers, tmp_path, train_toy, Toy(), spec, tmp_path)
    told = [memory.found("facts") for memory in (result.memory for result in results)]
    assert [len(each) for each in told] == [1] + [0] * (workers - 1)
    facts = from_json(told[0][0])
    assert (facts.loss.function, facts.loss.output_operation, facts.loss.classes) == (
        "cross_entropy",
        "linear",
        CLASSES,
    )
    assert sum(facts.loss.class_counts) == 50
    assert facts.loss.constant == pytest.approx(1.35, abs=0.05)
    assert [layer.shape for layer in facts.layers] == [(16, 12), (16, 16), (4, 16)]
    assert all(layer.in_optimizer for layer in facts.layers)


def test_watching_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Toy(dropout=0.3, normalization=True)
    watched = train_toy(0, 1, toy, job(), tmp_path / "with")

    def unwatched(self: Any, batch: Any) -> Any:
        return self.task.loss(self.model, batch)

    monkeypatch.setattr(train.Run, "watched_loss", unwatched)
    plain = train_toy(0, 1, toy, job(), tmp_path / "without")
    assert watched.memory.found("facts")
    assert not plain.memory.found("facts")
    for digest in ("parameters_sha256", "gradients_sha256"):
        assert watched.outcome.detail[digest] == plain.outcome.detail[digest]


def test_kept_by_the_run_that_goes_on(tmp_path: Path) -> None:
    first = train_toy(0, 1, Toy(), job(), tmp_path, stop_after=4)
    again = Memory()
    train_toy(0, 1, Toy(), job(), tmp_path, memory=again)
    assert len(first.memory.found("facts")) == 1
    assert again.found("training.resumed")
    assert not again.found("facts")
