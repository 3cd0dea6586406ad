"""What a controller concludes from what it saw of its workers: pure functions, no Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from workers.reports import Outcome, ReasonCode
from workers.worker import Failure

GRACE_FOR_A_DEATH_SECONDS = 3.0  # between peers' errors and knowing who died


@dataclass(frozen=True)
class Seen:
    """The group at one moment, by rank."""

    world_size: int
    done: Mapping[int, Outcome]
    failed: Mapping[int, Failure]
    dead: Mapping[int, str]  # cause
    seconds_since_first_failure: float = 0.0


@dataclass(frozen=True)
class GoOn:
    """Nothing to decide yet."""


@dataclass(frozen=True)
class End:
    outcome: Outcome


@dataclass(frozen=True)
class Recover:
    """Form the group anew. ``ranks`` are the guilty ones with their causes."""

    ranks: Mapping[int, str]


Conclusion = GoOn | End | Recover


def conclude(seen: Seen) -> Conclusion:
    """A worker's own error ends the job; a death, or errors that only tell of one, make the group form anew.

    When a worker dies, its peers fail with "connection closed": that is never the reason. When a worker's own code fails, the
    peers hang or fail likewise.
    """
    own = {rank: failure for rank, failure in seen.failed.items() if not failure.collateral}
    if own:
        rank = min(own)
        failure = own[rank]
        others = f" (and {len(own) - 1} more)" if len(own) > 1 else ""
        return End(
            Outcome(
                failure.code,
                f"rank {rank}{others}: {failure.message}",
                {"rank": rank, "traceback": failure.traceback},
            )
        )
    if 0 in seen.done and all(rank in seen.done or rank in seen.dead for rank in range(seen.world_size)):
        return End(seen.done[0])  # rank 0 has written everything; a death after that changes nothing
    if seen.dead:
        return Recover(dict(seen.dead))
    if seen.failed and seen.seconds_since_first_failure > GRACE_FOR_A_DEATH_SECONDS:
        return Recover({rank: failure.message for rank, failure in seen.failed.items()})
    return GoOn()


@dataclass(frozen=True)
class Recoveries:
    """Counts recoveries; those without a new step between them are limited."""

    total: int = 0
    fruitless: int = 0
    step_at_last: int = -1

    def another(self, step: int) -> Recoveries:
        fruitless = self.fruitless + 1 if step <= self.step_at_last else 1
        return Recoveries(self.total + 1, fruitless, max(step, self.step_at_last))

    def exhausted(self, limit: int, causes: Mapping[int, str]) -> Outcome | None:
        if self.fruitless < limit or self.total < limit:
            return None
        said = "; ".join(f"rank {rank}: {cause}" for rank, cause in sorted(causes.items()))
        return Outcome(
            ReasonCode.NO_PROGRESS,
            f"workers were lost {self.fruitless} times in a row without a new step between; last: {said}",
        )
