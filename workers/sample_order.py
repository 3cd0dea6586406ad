"""Which samples form which step, on which worker: pure functions of the job's seed and the step, never of the number of workers.

The samples of an epoch are permuted with a generator seeded by (seed, epoch). Step *n* takes the next ``batch_size`` of them; the last batch of an
epoch may be smaller. A step's samples are split into microbatches, of each of which a worker takes a contiguous, near-equal share.

Without torch: whoever looks at a step long after needs no more than this.
"""

from __future__ import annotations

import math
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

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.samples / self.batch_size)

    def epoch(self, step: int) -> int:
        """Epoch to which step ``step`` (from 0) belongs."""
        return step // self.steps_per_epoch

    def step_indices(self, step: int) -> Indices:
        """Samples of step ``step`` (from 0) over all workers, in order."""
        epoch, position = divmod(step, self.steps_per_epoch)
        return permutation(self.samples, self.seed, epoch)[
            position * self.batch_size : (position + 1) * self.batch_size
        ]


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
    unit, length = spec.training.length
    steps = length if unit == "steps" else length * math.ceil(samples / batch_size)
    return Plan(samples, batch_size, spec.training.seed, steps)


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
