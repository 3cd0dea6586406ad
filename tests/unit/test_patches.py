"""Patch lists: what is applied is the same everywhere, keeps what it should keep, and is refused whole where it does not fit."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from workers.repair.patches import ARGUMENTS, KINDS, Patch, PatchError, apply, from_json, renamed, to_json
from workers.repair.surgery import Residual, Standardised

pytestmark = pytest.mark.unit


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3), nn.Softmax(-1), nn.Dropout(0.9)
    )


EVERY_KIND = [
    Patch("drop_output", "5"),
    Patch("dropout", "6", {"p": 0.1}),
    Patch("activate", "1", {"to": "relu"}),
    Patch("activate", "3", {"to": "leaky_relu", "slope": 0.02}),
    Patch("reinitialise", "0", {"method": "he"}),
    Patch("reinitialise", "2", {"method": "orthogonal", "gain": 1.5}),
    Patch("normalise", "0", {"norm": "batch"}),
    Patch("residual", "2", {"others": ["3"], "damping": 0.1}),
    Patch("scale_input", "0", {"mean": [1.0], "std": [2.0], "fold": False}),
]


def same(first: nn.Module, second: nn.Module) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


# --- the same model everywhere ----------------------------------------------------------------------------------------


def test_equal_seeds_give_equal_models_whatever_was_drawn_before() -> None:
    first = apply(network(), EVERY_KIND, seed=7)
    model = network()
    torch.rand(13)  # another rank may have drawn other numbers
    expected = torch.get_rng_state()
    second = apply(model, EVERY_KIND, seed=7)
    assert same(first, second)
    assert torch.equal(torch.get_rng_state(), expected), "the random numbers of the process have moved"
    assert not same(first, apply(network(), EVERY_KIND, seed=8))


def test_each_layer_draws_numbers_of_its_own() -> None:
    """Twins, drawn from one seed, would learn the same."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    apply(model, [Patch("reinitialise", name, {"method": "he"}) for name in "01"], seed=0)
    first, second = (layer.weight for layer in model if isinstance(layer, nn.Linear))
    assert not torch.equal(first, second)


def test_a_list_that_has_travelled_as_json_gives_the_same_model() -> None:
    travelled = from_json(json.loads(json.dumps(to_json(EVERY_KIND))))
    assert travelled == EVERY_KIND
    assert same(apply(network(), travelled, seed=1), apply(network(), EVERY_KIND, seed=1))


@pytest.mark.parametrize(
    ("method", "variance"), [("he", 2 / 400), ("lecun", 1 / 400), ("xavier", 2 / (400 + 600)), ("orthogonal", 1 / 600)]
)
def test_weights_have_the_variance_of_their_paper(method: str, variance: float) -> None:
    layer = nn.Linear(400, 600)
    apply(layer, [Patch("reinitialise", "", {"method": method})], seed=0)
    assert float(layer.weight.detach().var()) == pytest.approx(variance, rel=0.02)
    assert not layer.bias.any()


def test_a_convolution_counts_its_field_and_its_groups() -> None:
    layer = nn.Conv2d(32, 256, 3, groups=4)
    apply(layer, [Patch("reinitialise", "", {"method": "he"})], seed=0)
    assert float(layer.weight.detach().var()) == pytest.approx(2 / (8 * 9), rel=0.05)


def test_recurrent_layers_begin_by_keeping_their_state() -> None:
    def drawn(module: nn.Module, method: str) -> dict[str, Tensor]:
        apply(module, [Patch("reinitialise", "", {"method": method})], seed=0)
        return {name: parameter.detach() for name, parameter in module.named_parameters()}

    rnn = drawn(nn.RNN(3, 5, num_layers=2), "identity")
    assert torch.equal(rnn["weight_hh_l0"], torch.eye(5))
    assert torch.equal(rnn["weight_hh_l1"], torch.eye(5))
    lstm = drawn(nn.LSTM(3, 5, bidirectional=True), "orthogonal")
    for block in [*lstm["weight_hh_l0"].chunk(4), *lstm["weight_hh_l0_reverse"].chunk(4)]:
        torch.testing.assert_close(block @ block.T, torch.eye(5))
    biases = lstm["bias_ih_l0"] + lstm["bias_hh_l0"]
    assert biases.tolist() == [0.0] * 5 + [1.0] * 5 + [0.0] * 10, "the forget gate is the second one"
    gru = drawn(nn.GRUCell(3, 5), "orthogonal")
    assert (gru["bias_ih"] + gru["bias_hh"]).tolist() == [0.0] * 5 + [1.0] * 5 + [0.0] * 5


def test_an_embedding_is_drawn_anew_but_for_its_padding() -> None:
    layer = nn.Embedding(400, 50, padding_idx=3)
    apply(layer, [Patch("reinitialise", "", {"method": "normal", "gain": 0.02})], seed=0)
    assert not layer.weight[3].any()
    assert float(layer.weight[4:].detach().std()) == pytest.approx(0.02, rel=0.05)


# --- what stays the same ----------------------------------------------------------------------------------------------

LAYERS = [
    (nn.Linear(5, 4), (7, 5), -1),
    (nn.Conv2d(6, 4, 3, groups=2), (7, 6, 9, 9), 1),
    (nn.Conv1d(5, 4, 3, padding=1, padding_mode="circular"), (7, 5, 9), 1),
]


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize(("layer", "shape", "axis"), LAYERS, ids=lambda value: type(value).__name__)
def test_raw_inputs_give_what_standardised_ones_gave(
    layer: nn.Module, shape: tuple[int, ...], axis: int, fold: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    features = shape[axis]
    mean, std = torch.randn(features, generator=generator) * 3, torch.rand(features, generator=generator) * 5 + 0.5
    along = (1, features) + (1,) * (len(shape) - 2)
    raw = torch.randn(shape, generator=generator) * std.view(along) + mean.view(along)
    expected = layer((raw - mean.view(along)) / std.view(along))
    patch = Patch("scale_input", "", {"mean": mean.tolist(), "std": std.tolist(), "fold": fold, "axis": axis})
    patched = apply(copy.deepcopy(layer), [patch], seed=0)
    torch.testing.assert_close(patched(raw), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(layer(raw), expected, atol=0.1), "the layer would have passed unpatched"
    assert list(patched.state_dict()) == (["weight", "bias"] if fold else ["inner.weight", "inner.bias"])


def test_a_transposed_convolution_folds_where_the_mean_is_zero() -> None:
    layer, raw = nn.ConvTranspose2d(4, 6, 3, groups=2), torch.randn(2, 4, 5, 5)
    std = torch.tensor([1.0, 10.0, 100.0, 0.1]).view(1, 4, 1, 1)
    expected = layer(raw / std)
    apply(layer, [Patch("scale_input", "", {"mean": [0.0] * 4, "std": std.flatten().tolist()})], seed=0)
    torch.testing.assert_close(layer(raw), expected, atol=1e-5, rtol=1e-5)


def test_a_residual_branch_is_added_and_later_numbers_stay() -> None:
    model, x = network().eval(), torch.randn(4, 6)
    hidden = model[1](model[0](x))
    expected = model[5](model[4](hidden + 0.1 * model[3](model[2](hidden))))
    patched = apply(model, [Patch("residual", "2", {"others": ["3"]})], seed=0)
    assert isinstance(patched.get_submodule("2"), Residual)
    torch.testing.assert_close(patched(x), expected)
    assert [name for name, _ in patched.named_children()] == list("0123456")


def test_new_modules_are_where_and_as_the_old_ones_are() -> None:
    model = network().double().eval()
    apply(model, [Patch("normalise", "0", {"norm": "batch"}), Patch("residual", "2", {"others": ["3"]})], seed=0)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    assert not any(module.training for module in model.modules())


# --- names ------------------------------------------------------------------------------------------------------------


def test_weights_of_the_unpatched_model_load_under_their_new_names() -> None:
    plain = network()
    before = plain.state_dict()
    patched = apply(network(), EVERY_KIND, seed=3)
    names = renamed(EVERY_KIND, before)
    assert names["0.weight"] == "0.inner.0.weight"
    assert names["2.bias"] == "2.branch.0.bias"
    assert names["4.weight"] == "4.weight"
    found = patched.load_state_dict({names[name]: value for name, value in before.items()}, strict=False)
    assert not found.unexpected_keys
    assert {name.rpartition(".")[0] for name in found.missing_keys} == {"0.inner.1"}, "only the norm is new"
    for name, value in before.items():
        assert torch.equal(patched.state_dict()[names[name]], value)


def test_a_norm_in_a_branch_and_a_new_root_have_names_too() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    patches = [
        Patch("residual", "0", {"others": ["1", "2"]}),
        Patch("scale_input", "", {"mean": [0.0], "std": [1.0], "fold": False}),
    ]
    names = renamed(patches, list(model.state_dict()))
    patched = apply(model, patches, seed=0)
    assert isinstance(patched, Standardised)
    assert list(names.values()) == list(patched.state_dict())
    assert names["1.running_mean"] == "inner.0.branch.1.running_mean"


def test_names_that_only_begin_alike_are_not_renamed() -> None:
    assert renamed([Patch("normalise", "fc1", {"norm": "layer"})], ["fc1.weight", "fc10.weight", "a.fc1.weight"]) == {
        "fc1.weight": "fc1.0.weight",
        "fc10.weight": "fc10.weight",
        "a.fc1.weight": "a.fc1.weight",
    }


# --- refused ----------------------------------------------------------------------------------------------------------


class Parts(nn.Module):
    """One module of each kind that must be left alone."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2)
        self.block = nn.TransformerEncoderLayer(4, 2, 8)
        self.tied, self.embedding = nn.Linear(4, 9, bias=False), nn.Embedding(9, 4)
        self.tied.weight = self.embedding.weight
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.computed = parametrizations.weight_norm(nn.Linear(4, 4))
        self.twice = nn.Linear(4, 4)
        self.again = self.twice
        self.lazy = nn.LazyLinear(4)
        self.lora_A = nn.Linear(4, 2)
        self.row = nn.Sequential(
            nn.Linear(4, 5), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Linear(4, 4), nn.Softmax(-1)
        )
        self.image = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm1d(4)
        self.lstm = nn.LSTM(4, 4)
        self.relu = nn.ReLU()


HE = {"method": "he"}
BATCH = {"norm": "batch"}
SCALE: dict[str, Any] = {"mean": [1.0], "std": [2.0]}
REFUSED = [
    (Patch("reinitialise", "nowhere", HE), "no such module"),
    (Patch("reinitialise", "attention.out_proj", HE), "MultiheadAttention around it reads its parameters"),
    (Patch("normalise", "block.linear1", BATCH), "TransformerEncoderLayer around it"),
    (Patch("reinitialise", "tied", HE), "shares a parameter with embedding"),
    (Patch("reinitialise", "embedding", {"method": "normal"}), "shares a parameter with tied"),
    (Patch("normalise", "frozen", BATCH), "not trained"),
    (Patch("scale_input", "frozen", SCALE), "not trained"),
    (Patch("reinitialise", "computed", HE), "parametrization"),
    (Patch("normalise", "twice", BATCH), "several places: twice, again"),
    (Patch("reinitialise", "lazy", HE), "first forward pass"),
    (Patch("reinitialise", "lora_A", HE), "adapter"),
    (Patch("normalise", "norm", BATCH), "BatchNorm1d is no Linear or Conv"),
    (Patch("normalise", "image", {"norm": "layer"}), "no channel"),
    (Patch("normalise", "image", {"norm": "group", "groups": 3}), "cannot be divided into 3 groups"),
    (Patch("normalise", "image", {"norm": "batch", "scale": [1.0]}), "scale has 1 values for 4 outputs"),
    (Patch("reinitialise", "lstm", HE), "'he' is no way to draw the weights of a LSTM"),
    (Patch("reinitialise", "lstm", {"method": "identity"}), "'identity' is no way"),
    (Patch("activate", "relu", {"to": "relu"}), "ReLU is no activation that saturates"),
    (Patch("drop_output", "norm"), "BatchNorm1d is no activation"),
    (Patch("residual", "row.0", {"others": ["1"]}), "shape of its input"),
    (Patch("residual", "row.2", {"others": ["3"]}), "shape of its input"),
    (Patch("residual", "row.4", {"others": ["5"]}), "Softmax at the end"),
    (Patch("residual", "row.0", {"others": ["3"]}), "3 does not follow it"),
    (Patch("residual", "image", {"others": ["norm"]}), "nn.Sequential"),
    (Patch("scale_input", "image", SCALE), "pads with zeros"),
    (Patch("scale_input", "row.0", {"mean": [1.0, 2.0], "std": [1.0, 2.0]}), "2 means do not fit 4 inputs"),
    (Patch("scale_input", "row.0", {"mean": [1.0], "std": [1.0, 2.0]}), "1 means and 2 deviations"),
    (Patch("scale_input", "embedding", {**SCALE, "fold": False}), "shares a parameter"),
]  # fmt: skip


@pytest.mark.parametrize(("patch", "reason"), REFUSED, ids=lambda value: getattr(value, "where", ""))
def test_what_does_not_fit_is_refused_and_leaves_the_model_as_it_was(patch: Patch, reason: str) -> None:
    torch.manual_seed(0)
    model = Parts()
    modules, values = dict(model.named_modules(remove_duplicate=False)), _values(model)
    fitting = [
        Patch("normalise", "row.0", BATCH),
        Patch("reinitialise", "image", HE),
        Patch("activate", "row.1", {"to": "leaky_relu"}),
    ]
    with pytest.raises(PatchError, match=reason) as caught:
        apply(model, [*fitting, patch] if patch.where != "row.0" else [*fitting[1:], patch], seed=0)
    assert caught.value.patch == patch
    assert f"cannot {patch.kind} {patch.where}" in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert dict(model.named_modules(remove_duplicate=False)) == modules
    assert all(torch.equal(value, values[name]) for name, value in _values(model).items())


def test_a_branch_is_refused_when_a_part_of_it_is_used_elsewhere() -> None:
    inner = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    model = nn.ModuleDict({"stack": nn.Sequential(inner, nn.ReLU()), "other": nn.ModuleList([inner[0]])})
    with pytest.raises(PatchError, match="a part of it is used in other too"):
        apply(model, [Patch("residual", "stack.0", {"others": ["1"]})], seed=0)


def _values(model: nn.Module) -> dict[str, Tensor]:
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        name: value.detach().clone()
        for name, value in named.items()
        if not isinstance(value, nn.UninitializedParameter)
    }


def test_ids_are_refused_by_the_module_in_front() -> None:
    model = apply(nn.Linear(1, 1), [Patch("scale_input", "", {**SCALE, "fold": False})], seed=0)
    with pytest.raises(TypeError, match=r"torch\.int64 are ids"):
        model(torch.zeros(3, 1, dtype=torch.long))


# --- documents --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, r"patches is \{\}; allowed is a list"),
        ([7], r"patches\[0\] is 7; allowed is an object"),
        ([{"kind": "widen", "where": "a"}], r"patches\[0\]\.kind is 'widen'; allowed is one of reinitialise, "),
        ([{"kind": "drop_output", "where": None}], r"patches\[0\]\.where is None; allowed is the dotted path"),
        ([{"kind": "drop_output", "where": "a", "at": 1}], r"patches\[0\]\.at is 1; allowed are kind, where"),
        ([{"kind": "drop_output", "where": "a", "arguments": 3}], r"patches\[0\]\.arguments is 3"),
        ([{"kind": "drop_output", "where": "a", "arguments": {"b": 3}}], r"arguments\.b is 3; drop_output allows no"),
        ([{"kind": "normalise", "where": "a"}], r"patches\[0\]\.arguments\.norm is missing; allowed is one of batch"),
        ([{"kind": "normalise", "where": "a", "arguments": {"norm": "x"}}], r"norm is 'x'; allowed is one of batch, "),
        ([{"kind": "reinitialise", "where": "a", "arguments": {"method": "he", "gain": 0}}], r"gain is 0; allowed is a"),
        (
            [{"kind": "drop_output", "where": "a"}, {"kind": "scale_input", "where": "a", "arguments": {"mean": [0], "std": [0.0]}}],
            r"patches\[1\]\.arguments\.std is \[0\.0\]; allowed is a list of numbers above 0",
        ),
        (
            [{"kind": "scale_input", "where": "a", "arguments": {"mean": [float("nan")], "std": [1]}}],
            r"arguments\.mean is \[nan\]; allowed is a list of numbers",
        ),
        ([{"kind": "residual", "where": "a", "arguments": {"others": ["a.b"]}}], r"others is \['a\.b'\]"),
        ([{"kind": "residual", "where": "a", "arguments": {"others": ["1", "2", "3"]}}], r"others is .*one or two"),
    ],
)  # fmt: skip
def test_bad_documents_are_told_by_field_value_and_what_is_allowed(document: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(document)


def test_every_kind_has_its_arguments() -> None:
    assert set(ARGUMENTS) == set(KINDS) == {patch.kind for patch in EVERY_KIND}
