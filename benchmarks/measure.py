"""Medians, ratios and the record of a benchmark: what each figure is, on which machine, from how many rounds."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    import ray
    import torch

    return {
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ray": ray.__version__,
    }


def compare(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Both sides' values of the interleaved rounds, their medians, and the ratio ours / theirs round by round."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {
        "ours": list(ours),
        "theirs": list(theirs),
        "median_ours": statistics.median(ours),
        "median_theirs": statistics.median(theirs),
        "ratio_by_round": ratios,
        "median_ratio": statistics.median(ratios),
    }


def medians(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Values of both sides that do not come in pairs, and the ratio of their medians."""
    median_ours, median_theirs = statistics.median(ours), statistics.median(theirs)
    return {
        "ours": list(ours),
        "theirs": list(theirs),
        "median_ours": median_ours,
        "median_theirs": median_theirs,
        "ratio_of_medians": median_ours / median_theirs,
    }


def write(name: str, document: dict[str, Any]) -> Path:
    """Writes ``results/<name>.json``."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    head = {"benchmark": name, "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    path.write_text(json.dumps(head | {"machine": machine()} | document, indent=2) + "\n")
    return path


def record(name: str, bars: dict[str, Any]) -> Path:
    """Writes ``results/<name>.json`` and prints a line for each bar."""
    path = write(name, {"bars": bars})
    for bar, values in bars.items():
        print(
            f"{bar}: ours {values['median_ours']:.4g} s, theirs {values['median_theirs']:.4g} s, "
            f"ratio {values['median_ratio']:.3f} (rounds: {', '.join(f'{r:.3f}' for r in values['ratio_by_round'])})"
        )
    return path
