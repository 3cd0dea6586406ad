"""Which patches of a kind fit a model, judged by one forward pass. What is not certain is not proposed: an empty list is an answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from workers.repair import measuring
from workers.repair.anatomy import (
    ACTIVATIONS,
    DROPOUTS,
    NORMS,
    RECTIFIERS,
    RECURRENT,
    Unfit,
    is_plain,
    is_sequence,
    reason_against,
    saturates,
    width_of,
)
from workers.repair.drawing import GATES
from workers.repair.input_scaling import scaling
from workers.repair.patches import KINDS, Kind, Patch, PatchError, apply
from workers.repair.surgery import groups_for, reason_against_run
from workers.repair.tracing import BOUNDED, RECTIFYING, Example, Trace, copied, is_view, trace
from workers.repair.verification import verify

__all__ = ["Options", "propose", "verify"]

LEAST_ROWS = 8  # of a rank, for batch norm: with fewer its statistics are noise (Wu and He 2018)
SMALL = 0.1  # of the usual deviation, for the last layer: answers begin near each other, so the first loss is that of not knowing
EMBEDDING_SPREADS = (1e-3, 10.0)  # torch draws them with 1, language models with 0.02
TANH_GAIN = 5 / 3
LEAST_SPREAD = (
    1e-6  # of an input feature beside its mean: below, it is constant, and dividing by it would blow up rounding errors
)
MOST_DROPPED, USUAL_DROPOUT = 0.7, 0.1
VIEWS = (nn.Flatten, nn.Unflatten, nn.Identity)


@dataclass(frozen=True)
class Options:
    """What may be asked for beside the kind.

    layers: only these (names as in ``named_modules``); None: all that fit. seed: that of ``apply``; measured factors belong to its weights.
    rescale: of reinitialise and activate, to unit output variance layer by layer on the example. rows: samples of a rank; None: those of the
    example. keep_function: of normalise. gentle: of activate, ReLU to LeakyReLU instead. leaky: of activate, to LeakyReLU instead of ReLU.
    mean, std: of the inputs, one value or one a feature; None: those of the example. fold: of scale_input, into the first layer's weights where
    that can be; it keeps all names, but (see ``input_scaling``) is no cure for steps that are too large.
    """

    layers: Sequence[str] | None = None
    seed: int = 0
    rescale: bool = False
    rows: int | None = None
    keep_function: bool = False
    gentle: bool = False
    leaky: bool = False
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    fold: bool = False


def propose(model: nn.Module, kind: Kind, example: Example, options: Options | None = None) -> list[Patch]:
    """Patches of ``kind`` (activate: also of reinitialise) that fit the model as it is; it stays as it is. Empty where none is certain to fit.

    ``example``: one batch, on the model's device: a tensor, a tuple or mapping of arguments, or what calls the model that it is given. It is run
    in the mode (training or not) in which the model is. Raises PatchError where the model cannot be copied and ValueError for an unknown layer;
    what the model raises on the example passes through.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; allowed is one of {', '.join(KINDS)}")
    options = options or Options()
    names = dict(model.named_modules(remove_duplicate=False))
    for name in options.layers or ():
        if name not in names:
            raise ValueError(f"layers has {name!r}; allowed are names of modules of the model")
    try:
        seen = trace(model, example)
        found = _PROPOSERS[kind](model, seen, example, options)
    except Unfit as unfit:
        raise PatchError(None, str(unfit)) from None
    return found


# --- reinitialise -----------------------------------------------------------------------------------------------------


def _reinitialise(model: nn.Module, seen: Trace, example: Example, options: Options) -> list[Patch]:
    patches = []
    for name in _wanted(seen.calls, options):
        module = model.get_submodule(name)
        patch = _redrawn(module, name, seen)
        if patch is not None and reason_against(model, name) is None:
            patches.append(patch)
    if all(patch.arguments["method"] == "norm" for patch in patches):
        return []  # norms are put back because the layers around them are
    patches.sort(key=lambda patch: seen.order.index(patch.where) if patch.where in seen.order else -1)
    return _rescaled(model, seen, example, options, patches) if options.rescale else patches


def _redrawn(module: nn.Module, name: str, seen: Trace) -> Patch | None:
    if is_plain(module):
        if name in seen.ends:
            return Patch("reinitialise", name, {"method": "lecun", "gain": SMALL})
        return Patch("reinitialise", name, _way(seen.activations.get(name)))
    if isinstance(module, RECURRENT):
        gates = next((GATES[kind.__name__] for kind in type(module).__mro__ if kind.__name__ in GATES), 0)
        return Patch("reinitialise", name, {"method": "identity" if gates == 1 else "orthogonal"}) if gates else None
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        spread = float(module.weight.detach().float().std(correction=0))
        kept = EMBEDDING_SPREADS[0] <= spread <= EMBEDDING_SPREADS[1]  # false for NaN
        return None if kept else Patch("reinitialise", name, {"method": "normal"})
    has_values = isinstance(module, NORMS) and next(module.parameters(recurse=False), None) is not None
    return Patch("reinitialise", name, {"method": "norm"}) if has_values else None


def _way(activation: str | None) -> dict[str, Any]:
    if activation in RECTIFYING:
        return {"method": "he"}
    if activation in BOUNDED:
        return {"method": "xavier", "gain": TANH_GAIN} if activation == "tanh" else {"method": "xavier"}
    return {"method": "lecun"}  # SELU, or nothing: variance stays as it is


def _rescaled(
    model: nn.Module, seen: Trace, example: Example, options: Options, patches: Sequence[Patch]
) -> list[Patch]:
    drawn = apply(copied(model), patches, seed=options.seed)
    once = [
        patch.where
        for patch in patches
        if is_plain(drawn.get_submodule(patch.where)) and seen.calls[patch.where] == 1 and patch.where not in seen.ends
    ]
    gains = measuring.unit_gains(drawn, example, once)
    return [
        Patch(
            patch.kind,
            patch.where,
            {**patch.arguments, "gain": patch.arguments.get("gain", 1.0) * gains.get(patch.where, 1.0)},
        )
        if patch.where in gains
        else patch
        for patch in patches
    ]


# --- normalise --------------------------------------------------------------------------------------------------------


def _normalise(model: nn.Module, seen: Trace, example: Example, options: Options) -> list[Patch]:
    names = [name for name in _wanted(seen.order, options) if _may_be_wrapped(model, seen, name)]
    found = measuring.spreads(model, example, names) if options.keep_function else {}
    patches = []
    for name in names:
        arguments = _norm_for(model.get_submodule(name), seen.inputs[name], options.rows)
        if name in found:
            mean, std = found[name]
            arguments |= _measured(arguments["norm"], mean, std)
        patches.append(Patch("normalise", name, arguments))
    return patches


def _may_be_wrapped(model: nn.Module, seen: Trace, name: str) -> bool:
    """A hidden Linear or Conv that is called once, from outside of attention, with nothing that reads its weights, and no norm behind it."""
    return (
        is_plain(model.get_submodule(name))
        and seen.calls[name] == 1
        and name not in seen.ends
        and name not in seen.read_outside
        and reason_against(model, name) is None
        and not any("attention" in kind.lower() or "attn" in kind.lower() for kind in _classes_around(model, name))
        and not any(isinstance(model.get_submodule(other), NORMS) for other in _takers(seen, name))
        and width_of(model.get_submodule(name)) > 1
    )


def _classes_around(model: nn.Module, name: str) -> list[str]:
    parts = name.split(".")
    return [type(model.get_submodule(".".join(parts[:depth]))).__name__ for depth in range(len(parts))]


def _takers(seen: Trace, name: str) -> list[str]:
    """Modules that got what ``name`` gave."""
    gave = seen.outputs[name]
    return [other for other, got in seen.inputs.items() if other != name and is_view(got, gave)]


def _norm_for(layer: nn.Module, x: Tensor, rows: int | None) -> dict[str, Any]:
    """Batch norm wants samples, and channels in the second dimension; a Linear on (B, T, C) has them in the last one."""
    if isinstance(layer, nn.Linear):
        enough = x.ndim == 2 and (len(x) if rows is None else rows) >= LEAST_ROWS
        return {"norm": "batch" if enough else "layer"}
    assert isinstance(layer.weight, Tensor)
    enough = x.ndim == layer.weight.ndim and (len(x) if rows is None else rows) >= LEAST_ROWS
    return {"norm": "batch"} if enough else {"norm": "group", "groups": groups_for(width_of(layer))}


def _measured(norm: str, mean: list[float], std: list[float]) -> dict[str, list[float]]:
    """Of each feature for a batch norm, which then changes nothing at first. A layer or group norm brings each sample to mean 0 and deviation 1
    over its features, so these are given the spread and mean of all."""
    if norm == "batch":
        return {"scale": std, "shift": mean}
    middle = sum(mean) / len(mean)
    spread = math.sqrt(sum(s * s + (m - middle) ** 2 for m, s in zip(mean, std, strict=True)) / len(mean))
    return {"scale": [spread] * len(std), "shift": [middle] * len(mean)}


# --- activate, drop_output --------------------------------------------------------------------------------------------


def _activate(model: nn.Module, seen: Trace, example: Example, options: Options) -> list[Patch]:
    """Every place of an activation that saturates, but for those behind the last layer and those whose result multiplies something, as a gate
    does; then the layers, drawn anew for what follows them now. The gentle variant hardly changes the function, so it keeps the weights."""
    to = {"to": "leaky_relu", "slope": 0.01} if options.gentle or options.leaky else {"to": "relu"}
    first = {module: name for name, module in model.named_modules()}
    patches = []
    for name, module in model.named_modules(remove_duplicate=False):
        known = first[module]  # under which name the trace has it
        fits = type(module) in RECTIFIERS if options.gentle else saturates(module)
        asked = options.layers is None or name in options.layers
        at_output = known in seen.at_output or not seen.ends.isdisjoint(seen.behind.get(known, ()))
        hidden = seen.calls[known] > 0 and not at_output and known not in seen.gates
        if fits and asked and hidden and reason_against(model, name) is None:
            patches.append(Patch("activate", name, to))
    if options.gentle or not patches:
        return patches
    swapped = apply(copied(model), patches, seed=options.seed)
    everything = Options(seed=options.seed, rescale=options.rescale)
    drawn = _reinitialise(swapped, trace(swapped, example), example, everything)
    return [*patches, *(patch for patch in drawn if patch.arguments["method"] in ("he", "xavier", "lecun"))]


def _drop_output(model: nn.Module, seen: Trace, example: Example, options: Options) -> list[Patch]:
    """All activations whose result is a part of the output, if each is called once and under one name; None of them otherwise."""
    named = [
        (name, module)
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, ACTIVATIONS)
    ]
    found = [(name, module) for name, module in named if name in seen.at_output]
    for name, module in found:
        alone = seen.calls[name] == 1 and [each for _, each in named].count(module) == 1
        if not alone or reason_against(model, name) is not None:
            return []
    return [Patch("drop_output", name) for name, _ in found]


# --- dropout ----------------------------------------------------------------------------------------------------------


def _dropout(model: nn.Module, seen: Trace, example: Example, options: Options) -> list[Patch]:
    """Those that drop most of what they get, as where the share to keep was given: the usual tenth in its place."""
    return [
        Patch("dropout", name, {"p": USUAL_DROPOUT})
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, DROPOUTS)
        and module.p > MOST_DROPPED
        and (options.layers is None or name in options.layers)
    ]


# --- residual ---------------------------------------------------------------------------------------------------------


def _residual(model: nn.Module, seen: Trace, example: Example, options: Options) -> list[Patch]:
    patches = []
    for parent, sequence in model.named_modules():
        if not is_sequence(sequence) or seen.calls[parent] != 1:
            continue
        names = list(sequence._modules)
        for index, name in enumerate(names):
            path = f"{parent}.{name}" if parent else name
            others = _run_behind(sequence, names, index)
            if (
                others
                and (options.layers is None or path in options.layers)
                and _certain(model, seen, parent, [name, *others])
            ):
                patches.append(Patch("residual", path, {"others": others, "damping": SMALL}))
    return patches


def _run_behind(sequence: nn.Module, names: Sequence[str], index: int) -> list[str]:
    """Names of what belongs to the branch that begins at ``index``: an activation, or a norm and an activation."""
    modules = [sequence.get_submodule(name) for name in names]
    for length in (1, 2):
        others = modules[index + 1 : index + 1 + length]
        if len(others) == length and reason_against_run(modules[index], others) is None:
            return list(names[index + 1 : index + 1 + length])
    return []


def _certain(model: nn.Module, seen: Trace, parent: str, names: Sequence[str]) -> bool:
    """Hidden, what has weights called once, and nothing else uses it."""
    paths = [f"{parent}.{name}" if parent else name for name in names]
    first = {module: name for name, module in model.named_modules()}
    for path in paths:
        module = model.get_submodule(path)
        known, has_weights = first[module], next(module.parameters(), None) is not None
        often = seen.calls[known] != 1 if has_weights else not seen.calls[known]
        inside = [f"{path}.{name}".rstrip(".") for name, _ in module.named_modules()]
        if (
            often
            or known in seen.ends
            or seen.read_outside.intersection(inside)
            or reason_against(model, path) is not None
        ):
            return False
    return seen.inputs[paths[0]].is_floating_point()


# --- scale_input ------------------------------------------------------------------------------------------------------


def _scale_input(model: nn.Module, seen: Trace, example: Example, options: Options) -> list[Patch]:
    given = None if options.mean is None or options.std is None else (options.mean, options.std)
    return scaling(model, seen, given, options.fold)


# --- shared -----------------------------------------------------------------------------------------------------------


def _wanted(names: Any, options: Options) -> list[str]:
    return [name for name in names if options.layers is None or name in options.layers]


_PROPOSERS: Mapping[str, Callable[[nn.Module, Trace, Example, Options], list[Patch]]] = {
    "reinitialise": _reinitialise,
    "normalise": _normalise,
    "activate": _activate,
    "residual": _residual,
    "scale_input": _scale_input,
    "drop_output": _drop_output,
    "dropout": _dropout,
}
