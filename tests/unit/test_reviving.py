"""Dead units live again, what lives is not touched, and an optimizer forgets what it should."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from workers.repair.patches import Patch, PatchError, apply
from workers.repair.units import reset_moments, revive

pytestmark = pytest.mark.unit

DEAD = [1, 4]


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 5, generator=generator)
    return x, torch.sin(x.sum(1, keepdim=True))


def network() -> nn.Sequential:
    """Two of its six units give 0 for every input."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 1))
    with torch.no_grad():
        model.get_parameter("0.bias")[DEAD] = -100.0
    return model


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    x, y = data()
    for _ in range(count):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()


def silent(model: nn.Sequential) -> list[int]:
    x, _ = data()
    given = model[1](model[0](x))
    return [unit for unit in range(given.shape[1]) if not given[:, unit].any()]


def moments(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in optimizer.state[parameter].items() if value.shape == parameter.shape}


def test_dead_units_live_and_live_ones_keep_weights_and_moments_bit_for_bit() -> None:
    model, x = network(), data()[0]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    steps(model, optimizer, 5)
    weight, bias, following = (model.get_parameter(name) for name in ("0.weight", "0.bias", "2.weight"))
    optimizer.state[weight]["exp_avg"][DEAD] = 3.0  # of the time when they lived
    before = {name: (value.detach().clone(), moments(optimizer, value)) for name, value in model.named_parameters()}
    output = model(x)
    assert silent(model) == DEAD

    assert revive(model, optimizer, {"0": DEAD}, seed=0) == 2

    assert silent(model) == []
    torch.testing.assert_close(model(x), output)  # the next layer does not listen to them yet
    assert not following[:, DEAD].any()
    assert not bias[DEAD].any()
    live = [unit for unit in range(6) if unit not in DEAD]
    for name, parameter in model.named_parameters():
        value, earlier = before[name]
        where = (slice(None), live) if name == "2.weight" else (live,) if name != "2.bias" else (slice(None),)
        assert torch.equal(parameter[where], value[where])
        for key, moment in moments(optimizer, parameter).items():
            assert torch.equal(moment[where], earlier[key][where])
            assert earlier[key][where].any(), "there was nothing to keep"
    for parameter, where in ((weight, (DEAD,)), (bias, (DEAD,)), (following, (slice(None), DEAD))):
        assert not any(moment[where].any() for moment in moments(optimizer, parameter).values())
    assert float(optimizer.state[weight]["step"]) == 5

    steps(model, optimizer, 3)
    assert silent(model) == []
    assert following[:, DEAD].all(), "the next layer learns to listen"


def test_equal_seeds_revive_alike_and_all_units_can_be_meant() -> None:
    first, second, other = network(), network(), network()
    torch.rand(5)
    for model, seed in ((first, 1), (second, 1), (other, 2)):
        assert revive(model, None, {"0": None}, seed=seed) == 6
    assert torch.equal(first.get_parameter("0.weight"), second.get_parameter("0.weight"))
    assert not torch.equal(first.get_parameter("0.weight"), other.get_parameter("0.weight"))


def test_new_weights_have_the_spread_that_keeps_the_variance() -> None:
    layer = nn.Conv2d(16, 400, 3)
    revive(layer, None, {"": list(range(300))}, seed=0)
    assert float(layer.weight[:300].detach().var()) == pytest.approx(2 / (16 * 9), rel=0.05)


BEHIND: list[tuple[nn.Sequential, str, list[int]]] = [
    (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 1)), "4.weight", [2]),
    (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5)), "4.weight", [8, 9, 10, 11]),
    (nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Dropout(0.1), nn.Linear(4, 2))), "1.2.weight", [2]),
    (apply(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), [Patch("normalise", "0", {"norm": "batch"})], seed=0),  # type: ignore[list-item]
     "2.weight", [2]),
]  # fmt: skip


@pytest.mark.parametrize(("model", "name", "columns"), BEHIND, ids=["convolutions", "flattened", "nested", "patched"])
def test_the_next_layer_is_found_where_it_is_certain(model: nn.Sequential, name: str, columns: list[int]) -> None:
    following = model.get_parameter(name)
    layer = next(name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d))
    others = [column for column in range(following.shape[1]) if column not in columns]
    before = following.detach().clone()
    revive(model, None, {layer: [2]}, seed=0)
    assert not following[:, columns].any()
    assert torch.equal(following[:, others], before[:, others])


class Apart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)


UNCERTAIN = [
    (Apart(), "first", "second.weight"),
    (nn.Sequential(nn.Linear(3, 4), nn.Softmax(-1), nn.Linear(4, 2)), "0", "2.weight"),
    (nn.Sequential(nn.Linear(3, 4), nn.MaxPool1d(2), nn.Linear(2, 2)), "0", "2.weight"),
    (nn.Sequential(nn.Linear(3, 4), nn.Flatten(), nn.Linear(20, 2)), "0", "2.weight"),  # (B, T, C): no blocks of a unit
    (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Linear(4, 2)), "0", "2.weight"),  # it works on the last dimension
    (nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2).requires_grad_(False)), "0", "2.weight"),
]


@pytest.mark.parametrize(
    ("model", "layer", "name"), UNCERTAIN, ids=lambda value: value if isinstance(value, str) else ""
)
def test_weights_behind_are_left_where_nothing_is_certain(model: nn.Module, layer: str, name: str) -> None:
    before, old = model.get_parameter(name).detach().clone(), model.get_parameter(f"{layer}.weight").detach().clone()
    revive(model, None, {layer: [0]}, seed=0)
    assert torch.equal(model.get_parameter(name), before)
    assert not torch.equal(model.get_parameter(f"{layer}.weight")[0], old[0])


def test_a_norm_behind_begins_again_for_the_units_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))
    norm = model.get_submodule("1")
    with torch.no_grad():
        for tensor in (*norm.parameters(), norm.get_buffer("running_mean"), norm.get_buffer("running_var")):
            tensor.fill_(-7.0)
    revive(model, None, {"0": [1]}, seed=0)
    found = {name: value.tolist() for name, value in norm.state_dict().items() if value.ndim}
    assert found == {
        name: [-7.0, start, -7.0, -7.0]
        for name, start in {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}.items()
    }


@pytest.mark.parametrize(
    ("layer", "units", "reason"),
    [
        ("1", [0], "cannot revive units of 1: a ReLU is no Linear or Conv"),
        ("7", [0], "cannot revive units of 7: the model has no such module"),
        ("0", [6], "cannot revive units of 0: it has no unit 6; units are 0 to 5"),
    ],
)
def test_what_cannot_be_revived_is_named_and_nothing_is_changed(layer: str, units: list[int], reason: str) -> None:
    model = network()
    before = model.get_parameter("2.weight").detach().clone()
    with pytest.raises(PatchError, match=reason):
        revive(model, None, {"2": [0], layer: units}, seed=0)
    assert torch.equal(model.get_parameter("2.weight"), before)


OPTIMIZERS: list[tuple[Any, dict[str, Any]]] = [
    (torch.optim.Adam, {"amsgrad": True}),
    (torch.optim.AdamW, {}),
    (torch.optim.NAdam, {}),
    (torch.optim.Adamax, {}),
    (torch.optim.Adagrad, {}),
    (torch.optim.RMSprop, {"momentum": 0.9, "centered": True}),
    (torch.optim.SGD, {"momentum": 0.9}),
]


@pytest.mark.parametrize(("kind", "settings"), OPTIMIZERS, ids=lambda value: getattr(value, "__name__", ""))
def test_after_a_reset_the_next_step_is_that_of_a_new_optimizer(kind: Any, settings: dict[str, Any]) -> None:
    model = network()
    optimizer = kind(model.parameters(), lr=0.01, **settings)
    steps(model, optimizer, 4)
    twin = network()
    twin.load_state_dict(model.state_dict())
    fresh = kind(twin.parameters(), lr=0.01, **settings)
    assert reset_moments(optimizer, model.parameters()) == 4
    steps(model, optimizer, 1)
    steps(twin, fresh, 1)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), twin.parameters(), strict=True))


def test_only_the_parameters_that_are_named_are_reset() -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    assert reset_moments(optimizer, model.parameters()) == 0  # there is nothing before the first step
    steps(model, optimizer, 2)
    first, second = model.get_parameter("0.weight"), model.get_parameter("2.weight")
    assert reset_moments(optimizer, [first]) == 1
    assert float(optimizer.state[first]["step"]) == 0
    assert float(optimizer.state[second]["step"]) == 2
    assert optimizer.state[second]["exp_avg"].any()
