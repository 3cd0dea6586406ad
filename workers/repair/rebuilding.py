"""What of a model is changed where a run begins anew with a repaired one: which patches, tried in which order, and the model that they make."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from workers.repair.patches import Kind, Patch, PatchError, apply, from_json, to_json
from workers.repair.proposals import Options, propose, verify
from workers.tasks.base import Batch, Task, Writing

# By name of a plan: kinds of patches, in the order in which they are made, with what is asked of each.
PLANS: Mapping[str, Sequence[tuple[Kind, dict[str, Any]]]] = {
    "anew": (("reinitialise", {"rescale": True}),),
    "normalise": (("normalise", {}),),
    "activate": (("activate", {"rescale": True}),),
    "activate and normalise": (("activate", {}), ("normalise", {})),
    "leaky": (("activate", {"leaky": True, "gentle": True}), ("normalise", {})),
    "residual": (("activate", {}), ("residual", {})),
    "inputs": (("scale_input", {}),),
    "output": (("drop_output", {}),),
    "keep": (("dropout", {}),),
}


WIDE = 30.0  # times the output: what trained models come to


def rebuildable(task: Task, *, compiled: bool) -> bool:
    """Not what a library writes in its own way, whose names and parts it knows; nor what was compiled."""
    return not compiled and not isinstance(task, Writing)


def patched(model: nn.Module, documents: Sequence[Mapping[str, Any]], seed: int) -> nn.Module:
    """Raises PatchError, ValueError."""
    return apply(model, from_json(list(documents)), seed=seed) if documents else model


def planned(
    name: str, build: Callable[[], nn.Module], task: Task, batch: Batch, known: Sequence[Mapping[str, Any]], seed: int
) -> list[dict[str, Any]]:
    """Patches of a plan that fit the model and leave it trainable, behind those that it has already; empty: none fit. Trained on nothing: made and
    judged on models of its own, by one batch."""
    run = _runs(task, batch)
    options = {"seed": seed, "rows": len(next(iter(batch.values())))}
    try:
        with torch.random.fork_rng(devices=[]):
            found: list[Patch] = []
            for kind, asked in PLANS[name]:
                model = patched(build(), [*known, *to_json(found)], seed)
                fitting = propose(model, kind, run, Options(**{**options, **asked}))
                found += fitting
            if found:
                verify(patched(build(), known, seed), found, run, seed=seed)
            if any(patch.kind == "drop_output" for patch in found):
                _takes_any_output(patched(build(), [*known, *to_json(found)], seed), run)
    except (PatchError, ValueError, RuntimeError, TypeError):
        return []
    return to_json(found)


def _takes_any_output(model: nn.Module, run: Callable[[nn.Module], Any]) -> None:
    """A loss that wants probabilities may get some from a new model by chance, and raise later. Raises what it raises, ValueError for no number."""
    for factor in (-WIDE, WIDE):
        handle = model.register_forward_hook(lambda _model, _given, gave, by=factor: _times(gave, by))
        try:
            with torch.no_grad():
                if not bool(torch.as_tensor(run(model)).isfinite()):
                    raise ValueError("the loss of outputs that are no probabilities is no number")
        finally:
            handle.remove()


def _times(gave: Any, factor: float) -> Any:
    if isinstance(gave, torch.Tensor) and gave.is_floating_point():
        return gave * factor
    if isinstance(gave, tuple | list):
        return type(gave)(_times(each, factor) for each in gave)
    return gave


def _runs(task: Task, batch: Batch) -> Callable[[nn.Module], Any]:
    def run(model: nn.Module) -> Any:
        loss_sum, count = task.loss(model, batch)
        return loss_sum / count

    return run
