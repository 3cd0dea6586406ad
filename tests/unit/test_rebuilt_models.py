"""Which patches a plan for beginning anew makes of a job's model, with its own loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workers.repair.rebuilding import planned
from workers.tasks.base import Task

pytestmark = pytest.mark.unit

CLASSES = 3


class Classifies:
    """Stands for a task, whose data and metrics nobody asks for here."""

    def __init__(self, probabilities: bool) -> None:
        self.probabilities = probabilities

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, int]:
        output, targets = model(batch["x"]), batch["y"]
        if self.probabilities:
            return F.binary_cross_entropy(output, F.one_hot(targets, CLASSES).float(), reduction="sum"), len(targets)
        return F.cross_entropy(output, targets, reduction="sum"), len(targets)


def model() -> nn.Module:
    torch.manual_seed(0)
    built = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, CLASSES), nn.Softmax(-1))
    with torch.no_grad():
        last = cast(Any, built[2])
        last.weight.mul_(0.05)
        last.bias.fill_(0.5)  # without the soft-max the first outputs are probabilities too, by chance
    return built


@pytest.mark.parametrize("probabilities", [False, True], ids=["a loss of logits", "a loss of probabilities"])
def test_an_activation_that_the_loss_needs_is_not_dropped(probabilities: bool) -> None:
    """Would catch a run that begins anew, and raises once outputs are no probabilities any more."""
    batch = {"x": torch.randn(32, 6), "y": torch.randint(CLASSES, (32,))}
    found = planned("output", model, cast(Task, Classifies(probabilities)), batch, [], 0)
    assert [patch["kind"] for patch in found] == ([] if probabilities else ["drop_output"])
