"""A loss read from its autograd graph is the one that was called."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workers.watch.loss_call import LossCall
from workers.watch.loss_graph import LossGraph
from workers.watch.record import LossFacts

pytestmark = pytest.mark.unit

ROWS, CLASSES = 32, 3
torch.manual_seed(0)
LABELS = torch.randint(0, CLASSES, (ROWS,))
SHARES = torch.rand(ROWS, CLASSES)
NUMBERS = torch.randn(ROWS, CLASSES)


def outputs() -> Tensor:
    result: Tensor = nn.Linear(4, CLASSES)(torch.randn(ROWS, 4))
    return result


def seen(*roots: Tensor, row_loss: float | None = None) -> LossFacts:
    graph = LossGraph()
    for root in roots:
        graph.see(root)
    return graph.facts(float(roots[0].detach()) if row_loss is None else row_loss)


@pytest.mark.parametrize(
    "loss",
    [
        lambda: F.cross_entropy(outputs(), LABELS),
        lambda: F.cross_entropy(outputs().softmax(1), LABELS),
        lambda: F.cross_entropy(outputs(), LABELS, weight=torch.tensor([1.0, 2.0, 3.0])),
        lambda: F.nll_loss(outputs().softmax(1), LABELS),
        lambda: F.binary_cross_entropy_with_logits(outputs().sigmoid(), SHARES),
        lambda: F.binary_cross_entropy(outputs().sigmoid(), SHARES),
        lambda: F.mse_loss(outputs().relu(), NUMBERS),
        lambda: F.mse_loss(outputs().tanh().view(-1), NUMBERS.view(-1)),
        lambda: F.smooth_l1_loss(outputs().tanh(), NUMBERS),
        lambda: F.huber_loss(outputs().tanh(), NUMBERS),
    ],
)
def test_it_is_what_a_mode_around_the_call_sees(loss: Callable[[], Tensor]) -> None:
    call = LossCall()
    with call:
        root = loss()
    assert call.found is not None
    found = seen(root)
    for name in ("function", "classes", "class_counts", "weighted", "target"):
        assert getattr(found, name) == getattr(call.found, name), name
    assert found.output is not None
    assert call.found.output is not None
    assert found.output.shape == call.found.output.shape
    told = call.found.output_operation
    assert found.output_operation == told or told == "linear", (found.output_operation, told)
    assert found.bound == 0.0


def test_shapes_are_those_before_they_were_spread() -> None:
    with pytest.warns(UserWarning, match="target size"):
        root = F.mse_loss(outputs()[:, :1], NUMBERS[:, 0])
    found = seen(root)
    assert found.output is not None
    assert found.target is not None
    assert (found.output.shape, found.target.shape) == ((ROWS, 1), (ROWS,))


@pytest.mark.parametrize("parts", [1, 4])
def test_the_best_constant_answer_is_in_the_measure_of_the_whole_step(parts: int) -> None:
    """Passes divided by their number add up to the mean; without the division they add up to more."""
    labels = torch.arange(ROWS) % 2
    divided = [F.cross_entropy(outputs(), labels) / parts for _ in range(parts)]
    together = seen(*divided, row_loss=float(torch.stack(divided).sum().detach()))
    assert together.class_counts == (ROWS // 2 * parts, ROWS // 2 * parts, 0)
    assert together.constant == pytest.approx(math.log(2), rel=1e-3)
    whole = [F.cross_entropy(outputs(), labels) for _ in range(parts)]
    added = seen(*whole, row_loss=float(torch.stack(whole).sum().detach()))
    assert added.constant == pytest.approx(parts * math.log(2), rel=1e-3)


class Sink(torch.autograd.Function):
    """As DDP puts one behind a model's outputs where some of its parameters may be without a gradient."""

    @staticmethod
    def forward(ctx: Any, other: object, *given: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return given

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, *grads


@pytest.mark.parametrize("first", [True, False])
def test_a_loss_that_comes_out_of_ddp_beside_other_outputs_is_found(first: bool) -> None:
    """Trainer's models give loss and logits."""
    given = outputs()
    loss = F.cross_entropy(given, LABELS)
    sink: Any = type("_DDPSink", (Sink,), {})
    root = sink.apply(None, loss, given)[0] if first else sink.apply(None, given, loss)[1]
    found = seen(root / 2)
    assert (found.function, found.classes) == ("cross_entropy", CLASSES)


def test_of_an_ignored_label_nothing_is_counted() -> None:
    labels = LABELS.clone()
    labels[:10] = -100
    assert sum(seen(F.cross_entropy(outputs(), labels)).class_counts) == ROWS - 10


def test_smoothed_labels_are_known_but_not_their_best_answer() -> None:
    found = seen(F.cross_entropy(outputs(), LABELS, label_smoothing=0.1))
    assert (found.function, found.constant, found.bound) == ("cross_entropy", None, None)


@pytest.mark.parametrize(
    "loss",
    [
        lambda: F.cross_entropy(outputs(), LABELS) - 0.1 * outputs().softmax(1).std(),
        lambda: F.cross_entropy(outputs(), LABELS) + F.mse_loss(outputs(), NUMBERS),
        lambda: F.l1_loss(outputs(), NUMBERS),
        lambda: outputs().square().mean(),
    ],
)
def test_of_several_terms_nothing_is_said(loss: Callable[[], Tensor]) -> None:
    """Would catch a bound of 0 for a loss that may fall below it."""
    assert seen(loss()) == LossFacts()
