"""Optimizers by name and the learning rate as a function of the step."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, get_args

import pytest
import torch
from torch import nn

from workers.optim import CLASSES, build_optimizer, learning_rate, set_learning_rate
from workers.spec import Optimizer, OptimizerName, Schedule

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")


def test_every_optimizer_of_the_spec_is_built() -> None:
    assert set(CLASSES) == set(get_args(OptimizerName))


@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_settings_reach_torch_and_steps_equal_torchs_plain_ones(name: str) -> None:
    """Catches a setting that is dropped on the way and a fused kernel that computes something else."""
    extra: dict[str, Any] = {"momentum": 0.8} if name in ("sgd", "rmsprop") else {}
    if name in ("adam", "adamw", "nadam", "radam", "adamax"):
        extra["betas"] = [0.8, 0.95]
    spec = Optimizer.model_validate({"name": name, "learning_rate": 0.02, "weight_decay": 0.1, **extra})
    torch.manual_seed(0)
    ours, theirs = nn.Linear(5, 3), nn.Linear(5, 3)
    theirs.load_state_dict(ours.state_dict())
    plain: dict[str, Any] = {key: tuple(value) if key == "betas" else value for key, value in extra.items()}
    weight: dict[str, Any] = {"params": [theirs.weight]}
    bias: dict[str, Any] = {"params": [theirs.bias], "weight_decay": 0.0}
    pairs = [
        (ours, build_optimizer(spec, ours.parameters(), CPU)),
        (theirs, CLASSES[name]([weight, bias], lr=0.02, weight_decay=0.1, **plain)),  # type: ignore[call-arg]
    ]
    x = torch.randn(8, 5)
    for model, optimizer in pairs:
        for _ in range(5):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-5, atol=1e-6)


def test_frozen_parameters_are_left_out() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    optimizer = build_optimizer(Optimizer.model_validate({}), model.parameters(), CPU)
    assert [tuple(p.shape) for p in optimizer.param_groups[0]["params"]] == [(2, 2)]


def test_biases_and_gains_do_not_decay() -> None:
    model = nn.Sequential(nn.Conv1d(2, 3, 1), nn.LayerNorm(3))
    optimizer = build_optimizer(Optimizer(name="sgd", learning_rate=1.0, weight_decay=0.25), model.parameters(), CPU)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    sum(parameter.sum() * 0 for parameter in model.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    factors = [0.75 if parameter.ndim > 1 else 1.0 for parameter in before]
    for parameter, was, factor in zip(model.parameters(), before, factors, strict=True):
        torch.testing.assert_close(parameter.detach(), was * factor)


def rates(steps: int, peak: float = 2.0, **schedule: Any) -> list[float]:
    return [learning_rate(step, steps, Schedule(**schedule), peak) for step in range(steps)]


def test_constant() -> None:
    assert rates(4, name="constant") == [2.0] * 4
    assert rates(4, name="constant", warmup_steps=2) == [1.0, 2.0, 2.0, 2.0]


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_warm_up_climbs_to_the_peak_and_the_last_step_has_the_final_rate(name: str) -> None:
    """Catches a schedule that is off by one at either end."""
    found = rates(21, name=name, warmup_steps=5, final_factor=0.1)
    assert found[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert found[5] == pytest.approx(2.0)
    assert found[-1] == pytest.approx(0.2)
    assert all(before >= after for before, after in pairwise(found[4:]))


@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize("final_factor", [0.0, 0.3])
def test_cosine_equals_torchs(warmup: int, final_factor: float) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=16, eta_min=2.0 * final_factor)
    theirs = []
    for _ in range(17):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    found = rates(17 + warmup, name="cosine", warmup_steps=warmup, final_factor=final_factor)
    assert found[warmup:] == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("name", ["constant", "cosine", "linear"])
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 5), (3, 3), (3, 2), (2, 100)])
def test_short_runs_have_a_finite_rate(name: str, steps: int, warmup: int) -> None:
    found = rates(steps, name=name, warmup_steps=warmup)
    assert all(0 <= rate <= 2.0 for rate in found)
    assert found[0] > 0


def test_the_rate_is_set_in_every_group() -> None:
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([a], lr=1.0)
    optimizer.add_param_group({"params": [b], "lr": 5.0})
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
