"""Samples that are left out: who takes their places, which ones are at fault, and what a step long after was made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.unit.test_step_ledger import event, folder_of, started, steps
from workers.repair.acts import Act, Entry
from workers.repair.blame import blamed
from workers.repair.data_answers import LOOKS, DataAnswers
from workers.repair.ladder import Situation
from workers.repair.quarantine import Blamed, bound, left_out, left_out_now
from workers.repair.repairs import Repairs
from workers.repair.requests import Request
from workers.sample_order import Plan, plan_of
from workers.sources.inspect import inspect_data
from workers.sources.problems import BadDataError
from workers.spec import Consent, Health, parse_spec
from workers.step_ledger import StepLedger
from workers.tasks.base import Batch

pytestmark = pytest.mark.unit


# --- the order of samples ---------------------------------------------------------------------------------------------


@given(
    st.integers(2, 200), st.integers(1, 64), st.integers(0, 2**63 - 1), st.integers(0, 3), st.sets(st.integers(0, 199))
)
def test_others_fill_their_places(samples: int, batch_size: int, seed: int, epoch: int, out: set[int]) -> None:
    """Catches a batch that shrinks, a sample that is taken after all, one that is missing, and a place that changes without need."""
    kept = set(range(samples)) - out
    if not kept:
        return
    whole, plan = Plan(samples, batch_size, seed, 10**6), Plan(samples, batch_size, seed, 10**6, tuple(sorted(out)))
    assert plan.steps_per_epoch == whole.steps_per_epoch
    first = epoch * plan.steps_per_epoch
    for step in range(first, first + plan.steps_per_epoch):
        before, now = whole.step_indices(step), plan.step_indices(step)
        assert len(before) == len(now)
        assert all(a == b for a, b in zip(before.tolist(), now.tolist(), strict=True) if a not in out)
    taken = [int(index) for step in range(first, first + plan.steps_per_epoch) for index in plan.step_indices(step)]
    assert set(taken) == kept


def test_who_fills_a_place_is_in_another_batch() -> None:
    plan = Plan(1000, 10, 0, 100, (17,))
    step = next(step for step in range(100) if 17 in Plan(1000, 10, 0, 100).step_indices(step))
    assert len(set(plan.step_indices(step).tolist())) == 10
    again = [
        other for other in range(100) if other != step and set(plan.step_indices(other)) & set(plan.step_indices(step))
    ]
    assert again == [(step + 50) % 100], "half an epoch further on"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([3, 455], "there is no sample 455; allowed is 0 to 454, its index in the training set"),
        (list(range(450)), "5 of 455 samples would be left; a batch needs 10"),
    ],
)
def test_a_list_that_cannot_be(rows: list[int], said: str) -> None:
    document: dict[str, Any] = {"name": "cells", "task": {"kind": "tabular", "data": {"source": "breast_cancer"}}}
    spec = parse_spec({**document, "training": {"batch_size": 10, "leave_out": rows}})
    with pytest.raises(BadDataError) as caught:
        plan_of(spec, 455)
    assert caught.value.field == "training.leave_out"
    assert said in str(caught.value)


def test_a_list_follows_from_the_acts_that_hold() -> None:
    acts = [
        Act(1, 4, "nonfinite_data", "data", "", leaves_out=[9, 3]),
        Act(2, 6, "asked", "data", "", leaves_out=[5], takes_in=[3, 1]),
    ]
    assert left_out([1, 2], acts) == (2, 5, 9)
    assert [bound(samples) for samples in (30, 1437, 100_000)] == [1, 14, 1000]


# --- who is at fault --------------------------------------------------------------------------------------------------


class Rows:
    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, indices: Sequence[int], *, seed: int) -> Batch:
        return {"x": self.inputs[list(indices)], "y": self.targets[list(indices)]}


class Regression:
    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        return (model(batch["x"]).squeeze(1) - batch["y"]).square().sum(), torch.tensor(float(len(batch["y"])))


class Classification:
    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        return F.cross_entropy(model(batch["x"]), batch["y"], reduction="sum"), torch.tensor(float(len(batch["y"])))


class Contrast:
    """A loss of the batch: each sample against the others in it. Alone it has none."""

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        answers = model(batch["x"])
        return -answers.std(0).sum() * len(answers), torch.tensor(float(len(answers)))


def drawn(samples: int = 600, features: int = 6) -> Rows:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(samples, features, generator=generator)
    return Rows(inputs, inputs.sum(1) + 0.1 * torch.randn(samples, generator=generator))


def look(
    task: Any, rows: Rows, suspects: Sequence[int] = (), outputs: int = 1, norm: bool = False, **more: Any
) -> Blamed:
    def build(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        layers = [nn.BatchNorm1d(16)] if norm else []
        return nn.Sequential(nn.Linear(6, 16), *layers, nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, outputs))

    return blamed(task, build, rows, suspects, seed=0, **more)


@pytest.mark.parametrize("norm", [False, True])
def test_what_is_no_number_and_what_is_far_out_is_found(norm: bool) -> None:
    rows = drawn()
    rows.inputs[[5, 77], 2] = torch.tensor([float("nan"), float("inf")])
    rows.targets[400] = float("nan")
    rows.targets[11] = 1e5
    rows.inputs[12] *= 1e6
    found = look(Regression(), rows, norm=norm)
    assert found.nonfinite == (5, 77, 400)
    assert found.extreme == (11, 12)
    assert found.looked_at == 600


def test_wrong_labels_and_rare_classes_are_nobodys_fault() -> None:
    rows = drawn()
    labels = (rows.targets > 0).long()
    labels[::7] = 1 - labels[::7]
    labels[3] = 2
    assert look(Classification(), Rows(rows.inputs, labels), outputs=3).samples == []


def test_heavy_tails_have_no_line_between_usual_and_not() -> None:
    """Amounts of money, say: each larger one is only a little rarer."""
    rows = drawn(2000)
    rows.targets = torch.exp(3 * torch.randn(2000, generator=torch.Generator().manual_seed(2)))
    assert look(Regression(), rows).samples == []


def test_numbers_that_the_loss_does_not_take_are_nobodys_fault() -> None:
    class Masked(Regression):
        def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
            return super().loss(model, {"x": batch["x"].nan_to_num(), "y": batch["y"]})

    rows = drawn()
    rows.inputs[:40, 0] = float("nan")
    assert look(Masked(), rows).samples == []


@pytest.mark.filterwarnings("ignore:std")
def test_a_loss_of_the_batch_blames_nobody() -> None:
    """The deviation of a single answer is no number."""
    assert look(Contrast(), drawn(), range(64)).samples == []


def test_suspects_come_first_and_the_time_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 1
        return now

    monkeypatch.setattr("workers.repair.blame.time.monotonic", clock)
    rows = drawn()
    rows.inputs[[333, 444]] = float("nan")
    found = look(Regression(), rows, [333], seconds=80)
    assert found.looked_at < 600
    assert found.nonfinite == (333,)


# --- what is done about them ------------------------------------------------------------------------------------------


def finding(code: str = "nonfinite_gradient", begun: int = 40) -> dict[str, Any]:
    return {"code": code, "first_bad_step": begun, "severity": "critical", "evidence": {}}


def test_a_finding_that_stays_open_is_looked_into_once() -> None:
    asked = []

    def look_for(found: Any) -> Blamed:
        asked.append(found["first_bad_step"])
        return Blamed(nonfinite=(3,), extreme=(8,), looked_at=500)

    answers = DataAnswers(500, look_for)
    first = answers.answer(finding(), (), ())
    assert first is not None
    assert (first.leaves_out, first.back, first.trial) == ([3, 8], True, False)
    assert answers.answer(finding(), (3, 8), (3, 8)) is None, "they are left out already"
    assert answers.answer(finding(), (), (3, 8)) is None, "somebody took them in again"
    assert asked == [40]
    for begun in range(100, 120):
        answers.answer(finding(begun=begun), (), ())
    assert len(asked) == LOOKS
    assert answers.answer(finding("plateau"), (), ()) is None


def test_too_many_are_told_and_not_left_out() -> None:
    answers = DataAnswers(500, lambda _: Blamed(nonfinite=(1, 2, 3, 4)))
    assert answers.answer(finding(), (7, 9), ()) is None
    why = answers.why_not("nonfinite_gradient")
    assert why is not None
    assert why.startswith("4 of 500 samples are at fault beside the 2 that are left out already, and more than 1 %")


# --- long after -------------------------------------------------------------------------------------------------------


def test_the_ledger_knows_what_each_step_left_out(tmp_path: Path) -> None:
    """Two acts, the second taken back; then everything after step 6 is lost, and done again by an attempt that left out something else."""
    folder = folder_of(tmp_path, training={"steps": 100, "batch_size": 10, "leave_out": [0]})
    first = Act(1, 4, "nonfinite_data", "data", "", leaves_out=[3, 8])
    second = Act(2, 6, "loss_spike", "data", "", leaves_out=[5], probation=2)
    started(folder, 1, 0.0, 1)
    event(folder, 1, 5.0, "repair.done", step=4, repair=Entry(first, "kept", {}).document())
    event(folder, 1, 7.0, "repair.done", step=6, repair=Entry(second, "trial", {}).document())
    event(folder, 1, 9.5, "repair.taken_back", step=9, repair=Entry(second, "taken_back", {}, ended=9).document())
    steps(folder, 1, range(1, 12), 1.0)
    ledger = StepLedger(folder)
    assert [ledger.step(step).plan.left_out for step in (4, 5, 6, 7, 9, 10)] == [
        (0,), (0, 3, 8), (0, 3, 8), (0, 3, 5, 8), (0, 3, 5, 8), (0, 3, 8),
    ]  # fmt: skip
    started(folder, 2, 100.0, 1, step=6)
    other = Act(2, 8, "asked", "data", "", takes_in=[3], request="x")
    event(folder, 2, 103.0, "repair.done", step=8, repair=Entry(other, "kept", {}).document())
    steps(folder, 2, range(12, 15), 107.0)
    ledger = StepLedger(folder)
    assert [ledger.step(step).plan.left_out for step in (11, 13)] == [(0, 3, 8), (0, 8)]
    whole, indices = Plan(455, 10, 0, 100), ledger.step(13).of_rank(0).indices
    assert np.array_equal(np.isin(whole.step_indices(12), (0, 8)), whole.step_indices(12) != indices)


# --- among other repairs ----------------------------------------------------------------------------------------------

STEPS, SNAPSHOTS = 200, [0, 20, 36]


def repairing(*allow: Consent) -> Repairs:
    return Repairs(Health(mode="repair", allow=list(allow)), STEPS, 0.1)


def next_act(run: Repairs, data: DataAnswers | None, step: int, *found: dict[str, Any]) -> Act | None:
    situation = Situation(found[0], step, STEPS, 2.0, "sgd", 0.1) if found else None
    return run.next_act(found, situation, SNAPSHOTS, step, data=data)


def test_the_data_goes_before_rate_and_clipping() -> None:
    run, answers = repairing("live", "data"), DataAnswers(1000, lambda _: Blamed(extreme=(8,)))
    act = next_act(run, answers, 42, finding("loss_spike"))
    assert act is not None
    assert (act.leaves_out, act.rewind, act.consent, act.rate) == ([8], 36, "data", 1.0)
    assert "went back to the weights from before it began" in act.words
    run.done(act, finding("loss_spike"), {})
    assert left_out_now([1], run.entries) == (1, 8)
    second = next_act(run, answers, 42 + act.probation, finding("loss_spike", 60))
    assert second is not None
    assert (second.instead_of, second.leaves_out, second.consent) == (1, None, "live"), "it was not the sample"
    run.done(second, finding("loss_spike"), {})
    assert left_out_now([], run.entries) == ()


def test_what_is_no_number_is_for_good_and_costs_no_steps() -> None:
    run, answers = repairing("data"), DataAnswers(1000, lambda _: Blamed(nonfinite=(3,)))
    act = next_act(run, answers, 42, finding("nonfinite_data", 0))
    assert act is not None
    assert (act.rewind, act.probation) == (None, 0)
    assert run.done(act, finding(), {}).state == "kept"
    assert run.lost == 0
    assert run.left_to_people is None
    assert next_act(run, answers, 60, finding("nonfinite_data", 0)) is None
    assert run.left_to_people == "nonfinite_data", "what is still there nobody can mend"


@pytest.mark.parametrize("allow", [("live",), ("live", "weights", "architecture")])
def test_without_consent_nobody_looks(allow: tuple[Consent, ...]) -> None:
    run, answers = repairing(*allow), DataAnswers(1000, lambda _: pytest.fail("nobody may look"))
    act = next_act(run, answers, 42, finding("loss_spike"))
    assert act is not None
    assert act.leaves_out is None
    assert next_act(repairing(*allow), answers, 42, finding("class_imbalance", 0)) is None


def test_what_somebody_undid_is_not_done_again() -> None:
    run, answers = repairing("data"), DataAnswers(1000, lambda _: Blamed(nonfinite=(3,)))
    act = next_act(run, answers, 42, finding())
    assert act is not None
    run.done(act, finding(), {})
    undo = run.asked(Request("x", "undo", "key test", number=1), 50)
    assert isinstance(undo, Act)
    run.done(undo, {}, {})
    assert left_out_now([], run.entries) == ()
    assert next_act(run, answers, 60, finding(begun=55)) is None


def test_classes_are_weighed_once_and_only_where_the_job_has_no_weights() -> None:
    imbalance = {**finding("class_imbalance", 0), "severity": "warning"}
    assert next_act(repairing("data"), DataAnswers(500, lambda _: Blamed(), None), 5, imbalance) is None
    act = next_act(repairing("data"), DataAnswers(500, lambda _: Blamed(), [480, 20]), 5, imbalance)
    assert act is not None
    assert act.class_weights == pytest.approx([500 / 960, 12.5])
    assert (
        act.words
        == "weights the loss by class, from 0.521 for the most frequent (480 samples) to 12.5 for the rarest (20)"
    )


def test_a_list_is_looked_at_when_a_job_is_posted() -> None:
    document = {"name": "d", "task": {"kind": "image_classification", "data": {"source": "digits"}}}
    good = parse_spec({**document, "training": {"leave_out": [0, 1436]}})
    assert inspect_data(good) == []
    (problem,) = inspect_data(parse_spec({**document, "training": {"leave_out": [1437]}}))
    assert (
        str(problem)
        == "training.leave_out: there is no sample 1437; allowed is 0 to 1436, its index in the training set"
    )
