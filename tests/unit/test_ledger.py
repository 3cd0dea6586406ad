"""What workers report is kept once: whoever tells it, however often, and although the controller dies in between."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workers.jobfolder import FACTS, JobFolder, read_lines
from workers.ledger import Ledger
from workers.outbox import Outbox
from workers.reports import Progress, mark_of
from workers.watch.probe_files import read_probes
from workers.watch.probe_rows import BINS, STATISTICS, Names, pack
from workers.worker_link import Activity, Poll

pytestmark = pytest.mark.unit

LAYERS = ("conv", "head")


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    folder = JobFolder(tmp_path, "job-1")
    folder.create('{"name": "x"}')
    return folder


def poll(worker: Outbox, acknowledged: int = 0) -> Poll:
    reports, progress = worker.after(acknowledged), worker.latest_progress
    return Poll("running", 1, None, None, Activity(0, 0, 0.0), None, reports, progress, version=1)


def tell(worker: Outbox, steps: Sequence[int], evaluated: Sequence[int] = (), other: float = 0.0) -> None:
    """Each step's loss is its number (and ``other``), so that a row says which step it is of and who told it."""
    for step in steps:
        worker.gradients(LAYERS, [(step, (float(step), other))])
        worker.metrics(step, {"train/loss": step + other}, timestamp=float(step))
        if step in evaluated:
            worker.metrics(step, {"eval/loss": step + other}, timestamp=float(step))
            worker.event("info", "evaluation", f"Step {step}.", {"step": step, "metrics": {}})


def rows(folder: JobFolder, attempt: int = 1) -> list[tuple[int, Mapping[str, Any]]]:
    return [(row["step"], row["values"]) for row in read_lines(folder.metrics_path(attempt))]


def test_each_step_is_kept_once_although_two_workers_tell_of_it(folder: JobFolder) -> None:
    """Rank 0 was lost; another one tells what it knows not to be told, and some of it is."""
    ledger, first, second = Ledger(folder, 1), Outbox(), Outbox()
    tell(first, range(1, 6), evaluated=[4])
    ledger.take("a", 0, poll(first))
    assert ledger.told_through == mark_of(5, {"train/loss": 0.0})
    tell(second, range(3, 9), evaluated=[4, 8], other=0.5)
    ledger.take("b", 0, poll(second))
    expected: list[tuple[int, Mapping[str, Any]]] = [(step, {"train/loss": step}) for step in range(1, 6)]
    expected.insert(4, (4, {"eval/loss": 4}))
    expected += [(6, {"train/loss": 6.5}), (7, {"train/loss": 7.5}), (8, {"train/loss": 8.5}), (8, {"eval/loss": 8.5})]
    assert rows(folder) == expected
    matrix = folder.gradient_matrix()
    assert matrix.layers == LAYERS
    np.testing.assert_array_equal(matrix.steps, range(1, 9))
    np.testing.assert_array_equal(matrix.norms[:, 1], [0] * 5 + [0.5] * 3)
    assert [event.data["step"] for event in ledger.events] == [4, 8]
    assert ledger.latest == {"train/loss": 8.5, "eval/loss": 8.5}


def test_norms_of_another_model_may_come_with_those_of_the_one_before(folder: JobFolder) -> None:
    """A repair builds the model anew: would catch a controller that takes them for rows of one table, and fails."""
    ledger, worker = Ledger(folder, 1), Outbox()
    tell(worker, [1, 2])
    worker.gradients(("conv", "norm", "head"), [(3, (1.0, 2.0, 3.0)), (4, (4.0, 5.0, 6.0))])
    ledger.take("a", 0, poll(worker))
    ledger.take("a", 0, poll(worker))
    matrix = folder.gradient_matrix()
    assert matrix.layers == ("conv", "norm", "head"), "of the model that trains now"
    np.testing.assert_array_equal(matrix.steps, [3, 4])
    np.testing.assert_array_equal(matrix.norms, [[1, 2, 3], [4, 5, 6]])
    assert [step for step, _ in rows(folder)] == [1, 2]


def test_an_evaluation_that_was_not_told_with_its_step_is_told_later(folder: JobFolder) -> None:
    """The worker was lost between the step and its evaluation, which another one made."""
    ledger, first, second = Ledger(folder, 1), Outbox(), Outbox()
    tell(first, range(1, 5))
    ledger.take("a", 0, poll(first))
    tell(second, [4, 5], evaluated=[4])
    ledger.take("b", 0, poll(second))
    assert [step for step, values in rows(folder) if "eval/loss" in values] == [4]
    assert [step for step, values in rows(folder) if "train/loss" in values] == [1, 2, 3, 4, 5]


def test_what_is_acknowledged_is_asked_for_no_more_and_what_comes_twice_is_kept_once(folder: JobFolder) -> None:
    ledger, worker = Ledger(folder, 1), Outbox()
    tell(worker, [1, 2], evaluated=[2])
    answer = poll(worker)
    ledger.take("a", 0, answer)
    ledger.take("a", 0, answer)
    worker.event("info", "log", "twice the same is told twice")
    worker.event("info", "log", "twice the same is told twice")
    ledger.take("a", 0, poll(worker, ledger.acknowledged("a")))
    assert poll(worker, ledger.acknowledged("a")).reports == []
    assert [event.type for event in ledger.events] == ["evaluation", "log", "log"]
    assert [event.sequence for event in ledger.events] == [1, 2, 3]
    assert len(rows(folder)) == 3


def test_a_restarted_controller_goes_on_where_it_was(folder: JobFolder) -> None:
    """Nothing had been acknowledged, so the worker tells all of it again."""
    worker = Outbox()
    tell(worker, range(1, 5), evaluated=[4])
    worker.event("warning", "health.verdict", "It explodes.", verdict := _verdict("critical"))
    before = Ledger(folder, 1)
    before.tell("info", "workers.started", "2 workers began.")
    before.take("a", 0, poll(worker))
    tell(worker, range(5, 8))
    worker.event("info", "training.stopping", "Stopping.", {"step": 7})

    again = Ledger(folder, 1)
    again.restore()
    assert again.told_through == before.told_through
    assert again.health == verdict
    assert [event.type for event in again.events] == ["workers.started", "evaluation", "health.verdict"]
    again.take("a", 0, poll(worker))
    another = Outbox()
    tell(another, range(4, 9), evaluated=[4])
    again.take("b", 1, poll(another))
    assert [step for step, values in rows(folder) if "train/loss" in values] == list(range(1, 9))
    assert [step for step, values in rows(folder) if "eval/loss" in values] == [4]
    np.testing.assert_array_equal(folder.gradient_matrix().steps, range(1, 9))
    kept = [(row["sequence"], row["type"]) for row in folder.events(1)]
    assert kept == [(event.sequence, event.type) for event in again.events]
    assert kept == [
        (1, "workers.started"),
        (2, "evaluation"),
        (3, "health.verdict"),
        (4, "training.stopping"),
    ]


def test_a_later_attempt_tells_only_what_is_new(folder: JobFolder) -> None:
    """It went on from a checkpoint of step 3, does steps 4 to 7 again, and its controller is restarted."""
    first, second = Outbox(), Outbox()
    tell(first, range(1, 8))
    Ledger(folder, 1).take("a", 0, poll(first))
    tell(second, range(4, 10), other=0.25)
    Ledger(folder, 2).take("b", 0, poll(second))
    tell(second, [10], other=0.25)
    again = Ledger(folder, 2)
    again.restore()
    again.take("b", 0, poll(second))
    assert [step for step, _ in rows(folder, 2)] == [8, 9, 10]
    np.testing.assert_array_equal(folder.gradient_matrix().norms[:, 1], [0] * 7 + [0.25] * 3)


def test_system_metrics_pass_and_count_for_nothing(folder: JobFolder) -> None:
    """They are each worker's own, under a step that it has not told of yet."""
    ledger, first, second = Ledger(folder, 1), Outbox(), Outbox()
    tell(first, [1, 2])
    first.metrics(9, {"system/rank0/cpu_percent": 80.0}, 1.0)
    second.metrics(1, {"system/rank1/cpu_percent": 90.0}, 1.0)
    ledger.take("a", 0, poll(first))
    ledger.take("b", 1, poll(second))
    assert ledger.told_through == mark_of(2, {"train/loss": 0.0})
    assert rows(folder)[2:] == [(9, {"system/rank0/cpu_percent": 80.0}), (1, {"system/rank1/cpu_percent": 90.0})]
    tell(first, [3])
    ledger.take("a", 0, poll(first, ledger.acknowledged("a")))
    assert rows(folder)[-1] == (3, {"train/loss": 3})


def test_progress_is_that_of_rank_0(folder: JobFolder) -> None:
    ledger, worker = Ledger(folder, 1), Outbox()
    worker.progress(Progress(7, 10, 0.7, 1.0, 3.0))
    ledger.take("b", 1, poll(worker))
    ledger.take("c", None, poll(worker))
    assert _step(ledger) is None
    ledger.take("a", 0, poll(worker))
    assert _step(ledger) == 7


def test_values_that_are_no_numbers(folder: JobFolder) -> None:
    ledger, worker = Ledger(folder, 1), Outbox()
    worker.metrics(1, {"train/loss": math.nan, "gradient/norm": math.inf}, 1.0)
    ledger.take("a", 0, poll(worker))
    assert rows(folder) == [(1, {"train/loss": "NaN", "gradient/norm": "Infinity"})]
    assert math.isnan(ledger.latest["train/loss"])


def _step(ledger: Ledger) -> int | None:
    return ledger.progress.step if ledger.progress else None


def _verdict(name: str) -> dict[str, Any]:
    return {"verdict": name, "sentence": "It explodes.", "findings": []}


def test_probes_are_kept_once_too(folder: JobFolder) -> None:
    """Two workers tell of them, and then a controller that was restarted hears of old ones again."""
    names = Names(LAYERS, ("act",))

    def probed(worker: Outbox, steps: Sequence[int], value: float) -> None:
        for step in steps:
            row = np.full(len(STATISTICS) * 2 + 2 + 2 * BINS, value)
            worker.probes(names.layers, names.activations, [(step, pack(names, step, 0.01, row))])

    first, second, third = Outbox(), Outbox(), Outbox()
    probed(first, [1, 2, 3], 0.25)
    probed(second, [2, 3, 5], 0.5)
    probed(third, [3, 5, 10], 0.75)
    ledger = Ledger(folder, 1)
    ledger.take("a", 0, poll(first))
    ledger.take("b", 0, poll(second))
    Ledger(folder, 1).take("c", 0, poll(third))
    probes = read_probes(folder.probes_path)
    assert probes is not None
    assert probes.steps.tolist() == [1, 2, 3, 5, 10]
    assert probes.weight_norms[:, 0].tolist() == [0.25, 0.25, 0.25, 0.5, 0.75]


def test_findings_that_are_found_again_from_a_checkpoint_are_told_once(folder: JobFolder) -> None:
    ledger, first, second = Ledger(folder, 1), Outbox(), Outbox()
    warning = {"step": 3, "finding": {"code": "plateau", "rank": None, "severity": "warning"}}
    critical = {"step": 4, "finding": {"code": "plateau", "rank": None, "severity": "critical"}}
    for worker in (first, second):
        worker.event("warning", "finding.raised", "Flat.", warning)
        worker.event("warning", "finding.raised", "Flat for long.", critical)
    ledger.take("a", 0, poll(first))
    ledger.take("b", 0, poll(second))
    assert [event.data["finding"]["severity"] for event in ledger.events] == ["warning", "critical"]
    second.event("info", "finding.cleared", "Moves.", critical)
    second.event("info", "finding.cleared", "Moves.", critical)
    ledger.take("b", 0, poll(second, 2))
    assert [event.type for event in ledger.events].count("finding.cleared") == 1


def test_facts_are_kept_and_told_once(folder: JobFolder) -> None:
    ledger, first, second = Ledger(folder, 1), Outbox(), Outbox()
    first.event("info", "facts", "Before the first step.", {"batch_size": 8})
    second.event("info", "facts", "Before the first step.", {"batch_size": 9})
    ledger.take("a", 0, poll(first))
    ledger.take("b", 0, poll(second))
    assert folder.read_document(FACTS) == {"batch_size": 8}
    assert len(ledger.events) == 1
