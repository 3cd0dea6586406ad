"""What a look at data gives, and the time that it may take."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from workers.sources.arrays import SPLIT_SEED
from workers.watch.findings import Finding, Severity

NAMED = 5  # items that a finding names, at most


@dataclass(frozen=True)
class Report:
    """``sentence`` is for people, ``summary`` for programs. ``unchecked``: why nothing, or not everything, was looked at.

    ``problem``: (field of the job, message) of what makes training impossible.
    """

    sentence: str = ""
    summary: Mapping[str, Any] = field(default_factory=dict)
    findings: Sequence[Finding] = ()
    unchecked: str | None = None
    problem: tuple[str, str] | None = None

    def document(self) -> dict[str, Any]:
        return asdict(self)


class Clock:
    """How much of the time for a look is left."""

    def __init__(self, seconds: float) -> None:
        self._ends_at = time.monotonic() + seconds

    def over(self) -> bool:
        return time.monotonic() >= self._ends_at

    def share(self, share: float) -> Clock:
        """One that ends after a part of what is left."""
        return Clock(share * max(0.0, self._ends_at - time.monotonic()))


def sampled(count: int, clock: Clock) -> Iterator[int]:
    """All of ``count`` items in a random but fixed order, until the time is over: what was seen until then is a fair sample."""
    for index in np.random.default_rng(SPLIT_SEED).permutation(count).tolist():
        if clock.over():
            return
        yield index


def finding(code: str, severity: Severity, evidence: Mapping[str, Any], explanation: str, suggestion: str) -> Finding:
    """Of data: there before the first step, and in no layer."""
    return Finding(code, severity, 0, None, evidence, explanation, suggestion)


def empty_samples(
    part: str,
    empty: Sequence[str],
    seen: int,
    what: str,
    warning: float,
    *,
    lack: str,
    meaning: str,
    suggestion: str,
) -> list[Finding]:
    """``empty``: names of those with nothing in them, of ``seen`` samples of a part; ``warning``: share from which on it is more than a note."""
    if not empty:
        return []
    share = len(empty) / seen
    everything = share == 1.0 and part == "training"
    return [
        finding(
            "empty_samples",
            "critical" if everything else "warning" if share >= warning else "note",
            {"part": part, "share": share, "count": len(empty), "examples": list(empty[:NAMED])},
            f"{len(empty):,} of {seen:,} {part} {what} ({percent(share)}) {lack}: {listed(empty)}. {meaning}",
            suggestion,
        )
    ]


def looked_at(seen: int, total: int, what: str) -> str | None:
    """Of a look for which there was not enough time."""
    if seen >= total:
        return None
    return f"only {seen:,} of {total:,} {what}, drawn at random, were looked at: the time for it was over"


def percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"


def listed(names: Sequence[str], most: int = NAMED) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")


def counted(count: int, singular: str, plural: str | None = None) -> str:
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"
