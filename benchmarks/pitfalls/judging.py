"""Judges recorded runs as they would have been judged while they went on."""

from __future__ import annotations

from benchmarks.pitfalls.case import Case
from benchmarks.pitfalls.loop import run
from benchmarks.pitfalls.scoring import Judged
from workers.watch.diagnosis import diagnose
from workers.watch.record import Record

LOOKS = 50  # in a run
FIRST_HELD_BACK_SEED = 100


def first_code(record: Record) -> str | None:
    """Of the first finding of warning or above, as the rules put them in order."""
    serious = [finding for finding in diagnose(record).findings if finding.severity != "note"]
    return serious[0].code if serious else None


def judged(case: Case, seed: int) -> Judged:
    """Runs the case and looks at it after every 2 % of its steps; the first alarm counts."""
    job = case.build(seed)
    record = run(job, seed, watch=True).record
    assert record is not None
    code = found_at = None
    every = max(1, job.steps // LOOKS)
    for step in [1, *range(every, job.steps + 1, every)]:
        code = first_code(record.until(step))
        if code is not None:
            found_at = step
            break
    held_back = case.held_back or seed >= FIRST_HELD_BACK_SEED
    return Judged(case.name, seed, held_back, case.expected, case.accepted, code, found_at, job.steps)
