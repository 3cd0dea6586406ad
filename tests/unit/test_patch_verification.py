"""A patched model is used only if it still runs, gives what it gave in shape, and learns in all of its layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from workers.repair.patches import Patch, PatchError
from workers.repair.proposals import verify

pytestmark = pytest.mark.unit


class ReadsShape(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.output = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.output(self.layer(x).view(-1, self.layer.out_features))
        return y


class Root(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.abs().sqrt()


def test_gradients_must_be_finite_too() -> None:
    """The root of 0 is finite, its slope is not."""
    model = nn.Sequential(nn.Linear(4, 2, bias=False), Root())
    with pytest.raises(PatchError, match="gradients of the patched model are not finite"):
        verify(model, [Patch("scale_input", "0", {"mean": [1.0], "std": [1.0], "fold": False})], torch.ones(8, 4))


class Cut(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


FAILS: list[tuple[nn.Module, Patch, str]] = [
    (ReadsShape(), Patch("normalise", "layer", {"norm": "batch"}), "does not run: AttributeError"),
    (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), Patch("scale_input", "0", {"mean": [-3e38], "std": [1e-3]}), "output is not finite"),
    (nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 2)), Patch("reinitialise", "2", {"method": "he", "gain": 1e-46}),
     "no gradient reaches 0 after"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "patch", "reason"), FAILS, ids=["runs", "finite", "gradient"])
def test_patches_that_spoil_the_model_are_refused(model: nn.Module, patch: Patch, reason: str) -> None:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    verify(model, [], x)
    with pytest.raises(PatchError, match=reason):
        verify(model, [patch], x)


def test_a_layer_without_a_gradient_before_is_not_held_against_a_patch() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Cut(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    verify(model, [Patch("normalise", "2", {"norm": "batch"})], torch.randn(8, 4))
    dead = nn.Sequential(nn.Linear(4, 4), Cut())
    with pytest.raises(PatchError, match="no layer of the patched model gets a gradient"):
        verify(dead, [Patch("reinitialise", "0", {"method": "he"})], torch.randn(8, 4))


def test_an_output_of_another_shape_is_refused() -> None:
    class Wide(nn.Module):
        """Gives what depends on the class of its activation."""

        def __init__(self) -> None:
            super().__init__()
            self.layer, self.act = nn.Linear(4, 4), nn.Tanh()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.act(self.layer(x))
            return y if isinstance(self.act, nn.Tanh) else y[:, :2]

    with pytest.raises(PatchError, match=r"\(8, 2\).* from .*\(8, 4\)"):
        verify(Wide(), [Patch("activate", "act", {"to": "relu"})], torch.randn(8, 4))
