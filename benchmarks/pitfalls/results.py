"""Figures of judged runs, those that rules were tuned on and those held back apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.measure import RESULTS
from benchmarks.pitfalls.scoring import Judged, by_code, score

FIGURES = RESULTS / "pitfalls.json"


def parts(runs: Sequence[Judged]) -> dict[str, dict[str, Any]]:
    found = {}
    for title, held_back in (("tuned", False), ("held back", True)):
        chosen = [run for run in runs if run.held_back is held_back]
        if chosen:
            found[title] = {"all": score(chosen), "by_code": by_code(chosen)}
    return found


def store(runs: Sequence[Judged]) -> None:
    """With every run that was missed, misjudged or a false alarm, by name."""
    wrong = [asdict(run) for run in runs if not run.well]
    FIGURES.write_text(json.dumps({**parts(runs), "wrong": wrong}, indent=1) + "\n", encoding="utf-8")
