"""Probes: when they are made, what they cost, what single tensors and activations show, how rows are kept."""

from __future__ import annotations

import base64
import copy
import json
import pickle
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks

from workers.gradients import GradientMonitor
from workers.watch.activations import RULES, Activations
from workers.watch.probe_files import ProbeWriter, last_step, read_probes, read_records
from workers.watch.probe_reader import ProbeReader, evenly
from workers.watch.probe_rows import BINS, KEPT_ROWS, LOWEST, Names, ProbeLog, pack, probes_of, summary, unpack
from workers.watch.probes import UPDATE_SAMPLE, Prober
from workers.watch.record import Probes
from workers.watch.sampling import BLOCK, sample
from workers.watch.spending import AIMED_AT, SPARSEST, Spending, Stopwatch, surely_probed

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
NAMES = Names(("a", "b"), ("act",))


# --- when -------------------------------------------------------------------------------------------------------------


def test_a_run_is_probed_from_its_first_steps_on() -> None:
    sure = [step for step in range(1, 3000) if surely_probed(step)]
    assert sure == [1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000]


@pytest.mark.parametrize("cost", [0.0001, 0.01, 0.5, 7.0])
def test_the_budget_is_kept(cost: float) -> None:
    """Steps of 1 s; a probe adds its cost. All of the run counts, also what the first probes cost."""
    spending, due, probed = Spending(0.02), 0, []
    for step in range(1, 20_001):
        seconds, now = 1.0, surely_probed(step) or step == due
        if now:
            spending.probes(step)
        due = spending.next_after(step)  # given while the step is under way
        if now:
            probed.append(step)
            spending.probe_took(cost)
            seconds += cost
        spending.step_took(seconds)
    assert spending.share is not None
    assert spending.share <= 0.0201
    if cost == 7.0:  # and used up to what is aimed at, where probes would not be closer than is of use
        assert spending.share == pytest.approx(AIMED_AT * 0.02, rel=0.05)
        assert min(np.diff(probed[-20:])) > 0.9 * cost / 0.02
    if cost == 0.0001:
        assert max(np.diff(probed)) <= SPARSEST
        assert {*range(1, 101)} <= set(probed)


@pytest.mark.parametrize(("recording", "share"), [(0.005, 0.017), (0.013, 0.0215), (0.1, 0.1085)])
def test_what_recording_costs_is_of_the_same_budget(recording: float, share: float) -> None:
    """Where it alone takes most of it, probes still get half: without them the causes of most trouble cannot be told."""
    spending, due, probes = Spending(0.02), 0, 0
    for step in range(1, 20_001):
        now = surely_probed(step) or step == due
        if now:
            spending.probes(step)
        due = spending.next_after(step)
        if now:
            spending.probe_took(7.0)
            probes += 1
        spending.recording_took(recording)
        spending.step_took(1.0 + 7.0 * now)
    assert spending.share == pytest.approx(share, rel=0.02)
    assert probes == pytest.approx((share - recording) * 20_000 / 7, rel=0.05)


def test_no_budget_and_no_limit() -> None:
    assert Spending(0.0).next_after(7) == 0
    assert Spending(1.0).next_after(7) == 8


def test_cost_goes_on_in_another_process() -> None:
    spending = Spending(0.02)
    spending.step_took(10.0)
    spending.probe_took(1.0)
    spending.recording_took(1.5)
    other = Spending(0.02)
    other.restore(json.loads(json.dumps(spending.document())))
    assert other.share == spending.share == pytest.approx(2.5 / 9)


# --- what -------------------------------------------------------------------------------------------------------------


def test_samples_stand_for_all() -> None:
    whole = torch.arange(64 * 1000).view(1000, 64)
    few = sample(whole, 5000)
    assert 2500 < few.numel() <= 5000
    assert len(set((few[:, 0] % 64).tolist())) == 64 // BLOCK  # every block of columns
    assert sample(whole, 64_000) is whole
    turned = whole.T
    assert sample(turned, 100) is turned


def probed(model: nn.Module, loss: Tensor, optimizer: torch.optim.Optimizer, correction: float = 1.0) -> Probes:
    prober = Prober(model, optimizer, CPU, Spending(1.0))
    prober.begin(1)
    loss.backward()
    prober.before_update(torch.tensor(correction, dtype=torch.float64))
    optimizer.step()
    row = prober.after_update()
    assert row is not None
    return probes_of(prober.names, unpack(prober.names, [pack(prober.names, 1, 0.01, row.numpy())]))


def test_large_tensors_are_sampled() -> None:
    torch.manual_seed(0)
    model = nn.Linear(1024, 1000, bias=False)
    assert model.weight.numel() > 4 * UPDATE_SAMPLE
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    before = model.weight.detach().clone()
    found = probed(model, model(torch.randn(8, 1024)).square().sum(), optimizer)
    update = (model.weight.detach() - before).norm() / before.norm()
    state = optimizer.state[model.weight]
    np.testing.assert_allclose(found.update_ratios[0, 0], update, rtol=0.01)
    np.testing.assert_allclose(found.weight_norms[0, 0], before.norm(), rtol=1e-5)
    np.testing.assert_allclose(found.first_moments[0, 0], state["exp_avg"].norm(), rtol=0.02)
    np.testing.assert_allclose(found.second_moments[0, 0], state["exp_avg_sq"].norm(), rtol=0.05)


def test_sparse_gradients() -> None:
    """Rows that it does not name are zero; a row named twice counts once. Norm and clipping know them too."""
    model = nn.Embedding(10, 4, sparse=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ids = torch.tensor([1, 1, 3])
    whole = nn.Embedding(10, 4, _weight=model.weight.detach().clone())
    whole(ids).square().sum().backward()
    assert whole.weight.grad is not None
    before = model.weight.detach().clone()
    found = probed(model, model(ids).square().sum(), optimizer)
    assert found.zero_shares[0, 0] == pytest.approx(0.8)
    assert np.isnan(found.zero_rows[0, 0])
    assert found.largest[0, 0] == pytest.approx(whole.weight.grad.abs().max().item())
    np.testing.assert_allclose(found.update_ratios[0, 0], (0.1 * whole.weight.grad).norm() / before.norm(), rtol=1e-5)
    monitor = GradientMonitor(model, CPU)
    assert monitor.measure()[0].item() == pytest.approx(whole.weight.grad.norm().item())
    monitor.scale(torch.tensor(0.5, dtype=torch.float64))
    assert monitor.measure()[0].item() == pytest.approx(whole.weight.grad.norm().item() / 2)


def test_what_is_not_finite_is_counted() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    found = probed(model, model(torch.tensor([[1.0, torch.inf, 1.0]])).sum(), torch.optim.SGD(model.parameters(), 0.1))
    grads = [[p.grad for p in layer.parameters()] for layer in model]
    expected = [sum(int((~g.isfinite()).sum()) for g in layer if g is not None) for layer in grads]
    assert found.nonfinite[0].tolist() == expected
    assert sum(expected) > 0
    assert found.largest[0].max() == np.inf


def test_tied_to_an_embedding_rows_are_no_units() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.tokens = nn.Linear(3, 5, bias=False), nn.Embedding(5, 3)
            self.tokens.weight = self.head.weight

    model = Tied()
    found = probed(model, model.head(torch.ones(1, 3))[:, 0].sum(), torch.optim.SGD(model.parameters(), 0.1), 2.0)
    assert found.layers == ("head",)
    assert np.isnan(found.zero_rows).all()
    assert found.zero_shares[0, 0] == pytest.approx(0.8)
    assert found.largest[0, 0] == 2.0  # as corrected


@pytest.mark.parametrize("name", sorted(name for name in RULES if hasattr(nn, name)))
def test_flat_is_where_the_slope_is_nearly_0(name: str) -> None:
    """Against autograd. Of rectifiers only the upper end counts: below they are silent."""
    rule = RULES[name]
    if rule.flat is None:
        return
    x = torch.linspace(-12, 12, 4001, dtype=torch.float64).requires_grad_()
    y = getattr(nn, name)()(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    expected = slope.abs() < 0.01 * slope.abs().max()
    if rule.floor is not None:
        expected &= y > 0
    off = (rule.flat(y.detach()) != expected).double().mean()
    assert off < 0.01, name
    assert expected.any()


def active(model: nn.Module, *batches: Tensor, counts: bool = True) -> tuple[list[float], list[float]]:
    watch = Activations(model, CPU, Stopwatch(events=False))
    watch.begin()
    for batch in batches:
        watch.begin_pass(counts)
        model(batch).sum().backward()
    watch.end()
    silent, flat = watch.shares(1, None).tolist()
    return silent, flat


def test_a_unit_is_silent_when_no_pass_of_the_step_wakes_it() -> None:
    layer = nn.Linear(2, 4, bias=False)
    model = nn.Sequential(layer, nn.ReLU())
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]))
    right, up = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 2.0]])
    assert active(model, right)[0] == [0.75]
    assert active(model, right, up)[0] == [0.5]
    assert np.isnan(active(model, right)[1]).all()
    assert np.isnan(active(model, right, counts=False)[1]).all()


def test_smooth_rectifiers_are_silent_where_they_are_shut() -> None:
    layer = nn.Linear(2, 4)
    with torch.no_grad():
        layer.bias[:3] = -30.0
        layer.bias[3] = 1.0
    model = nn.Sequential(layer, nn.GELU())
    assert active(model, torch.randn(50, 2))[0] == [0.75]


def test_what_a_checkpoint_computes_again_counts_once() -> None:
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
            self.calls: list[int] = []

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = checkpoint(self.inner, x, use_reentrant=False)
            return y

    model = Checkpointed()
    watch = Activations(model, CPU, Stopwatch(events=False))
    watch.begin()
    watch.begin_pass(True)
    model(torch.randn(4, 2)).sum().backward()
    assert [len(calls) for calls in watch._loud] == [1]


def test_hooks_are_there_only_while_probing() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    prober = Prober(model, optimizer, CPU, Spending(0.02))
    hooks = []
    for step in (1, 4):
        prober.begin(step)
        hooks.append(len(_global_forward_hooks))
        model(torch.ones(1, 2)).sum().backward()
        prober.before_update(torch.ones((), dtype=torch.float64))
        hooks.append(len(_global_forward_hooks))
        assert (prober.after_update() is not None) == (step == 1)
    assert hooks == [1, 0, 0, 0]
    prober.begin(5)
    prober.abandon()
    assert not _global_forward_hooks
    prober.begin(10)
    del prober
    assert not _global_forward_hooks, "one that is gone is not called any more"


def test_modules_may_be_copied_and_pickled_while_probing() -> None:
    """Would catch a copy that goes on telling of its activations, and a hook that cannot be pickled."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    watch = Activations(model, CPU, Stopwatch(events=False))
    watch.begin()
    watch.begin_pass(True)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin(torch.ones(3, 2))
    assert watch._loud == [[]]
    model(torch.ones(3, 2))
    assert [len(calls) for calls in watch._loud] == [1]


# --- rows -------------------------------------------------------------------------------------------------------------


def row(step: int, value: float = 1.0) -> str:
    numbers = np.concatenate([np.full(16, value), [0.25, np.nan], np.full(2 * BINS, 1 / BINS)])
    return pack(NAMES, step, 0.01, numbers)


def test_rows_come_back_from_files(tmp_path: Path) -> None:
    """Of a step that was done twice the later one; not what a killed writer left half written."""
    first = ProbeWriter(tmp_path, 1)
    first.append(*(NAMES.layers, NAMES.activations), [row(1), row(2), row(3)])
    with next(tmp_path.glob("*.rows")).open("ab") as stream:
        stream.write(base64.b64decode(row(4))[:-5])
    ProbeWriter(tmp_path, 2).append(NAMES.layers, NAMES.activations, [row(3, 7.0), row(4, 8.0)])
    probes = read_probes(tmp_path)
    assert probes is not None
    assert probes.steps.tolist() == [1, 2, 3, 4]
    assert probes.weight_norms[:, 1].tolist() == [1, 1, 7, 8]
    assert (probes.layers, probes.activations, probes.cost_share) == (("a", "b"), ("act",), 0.01)
    assert probes.silent.tolist() == [[0.25]] * 4
    found = read_records(tmp_path)
    assert found is not None
    np.testing.assert_allclose(found[1]["histograms"].sum(-1) / 65535, 1, atol=1e-3)
    head = json.loads(min(tmp_path.glob("*.json")).read_bytes())
    assert head["histogram"] == {"lowest": LOWEST, "bins": BINS, "whole": 65535}
    assert read_probes(tmp_path / "nothing") is None
    assert (last_step(tmp_path), last_step(tmp_path / "nothing")) == (4, -1)


def test_some_rows_are_read_without_the_others(tmp_path: Path) -> None:
    """Would catch a column or a part that is taken for another, a page of a long run that reads all of it, and half a row."""
    many = ProbeWriter(tmp_path, 1)
    many.append(NAMES.layers, NAMES.activations, [row(step, float(step)) for step in range(1, 501)])
    with next(tmp_path.glob("*.rows")).open("ab") as stream:
        stream.write(base64.b64decode(row(501))[:-5])
    numbers = np.concatenate([np.arange(16), [0.5, 0.75], np.eye(2, BINS, 3).ravel()])
    ProbeWriter(tmp_path, 2).append(NAMES.layers, NAMES.activations, [row(500, 7.0), pack(NAMES, 600, None, numbers)])
    reader = ProbeReader(tmp_path)
    assert (reader.names, len(reader)) == (NAMES, 502)
    kept = reader.table(reader.between(499, None))
    assert kept.steps.tolist() == [499, 500, 600]
    assert kept.layers[:, 0, 1].tolist() == [499, 7, 1]
    assert kept.layers[2].tolist() == np.arange(16.0).reshape(8, 2).tolist()
    assert kept.activations[2].ravel().tolist() == [0.5, 0.75]
    assert kept.cost_shares[:2].tolist() == [0.01, 0.01]
    assert np.isnan(kept.cost_shares[2])
    for layer, highest in enumerate((3, 4)):
        steps, shares = reader.histograms(reader.between(600, 600), layer)
        assert (steps.tolist(), shares[0].argmax(), shares[0].sum()) == ([600], highest, 1)
    before = psutil.Process().io_counters().read_chars
    few = reader.table(evenly(reader.between(None, None), 10))
    assert psutil.Process().io_counters().read_chars - before < 10 * 100 + 4000
    assert (len(few.steps), few.steps[0], few.steps[-1]) == (10, 1, 600)
    nothing = ProbeReader(tmp_path / "nothing")
    assert nothing.table(nothing.between(1, 2)).steps.tolist() == []


def test_kept_rows_are_few_and_passed_on() -> None:
    log = ProbeLog(NAMES)
    for step in range(1, 5 * KEPT_ROWS):
        log.add(row(step))
    probes = log.probes()
    assert len(probes.steps) <= KEPT_ROWS
    assert probes.steps[:16].tolist() == list(range(1, 17))
    assert probes.steps[-1] == 5 * KEPT_ROWS - 1
    other = ProbeLog(NAMES)
    other.restore(json.loads(json.dumps(log.document())))
    assert other.probes().steps[-1] == probes.steps[-1]
    assert other.probes().silent.tolist()[0] == [0.25]
    assert np.all(np.diff(other.probes().steps) > 0)
    stranger = ProbeLog(Names(("c",), ()))
    stranger.restore(log.document())
    assert len(stranger.probes().steps) == 0


def test_series_leave_out_what_was_not_measured() -> None:
    found = summary(NAMES, row(3, 2.0))
    assert found["probe/silent_max"] == 0.25
    assert found["probe/weight_norm"] == pytest.approx(8**0.5)
    assert "probe/saturated_max" not in found
