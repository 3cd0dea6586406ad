"""Judges recorded runs as they would have been judged while they went on: what people are told, and after which step."""

from __future__ import annotations

import time

from benchmarks.pitfalls.case import Case
from benchmarks.pitfalls.scoring import Judged
from workers.watch.record import Record
from workers.watch.watching import Watch

LOOKS = 50  # in a run
FIRST_HELD_BACK_SEED = 100


def judged(case: Case, seed: int, record: Record, *, healed: bool = False) -> Judged:
    """Looks after the first step, every 2 % of them and at the end, as a job does; the first finding of warning or above that is told counts.

    ``healed``: the run is of the variant without the fault, and counts as a healthy one.
    """
    steps = record.total_steps
    watch, told = Watch(), None
    began, looks = time.process_time(), 0
    for step in looked_at(steps):
        changes = watch.look(record.until(step), final=step == steps)
        looks += 1
        alarms = [finding for finding in changes.judgement.findings if finding.severity != "note"]
        raised = {finding.key for finding in changes.raised}
        news = [finding for finding in alarms if finding.key in raised]
        if news:
            told = (news[0], step)
            break
    return Judged(
        name=case.name + (" (healed)" if healed else ""),
        seed=seed,
        held_back=case.held_back or seed >= FIRST_HELD_BACK_SEED,
        expected=None if healed else case.expected,
        accepted=() if healed else case.accepted,
        code=told[0].code if told else None,
        found_at=told[1] if told else None,
        steps=steps,
        layer=told[0].layer if told else None,
        first_bad_step=told[0].first_bad_step if told else None,
        judging_seconds=(time.process_time() - began) / looks,
    )


def looked_at(steps: int) -> list[int]:
    every = max(1, steps // LOOKS)
    return sorted({1, *range(every, steps + 1, every), steps})
