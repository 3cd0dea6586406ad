"""Is each case what it claims to be? Sick ones miss their goal with every seed, their healed variants and healthy ones reach it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.measure import RESULTS
from benchmarks.pitfalls.case import Case
from benchmarks.pitfalls.loop import run

VERIFIED = RESULTS / "pitfalls_verified.json"
UNSEEN = RESULTS / "pitfalls_unseen_verified.json"  # of the families ``unseen_*``


@dataclass(frozen=True)
class Verified:
    """Values of the goal's metric at the end of the run, one a seed; null where it is not a number."""

    name: str
    goal: str
    seeds: tuple[int, ...]
    values: tuple[float | None, ...]
    reached: tuple[bool, ...]
    healed_values: tuple[float | None, ...] = ()
    healed_reached: tuple[bool, ...] = ()
    seconds: float = field(default=0.0, compare=False)  # the longest run

    @property
    def true(self) -> bool:
        """For sick cases, which have healed values: the fault is what makes it fail."""
        if self.healed_reached:
            return not any(self.reached) and all(self.healed_reached)
        return all(self.reached)


def verify(case: Case, seeds: Sequence[int]) -> Verified:
    outcomes = [run(case.build(seed), seed) for seed in seeds]
    healed = [run(case.healed(seed), seed) for seed in seeds] if case.healed is not None else []

    def values(of: list[Any]) -> tuple[float | None, ...]:
        found = [outcome.metrics.get(case.goal.metric) for outcome in of]
        return tuple(round(value, 4) if value is not None and abs(value) < 1e30 else None for value in found)

    return Verified(
        case.name,
        str(case.goal),
        tuple(seeds),
        values(outcomes),
        tuple(case.goal.reached(outcome.metrics) for outcome in outcomes),
        values(healed),
        tuple(case.goal.reached(outcome.metrics) for outcome in healed),
        round(max(outcome.seconds for outcome in [*outcomes, *healed]), 1),
    )


def stored() -> dict[str, dict[str, Any]]:
    """What was verified before, by name of the case."""
    lines = [line for path in (VERIFIED, UNSEEN) if path.exists() for line in path.read_text("utf-8").splitlines()]
    return {document["name"]: document for document in map(json.loads, lines)}


def store(results: Sequence[Verified], names: Sequence[str]) -> None:
    """Adds to what is there, in the order of ``names``; what is not of the suite any more is dropped."""
    known = {**stored(), **{result.name: vars(result) | {"true": result.true} for result in results}}
    for path, unseen in ((VERIFIED, False), (UNSEEN, True)):
        documents = [known[name] for name in names if name in known and name.startswith("unseen_") == unseen]
        path.write_text("".join(json.dumps(document) + "\n" for document in documents), encoding="utf-8")


def lines(result: Verified) -> Iterator[str]:
    mark = "ok   " if result.true else "WRONG"
    yield f"{mark} {result.name:<36} {result.goal:<18} {_row(result.values)}  {result.seconds:.1f} s"
    if result.healed_values:
        yield f"      {'healed':<36} {'':<18} {_row(result.healed_values)}"


def _row(values: Sequence[float | None]) -> str:
    return " ".join("nan" if value is None else f"{value:.3g}" for value in values)
