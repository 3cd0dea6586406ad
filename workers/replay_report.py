"""What was seen of a step that was done again, as a document, and how it compares with what was recorded of it, bit by bit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from workers.jobfolder import JobFolder, encode
from workers.machine import machine
from workers.replay_look import Call, Seen, Weights, merged
from workers.step_ledger import LOSS, NORM, RATE, StepLedger, StepMade, Stretch, ranks_of

MOST_SAMPLES = 64  # of a rank that are named


def report(
    folder: JobFolder,
    ledger: StepLedger,
    made: StepMade,
    seen: Sequence[Seen],
    begins: int,
    stretches: Sequence[Stretch],
    passed_over: Sequence[str],
) -> dict[str, Any]:
    """``seen``: by rank. ``begins``: the step with whose checkpoint it began; 0: with the start. Numbers that are none travel as words."""
    first = seen[0]
    calls = merged([each.calls for each in seen])
    values = first.values
    recorded = _recorded_norms(folder, made.step, first.layers)
    document = {
        "step": made.step,
        "epoch": made.epoch,
        "attempt": made.group.attempt,
        "world_size": made.group.world_size,
        "accumulate": made.group.accumulate,
        "begins": begins,
        "redone": made.step - begins,
        "repairs": [_told(each.type, each.repair) for stretch in stretches for each in stretch.changes],
        "passed_over": list(passed_over),
        "learning_rate": values.get(RATE),
        "ranks": ranks_of(ledger.spec, made, MOST_SAMPLES),
        "forward": [_forward(call) for call in calls],
        "loss": _number(values.get(LOSS)),
        "norm": _number(values.get(NORM)),
        "clipping": first.clipping,
        "backward": _backward(calls, first),
        "layers": [
            {"layer": layer, "norm": _number(norm), "recorded": _number(known)}
            for layer, norm, known in zip(first.layers, first.norms, recorded, strict=True)
        ],
        "updates": [_update(each) for each in first.weights],
        "compared": _compared(made, first, recorded),
        "compiled": ledger.spec.training.compile,
    }
    return document


def _recorded_norms(folder: JobFolder, step: int, layers: Sequence[str]) -> list[float | None]:
    matrix = folder.gradient_matrix(step, step)
    if not len(matrix.steps):
        return [None] * len(layers)
    known = dict(zip(matrix.layers, matrix.norms[0].tolist(), strict=True))
    return [known.get(layer) for layer in layers]


def _told(type: str, repair: Mapping[str, Any]) -> str:
    act = repair["act"]
    return f"{type.removeprefix('repair.').replace('_', ' ')}: repair {act['number']} after step {repair['ended'] or act['step']}, {act['words']}"


def _forward(call: Call) -> dict[str, Any]:
    return {
        "module": call.module,
        "type": call.type,
        "call": call.number,
        "shape": list(call.shape),
        "mean": _number(call.mean),
        "deviation": _number(call.deviation),
        "zeros": call.zeros / call.elements if call.elements else None,
    }


def _backward(calls: Sequence[Call], seen: Seen) -> list[dict[str, Any]]:
    """From the output to the input: the gradient at what each module gave, and behind it those of its own parameters, once each."""
    left = {each.name: each for each in seen.weights}
    found = []
    for call in reversed(calls):
        prefix = "" if call.module == "(model)" else f"{call.module}."
        own = [left.pop(name) for name in list(left) if name.startswith(prefix) and "." not in name[len(prefix) :]]
        norm = math.sqrt(call.gradient_squares) * seen.scale if call.has_gradient else None
        found.append(
            {
                "module": call.module,
                "type": call.type,
                "call": call.number,
                "gradient": _number(norm),
                "parameters": [_gradient(each) for each in own],
            }
        )
    if left:  # of modules that gave nothing by themselves, or were not called as modules
        rest = [_gradient(each) for each in left.values()]
        found.append({"module": "(others)", "type": "", "call": 0, "gradient": None, "parameters": rest})
    return found


def _gradient(weights: Weights) -> dict[str, Any]:
    return {"name": weights.name, "shape": list(weights.shape), "gradient": _number(weights.gradient)}


def _update(weights: Weights) -> dict[str, Any]:
    ratio = weights.update / weights.weight if weights.weight else None
    return {
        "name": weights.name,
        "shape": list(weights.shape),
        "weight": _number(weights.weight),
        "update": _number(weights.update),
        "ratio": _number(ratio),
    }


# --- with what is recorded --------------------------------------------------------------------------------------------


def _compared(made: StepMade, seen: Seen, norms: Sequence[float | None]) -> dict[str, Any]:
    """``same``: all that is recorded has the same bits (layers as they are kept, in 32 bits); None where nothing is recorded."""
    recorded, values = made.recorded, seen.values
    scalars = {
        "loss": (values.get(LOSS), recorded.loss),
        "norm": (values.get(NORM), recorded.norm),
        "learning_rate": (values.get(RATE), recorded.learning_rate),
    }
    known = {name: pair for name, pair in scalars.items() if pair[1] is not None}
    layers = [
        (layer, float(np.float32(norm)), kept)
        for layer, norm, kept in zip(seen.layers, seen.norms, norms, strict=True)
        if kept is not None
    ]
    different = [name for name, (now, then) in known.items() if not _equal(now, then)]
    odd = [layer for layer, now, then in layers if not _equal(now, then)]
    here = machine()
    there = made.group.machine
    return {
        "same": None if not known and not layers else not different and not odd,
        "recorded": {name: _number(then) for name, (_, then) in known.items()},
        "different": different,
        "layers": len(layers),
        "different_layers": odd,
        "largest_difference": _largest([*known.values(), *((now, then) for _, now, then in layers)]),
        "machine": here,
        "other_machine": {name: [there[name], here.get(name)] for name in there if there[name] != here.get(name)},
        "machine_known": bool(there),
    }


def _equal(now: float | None, then: float | None) -> bool:
    """Bit by bit, but for the sign of 0; what is not a number is equal to what is not a number."""
    if now is None or then is None:
        return now is then
    return now == then or (math.isnan(now) and math.isnan(then))


def _largest(pairs: Sequence[tuple[float | None, float | None]]) -> float | None:
    """Relative to what is recorded."""
    found = [
        abs(now - then) / abs(then)
        for now, then in pairs
        if now is not None and then and math.isfinite(now) and math.isfinite(then)
    ]
    return max(found, default=None)


def _number(value: float | None) -> float | str | None:
    return None if value is None else encode(value)
