"""Findings of a run over time, as documents: those that are open, and those that were raised before. Standard library only.

A document is a finding as events and answers have it, and besides

    state       "open", or "past": it was cleared, or the attempt in which it was raised is over
    raised      {"at": seconds since the epoch, "attempt", "step": steps done by then}; null when no event told it
    cleared     the same; null when it is open, and when its attempt ended before it passed
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from workers.repair import told as repair_told
from workers.watch.findings import Key, key_of

RAISED, CLEARED = "finding.raised", "finding.cleared"
BEFOREHAND = (
    "data.finding",
    "preflight.finding",
)  # are raised once, before the first step; the finding is all that they tell
CHANGES = (RAISED, CLEARED, *BEFOREHAND)
MOST_PAST = 200  # the latest; the others are counted
FORMAT = 1


class Told:
    """What the events of all attempts say of findings; each ``read`` takes the lines that were appended since the one before."""

    def __init__(self, events: Path) -> None:
        self._folder = events
        self._offsets: dict[str, int] = {}
        self._entries: list[dict[str, Any]] = []  # in the order in which they were raised
        self._latest: dict[Key, dict[str, Any]] = {}
        self._repairs: list[tuple[str, Mapping[str, Any]]] = []  # (type, data), oldest first

    @property
    def repairs(self) -> list[dict[str, Any]]:
        """What was done about them, up to the last ``read``, as ``repair.told.entries`` gives it."""
        return repair_told.entries(self._repairs)

    def read(self) -> list[dict[str, Any]]:
        """Every raising, oldest first, as documents without ``state``."""
        for path in sorted(self._folder.glob("attempt-*.jsonl")):
            with path.open("rb") as stream:
                stream.seek(self._offsets.get(path.name, 0))
                whole, end, _ = stream.read().rpartition(b"\n")  # a line is taken when its end is there
            self._offsets[path.name] = self._offsets.get(path.name, 0) + len(whole) + len(end)
            self._take(int(path.stem.rpartition("-")[2]), whole.split(b"\n"))
        return self._entries

    def _take(self, attempt: int, lines: Iterable[bytes]) -> None:
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                continue  # torn by a kill
            if event["type"] in repair_told.CHANGES:
                self._repairs.append((event["type"], event["data"]))
            if event["type"] not in CHANGES:
                continue
            data = event["data"]
            when = {"at": event["timestamp"], "attempt": attempt, "step": data.get("step", 0)}
            finding = data if event["type"] in BEFOREHAND else data["finding"]
            if event["type"] != CLEARED:
                raised = {**finding, "raised": when, "cleared": None}
                self._entries.append(raised)
                self._latest[key_of(finding)] = raised
            elif (entry := self._latest.get(key_of(finding))) is not None:
                entry["cleared"] = when


def findings_document(health: Mapping[str, Any], told: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """``health``: verdict, sentence and the findings that are open, in their order. ``told``: as ``Told.read`` gives it.

    {"format", "verdict", "sentence", "findings": open ones first, then past ones from the latest on, "left_out": past ones that are not in it}
    """
    latest: dict[Key, Mapping[str, Any]] = {}
    for entry in told:
        latest[key_of(entry)] = entry
    is_open = [key_of(finding) for finding in health.get("findings", ())]
    opened = [
        {**finding, "state": "open", "raised": latest[key]["raised"] if key in latest else None, "cleared": None}
        for finding, key in zip(health.get("findings", ()), is_open, strict=True)
    ]
    # An entry that was not cleared and whose key is open is the open one itself, raised once more as it got worse, or in an earlier attempt.
    past = [
        {**entry, "state": "past"}
        for entry in told
        if entry["cleared"] is not None or (key_of(entry) not in is_open and latest[key_of(entry)] is entry)
    ]
    return {
        "format": FORMAT,
        "verdict": health.get("verdict", "unknown"),
        "sentence": health.get("sentence", ""),
        "findings": opened + past[::-1][:MOST_PAST],
        "left_out": max(0, len(past) - MOST_PAST),
    }
