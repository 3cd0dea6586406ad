"""Which samples form which step, on which worker: pure functions of the job's seed and the step, never of the number of workers.

The samples of an epoch are permuted with a generator seeded by (seed, epoch). Step *n* takes the next ``batch_size`` of them; the last batch of an
epoch may be smaller. A step's samples are split into microbatches, of each of which a worker takes a contiguous, near-equal share.

A sample that is left out keeps its place in the order; another one of the epoch fills it. So batches, epochs and steps are as many and as large as
without the list, whatever is on it, and the same on any number of workers.

Without torch: whoever looks at a step long after needs no more than this.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from workers.sources.problems import BadDataError
from workers.spec import JobSpec

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """The order of samples over a whole run."""

    samples: int  # in the training set
    batch_size: int  # over all workers
    seed: int
    steps: int  # of the whole run
    left_out: tuple[int, ...] = ()  # samples whose places others fill, ascending

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.samples / self.batch_size)

    def epoch(self, step: int) -> int:
        """Epoch to which step ``step`` (from 0) belongs."""
        return step // self.steps_per_epoch

    def step_indices(self, step: int) -> Indices:
        """Samples of step ``step`` (from 0) over all workers, in order."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order, first = permutation(self.samples, self.seed, epoch), position * self.batch_size
        taken = order[first : first + self.batch_size]
        return _filled(order, first, taken, self.left_out) if self.left_out else taken


def _filled(order: Indices, first: int, taken: Indices, left_out: Sequence[int]) -> Indices:
    """``taken``: from place ``first`` of the epoch's order on. Each that is left out gives its place to the sample half an epoch further on, in
    another batch, or to the next one after that which is not left out itself."""
    places = np.flatnonzero(np.isin(taken, left_out))
    if not len(places):
        return taken
    found, out = taken.copy(), frozenset(left_out)
    for place in places.tolist():
        other = first + place + len(order) // 2
        while int(order[other % len(order)]) in out:
            other += 1
        found[place] = order[other % len(order)]
    return found


def plan_of(spec: JobSpec, samples: int) -> Plan:
    """Raises BadDataError when there is nothing to train on, or less than one batch of it."""
    if samples == 0:
        raise BadDataError("task.data", "there are no training samples")
    batch_size = spec.training.batch_size
    if batch_size > samples:
        raise BadDataError(
            "training.batch_size",
            f"{batch_size} is larger than the {samples} training samples; at most {samples} is allowed",
        )
    problem = why_not_left_out(spec.training.leave_out, samples, batch_size)
    if problem is not None:
        raise BadDataError("training.leave_out", problem)
    unit, length = spec.training.length
    steps = length if unit == "steps" else length * math.ceil(samples / batch_size)
    return Plan(samples, batch_size, spec.training.seed, steps, tuple(sorted(spec.training.leave_out)))


def why_not_left_out(rows: Sequence[int], samples: int, batch_size: int) -> str | None:
    """What is wrong with a list of samples that are to be left out; None: nothing is."""
    beyond = [row for row in rows if not 0 <= row < samples]
    if beyond:
        return f"there is no sample {beyond[0]}; allowed is 0 to {samples - 1}, its index in the training set"
    kept = samples - len(set(rows))
    if kept < batch_size:
        return f"{kept} of {samples} samples would be left; a batch needs {batch_size}"
    return None


@lru_cache(maxsize=2)
def permutation(samples: int, seed: int, epoch: int) -> Indices:
    return np.random.default_rng((seed, epoch)).permutation(samples)


def share(indices: Indices, rank: int, world_size: int) -> Indices:
    """The contiguous part of ``indices`` that worker ``rank`` takes; sizes differ by at most one."""
    return np.array_split(indices, world_size)[rank]


@dataclass(frozen=True)
class Microbatch:
    """``weight`` is 0 for the stand-in of an empty share: its loss counts nothing, but its worker joins every collective."""

    indices: Indices
    weight: float


def microbatches(indices: Indices, rank: int, world_size: int, accumulate: int) -> list[Microbatch]:
    """What worker ``rank`` does of a step whose samples are ``indices``: the same number of microbatches on every worker.

    The samples are split into microbatches first and each of these is shared out, so that what batch norm sees together does
    not depend on the number of workers either. The larger shares go round, so that the workers' totals differ by at most one.
    """
    found, dealt = [], 0
    for whole in np.array_split(indices, min(accumulate, len(indices))):
        mine = share(whole, (rank - dealt) % world_size, world_size)
        found.append(Microbatch(mine, 1.0) if len(mine) else Microbatch(whole[:1], 0.0))
        dealt += len(whole)
    return found
