"""The table of docs/pitfalls.md."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.pitfalls.case import Case
from benchmarks.pitfalls.verify import stored


def table(cases: Sequence[Case]) -> str:
    """Markdown. Verified: with how many seeds the case was what it claims to be; a dash where it has not been run."""
    known = stored()
    rows = ["| case | expected | also true | what it is | goal | verified, seeds |", "|---|---|---|---|---|---|"]
    for case in cases:
        result = known.get(case.name)
        seeds = "-" if result is None else f"{len(result['seeds'])}" if result["true"] else "no"
        also = ", ".join(f"`{code}`" for code in case.accepted)
        code = f"`{case.expected}`" if case.expected else "healthy"
        rows.append(f"| {case.name} | {code} | {also} | {case.words} | {case.goal} | {seeds} |")
    return "\n".join(rows)
