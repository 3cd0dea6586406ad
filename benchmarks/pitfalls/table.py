"""The table of docs/pitfalls.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.pitfalls.case import Case
from benchmarks.pitfalls.verify import stored


def table(cases: Sequence[Case]) -> str:
    """Markdown. Verified: with how many seeds the case was what it claims to be; a dash where it has not been run."""
    known = stored()
    rows = ["| case | expected | also true | what it is | goal | verified, seeds |", "|---|---|---|---|---|---|"]
    for case in cases:
        also = ", ".join(f"`{code}`" for code in case.accepted)
        code = f"`{case.expected}`" if case.expected else "healthy"
        seeds = _seeds(case, known.get(case.name))
        rows.append(f"| {case.name} | {code} | {also} | {case.words} | {case.goal} | {seeds} |")
    return "\n".join(rows)


def _seeds(case: Case, result: Mapping[str, Any] | None) -> str:
    if result is None:
        return "-"
    if result["goal"] != str(case.goal):  # the case was changed since, and nobody knows what it does now
        return f"for another goal ({result['goal']})"
    return f"{len(result['seeds'])}" if result["true"] else "no"
