"""Live repairs on the fault-injection suite: what mends a job does nothing to one that is well."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.pitfalls import loop, repaired, repairing
from benchmarks.pitfalls.cases import ALL
from benchmarks.pitfalls.repaired import Repaired, figures
from workers.repair.snapshots import DEPTH, Snapshots
from workers.repair.timeline import lost
from workers.weights import parameters_sha256

pytestmark = pytest.mark.unit

CASES = {case.name: case for case in ALL}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", ["vision/rate_40x", "vision/rate_small"])
def test_a_rate_that_is_far_off_is_mended(name: str) -> None:
    case = CASES[name]
    assert not case.goal.reached(loop.run(case.build(0), 0).metrics)
    mended = repairing.run(case, 0)
    assert case.goal.reached(mended.metrics)
    assert [entry.state for entry in mended.entries].count("kept") == 1
    assert len(mended.entries) > 1, "other rates were compared with it"
    assert mended.steps == case.build(0).steps + lost(mended.entries)
    steps = mended.record.series.steps
    assert (np.diff(steps) > 0).all()
    assert steps[-1] == mended.steps
    first = mended.entries[0].act
    assert first.step not in steps, "what was left behind is not judged any more"


@pytest.mark.parametrize("name", ["vision/dropout", "distributed/two", "vision/raw_batch_norm"])
def test_a_job_that_is_well_is_the_same_bit_by_bit(name: str) -> None:
    case = CASES[name]
    plain = case.build(0)
    outcome = loop.run(plain, 0, watch=True)
    found = repairing.run(case, 0)
    assert not found.touched
    assert parameters_sha256(plain.model) == parameters_sha256(found.model)
    assert outcome.record is not None
    assert np.array_equal(outcome.record.series.losses, found.record.series.losses)
    assert np.array_equal(outcome.record.series.norms, found.record.series.norms)


def test_figures_of_runs_counted_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(name: str, expected: str | None, plain: float, value: float, *states: str, extra: int = 0) -> Repaired:
        acts = tuple({"number": 1, "step": 1, "code": "plateau", "state": state} for state in states)
        return Repaired(name, 0, expected, (), plain, plain > 0.5, value, value > 0.5, 100, extra, 0, (), acts)

    runs = [
        run("a", "lr_too_high", 0.1, 0.9, "taken_back", "kept", extra=10),
        run("b", "lr_too_high", 0.1, 0.2, "taken_back", extra=50),
        run("c", "wrong_loss", 0.1, 0.1),
        run("d", "wrong_loss", 0.1, 0.1, "trial"),
        run("e", None, 0.9, 0.4, "kept"),
        run("f", None, 0.9, 0.9),
    ]
    found = figures(runs)
    assert (found["repaired_of_answered"], found["repaired_of_all_sick"]) == (1 / 2, 1 / 4)
    assert found["honest"] == 1 / 2
    assert (found["healthy_harmed"], found["healthy_with_acts"]) == (["e"], ["e"])
    assert found["healthy_within_one_percent"] == 1 / 2
    assert (found["extra_steps_median"], found["extra_steps_worst"]) == (0.1, 0.5)
    monkeypatch.setattr(repaired, "RESULTS", tmp_path)
    stored = repaired.store(runs).read_text()
    assert '"name": "b"' in stored
    assert '"name": "f"' not in stored


def test_a_job_that_vanishes_begins_anew_where_that_is_allowed() -> None:
    case = CASES["deep/relu_small"]
    live = repaired.repaired(case, 0)
    assert (live.answered, live.reached, live.acts) == (False, False, ())
    anew = repaired.repaired(case, 0, repairing.EVERYTHING)
    assert (anew.answered, anew.mended) == (True, True)
    assert "plan" in anew.acts[0]


def test_snapshots_lie_further_apart_the_older_they_are() -> None:
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    snapshots = Snapshots()
    for step in range(0, 400, 5):
        snapshots.take(step, model, optimizer)
        assert len(snapshots.steps) <= 1 + DEPTH
    first, *between, newest = snapshots.steps
    assert (first, newest, newest - between[-1]) == (0, 395, 5)
    ages = [newest - step for step in between]
    assert all(older > 1.5 * younger for older, younger in pairwise(ages))
    assert 30 <= ages[0] <= 200
