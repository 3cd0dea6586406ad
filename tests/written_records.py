"""Records of runs that are written down by hand, and what is said of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from workers.watch.diagnosis import diagnose
from workers.watch.record import Evaluations, Facts, LayerFacts, LossFacts, Probes, Record, Series, none

STEPS = 300
LAYERS = ("0", "2", "4", "6")
ACTIVATIONS = ("1", "3", "5")
LN_10 = float(np.log(10))
PROBED = np.array([1, 2, 3, 5, *range(6, STEPS + 1, 6)], dtype=np.int64)


def noise(size: int, share: float = 0.02) -> np.ndarray:
    return np.exp(share * np.random.default_rng(0).standard_normal(size))


def flat(steps: int = STEPS, level: float = LN_10) -> np.ndarray:
    found: np.ndarray = level * noise(steps)
    return found


def learning(steps: int = STEPS, last: float = 0.1) -> np.ndarray:
    found: np.ndarray = (last + (LN_10 - last) * np.exp(-np.arange(steps) / 40)) * noise(steps)
    return found


def table(*values: float | np.ndarray) -> np.ndarray:
    """(P, columns)"""
    return np.stack([np.broadcast_to(value, PROBED.shape) for value in values], axis=1).astype(float)


def record(losses: np.ndarray, facts: dict[str, Any] | None = None, **probed: Any) -> Record:
    steps = np.arange(1, len(losses) + 1)
    layers = tuple(LayerFacts(name, "Linear", (64, 64), 64, 0.0, 0.1) for name in LAYERS)
    known = {
        "layers": layers,
        "loss": LossFacts("cross_entropy", classes=10, bound=0.0, constant=LN_10),
        "total_steps": STEPS,
    }
    ones = np.ones(len(steps))
    probes = Probes(
        LAYERS, ACTIVATIONS, PROBED, weight_norms=table(*[5.0 * np.linspace(1, 1.02, len(PROBED))] * 4), update_ratios=table(*[1e-3] * 4),
        zero_shares=table(*[0.1] * 4), zero_rows=table(*[0.0] * 4), largest=table(*[0.1] * 4), nonfinite=table(*[0.0] * 4),
        silent=table(*[0.1] * 3), saturated=none(len(PROBED), 3),
    )  # fmt: skip
    return Record(
        Facts(**{**known, **(facts or {})}),
        Series(LAYERS, steps, losses, noise(len(steps))[:, None] * np.ones(4), 1e-3 * ones, ones, ones, 0 * ones),
        replace(probes, **probed),
    )


def evaluated(known: Record, loss: list[float], accuracy: list[float] | None = None) -> Record:
    steps = np.linspace(STEPS / len(loss), STEPS, len(loss)).astype(np.int64)
    metrics = {"loss": np.array(loss)} | ({"accuracy": np.array(accuracy)} if accuracy else {})
    return replace(known, evaluations=Evaluations(steps, metrics))


def alarms(known: Record, step: int = STEPS) -> list[str]:
    return [found.code for found in diagnose(known.until(step)).findings if found.severity != "note"]


def first_tenth(known: Record) -> list[str]:
    return alarms(known, STEPS // 10)
