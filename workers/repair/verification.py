"""Whether a patched model still does its work, before it is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from workers.repair.anatomy import Unfit
from workers.repair.patches import Patch, PatchError, apply, renamed
from workers.repair.tracing import Example, copied, quietly, run, tensors_in


def verify(model: nn.Module, patches: Sequence[Patch], example: Example, *, seed: int = 0) -> None:
    """Raises PatchError with the reason unless copies of the model with and without the patches give outputs of the same structure, shapes and
    types on the example, those of the patched one are finite, and a gradient reaches each of its trainable layers.

    A layer that had none before either (it is not used, or a zero stands behind it) is not held against the patches, unless no layer has one.
    """
    try:
        with quietly(model):
            plain, patched = copied(model), copied(model)
    except Unfit as unfit:
        raise PatchError(None, str(unfit)) from None
    patched = apply(patched, patches, seed=seed)
    before, before_gradients = _passed(plain, example, "the model itself does not run on the example")
    after, gradients = _passed(patched, example, "the patched model does not run")
    if _shapes(before) != _shapes(after):
        raise PatchError(None, f"the output has become {_shapes(after)} from {_shapes(before)}")
    if not all(bool(tensor.isfinite().all()) for tensor in tensors_in(after)):
        raise PatchError(None, "the patched model's output is not finite")
    _check_gradients(patched, renamed(patches, before_gradients), before_gradients, gradients)


def _passed(model: nn.Module, example: Example, problem: str) -> tuple[Any, dict[str, float]]:
    """(output, largest absolute gradient by trainable parameter, -1 where it has none) of a loss that no symmetry of an output hides: a random sum.

    Ones would not do: soft-max outputs always add up to 1.
    """
    try:
        with quietly(model):
            output = run(model, example)
            source = torch.Generator().manual_seed(0)
            terms = [
                (tensor.float() * torch.randn(tensor.shape, generator=source).to(tensor.device)).sum()
                for tensor in tensors_in(output)
                if tensor.requires_grad and not tensor.is_complex()
            ]
            if terms:
                torch.stack(terms).sum().backward()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of the user's code, whatever it may be
        raise PatchError(None, f"{problem}: {type(error).__name__}: {error}") from error
    return output, {
        name: -1.0 if parameter.grad is None else float(parameter.grad.abs().max()) if parameter.numel() else 0.0
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def _shapes(output: Any) -> Any:
    return _pytree.tree_map(
        lambda leaf: f"{tuple(leaf.shape)} of {leaf.dtype}" if isinstance(leaf, Tensor) else type(leaf).__name__, output
    )


def _check_gradients(
    patched: nn.Module, moved: dict[str, str], before: dict[str, float], gradients: dict[str, float]
) -> None:
    """Layer by layer: the bias before a norm has no gradient, and need not have one while the weight has."""
    if not all(value == value and value != float("inf") for value in gradients.values()):
        raise PatchError(None, "gradients of the patched model are not finite")
    if gradients and not any(value > 0 for value in gradients.values()):
        raise PatchError(None, "no layer of the patched model gets a gradient")
    had = {moved[name].rpartition(".")[0] for name, value in before.items() if value > 0}
    reached = {name.rpartition(".")[0] for name, value in gradients.items() if value > 0}
    cut_off = {name.rpartition(".")[0] for name, value in gradients.items() if value < 0}
    used = {moved[name].rpartition(".")[0] for name, value in before.items() if value < 0}
    lost = (had | (cut_off - used)) - reached
    trainable = [name.rpartition(".")[0] for name in gradients]
    first = next((name for name in trainable if name in lost), None)
    if first is not None:
        raise PatchError(None, f"no gradient reaches {first or 'the parameters of the model itself'} after the patches")
