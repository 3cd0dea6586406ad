"""Facts of the first pass: the loss as it was called, parameters, data; without a trace in what is computed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workers.batches import Plan
from workers.spec import parse_spec
from workers.watch.facts import FirstPass
from workers.watch.facts_json import from_json, to_json
from workers.watch.layer_facts import layer_facts
from workers.watch.record import Facts, LayerFacts

pytestmark = pytest.mark.unit


class Data:
    def __init__(self, labels: Tensor | None = None) -> None:
        if labels is not None:
            self.labels = labels

    def __len__(self) -> int:
        return 40

    def batch(self, indices: Any, *, seed: int) -> Any: ...


def facts_with(
    loss: Callable[[Tensor, Tensor], Tensor], target: Tensor, *, outputs: int = 3, data: Data | None = None, **batch: Tensor
) -> Facts:  # fmt: skip
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.1), nn.ReLU(), nn.Linear(8, outputs))
    inputs = batch.get("x", torch.randn(40, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = FirstPass(model, {"x": inputs, "y": target}, optimizer, see_calls=True)
    with seen.watch():
        value = loss(model(inputs), target)
    total = value.sum() if value.ndim else value * len(inputs)
    seen.took(total, torch.tensor(40), data or Data())
    spec = parse_spec(
        {
            "name": "x",
            "task": {"kind": "tabular", "data": {"source": "breast_cancer"}},
            "optimizer": {"name": "sgd", "learning_rate": 0.1},
            "schedule": {"name": "linear", "warmup_steps": 5},
        }
    )
    return seen.facts(spec, Plan(40, 10, 0, 101), world_size=1, begins_trained=False, first=0)


LABELS = torch.arange(40) % 3


@pytest.mark.parametrize(
    ("loss", "function", "operation"),
    [
        (lambda o, y: F.cross_entropy(o, y), "cross_entropy", "linear"),
        (lambda o, y: F.cross_entropy(o.softmax(1), y, reduction="none"), "cross_entropy", "softmax"),
        (lambda o, y: nn.CrossEntropyLoss()(nn.Softmax(1)(o).float().view(40, 3), y), "cross_entropy", "softmax"),
        (lambda o, y: F.nll_loss(F.log_softmax(o, 1), y), "nll_loss", "log_softmax"),
        (lambda o, y: F.binary_cross_entropy_with_logits(torch.sigmoid(o), F.one_hot(y, 3).float()),
         "binary_cross_entropy_with_logits", "sigmoid"),
        (lambda o, y: F.mse_loss(F.relu(o)[:, 0], y.float()), "mse_loss", "relu"),
    ],
)  # fmt: skip
def test_loss_and_what_came_before(loss: Any, function: str, operation: str) -> None:
    found = facts_with(loss, LABELS).loss
    assert (found.function, found.output_operation) == (function, operation)
    assert found.bound == 0.0


def test_constant_loss() -> None:
    even = facts_with(lambda o, y: F.cross_entropy(o, y), LABELS).loss
    shares = [14 / 40, 13 / 40, 13 / 40]
    assert even.constant == pytest.approx(-sum(share * math.log(share) for share in shares))
    split = facts_with(lambda o, y: F.cross_entropy(o, y), LABELS, data=Data(torch.tensor([0] * 90 + [1, 2] * 5))).loss
    assert split.class_counts == (90, 5, 5)
    assert split.constant == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.05))
    target = torch.randn(40, generator=torch.Generator().manual_seed(1))
    squared = facts_with(lambda o, y: F.mse_loss(o[:, 0], y), target, outputs=1).loss
    assert squared.constant == pytest.approx(float(target.var(correction=0)), rel=1e-5)


def test_one_of_several_parts_says_nothing_of_the_whole() -> None:
    found = facts_with(lambda o, y: F.cross_entropy(o, y) + o.square().mean(), LABELS).loss
    assert found.function == "cross_entropy"
    assert (found.constant, found.bound) == (None, None)


def test_data_and_schedule() -> None:
    inputs = torch.randn(40, 5)
    inputs[7, 2] = torch.nan
    inputs[:, 4] = 1000.0
    facts = facts_with(lambda o, y: F.cross_entropy(o, y), LABELS, x=inputs)
    assert facts.inputs is not None
    assert facts.inputs.nonfinite_rows == (7,)
    assert facts.inputs.largest_feature_mean == pytest.approx(1000.0)
    assert facts.inputs.least_feature_std == 0.0
    assert facts.schedule["0"] == pytest.approx(0.02)
    assert facts.learning_rate is not None
    assert facts.schedule["1"] < facts.schedule["0.1"] <= facts.learning_rate == 0.1
    assert from_json(json.loads(json.dumps(to_json(facts)))) == facts


def test_layers() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2), nn.Linear(2, 2))
    model[4].requires_grad_(False)
    for parameter in model[0].parameters():
        nn.init.constant_(parameter, 0.5)
    optimizer = torch.optim.SGD([*model[0].parameters(), *model[1].parameters()], lr=0.1)
    first, norm, third, frozen = layer_facts(model, optimizer)
    assert (first.name, first.kind, first.shape, first.fan_in, first.activation) == ("0", "Linear", (6, 4), 4, "Tanh")
    assert (first.twin_rows, first.std, first.mean) == (1.0, 0.0, 0.5)
    assert (third.twin_rows, third.in_optimizer, third.requires_grad) == (0.0, False, True)
    assert (frozen.requires_grad, frozen.in_optimizer) == (False, True)
    assert norm.twin_rows is None


def test_seeing_changes_nothing() -> None:
    def outcome(see: bool) -> tuple[float, Tensor, Tensor]:
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
        inputs = torch.randn(40, 5)
        with FirstPass(model, {"x": inputs}, torch.optim.SGD(model.parameters(), lr=0.1), see_calls=see).watch():
            loss = F.cross_entropy(model(inputs), LABELS)
        loss.backward()
        gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
        buffers = [buffer.flatten().float() for buffer in model.buffers()]
        return float(loss.detach()), torch.cat(gradients), torch.cat([*buffers, torch.rand(3)])

    (loss, gradient, rest), (plain, plain_gradient, plain_rest) = outcome(True), outcome(False)
    assert loss == plain
    assert torch.equal(gradient, plain_gradient)
    assert torch.equal(rest, plain_rest)


def test_numbers_that_json_has_not_are_unknown() -> None:
    facts = Facts(learning_rate=float("inf"), layers=(LayerFacts("a", "Linear", (2, 3), mean=float("nan")),))
    text = json.dumps(to_json(facts), allow_nan=False)
    read = from_json(json.loads(text))
    assert read.learning_rate is None
    assert read.layers == (LayerFacts("a", "Linear", (2, 3)),)


def test_h_is_of_all_targets_where_they_lie_in_memory() -> None:
    """A batch of 40 is an estimate: how many samples it is from is told."""
    torch.manual_seed(1)
    every = torch.randn(4000, 1) * 3
    some = every[:40]

    def squared(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs, targets, reduction="none")

    known = facts_with(squared, some, outputs=1, data=Data(every)).loss
    assert known.constant == pytest.approx(float(every.var()), rel=1e-3)
    assert known.constant_rows == 4000
    unknown = facts_with(squared, some, outputs=1).loss
    assert unknown.constant == pytest.approx(float(some.var(correction=0)), rel=1e-3)
    assert unknown.constant_rows == 40
    scaled = facts_with(squared, some / 3, outputs=1, data=Data(every)).loss
    assert scaled.constant_rows == 40, "what is in memory is not what the loss was given"


def test_classes_of_a_single_answer_are_counted_over_all_samples() -> None:
    every = (torch.arange(400) % 50 == 0).float()[:, None]

    def binary(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(outputs, targets, reduction="none")

    known = facts_with(binary, every[:40], outputs=1, data=Data(every)).loss
    assert known.class_counts == (392, 8)
    assert known.constant == pytest.approx(-0.02 * math.log(0.02) - 0.98 * math.log(0.98), rel=1e-4)
    weighted = facts_with(
        lambda o, y: F.binary_cross_entropy_with_logits(o, y, pos_weight=torch.tensor(9.0), reduction="none"),
        every[:40],
        outputs=1,
    ).loss
    assert (weighted.weighted, weighted.constant) == (True, None), "H is another for weighted answers"


def test_classes_of_the_data_are_counted_only_where_they_are_what_the_loss_was_given() -> None:
    """Forty views that are told from each other, of samples that have one of three classes."""
    known = facts_with(lambda o, y: F.cross_entropy(o, y), LABELS, data=Data(LABELS.repeat(10))).loss
    assert known.class_counts == (140, 130, 130)
    others = facts_with(lambda o, y: F.cross_entropy(o @ o.T, y), torch.arange(40), data=Data(LABELS.repeat(10))).loss
    assert others.class_counts == (1,) * 40
    assert others.constant == pytest.approx(math.log(40))


def test_parameters_that_the_model_does_not_have() -> None:
    """Right: parameters that hang on nothing, and inputs whose gradient somebody wants."""
    hidden = nn.Linear(3, 3)
    assert facts_with(lambda o, y: F.cross_entropy(hidden(o), y), LABELS).strays == 2
    assert facts_with(lambda o, y: F.cross_entropy(o, y), LABELS, x=torch.randn(40, 5, requires_grad=True)).strays == 0


def test_both_parts_of_complex_weights_count() -> None:
    class Spectrum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([[1 + 1j, 1 - 1j], [1 + 1j, 1 - 1j], [1 - 3j, 1 + 3j]]))

    model = Spectrum()
    (fact,) = layer_facts(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert fact.twin_rows == pytest.approx(2 / 3), "by their real parts all are equal"
    parts = torch.tensor([1.0, 1, 1, -1, 1, 1, 1, -1, 1, -3, 1, 3])
    assert fact.std == pytest.approx(float(parts.std(correction=0)))
