"""What is proposed for a model fits it, repairs it, and leaves alone what must not be touched."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from workers.repair.patches import Kind, Patch, apply
from workers.repair.proposals import Options, propose, verify
from workers.repair.surgery import Residual

pytestmark = pytest.mark.unit

WIDTH, CLASSES = 16, 4


def clouds(samples: int = 512) -> tuple[Tensor, Tensor]:
    """Four clouds of points, which one linear layer tells apart."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, WIDTH, generator=generator) * 2
    y = torch.arange(samples) % CLASSES
    return centres[y] + torch.randn(samples, WIDTH, generator=generator), y


def accuracy(
    model: nn.Module, x: Tensor, y: Tensor, steps: int = 120, kind: Any = torch.optim.Adam, lr: float = 1e-2
) -> float:
    torch.manual_seed(1)
    optimizer = kind(model.parameters(), lr=lr)
    for step in range(steps):
        rows = torch.arange(step * 64, (step + 1) * 64) % len(x)
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def sigmoid_stack(depth: int = 12, activation: type[nn.Module] = nn.Sigmoid) -> nn.Sequential:
    torch.manual_seed(0)
    hidden = [part for _ in range(depth) for part in (nn.Linear(WIDTH, WIDTH), activation())]
    return nn.Sequential(*hidden, nn.Linear(WIDTH, CLASSES))


class FunctionalStack(nn.Module):
    """The same, with its activations where no list of modules shows them."""

    def __init__(self, depth: int = 12) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(depth))
        self.output = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.sigmoid(layer(x))
        y: Tensor = self.output(x)
        return y


def repaired(model: nn.Module, kinds: Sequence[Kind], x: Tensor, options: Options | None = None) -> nn.Module:
    for kind in kinds:
        patches = propose(model, kind, x, options)
        assert patches
        verify(model, patches, x)
        model = apply(model, patches, seed=0)
    return model


# --- they repair ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [sigmoid_stack, FunctionalStack])
def test_a_deep_sigmoid_network_does_not_learn_unpatched(build: Any) -> None:
    assert accuracy(build(), *clouds()) <= 0.5


@pytest.mark.parametrize("build", [sigmoid_stack, FunctionalStack])
def test_with_norms_it_learns(build: Any) -> None:
    x, y = clouds()
    assert accuracy(repaired(build(), ["normalise"], x[:64]), x, y) > 0.95


@pytest.mark.parametrize("rescale", [False, True])
def test_with_other_activations_and_weights_it_learns(rescale: bool) -> None:
    x, y = clouds()
    patches = propose(sigmoid_stack(), "activate", x[:64], Options(rescale=rescale))
    assert [patch.kind for patch in patches] == ["activate"] * 12 + ["reinitialise"] * 13
    assert [patch.arguments["method"] for patch in patches[12:]] == ["he"] * 12 + ["lecun"]
    assert accuracy(apply(sigmoid_stack(), patches, seed=0), x, y) > 0.95


def test_with_residual_branches_it_learns() -> None:
    x, y = clouds()
    model = repaired(sigmoid_stack(), ["residual"], x[:64])
    assert [type(model.get_submodule(str(index))) for index in range(4)] == [Residual, nn.Identity] * 2
    assert accuracy(model, x, y) > 0.95


def test_only_a_module_in_front_repairs_the_steps_on_raw_inputs() -> None:
    """Gradients of folded weights have the raw inputs in them; a fold that were proposed by default would be no repair."""
    x, y = clouds()
    x = x * 1000 + 3000

    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, CLASSES))

    def learnt(model: nn.Module) -> float:
        return accuracy(model, x, y, kind=torch.optim.SGD, lr=0.1)

    assert learnt(network()) < 0.5
    assert learnt(repaired(network(), ["scale_input"], x)) > 0.95
    assert learnt(repaired(network(), ["scale_input"], x, Options(fold=True))) < 0.5


@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.Tanh])
def test_rescaled_layers_give_unit_variance_one_behind_the_other(activation: type[nn.Module]) -> None:
    x, _ = clouds()
    model = repaired(sigmoid_stack(activation=activation), ["reinitialise"], x, Options(rescale=True))
    for index, layer in enumerate(model.children()):
        x = layer(x)
        if isinstance(layer, nn.Linear) and index < 24:
            assert float(x.detach().std(correction=0)) == pytest.approx(1, rel=1e-3)


# --- which layers, and how --------------------------------------------------------------------------------------------


class Mixed(nn.Module):
    """(B, T, 4) -> (B, 3)"""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rnn, self.second, self.output = (
            nn.Linear(4, 8),
            nn.RNN(8, 8, batch_first=True),
            nn.Linear(8, 8),
            nn.Linear(8, 3),
        )
        self.act, self.gate = nn.Tanh(), nn.Sequential(nn.Linear(8, 8), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.first(x))
        x = self.rnn(x)[0][:, -1]
        x = self.act(self.second(x))
        return torch.softmax(self.output(F.dropout(x, 0.1) * self.gate(x)), -1)


def test_initialisation_follows_the_activation_in_use() -> None:
    patches = propose(Mixed(), "reinitialise", (torch.randn(16, 5, 4),))
    assert {patch.where: patch.arguments["method"] for patch in patches} == {
        "first": "he",  # its activation is a function
        "rnn": "identity",
        "second": "xavier",
        "gate.0": "xavier",
        "output": "lecun",
    }
    assert patches[-1] == Patch("reinitialise", "output", {"method": "lecun", "gain": 0.1})
    assert [
        patch.where for patch in propose(Mixed(), "reinitialise", torch.randn(16, 5, 4), Options(layers=["second"]))
    ] == ["second"]


@pytest.mark.parametrize(("rows", "norm"), [(8, "batch"), (7, "layer")])
def test_norms_are_for_the_inputs_that_layers_get(rows: int, norm: str) -> None:
    patches = propose(Mixed(), "normalise", {"x": torch.randn(rows, 5, 4)})
    assert {patch.where: patch.arguments["norm"] for patch in patches} == {
        "first": "layer",
        "second": norm,
        "gate.0": norm,
    }
    verify(Mixed(), patches, torch.randn(rows, 5, 4))
    told = propose(Mixed(), "normalise", torch.randn(8, 5, 4), Options(rows=2))
    assert {patch.arguments["norm"] for patch in told} == {"layer"}


def test_a_gate_and_the_output_keep_their_activation() -> None:
    patches = [patch for patch in propose(Mixed(), "activate", torch.randn(8, 5, 4)) if patch.kind == "activate"]
    assert [patch.where for patch in patches] == ["act"]
    bounded = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    assert not propose(bounded, "activate", torch.randn(8, 4))
    assert not propose(bounded, "activate", lambda model: model(torch.randn(8, 4)).square().mean()), (
        "behind it is a loss"
    )
    assert not propose(nn.Sequential(*bounded, nn.Softplus()), "activate", torch.randn(8, 4)), "behind it is no layer"


def test_the_gentle_variant_hardly_changes_the_function() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU()), torch.randn(8, 4)
    patches = propose(model, "activate", x, Options(gentle=True))
    assert patches == [Patch("activate", "1", {"to": "leaky_relu", "slope": 0.01})]
    before = model(x)
    torch.testing.assert_close(apply(model, patches, seed=0)(x), before, atol=0.05, rtol=0)


def convolutions() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, padding="same"), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5), nn.LogSoftmax(-1),
    )  # fmt: skip


def test_a_layer_with_a_norm_gets_no_second_one() -> None:
    x = torch.randn(8, 3, 9, 9)
    assert propose(convolutions(), "normalise", x) == [Patch("normalise", "3", {"norm": "batch"})]
    assert propose(convolutions(), "normalise", x[:4]) == [Patch("normalise", "3", {"norm": "group", "groups": 4})]
    assert not propose(repaired(convolutions(), ["normalise"], x), "normalise", x)


@pytest.mark.parametrize("training", [True, False])
def test_a_norm_can_leave_the_function_as_it_is(training: bool) -> None:
    x = torch.randn(32, 3, 9, 9, generator=torch.Generator().manual_seed(0)) * 5 + 2
    model = convolutions()
    expected = copy.deepcopy(model)(x)  # in training, as the norm of the model itself was when the others were measured
    patched = apply(model, propose(model, "normalise", x, Options(keep_function=True)), seed=0)
    patched.get_submodule("3").train(training)
    torch.testing.assert_close(patched(x), expected, atol=1e-4, rtol=1e-4)
    changed = apply(convolutions(), propose(convolutions(), "normalise", x), seed=0)
    assert not torch.allclose(changed(x), expected, atol=1e-2)


class Through(nn.Module):
    def __init__(self, parts: nn.ModuleDict) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.parts["used"](x)
        return y


def test_the_output_activation_is_dropped_where_it_is_a_module() -> None:
    x = torch.randn(8, 3, 9, 9)
    assert propose(convolutions(), "drop_output", x) == [Patch("drop_output", "8")]
    assert propose(convolutions(), "drop_output", lambda model: model(x).square().mean()) == [Patch("drop_output", "8")]
    model = repaired(convolutions().eval(), ["drop_output"], x)
    torch.testing.assert_close(torch.log_softmax(model(x), -1), convolutions().eval()(x))
    assert not propose(Mixed(), "drop_output", torch.randn(8, 5, 4)), "a function cannot be dropped"
    shared = nn.ReLU()
    assert not propose(
        nn.Sequential(nn.Linear(4, 4), shared, nn.Linear(4, 4), shared), "drop_output", torch.randn(8, 4)
    )
    both = nn.ModuleDict({"other": nn.ModuleList([shared]), "used": nn.Sequential(nn.Linear(4, 4), shared)})
    assert not propose(Through(both), "drop_output", torch.randn(8, 4)), "it would be dropped where it is not called"


def test_what_drops_most_of_what_it_gets_drops_a_tenth() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.97), nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    found = propose(model, "dropout", torch.randn(16, 4))
    assert [(patch.where, patch.arguments) for patch in found] == [("1", {"p": 0.1})]
    patched = apply(model, found, seed=0)
    assert [module.p for module in patched.modules() if isinstance(module, nn.Dropout)] == [0.1, 0.5]


def test_branches_are_found_with_their_norms_and_never_at_the_output() -> None:
    x = torch.randn(8, 3, 9, 9)
    assert propose(convolutions(), "residual", x) == [Patch("residual", "3", {"others": ["4"], "damping": 0.1})]
    model = repaired(repaired(convolutions(), ["normalise"], x), ["residual"], x)
    assert model(x).shape == (8, 5)
    assert isinstance(model.get_submodule("3.branch.0"), nn.Sequential), "the layer with its norm is one branch"
    assert not propose(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), "residual", torch.randn(8, 4))
    assert not propose(FunctionalStack(), "residual", torch.randn(8, WIDTH))


def test_statistics_of_channels_serve_a_layer_that_gets_them_flattened() -> None:
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), torch.rand(6, 3, 2, 2) * 255
    mean, std = torch.tensor([100.0, 120.0, 140.0]), torch.tensor([50.0, 60.0, 70.0])
    expected = model((x - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    options = Options(mean=mean.tolist(), std=std.tolist(), fold=True)
    patches = propose(model, "scale_input", x, options)
    assert [(patch.where, patch.arguments["fold"]) for patch in patches] == [("1", True)]
    torch.testing.assert_close(apply(model, patches, seed=0)(x), expected, atol=1e-5, rtol=1e-5)


class TwoWays(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.deep, self.output = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.output(torch.tanh(self.deep(x)) + x)
        return y


def test_a_computed_weight_is_no_reason_against_a_module_before_the_model() -> None:
    model, x = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 2))), torch.randn(64, 4) * 9 + 5
    expected = model((x - x.mean(0)) / x.std(0, correction=0))
    torch.testing.assert_close(repaired(model, ["scale_input"], x)(x), expected, atol=1e-4, rtol=1e-4)


def test_inputs_that_go_two_ways_are_scaled_before_the_model() -> None:
    x = torch.randn(64, 4) * 9 + 5
    model = TwoWays()
    expected = model((x - x.mean(0)) / x.std(0, correction=0))
    for fold in (True, False):
        (patch,) = propose(model, "scale_input", x, Options(fold=fold))
        assert (patch.where, patch.arguments["fold"]) == ("", False)
    torch.testing.assert_close(apply(model, [patch], seed=0)(x), expected, atol=1e-4, rtol=1e-4)


class ChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.permute(0, 3, 1, 2))
        return y


def test_channels_are_found_where_the_layer_gets_them() -> None:
    (patch,) = propose(ChannelsLast(), "scale_input", torch.randn(8, 5, 5, 3))
    assert (patch.where, len(patch.arguments["mean"]), patch.arguments["axis"]) == ("layer", 3, 1)


def test_a_constant_feature_is_not_blown_up() -> None:
    x = torch.randn(64, 4)
    x[:, 2] = 7.0
    (patch,) = propose(nn.Sequential(nn.Linear(4, 2)), "scale_input", x)
    assert patch.arguments["mean"][2] == 7.0
    assert patch.arguments["std"][2] == 1.0


def test_ids_and_normalised_inputs_are_not_scaled() -> None:
    words = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2))
    assert not propose(words, "scale_input", torch.randint(0, 9, (8, 5)))
    assert not propose(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)), "scale_input", torch.randn(8, 4))


@pytest.mark.parametrize(("spread", "drawn"), [(1.0, False), (0.02, False), (1e-5, True), (float("nan"), True)])
def test_embeddings_stay_unless_they_are_far_off(spread: float, drawn: bool) -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model.get_parameter("0.weight").mul_(spread)
    found = propose(model, "reinitialise", torch.randint(0, 9, (8, 5)))
    assert [patch.where for patch in found] == [*(["0"] if drawn else []), "1", "3"]


def test_of_an_output_without_gradients_the_last_layer_is_the_output_layer() -> None:
    def choose(model: nn.Module) -> Tensor:
        return torch.as_tensor(model(clouds()[0][:16]).argmax(-1))

    wrapped = [patch.where for patch in propose(FunctionalStack(3), "normalise", choose)]
    assert wrapped == ["layers.0", "layers.1", "layers.2"]


# --- left alone -------------------------------------------------------------------------------------------------------


class Untouchable(nn.Module):
    """Only ``hidden`` may be wrapped."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.tied = nn.Embedding(9, 8), nn.Linear(8, 9, bias=False)
        self.tied.weight = self.embedding.weight
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.block = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
        self.computed, self.frozen = (
            parametrizations.weight_norm(nn.Linear(8, 8)),
            nn.Linear(8, 8).requires_grad_(False),
        )
        self.often, self.read, self.asked, self.hidden = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.embedding(x))
        x = self.attention(x, x, x)[0]
        x = self.frozen(self.computed(self.often(self.often(x)))).tanh()
        x = F.linear(self.read(x), self.read.weight.T).to(self.asked.weight.dtype)
        y: Tensor = self.tied(torch.relu(self.hidden(self.asked(x))))
        return y


def test_what_others_use_is_not_wrapped() -> None:
    x = torch.randint(0, 9, (8, 5))
    assert [patch.where for patch in propose(Untouchable(), "normalise", x)] == ["hidden"]
    drawn = [patch.where for patch in propose(Untouchable(), "reinitialise", x) if patch.arguments["method"] != "norm"]
    assert drawn == ["often", "read", "asked", "hidden"]


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.queries, self.values = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.queries(x) @ x.transpose(1, 2), -1).matmul(self.values(x))


def test_layers_inside_attention_get_no_norms() -> None:
    model, x = nn.Sequential(SelfAttention(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(8, 5, 4)
    assert [patch.where for patch in propose(model, "normalise", x)] == ["1"]
    assert [patch.where for patch in propose(model, "reinitialise", x)] == ["0.queries", "0.values", "1", "3"]


class Meddling(nn.Module):
    """Its forward pass reads the weight of one layer of the stack and calls another one apart from it."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = nn.Sequential(*(part for _ in range(3) for part in (nn.Linear(4, 4), nn.ReLU())), nn.Linear(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.stack(self.stack[2](x))
        decay: Tensor = self.stack.get_parameter("0.weight").square().sum()
        return y + decay


def test_a_layer_that_is_used_elsewhere_too_gets_no_branch() -> None:
    assert [patch.where for patch in propose(Meddling(), "residual", torch.randn(8, 4))] == ["stack.4"]


def test_nothing_of_the_model_moves_while_it_is_looked_at() -> None:
    model, x = nn.Sequential(nn.Dropout(0.1), *convolutions()), torch.randn(8, 3, 9, 9)
    model(x).sum().backward()
    before, gradients = copy.deepcopy(model.state_dict()), [parameter.grad for parameter in model.parameters()]
    generator = torch.get_rng_state()
    for kind in ("reinitialise", "normalise", "activate", "residual", "scale_input", "drop_output"):
        verify(model, propose(model, kind, x), x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is kept for parameter, kept in zip(model.parameters(), gradients, strict=True))
    assert torch.equal(torch.get_rng_state(), generator)


def test_who_watches_the_model_sees_nothing_of_the_copies() -> None:
    """Hooks of this package belong to objects that must be neither copied nor told; others may be what makes the model work."""
    model, x, seen = convolutions(), torch.randn(8, 3, 9, 9), []

    def watch(*_: object) -> None:
        seen.append("watch")

    def work(*_: object) -> None:
        seen.append("work")

    watch.__module__ = "workers.watch.activations"
    model[0].register_forward_hook(functools.partial(watch))
    model[0].register_forward_pre_hook(work)
    propose(model, "normalise", x)
    assert seen == ["work"]
    model(x)
    assert seen == ["work", "work", "watch"]


def test_unknown_kinds_and_layers_are_named() -> None:
    with pytest.raises(ValueError, match="kind is 'widen'; allowed is one of reinitialise"):
        propose(nn.Linear(2, 2), "widen", torch.randn(2, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="layers has 'fc9'"):
        propose(nn.Linear(2, 2), "normalise", torch.randn(2, 2), Options(layers=["fc9"]))
