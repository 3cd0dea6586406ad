"""Norms and clipping against torch's own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from workers.gradients import GradientDigest, GradientMonitor, Layers, clip_factor

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")


class Net(nn.Module):
    """Weight and bias in one layer, a parameter of the model itself, a frozen one, one that gets no gradient, batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.5]))
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
        self.frozen = nn.Linear(3, 3)
        self.frozen.requires_grad_(False)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.frozen(self.body(x)) * self.scale
        return y


@pytest.fixture
def net() -> Net:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = Net()
    net(torch.randn(16, 6)).square().sum().backward()
    return net


def test_layers_are_the_owning_modules_in_network_order() -> None:
    assert Layers.of(Net()).names == ("scale", "body.0", "body.1", "body.3", "unused")


def test_each_layers_norm_is_that_of_its_parameters_together(net: Net) -> None:
    """Catches a bias counted as a layer, squares added to the neighbour, and norms added without squaring."""
    found = GradientMonitor(net, CPU).measure()
    assert found.dtype == torch.float64
    owners: list[nn.Module | nn.Parameter] = [net.scale, net.body[0], net.body[1], net.body[3]]
    expected = []
    for owner in owners:
        parameters = [owner] if isinstance(owner, nn.Parameter) else list(owner.parameters())
        gradients = [parameter.grad.double().flatten() for parameter in parameters if parameter.grad is not None]
        expected.append(torch.cat(gradients).norm())
    torch.testing.assert_close(found[:4], torch.stack(expected), rtol=1e-6, atol=0)
    assert found[4] == 0.0  # nothing reached it


@pytest.mark.parametrize("limit", [0.5, 1e6])
def test_clipping_equals_torchs(net: Net, limit: float) -> None:
    theirs = copy.deepcopy(net)
    for ours, copied in zip(net.parameters(), theirs.parameters(), strict=True):
        copied.grad = None if ours.grad is None else ours.grad.clone()
    total = torch.nn.utils.clip_grad_norm_(theirs.parameters(), limit)

    monitor = GradientMonitor(net, CPU)
    norm = monitor.measure().square().sum().sqrt()
    monitor.scale(clip_factor(norm, limit))

    torch.testing.assert_close(norm.float(), total, rtol=1e-6, atol=0)
    for ours, copied in zip(net.parameters(), theirs.parameters(), strict=True):
        if copied.grad is not None:
            torch.testing.assert_close(ours.grad, copied.grad, rtol=1e-6, atol=0)
    after = monitor.measure().square().sum().sqrt()
    assert after <= limit * (1 + 1e-6)


def test_no_limit_and_zero_gradients_leave_everything_as_it_is(net: Net) -> None:
    assert clip_factor(torch.tensor(5.0, dtype=torch.float64), None) == 1.0
    assert clip_factor(torch.tensor(0.0, dtype=torch.float64), 1.0) == 1.0
    before = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    GradientMonitor(net, CPU).scale(torch.tensor(1.0, dtype=torch.float64))
    assert all(
        torch.equal(a, b) for a, b in zip(before, (p.grad for p in net.parameters() if p.grad is not None), strict=True)
    )


def test_a_gradient_that_is_no_number_shows_in_its_layer_only(net: Net) -> None:
    gradient = net.body[3].bias.grad
    assert isinstance(gradient, Tensor)
    gradient[0] = float("nan")
    found = GradientMonitor(net, CPU).measure()
    assert found.isfinite().tolist() == [True, True, True, False, True]


def test_without_any_gradient_all_norms_are_zero() -> None:
    assert GradientMonitor(Net(), CPU).measure().tolist() == [0.0] * 5


def test_norms_do_not_overflow_when_squared() -> None:
    """The squares of fp32 norms above 1.8e19 are infinite in fp32."""
    model = nn.Linear(1, 1, bias=False)
    model.weight.grad = torch.full((1, 1), 1e30)
    assert GradientMonitor(model, CPU).measure().item() == pytest.approx(1e30)


def test_the_digest_tells_different_gradients_apart() -> None:
    def digest(*rows: list[float]) -> str:
        found = GradientDigest()
        for row in rows:
            found.add(torch.tensor(row, dtype=torch.float64))
        return found.hexdigest()

    assert digest([1.0, 2.0], [3.0, 4.0]) == digest([1.0, 2.0], [3.0, 4.0])
    assert digest([1.0, 2.0], [3.0, 4.0]) != digest([1.0, 2.0], [3.0, 4.0 + 1e-15])
    assert digest([1.0], [2.0]) != digest([2.0], [1.0])
