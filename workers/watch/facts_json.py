"""The JSON form of the facts of a run: as they travel and are kept."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Any

from workers.watch.record import Facts, LayerFacts, LossFacts, TensorFacts


def to_json(facts: Facts) -> dict[str, Any]:
    """Numbers that are not finite become null: JSON has none."""
    document: dict[str, Any] = _finite(dataclasses.asdict(facts))
    return document


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def uncleared_in(document: Mapping[str, Any]) -> float | None:
    """``Record.uncleared``, which scripts tell with their facts."""
    value = document.get("uncleared")
    return float(value) if isinstance(value, int | float) else None


def from_json(document: Mapping[str, Any]) -> Facts:
    """What ``to_json`` gave, also after JSON made lists of its tuples. Fields of other versions are passed over; missing ones are unknown."""
    loss = dict(document.get("loss") or {})
    for name in ("output", "target"):
        loss[name] = _made(TensorFacts, loss.get(name))
    parts = {
        **document,
        "layers": tuple(_made(LayerFacts, each) for each in document.get("layers", ())),
        "inputs": _made(TensorFacts, document.get("inputs")),
        "loss": _made(LossFacts, loss),
    }
    made = _made(Facts, parts)
    assert isinstance(made, Facts)
    return made


def _made(kind: type[Any], values: Mapping[str, Any] | None) -> Any:
    if values is None:
        return None
    known = typing.get_type_hints(kind)
    given = {name: value for name, value in values.items() if name in known}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})
