"""How a change in the record of repairs is told to people. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from workers.repair.acts import BY_PEOPLE, Act, Entry
from workers.repair.told import DONE, KEPT, SET_ASIDE, TAKEN_BACK, UNDONE


@dataclass(frozen=True)
class Sentence:
    type: str  # of the event
    message: str
    level: Literal["info", "warning"]


def changed(entry: Entry, entries: Sequence[Entry], step: int) -> Sentence:
    """Of an entry whose state has changed after ``step``, or that is new. ``entries``: all, as they are now."""
    return _SAID[entry.state](entry, entries, step)


def _begun(entry: Entry, entries: Sequence[Entry], step: int) -> Sentence:
    act = entry.act
    if act.code == BY_PEOPLE:
        return Sentence(DONE, f"After step {step} {act.words}.", "info")
    back = f" (step {act.rewind})" if act.rewind is not None else ""
    trial = f" It is on trial for {act.probation} steps." if act.probation else ""
    return Sentence(
        DONE, f"Repair {act.number}, for {act.code}, after step {step}: {act.words}{back}.{trial}", "warning"
    )


def _set_aside(entry: Entry, entries: Sequence[Entry], step: int) -> Sentence:
    said = f"Repair {entry.act.number} helped: {entry.act.code} was not seen again in {_lasted(entry, step)} steps. Another is compared with it."
    return Sentence(SET_ASIDE, said, "info")


def _kept(entry: Entry, entries: Sequence[Entry], step: int) -> Sentence:
    act = entry.act
    if act.probation == 0:
        return _begun(entry, entries, step)
    rivals = _rivals(entry, entries)
    if rivals:
        names = ", ".join(str(each.act.number) for each in rivals)
        loss = f" (loss {entry.score:.3g})" if entry.score is not None else ""
        said = f"Repair {act.number} did better{loss} than what was compared with it ({names}), and is kept."
    elif act.rival is not None and entry.score is not None:
        said = f"Repair {act.number} did better than the run as it was (loss {entry.score:.3g} beside {act.rival:.3g}), and is kept."
    else:
        said = f"Repair {act.number} helped and is kept: {act.code} was not seen again in {_lasted(entry, step)} steps."
    return Sentence(KEPT, said, "info")


def _taken_back(entry: Entry, entries: Sequence[Entry], step: int) -> Sentence:
    act, lasted = entry.act, _lasted(entry, step)
    if any(each.act.against == act.number for each in entries):
        return Sentence(TAKEN_BACK, f"Repair {act.number} gives way to one that does better.", "info")
    if act.against is not None:
        said = (
            f"Repair {act.number} did no better than what it was compared with, and is taken back after {lasted} steps."
        )
        return Sentence(TAKEN_BACK, said, "info")
    if act.rival is not None and entry.score is not None:
        said = f"Repair {act.number} did no better than the run as it was, and is taken back after {lasted} steps."
        return Sentence(TAKEN_BACK, said, "info")
    return Sentence(TAKEN_BACK, f"Repair {act.number} did not help and is taken back after {lasted} steps.", "warning")


def _undone(entry: Entry, entries: Sequence[Entry], step: int) -> Sentence:
    back = entry.act.step if entry.returned is None else entry.returned
    said = f"Repair {entry.act.number} is undone, as asked: weights and optimizer are as they were after step {back}."
    return Sentence(UNDONE, said, "warning")


def _lasted(entry: Entry, step: int) -> int:
    return (step if entry.ended is None else entry.ended) - entry.act.step


def _rivals(entry: Entry, entries: Sequence[Entry]) -> list[Entry]:
    """Compared with it, or it with them."""
    act: Act = entry.act
    return [each for each in entries if each.act.against == act.number or each.act.number == act.against]


_SAID = {"trial": _begun, "set_aside": _set_aside, "kept": _kept, "taken_back": _taken_back, "undone": _undone}
