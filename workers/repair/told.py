"""What events tell of repairs. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

DONE, KEPT, TAKEN_BACK, UNDONE = "repair.done", "repair.kept", "repair.taken_back", "repair.undone"
SET_ASIDE = "repair.set_aside"
NONE, SKIPPED, REFUSED = "repair.none", "repair.skipped", "repair.refused"
CHANGES = (DONE, SET_ASIDE, KEPT, TAKEN_BACK, UNDONE)


def entries(told: Iterable[tuple[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """(type, data) of a job's events, oldest first -> what was done, each as it was told last, by number. A run that went on from an older checkpoint
    may have done a number again: then the latest counts."""
    found: dict[int, dict[str, Any]] = {}
    for type, data in told:
        repair = data.get("repair")
        if type in CHANGES and repair is not None:
            found[int(repair["act"]["number"])] = dict(repair)
    return [found[number] for number in sorted(found)]
