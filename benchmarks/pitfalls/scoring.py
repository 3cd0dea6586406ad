"""What the rules' answers are worth: recall, precision, false alarms, the first code, and how soon. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Judged:
    """One run of a case, judged as it went. ``code``: of the first finding of warning or above; None: there was none."""

    name: str
    seed: int
    held_back: bool  # case or seed
    expected: str | None  # None: healthy
    accepted: tuple[str, ...]
    code: str | None
    found_at: int | None  # step after which it was told
    steps: int
    layer: str | None = None
    first_bad_step: int | None = None
    judging_seconds: float = 0.0  # of a look

    @property
    def right(self) -> bool:
        return self.code is not None and self.code in (self.expected, *self.accepted)

    @property
    def well(self) -> bool:
        """Sick runs were called by a right code, healthy ones were left alone."""
        return self.code is None if self.expected is None else self.right

    @property
    def delay(self) -> float | None:
        """As a share of the run."""
        return None if self.found_at is None else self.found_at / self.steps


def score(runs: Sequence[Judged]) -> dict[str, Any]:
    """Shares are None where there is nothing to divide by. First codes count over the sick runs that were found: right ones are those that a case
    expects or accepts. Time of judging is that of the run whose looks took longest, in the mean over its looks."""
    sick = [run for run in runs if run.expected is not None]
    healthy = [run for run in runs if run.expected is None]
    found = [run for run in sick if run.code is not None]
    alarms = [run for run in healthy if run.code is not None]
    delays = sorted(run.delay for run in found if run.delay is not None)
    return {
        "sick": len(sick),
        "healthy": len(healthy),
        "recall": _share(len(found), len(sick)),
        "precision": _share(len(found), len(found) + len(alarms)),
        "false_alarms": _share(len(alarms), len(healthy)),
        "right_first_code": _share(sum(run.right for run in found), len(found)),
        "expected_first_code": _share(sum(run.code == run.expected for run in found), len(found)),
        "found_in_first_tenth": _share(sum(delay <= 0.1 for delay in delays), len(sick)),
        "found_in_first_half": _share(sum(delay <= 0.5 for delay in delays), len(sick)),
        "median_delay_share": delays[len(delays) // 2] if delays else None,
        "median_delay_steps": _median([run.found_at for run in found if run.found_at is not None]),
        "judging_milliseconds": 1e3 * max((run.judging_seconds for run in runs), default=0.0),
    }


def _median(values: Sequence[int]) -> int | None:
    return sorted(values)[len(values) // 2] if values else None


def by_code(runs: Sequence[Judged]) -> dict[str, dict[str, Any]]:
    """The same for the runs of each expected code."""
    codes = sorted({run.expected for run in runs if run.expected is not None})
    return {code: score([run for run in runs if run.expected == code]) for code in codes}


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
