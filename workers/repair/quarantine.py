"""Samples that a run leaves out: which ones at any time, how many may be, and what is said of them. Standard library and pydantic only.

The list is no state of its own: it follows from the record of repairs, which travels in checkpoints and from worker to worker, and of which events
tell. So whoever knows the acts behind a step knows the samples that formed it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from workers.repair.acts import Act, Entry

MOST = 0.01  # of the samples, without anybody being asked; more is a matter of the data set, not of some rows
NAMED = 10  # samples that a sentence names

# Findings behind which single samples can be. A rank that has one of them in its part of the batch looks like one whose device computes wrongly.
OF_SAMPLES = frozenset({
    "nonfinite_data", "nonfinite_gradient", "loss_spike", "exploding_gradient", "lr_too_high", "oscillating_loss",
    "silent_corruption",
})  # fmt: skip


@dataclass(frozen=True)
class Blamed:
    """Samples that were found out one by one, ascending."""

    nonfinite: tuple[int, ...] = ()  # whose own loss or gradient is no number
    extreme: tuple[int, ...] = ()  # whose own gradient is far beyond that of all others
    looked_at: int = 0

    @property
    def samples(self) -> list[int]:
        return sorted({*self.nonfinite, *self.extreme})

    def without(self, samples: Collection[int]) -> Blamed:
        nonfinite, extreme = (
            tuple(each for each in found if each not in samples) for found in (self.nonfinite, self.extreme)
        )
        return Blamed(nonfinite, extreme, self.looked_at)


Blame = Callable[[Mapping[str, Any]], Blamed]  # of a finding, as a document


def left_out(first: Iterable[int], acts: Iterable[Act]) -> tuple[int, ...]:
    """Ascending. ``first``: of the job itself; ``acts``: those that hold, oldest first."""
    found = set(first)
    for act in acts:
        found.update(act.leaves_out or ())
        found.difference_update(act.takes_in or ())
    return tuple(sorted(found))


def left_out_now(first: Iterable[int], entries: Iterable[Entry]) -> tuple[int, ...]:
    """The same, of a record of repairs."""
    return left_out(first, [each.act for each in entries if each.state in ("trial", "kept")])


def holding(acts: Iterable[Act]) -> list[Act]:
    """Of acts as ranks agreed on them, oldest first, verdicts among them: those that hold after the last."""
    found: dict[int, Act] = {}
    for act in acts:
        if act.verdict is None:
            found.pop(act.instead_of or 0, None)
            found[act.number] = act
        elif act.verdict != "kept":
            found.pop(act.instead_of or 0, None)
    return list(found.values())


def bound(samples: int) -> int:
    """How many of them may be left out without anybody being asked."""
    return max(1, int(MOST * samples))


def why_too_many(found: int, out: int, samples: int) -> str | None:
    """A part of a sentence; None: they may be. ``out``: those that are left out already."""
    if found + out <= bound(samples):
        return None
    also = f" beside the {out} that are left out already" if out else ""
    return f"{found:,} of {samples:,} samples are at fault{also}, and more than {100 * MOST:g} % are for people to decide about"


def said_of(blamed: Blamed) -> str:
    """For people: what is done, as a part of a sentence."""
    parts = []
    if blamed.nonfinite:
        parts.append(
            f"{_counted(blamed.nonfinite)} whose own loss or gradient is no number ({listed(blamed.nonfinite)})"
        )
    if blamed.extreme:
        parts.append(
            f"{_counted(blamed.extreme)} whose own gradient is far beyond all others' ({listed(blamed.extreme)})"
        )
    return f"leaves out {' and '.join(parts)}; others take their places"


def said_of_request(leave_out: Sequence[int] | None, take_in: Sequence[int] | None) -> list[str]:
    said = []
    if leave_out:
        said.append(f"{_counted(leave_out)} {_are(leave_out)} left out ({listed(leave_out)})")
    if take_in:
        said.append(f"{_counted(take_in)} {_are(take_in)} taken in again ({listed(take_in)})")
    return said


def listed(samples: Sequence[int]) -> str:
    more = len(samples) - NAMED
    return ", ".join(map(str, samples[:NAMED])) + (f" and {more:,} more" if more > 0 else "")


def _counted(samples: Sequence[int]) -> str:
    return f"{len(samples):,} sample{'s' * (len(samples) > 1)}"


def _are(samples: Sequence[int]) -> Literal["is", "are"]:
    return "are" if len(samples) > 1 else "is"
