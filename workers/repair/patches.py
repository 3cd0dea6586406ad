"""A patch list: changes of a model by name, in JSON, that make the same model again from the same one and the same seed, on every rank.

Names in a patch are those that the model has when its turn comes. On a restart: build the model, ``apply`` the list, load weights (those saved
before the patches through ``renamed``), then ``workers.parallel.prepare`` (which makes a new batch norm one over all workers) and ``distribute``,
then make the optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torch import nn

from workers.repair import drawing, surgery
from workers.repair.anatomy import Edits, Unfit, module_at, reason_against

Kind = Literal["reinitialise", "normalise", "activate", "residual", "scale_input", "drop_output", "dropout"]
KINDS: tuple[str, ...] = get_args(Kind)


class PatchError(ValueError):
    """A patch does not fit the model, or spoils it. ``reason`` goes on after 'cannot <kind> <where>:'."""

    def __init__(self, patch: Patch | None, reason: str) -> None:
        super().__init__(patch, reason)
        self.patch, self.reason = patch, reason

    def __str__(self) -> str:
        if self.patch is None:
            return self.reason
        return f"cannot {self.patch.kind} {self.patch.where or 'the model itself'}: {self.reason}"


@dataclass(frozen=True)
class Patch:
    """One change. ``where``: dotted path of the module that it changes, '' for the model itself. ``arguments``: see ``ARGUMENTS``.

    Raises ValueError that names field, value and what is allowed.
    """

    kind: Kind
    where: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self.kind, self.where, self.arguments)


@dataclass(frozen=True)
class Rule:
    allowed: str
    fits: Callable[[Any], bool]
    required: bool = False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_above_zero(value: Any) -> bool:
    return _is_number(value) and value > 0


def _one_of(*names: str, required: bool = True) -> Rule:
    return Rule(f"one of {', '.join(names)}", lambda value: isinstance(value, str) and value in names, required)


def _list_of(what: str, fits: Callable[[Any], bool], required: bool) -> Rule:
    return Rule(
        f"a list of {what}, not empty",
        lambda value: isinstance(value, list | tuple) and len(value) > 0 and all(map(fits, value)),
        required,
    )


def _is_one_or_two_names(value: Any) -> bool:
    names = isinstance(value, list | tuple) and all(
        isinstance(each, str) and each and "." not in each for each in value
    )
    return names and len(value) in (1, 2)


ARGUMENTS: Mapping[str, Mapping[str, Rule]] = {
    "reinitialise": {
        "method": _one_of(*drawing.METHODS),
        "gain": Rule("a number above 0", _is_above_zero),  # default 1
    },
    "normalise": {
        "norm": _one_of("batch", "layer", "group"),
        "groups": Rule("a whole number from 1 on", lambda value: _is_number(value) and isinstance(value, int) and value > 0),
        "scale": _list_of("numbers from 0 on", lambda value: _is_number(value) and value >= 0, False),
        "shift": _list_of("numbers", _is_number, False),
    },
    "activate": {
        "to": _one_of("relu", "leaky_relu"),
        "slope": Rule("a number above 0 and below 1", lambda value: _is_above_zero(value) and value < 1),  # default 0.01
    },
    "residual": {
        "others": Rule("a list of one or two names", _is_one_or_two_names, required=True),
        "damping": Rule("a number above 0 and up to 1", lambda value: _is_above_zero(value) and value <= 1),  # default 0.1
    },
    "scale_input": {
        "mean": _list_of("numbers", _is_number, True),
        "std": _list_of("numbers above 0", _is_above_zero, True),
        "fold": Rule("true or false", lambda value: isinstance(value, bool)),  # default true
        "axis": Rule("a whole number", lambda value: _is_number(value) and isinstance(value, int)),  # default -1
    },
    "drop_output": {},
    "dropout": {"p": Rule("a number from 0 on, below 1", lambda value: _is_number(value) and 0 <= value < 1, required=True)},
}  # fmt: skip


def _check(kind: Any, where: Any, arguments: Any) -> None:
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; allowed is one of {', '.join(KINDS)}")
    if not isinstance(where, str):
        raise ValueError(f"where is {where!r}; allowed is the dotted path of a module, '' for the model itself")
    if not isinstance(arguments, Mapping):
        raise ValueError(f"arguments is {arguments!r}; allowed is an object")
    rules = ARGUMENTS[kind]
    for name, value in arguments.items():
        if name not in rules:
            raise ValueError(f"arguments.{name} is {value!r}; {kind} allows {', '.join(rules) or 'no arguments'}")
        if not rules[name].fits(value):
            raise ValueError(f"arguments.{name} is {value!r}; allowed is {rules[name].allowed}")
    missing = [name for name, rule in rules.items() if rule.required and name not in arguments]
    if missing:
        raise ValueError(f"arguments.{missing[0]} is missing; allowed is {rules[missing[0]].allowed}")


# --- JSON -------------------------------------------------------------------------------------------------------------


def to_json(patches: Sequence[Patch]) -> list[dict[str, Any]]:
    return [{"kind": patch.kind, "where": patch.where, "arguments": _plain(patch.arguments)} for patch in patches]


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in arguments.items()}


def from_json(document: Any) -> list[Patch]:
    """What ``to_json`` gave. Raises ValueError that names the field, as in 'patches[2].arguments.gain', its value and what is allowed."""
    if not isinstance(document, list):
        raise ValueError(f"patches is {document!r}; allowed is a list")
    return [_from_json(index, entry) for index, entry in enumerate(document)]


def _from_json(index: int, entry: Any) -> Patch:
    if not isinstance(entry, Mapping):
        raise ValueError(f"patches[{index}] is {entry!r}; allowed is an object with kind, where and arguments")
    unknown = next((name for name in entry if name not in ("kind", "where", "arguments")), None)
    if unknown is not None:
        raise ValueError(f"patches[{index}].{unknown} is {entry[unknown]!r}; allowed are kind, where and arguments")
    try:
        return Patch(entry.get("kind"), entry.get("where"), entry.get("arguments", {}))  # type: ignore[arg-type]  # it checks them
    except ValueError as error:
        raise ValueError(f"patches[{index}].{error}") from None


# --- applying ---------------------------------------------------------------------------------------------------------


def apply(model: nn.Module, patches: Sequence[Patch], *, seed: int) -> nn.Module:
    """The model with all patches, in order: itself, changed in place, unless a patch wraps the model itself.

    Random numbers of the process are neither used nor moved. Raises PatchError where one does not fit; the model is then as it was.
    """
    edits = Edits(model)
    for patch in patches:
        try:
            _apply(edits, patch, seed)
        except Unfit as unfit:
            edits.undo()
            raise PatchError(patch, str(unfit)) from None
        except BaseException:
            edits.undo()
            raise
    return edits.model


def _apply(edits: Edits, patch: Patch, seed: int) -> None:
    where, arguments = patch.where, patch.arguments
    module = module_at(edits.model, where)
    in_front = patch.kind == "scale_input" and not arguments.get("fold", True)
    # What is put before the whole model touches nothing in it.
    problem = None if in_front and where == "" else reason_against(edits.model, where, frozen=in_front)
    if problem is not None:
        raise Unfit(problem)
    if patch.kind == "reinitialise":
        drawing.reinitialise(edits, module, where, arguments["method"], arguments.get("gain", 1.0), seed)
    elif patch.kind == "normalise":
        optional = (arguments.get(name) for name in ("groups", "scale", "shift"))
        surgery.normalise(edits, module, where, arguments["norm"], *optional)
    elif patch.kind == "activate":
        surgery.activate(edits, module, where, arguments["to"], arguments.get("slope", 0.01))
    elif patch.kind == "residual":
        surgery.residual(edits, module, where, arguments["others"], arguments.get("damping", 0.1))
    elif patch.kind == "scale_input":
        fold, axis = arguments.get("fold", True), arguments.get("axis", -1)
        surgery.scale_input(edits, module, where, arguments["mean"], arguments["std"], fold, axis)
    elif patch.kind == "dropout":
        surgery.dropout(edits, module, where, arguments["p"])
    else:
        surgery.drop_output(edits, module, where)


# --- names ------------------------------------------------------------------------------------------------------------


def renamed(patches: Sequence[Patch], names: Iterable[str]) -> dict[str, str]:
    """Name in the unpatched model -> name in the patched one, for each of ``names`` (parameters and buffers, as in its state).

    Of what lies in a module that a patch replaced there is a name too, though the new module may have no such parameter (a PReLU that became a ReLU).
    """
    found = {name: name for name in names}
    for patch in patches:
        for old, new in _moves(patch):
            found = {name: _moved(current, old, new) for name, current in found.items()}
    return found


def _moves(patch: Patch) -> list[tuple[str, str]]:
    """(path of a module, its path afterwards); no path of one is the beginning of another's."""
    where = patch.where
    if patch.kind == "normalise":
        return [(where, _joined(where, "0"))]
    if patch.kind == "scale_input" and not patch.arguments.get("fold", True):
        return [(where, _joined(where, "inner"))]
    if patch.kind == "residual":
        parent = where.rpartition(".")[0]
        members = [where, *(_joined(parent, other) for other in patch.arguments["others"])]
        return [(member, f"{where}.branch.{index}") for index, member in enumerate(members)]
    return []


def _joined(parent: str, name: str) -> str:
    return f"{parent}.{name}" if parent else name


def _moved(name: str, old: str, new: str) -> str:
    if not old:
        return f"{new}.{name}"
    return new + name[len(old) :] if name == old or name.startswith(f"{old}.") else name
