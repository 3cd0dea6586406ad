"""What every step measured reaches the reporter, once, although the worker that reports may change."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from tests.distributed.toys import Memory
from workers import recording
from workers.recording import ROWS, HostValues, Recorder
from workers.reports import mark_of
from workers.watch.memory import BEGINNING, KEPT, PASSED_ON, RunMemory, StepValues
from workers.watch.probe_rows import BINS, STATISTICS, Names

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")


class Worker:
    """A recorder with what it reports: every row that is told, in order."""

    def __init__(self, *, teller: bool, told: int = 0, **parts: Any) -> None:
        """``told``: step up to which the controller has everything."""
        self.memory = Memory()
        self.told_through = mark_of(told, {"eval/loss": 0}) or 0 if told else -1
        settings = {"steps": 100, "every_steps": 1, "warmup_steps": 0, **parts}
        self.recorder = Recorder(self, ("a", "b"), CPU, told_through=lambda: self.told_through, **settings)
        self.recorder.tell(teller)
        self.told: list[tuple[int, str]] = []
        self.told_norms: list[int] = []

    def record(self, first: int, last: int, loss: float = 1.0) -> None:
        for step in range(first, last + 1):
            norms = torch.tensor([float(step), 2.0], dtype=torch.float64)
            host = HostValues(0.1, samples=10, epoch=step / 10, data_wait_seconds=0.0)
            self.recorder.record(
                step,
                torch.tensor(loss * 10 * step),
                torch.tensor(10),
                norms,
                norms.square().sum().sqrt(),
                torch.tensor(0.5),
                host,
            )
        self.recorder.flush()

    def evaluate(self, step: int) -> None:
        self.recorder.scalars(step, {"eval/loss": float(step)})

    # --- a Reporter ---

    def metrics(self, step: int, values: Any, timestamp: float) -> None:
        self.told.append((step, next(iter(values))))
        self.memory.metrics(step, values, timestamp)

    def gradients(self, layers: Any, rows: Any) -> None:
        self.told_norms += [step for step, _ in rows]
        self.memory.gradients(layers, rows)

    def ranks(self, rows: Any) -> None: ...

    def probes(self, layers: Any, activations: Any, rows: Any) -> None:
        self.memory.probes(layers, activations, rows)

    def progress(self, progress: Any) -> None:
        self.memory.progress(progress)

    def event(self, level: str, type: str, message: str, data: Any = None) -> None:
        self.memory.event(level, type, message, data)


def steps(first: int, last: int) -> list[tuple[int, str]]:
    return [(step, "train/loss") for step in range(first, last + 1)]


def passed_on(document: dict[str, Any]) -> dict[str, Any]:
    """As a checkpoint keeps it."""
    found: dict[str, Any] = json.loads(json.dumps(document))
    return found


def test_what_was_measured_is_what_is_told() -> None:
    worker = Worker(teller=True)
    worker.record(1, 3, loss=0.5)
    row = worker.memory.rows[2]
    assert row["train/loss"] == pytest.approx(1.0)  # sum over count
    assert row["gradient/norm"] == pytest.approx(math.hypot(2, 2))
    assert row["gradient/norm_clipped"] == pytest.approx(math.hypot(2, 2) / 2)
    assert (row["gradient/clipped"], row["gradient/nonfinite_layers"]) == (1.0, 0.0)
    assert (row["gradient/largest_layer_norm"], row["gradient/smallest_layer_norm"]) == (2.0, 2.0)
    assert worker.memory.norms == {1: [1, 2], 2: [2, 2], 3: [3, 2]}
    assert (worker.memory.progressed[-1].step, worker.memory.progressed[-1].steps) == (3, 100)


def test_the_ring_is_emptied_before_it_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "FLUSH_SECONDS", math.inf)
    worker = Worker(teller=True)
    worker.record(1, 2 * ROWS + 5)
    assert worker.told == steps(1, 2 * ROWS + 5)
    assert worker.memory.series("train/loss") == pytest.approx(range(1, 2 * ROWS + 6))


def test_gradients_are_told_as_often_as_asked() -> None:
    worker = Worker(teller=True, every_steps=4)
    worker.record(1, 9)
    assert worker.told_norms == [1, 4, 8]
    assert len(worker.told) == 9


def test_only_one_worker_tells() -> None:
    silent = Worker(teller=False)
    silent.record(1, 5)
    silent.evaluate(5)
    silent.recorder.judge(final=True)
    assert silent.told == []
    assert silent.memory == Memory()


def test_who_takes_over_tells_what_nobody_has_told() -> None:
    """Both measured all of it; the one that told was lost when the controller had steps 1 to 6."""
    heir = Worker(teller=False)
    heir.record(1, 5)
    heir.told_through = mark_of(6, {"train/loss": 0}) or 0
    heir.record(6, 10)
    heir.evaluate(10)
    heir.recorder.tell(True)
    assert heir.told == [*steps(7, 10), (10, "eval/loss")]
    assert heir.told_norms == [7, 8, 9, 10]
    heir.recorder.tell(True)
    assert len(heir.told) == 5, "nothing twice"
    heir.record(11, 12)
    assert heir.told[5:] == steps(11, 12)


def test_the_evaluation_of_a_step_that_was_told_is_not_forgotten() -> None:
    heir = Worker(teller=False)
    heir.record(1, 4)
    heir.evaluate(4)
    heir.told_through = mark_of(4, {"train/loss": 0}) or 0
    heir.recorder.tell(True)
    assert heir.told == [(4, "eval/loss")]


def test_a_newcomer_tells_what_the_document_holds() -> None:
    """The one that hands over has told more than the controller got; the rest goes on with it, each row once."""
    source = Worker(teller=True)
    source.record(1, 10)
    source.told_through = mark_of(6, {"train/loss": 0}) or 0
    source.record(11, 12)
    newcomer = Worker(teller=False, told=6)
    newcomer.recorder.restore(passed_on(source.recorder.document()))
    assert newcomer.told == []
    newcomer.recorder.tell(True)
    assert newcomer.told == steps(7, 12)
    assert newcomer.memory.rows[9] == source.memory.rows[9]
    assert newcomer.memory.norms[9] == source.memory.norms[9]
    newcomer.record(13, 13)
    newcomer.told_through = mark_of(13, {"train/loss": 0}) or 0
    assert newcomer.told == steps(7, 13)
    newcomer.record(14, 14)
    assert [row["step"] for row in newcomer.recorder.document()["untold"]] == [14]


def test_a_newcomer_that_tells_already_goes_on_at_once() -> None:
    source = Worker(teller=True)
    source.record(1, 4)
    newcomer = Worker(teller=True, told=2)
    newcomer.recorder.restore(passed_on(source.recorder.document()))
    assert newcomer.told == steps(3, 4)


def test_what_a_worker_measured_itself_is_replaced() -> None:
    """It was a step ahead in a group that came to nothing, say; only what the others did is true."""
    source, other = Worker(teller=True), Worker(teller=False)
    source.record(1, 5)
    other.record(1, 6, loss=99.0)
    other.recorder.restore(passed_on(source.recorder.document()))
    other.recorder.tell(True)
    assert other.told == steps(1, 5)
    assert other.memory.series("train/loss") == pytest.approx([1, 2, 3, 4, 5])


def test_nothing_is_kept_that_the_controller_has() -> None:
    """Else a long run would fill the memory of each worker, and its checkpoints."""
    worker = Worker(teller=True)
    for step in range(1, 200):
        worker.told_through = mark_of(step, {"train/loss": 0}) or 0
        worker.record(step, step)
        assert worker.recorder.document()["untold"] == []
    assert len(worker.recorder.document()["memory"]["steps"]) <= PASSED_ON


def test_a_verdict_is_told_when_it_changes_and_by_one_worker() -> None:
    source = Worker(teller=True)
    source.record(1, 30, loss=math.nan)
    source.recorder.judge()
    source.recorder.judge()
    assert [found["verdict"] for found in source.memory.found("health.verdict")] == ["critical"]
    heir = Worker(teller=True)
    heir.recorder.restore(passed_on(source.recorder.document()))
    heir.record(31, 40, loss=math.nan)
    heir.recorder.judge()
    assert heir.memory.found("health.verdict") == [], "it is known already"
    assert heir.memory.found("finding.raised") == []
    heir.recorder.tell_verdict_anew()
    heir.recorder.judge()
    assert len(heir.memory.found("health.verdict")) == 1
    (raised,) = source.memory.found("finding.raised")
    assert (raised["finding"]["code"], raised["finding"]["first_bad_step"]) == ("nonfinite_gradient", 1)
    heir.recorder.judge(final=True)
    assert len(heir.memory.found("health.verdict")) == 2


def test_a_look_is_taken_often_enough_and_never_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("workers.recording.time.monotonic", lambda: now[0])
    worker = Worker(teller=True, steps=1000)

    def looks(seconds: float, repairing: bool = False) -> bool:
        now[0] += seconds
        before = worker.recorder._looked_at
        worker.recorder.judge_when_due(repairing=repairing)
        return worker.recorder._looked_at != before

    assert not looks(10), "nothing was measured"
    worker.record(1, 5)
    assert looks(6)
    worker.record(6, 10)
    assert not looks(1), "5 of 1000 steps, 1 s"
    worker.record(11, 30)
    assert looks(0.5), "20 steps are a fiftieth of the run"
    worker.recorder._look_seconds = 1.0
    worker.record(31, 90)
    assert not looks(50), "a look that takes a second is worth 100 seconds"
    assert looks(51)
    worker.recorder._look_seconds = 1.0
    worker.record(91, 99)
    assert not looks(1, repairing=True)
    worker.record(100, 101)
    assert not looks(0.1)
    assert looks(0.1, repairing=True), (
        "a tenth of the run is over: what is found later is found too late to be repaired"
    )


def test_a_rule_that_fails_costs_the_run_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(record: Any) -> Any:
        raise ZeroDivisionError("no rows")

    worker = Worker(teller=True)
    worker.record(1, 30, loss=math.nan)
    with monkeypatch.context() as patched:
        patched.setattr("workers.watch.watching.diagnose", broken)
        patched.setattr("workers.recording.diagnose", broken)
        assert worker.recorder.judge().verdict == "unknown"
        assert worker.recorder.judge(final=True).verdict == "unknown"
        assert worker.recorder.judgement().sentence == "The run could not be judged: ZeroDivisionError: no rows"
    (told,) = worker.memory.found("health.failed")
    assert "in broken" in told["traceback"]
    assert worker.recorder.judge().verdict == "critical", "the next look may go well"


def test_the_record_of_a_run_has_what_was_measured() -> None:
    worker = Worker(teller=True)
    worker.record(1, 10)
    worker.recorder.scalars(10, {"eval/loss": 0.5, "test/loss": 3.0})
    for recorder in (worker.recorder, Worker(teller=False).recorder):
        recorder.restore(passed_on(worker.recorder.document()))
        record = recorder.record_of_run()
        assert record.series.steps.tolist() == list(range(1, 11))
        assert record.series.losses.tolist() == list(range(1, 11))
        assert record.series.norms[:, 0].tolist() == list(range(1, 11))
        assert record.series.learning_rates.tolist() == [0.1] * 10
        assert record.series.clip_factors.tolist() == [0.5] * 10
        assert record.series.wait_seconds.tolist() == [0.0] * 10
        assert (record.series.seconds >= 0).all()
        assert record.evaluations.steps.tolist() == [10]
        assert {name: values.tolist() for name, values in record.evaluations.metrics.items()} == {"loss": [0.5]}
        assert record.total_steps == 100


def test_a_long_run_is_remembered_in_little_and_its_beginning_whole() -> None:
    memory = RunMemory(("a",))
    for step in range(1, 20001):
        memory.add(step, StepValues(float(step)), np.array([float(step)]))
    assert len(memory.series().steps) <= KEPT
    again = RunMemory(("a",))
    again.restore(passed_on(memory.document()))
    for each in (memory, again):
        series = each.series()
        assert series.steps[: BEGINNING + 1].tolist() == [*range(1, BEGINNING + 1), series.steps[BEGINNING]]
        assert series.steps[-1] > 19900
        assert (series.losses == series.steps).all()
        assert (series.norms[:, 0] == series.steps).all()
        assert (np.diff(series.steps) > 0).all()
    assert len(again.series().steps) == PASSED_ON
    other = RunMemory(("b",))
    other.restore(passed_on(memory.document()))
    assert len(other.series().steps) == 0, "another model's"


def test_steps_in_a_row_without_a_finite_loss_are_counted() -> None:
    worker = Worker(teller=True)
    worker.record(1, 3, loss=math.inf)
    assert worker.recorder.bad_steps == 3
    worker.record(4, 4)
    assert worker.recorder.bad_steps == 0


def test_a_row_without_samples_has_no_loss() -> None:
    worker = Worker(teller=True)
    zero = torch.zeros((), dtype=torch.float64)
    host = HostValues(0.1, 0, 0.0, 0.0)
    worker.recorder.record(1, zero, zero, torch.zeros(2), zero, zero + 1, host)
    worker.recorder.flush()
    assert math.isnan(worker.memory.rows[1]["train/loss"])


def test_who_goes_on_tells_the_probes_that_nobody_has_told() -> None:
    first, second = Worker(teller=True), Worker(teller=False, told=2)
    for worker in (first, second):
        worker.recorder.probes_have(Names(("a", "b"), ()))
    for step in range(1, 5):
        norms = torch.ones(2, dtype=torch.float64)
        row = torch.full((len(STATISTICS) * 2 + 2 * BINS,), step / 8, dtype=torch.float64)
        host = HostValues(0.1, samples=10, epoch=0.1, data_wait_seconds=0.0)
        one = torch.tensor(1.0)
        first.recorder.record(step, one, one, norms, norms.norm(), one, host, None if step == 1 else row)
    document = first.recorder.document() | {"untold": []}
    first.recorder.flush()
    assert first.memory.probed().steps.tolist() == [2, 3, 4]
    assert first.memory.rows[4]["probe/update_ratio_max"] == 0.5
    assert "probe/update_ratio_max" not in first.memory.rows[1]
    second.recorder.restore(passed_on(first.recorder.document()))
    second.recorder.tell(True)
    assert second.memory.probed().steps.tolist() == [3, 4]  # the first two were told
    assert second.recorder.probes().steps.tolist() == [2, 3, 4]  # all are judged
    assert second.recorder.probes().weight_norms[:, 1].tolist() == [0.25, 0.375, 0.5]
    without = {key: value for key, value in document.items() if key != "probes"}
    second.recorder.restore(passed_on(without))  # a checkpoint of an earlier version
