"""What is changed around the steps of a script's optimizers: exactly that, and nothing is left of it behind the step."""

from __future__ import annotations

import copy
import json
import math
import random
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.optim import optimizer as optimizers

from tests.distributed.toys import Memory, context_in
from workers.acting import Acting
from workers.membership import Alone
from workers.repair.acts import Act, Entry
from workers.repair.repairs import Repairs
from workers.repair.requests import Request, ask
from workers.scripts.control import ScriptControl
from workers.scripts.repairing import ScriptRepairing, ScriptRepairs, Steering
from workers.scripts.site.chainrule_repairing import Ranks, Repairing
from workers.spec import Health, parse_spec

pytestmark = pytest.mark.unit

OWN = {
    "SGD": {"lr": 0.1, "momentum": 0.9}, "Adam": {"lr": 0.1}, "AdamW": {"lr": 0.1, "fused": True}, "NAdam": {"lr": 0.1}, "RAdam": {"lr": 0.1},
    "Adamax": {"lr": 0.1}, "Adagrad": {"lr": 0.1}, "Adadelta": {"lr": 0.1}, "RMSprop": {"lr": 0.1}, "ASGD": {"lr": 0.1}, "Rprop": {"lr": 0.1},
    "Adafactor": {"lr": 0.1},
}  # fmt: skip


class Here:
    """Repairs in this process, whose hooks stand as the observer puts them."""

    def __init__(self, folder: Path) -> None:
        self.path, self.told, self.version = folder / "acts", [], 0  # type: Path, list[dict[str, Any]], int
        self.repairing = Repairing(str(self.path), self.told.append)
        guarded = self.repairing.guarded
        before, mend, after = (
            guarded(self.repairing.before),
            guarded(self.repairing.gradients),
            guarded(self.repairing.after),
        )
        optimizers.register_optimizer_step_pre_hook(lambda each, *_: before(each, 0))
        optimizers.register_optimizer_step_pre_hook(lambda *given: mend(*given, lambda _: None))
        optimizers.register_optimizer_step_post_hook(lambda each, *_: after(each))

    def hold(self, **what: Any) -> None:
        self.version += 1
        known = {"times": 1.0, "at_least": 0.0, "clip": None, "rewarm": 0, "rewarmed": 0}
        self.path.write_text(json.dumps({"version": self.version, **known, **what}))

    def limits(self) -> dict[str, str]:
        return next((each["limits"] for each in reversed(self.told) if each["type"] == "limits"), {})


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Here]:
    monkeypatch.setattr(optimizers, "_global_optimizer_pre_hooks", OrderedDict())
    monkeypatch.setattr(optimizers, "_global_optimizer_post_hooks", OrderedDict())
    found = Here(tmp_path)
    yield found
    assert not found.repairing.off, found.told


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def backward(model: nn.Module, *, bad: bool = False) -> torch.Tensor:
    torch.manual_seed(1)
    model.zero_grad()
    loss: torch.Tensor = model(torch.randn(16, 4)).square().mean()
    (loss * math.nan if bad else loss).backward()
    return loss


def values(model: nn.Module) -> list[torch.Tensor]:
    return [each.detach().clone() for each in model.parameters()]


def state(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [
        value.clone() for each in optimizer.state.values() for value in each.values() if isinstance(value, torch.Tensor)
    ]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(*pair) for pair in zip(one, other, strict=True))


@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("kind", OWN)
def test_an_update_that_is_no_number_is_left_out(here: Here, kind: str, closure: bool) -> None:
    """Weights, moments and counters stay; the script finds its gradient as it was, and goes on."""
    model = network()
    optimizer = getattr(torch.optim, kind)(model.parameters(), **OWN[kind])

    def step(bad: bool) -> None:
        if closure:
            optimizer.step(lambda: backward(model, bad=bad))
        else:
            backward(model, bad=bad)
            optimizer.step()

    step(False)
    weights, moments = values(model), state(optimizer)
    step(True)
    assert same(values(model), weights)
    assert same(state(optimizer), moments)
    assert all(each.grad is not None and each.grad.isnan().any() for each in model.parameters())
    assert [each["count"] for each in here.told if each["type"] == "skipped"] == [1]
    step(False)
    assert not same(values(model), weights)
    assert all(each.isfinite().all() for each in values(model))


@pytest.mark.parametrize("kind", ["SGD", "AdamW", "RMSprop"])
def test_a_rate_is_that_of_an_optimizer_which_has_it(here: Here, kind: str) -> None:
    """Bit by bit, and the script's schedule sees its own values."""
    one = network()
    other = copy.deepcopy(one)
    optimizer = getattr(torch.optim, kind)(one.parameters(), **OWN[kind])
    reference = getattr(torch.optim, kind)(other.parameters(), **OWN[kind] | {"lr": 0.025})
    schedules = [torch.optim.lr_scheduler.ExponentialLR(each, 0.5) for each in (optimizer, reference)]
    here.hold(times=0.25)
    for _ in range(4):
        for model, each in ((one, optimizer), (other, reference)):
            backward(model)
            here.repairing.off = each is reference
            each.step()
            here.repairing.off = False
        for schedule in schedules:
            schedule.step()
    assert same(values(one), values(other))
    assert optimizer.param_groups[0]["lr"] == 0.1 * 0.5**4
    assert [(each["version"], each["step"]) for each in here.told if each["type"] == "held"] == [(1, 0)]


def test_a_rate_climbs_to_what_it_is_to_be(here: Here) -> None:
    model, seen = network(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.register_step_pre_hook(lambda each, *_: seen.append(each.param_groups[0]["lr"]))
    here.hold(times=0.5, rewarm=4)
    for _ in range(6):
        backward(model)
        optimizer.step()
    assert seen == pytest.approx([0.0125, 0.025, 0.0375, 0.05, 0.05, 0.05])


def test_groups_that_differ_go_on_to_do_so(here: Here) -> None:
    model, seen = network(), []
    first, last = model[0].parameters(), model[2].parameters()  # type: ignore[index]
    optimizer = torch.optim.SGD([{"params": first, "lr": 1e-4}, {"params": last, "lr": torch.tensor(1e-3)}])
    optimizer.register_step_pre_hook(lambda each, *_: seen.append([float(group["lr"]) for group in each.param_groups]))
    here.hold(at_least=0.1)
    backward(model)
    optimizer.step()
    assert seen == [pytest.approx([0.01, 0.1])]
    assert float(optimizer.param_groups[1]["lr"]) == pytest.approx(1e-3)


def test_a_norm_is_clipped_over_all_parameters(here: Here) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    backward(model)
    before, norm = (
        values(model),
        nn.utils.get_total_norm([each.grad for each in model.parameters() if each.grad is not None]),
    )
    here.hold(clip=float(norm) / 4)
    optimizer.step()
    moved = torch.stack([(old - new).norm() for old, new in zip(before, values(model), strict=True)]).norm()
    assert float(moved) == pytest.approx(float(norm) / 4, rel=1e-5)


def test_what_a_broken_step_has_left_is_put_back(here: Here) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    here.hold(times=0.5)

    def broken() -> torch.Tensor:
        raise InterruptedError

    for _ in range(2):
        with pytest.raises(InterruptedError):
            optimizer.step(broken)
    backward(model)
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_a_line_search_is_left_alone(here: Here) -> None:
    model = network()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    seen: list[float] = []
    optimizer.register_step_pre_hook(lambda each, *_: seen.append(each.param_groups[0]["lr"]))
    here.hold(times=0.5, clip=1e-6)
    optimizer.step(lambda: backward(model))
    assert seen == [0.1]
    assert set(here.limits()) == {"rate", "clip", "skip"}


class Stranger(torch.optim.Optimizer):
    """Nobody knows what it does without a gradient: it does not check."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        if closure is not None:
            with torch.enable_grad():
                closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(parameter.grad, alpha=group["lr"])


@pytest.mark.parametrize("closure", [False, True])
def test_of_strangers_the_rate_alone_is_changed(here: Here, closure: bool) -> None:
    model = network()
    optimizer = Stranger(model.parameters())
    here.hold(times=0.5)
    backward(model)
    before, gradients = values(model), [each.grad.clone() for each in model.parameters() if each.grad is not None]
    optimizer.step((lambda: backward(model)) if closure else None)
    expected = [weight.sub(gradient, alpha=0.05) for weight, gradient in zip(before, gradients, strict=True)]
    assert same(values(model), expected)
    backward(model, bad=True)
    optimizer.step()
    assert any(each.isnan().any() for each in values(model)), "what the script would have done"
    assert "skip" in here.limits()


def test_of_several_optimizers_no_gradient_is_clipped(here: Here) -> None:
    model = network()
    parts = [torch.optim.SGD(model[index].parameters(), lr=0.1) for index in (0, 2)]  # type: ignore[index]
    here.hold(clip=1e-9)
    backward(model)
    for each in parts:
        each.step()  # the first one does not know of the other yet
    before = values(model)
    backward(model)
    for each in parts:
        each.step()
    assert "several optimizers" in here.limits()["clip"]
    assert max(float((old - new).abs().max()) for old, new in zip(before, values(model), strict=True)) > 1e-6


def test_what_fails_is_told_and_the_script_goes_on(here: Here) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    here.path.write_text("{")
    backward(model)
    optimizer.step()
    assert here.told[-1]["of"] == "repairs"
    assert here.repairing.off
    assert optimizer.param_groups[0]["lr"] == 0.1
    here.repairing.off = False


def test_all_ranks_take_it_up_in_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """And leave nothing out before they know that their gradients are alike."""
    store = dist.HashStore()
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    held: dict[int, list[tuple[int, bool | None, float]]] = {0: [], 1: [], 2: []}
    lockstep = threading.Barrier(3)

    def rank(number: int) -> None:
        ranks = Ranks(number, 3)
        ranks._store = store
        for step in range(1, 33):
            lockstep.wait(20)  # an all-reduce
            ranks.at(step)
            holds = {"times": 0.1 if step >= 5 else 1.0}  # what rank 0 hears of its worker
            if ranks.due:
                told = (holds if ranks.heard_all() else {"times": 1.0}) if ranks.first else ranks.hear()
                if ranks.first:
                    ranks.say(told)  # type: ignore[arg-type]
                held[number].append((step, ranks.together, told["times"]))  # type: ignore[index]
            ranks.reply(1.5 if step < 20 or number == 0 else 2.5)

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    assert held[0] == held[1] == held[2]
    assert held[0] == [
        (1, None, 1.0),
        (2, True, 1.0),
        (4, True, 1.0),
        (8, True, 0.1),
        (16, True, 0.1),
        (24, True, 0.1),
        (32, False, 0.1),
    ]


def test_a_rank_that_is_not_there_keeps_all_from_changing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    ranks = Ranks(0, 2)
    ranks._store = dist.HashStore()
    for step in (1, 2, 4, 8):
        ranks.at(step)
        assert not ranks.heard_all()
        ranks.say({})
    assert ranks.lost


# --- the record -------------------------------------------------------------------------------------------------------


def test_what_the_script_is_told_is_what_holds() -> None:
    """Against the rule of every other kind of job, for acts of all sorts one upon the other."""
    chance = random.Random(0)
    health = Health(mode="repair")
    for _ in range(300):
        repairs, rule = ScriptRepairs(health), Repairs(health, 100, 0.3)
        repairs.knows(50, 100, 0.3)
        for number in range(1, chance.randint(1, 5)):
            act = Act(
                number, 10 * number, "lr_zero", "live", "",
                rate=chance.choice([1.0, 0.1, 3e-4, 5.0]), rate_at_least=chance.choice([0.0, 0.01, 1.0]),
                learning_rate=chance.choice([None, None, 0.7]), rewarm=chance.choice([0, 30]), clip=chance.choice([None, 1.0]),
            )  # fmt: skip
            entry = Entry(act, chance.choice(["kept", "trial", "taken_back"]), {})
            repairs.entries.append(entry)
            rule.entries.append(entry)
        for own in (0.0, 0.01, 0.3):
            assert repairs.steering(50).rate(own) == pytest.approx(rule.rate(50, own), rel=1e-12)
        assert repairs.steering(50).clip == rule.clip(None)


def test_a_script_that_is_well_has_nothing_to_do() -> None:
    repairs = ScriptRepairs(Health(mode="repair"))
    repairs.knows(7, None, None)
    assert repairs.steering(7) == Steering()


def test_what_cannot_be_done_is_said_to_whoever_asks() -> None:
    repairs = ScriptRepairs(Health(mode="repair"))
    repairs.knows(7, None, 0.1)
    repairs.limits = {"clip": "several optimizers"}
    asked = Request("1", "steer", "key", clip_norm=1.0)
    assert repairs.asked(asked, 7) == "several optimizers"
    asked = Request("1", "steer", "key", learning_rate=0.01)
    act = repairs.asked(asked, 7)
    assert isinstance(act, Act)
    repairs.done(act, {}, {})
    assert repairs.steering(7).times == pytest.approx(0.1)


def running(folder: Path, acts: Path, **of_task: Any) -> tuple[ScriptRepairing, Memory]:
    task = {"kind": "script", "code": {"path": "/code"}, "entry": "train.py", **of_task}
    spec = parse_spec({"name": "mine", "task": task, "workers": {"count": 1}, "health": {"mode": "repair"}})
    memory = Memory()
    return ScriptRepairing(spec, context_in(folder, memory, Alone(0, 1)), acts), memory


def test_one_that_goes_on_by_itself_keeps_what_it_was_given(tmp_path: Path) -> None:
    """One that begins anew begins without."""
    repairs = ScriptRepairs(Health(mode="repair"))
    repairs.done(Act(1, 40, "lr_too_high", "live", "", rate=0.25, clip=2.0, rewarm=5), {}, {})
    kept = repairs.document() | {"step": 90, "learning_rate": 0.1}
    (tmp_path / "script_repairs.json").write_text(json.dumps(kept))
    running(tmp_path, tmp_path / "resumed", resumable=True)
    found = json.loads((tmp_path / "resumed").read_text())
    assert (found["version"], found["times"], found["clip"], found["rewarm"]) == (1, 0.25, 2.0, 0)
    running(tmp_path, tmp_path / "anew")
    assert not (tmp_path / "anew").exists()


def requests_waiting(repairing: ScriptRepairing) -> bool:
    return repairing._pending is not None


def test_nothing_waits_for_ranks_that_cannot_take_it_up(tmp_path: Path) -> None:
    repairing, memory = running(tmp_path, tmp_path / "acts")
    recorder: Any = SimpleNamespace(steps=9, largest_rate=0.1, latest={}, facts=None)
    requests = tmp_path / "requests"
    repairing._context = replace(repairing._context, requests=requests)
    ask(requests, "steer", "key", learning_rate=0.01)
    repairing.hear_people(recorder, 100)
    assert requests_waiting(repairing)
    repairing.take_limits(dict.fromkeys(("rate", "clip", "skip"), "its ranks have not met"))
    assert not requests_waiting(repairing)
    repairing._asked_at = 0.0
    repairing.hear_people(recorder, 100)
    assert [type for _, type, _ in memory.events] == ["repair.limited", "repair.refused"]
    assert "its ranks have not met" in memory.messages[-1]


def test_nobody_stops_for_what_can_still_be_repaired() -> None:
    finding = {"code": "lr_too_high", "severity": "critical", "layer": None, "rank": None, "explanation": "It leaps."}
    spec = parse_spec(
        {"name": "mine", "task": {"kind": "script", "code": {"path": "/code"}, "entry": "train.py"}}
        | {"health": {"mode": "repair", "on_critical": "stop"}}
    )
    ledger = SimpleNamespace(
        progress=None, health={"findings": [finding]}, events=[], data_findings=(), preflight_findings=()
    )
    control = ScriptControl(None, spec, None, ledger, None, Acting("stop"))  # type: ignore[arg-type]
    assert control.critical() is None
    ledger.events.append(SimpleNamespace(type="repair.none", data={"code": "lr_too_high"}))
    outcome = control.critical()
    assert outcome is not None
    assert "lr_too_high" in outcome.message
