"""Which of a run's steps are part of what it has become. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

from workers.repair.acts import Entry


def lost(entries: Sequence[Entry]) -> int:
    """Steps that are no part of the run any more. What is gone back to may have come after steps that were
    lost before it."""
    found = [(0, 0)]  # from which step on, how many
    for step, back, was in sorted(_returns(entries), key=lambda each: each[0]):
        before = next((count for begun, count in reversed(found) if begun < back or (begun == back and not was)), 0)
        found.append((step, step - (back - before)))
    return found[-1][1]


def _returns(entries: Sequence[Entry]) -> list[tuple[int, int, bool]]:
    """(step after which it was, step whose state it brought back, whether that is what it was before anything was done after it)."""
    found = []
    for entry in entries:
        act = entry.act
        if act.patches is not None:
            found.append((act.step, 0, False))
        elif act.rewind is not None:
            found.append((act.step, act.rewind, False))
        if entry.ended is not None and (entry.returned is not None or entry.state == "undone"):
            found.append((entry.ended, act.step if entry.returned is None else entry.returned, True))
    return found
