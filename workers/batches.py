"""Which samples form which step, on which worker: pure functions of the job's seed and the step, never of the number of workers.

The samples of an epoch are permuted with a generator seeded by (seed, epoch). Step *n* takes the next ``batch_size`` of them; the last batch of an
epoch may be smaller. A step's samples are split into microbatches, of each of which a worker takes a contiguous, near-equal share.
"""

from __future__ import annotations

import contextlib
import math
import queue
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.sources.problems import BadDataError
from workers.spec import JobSpec
from workers.tasks.base import Batch, Dataset

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


@torch.no_grad()
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


def step_seed(seed: int, step: int, rank: int) -> int:
    """A seed that is different for every (seed, step, rank) and always the same for the same one."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> 1)


def seed_everything(seed: int) -> None:
    """Seeds every global generator that a model or a user's code may draw from."""
    torch.manual_seed(seed)  # also every accelerator's generator
    np.random.seed(seed % 2**32)
    random.seed(seed)


@dataclass(frozen=True)
class StepData:
    step: int  # from 0
    samples: int  # of the step over all workers
    microbatches: list[tuple[Batch, float]]


class Prefetcher:
    """Reads the batches of coming steps in a thread, so that reading and decoding stay off the step's path.

    Iterating gives one StepData a step, from ``first`` to the end of the plan. A problem while reading is raised at the step it belongs to.
    """

    def __init__(
        self,
        dataset: Dataset,
        plan: Plan,
        *,
        first: int,
        rank: int,
        world_size: int,
        accumulate: int,
        device: torch.device,
        depth: int = 2,
    ) -> None:
        self._read = _reader(dataset, plan, rank, world_size, accumulate, pin=device.type == "cuda")
        self._steps = range(first, plan.steps)
        self._device = device
        self._queue: queue.Queue[StepData | BaseException] = queue.Queue(depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="prefetch", daemon=True)
        self._thread.start()

    def _fill(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # pinning memory would else open a context on the first device
        for step in self._steps:
            try:
                item: StepData | BaseException = self._read(step)
            except BaseException as error:  # handed to the training thread, which raises it
                item = error
            self._queue.put(item)
            if self._closed.is_set() or isinstance(item, BaseException):
                return

    def __iter__(self) -> Iterator[StepData]:
        for _ in self._steps:
            item = self._queue.get()
            if isinstance(item, BaseException):
                raise item
            yield StepData(item.step, item.samples, [(to_device(b, self._device), w) for b, w in item.microbatches])

    def close(self) -> None:
        self._closed.set()
        with contextlib.suppress(queue.Empty):
            while True:  # frees the thread if it waits for room; it puts nothing more after that
                self._queue.get_nowait()
        self._thread.join(timeout=5)


def _reader(
    dataset: Dataset, plan: Plan, rank: int, world_size: int, accumulate: int, *, pin: bool
) -> Callable[[int], StepData]:
    def read(step: int) -> StepData:
        indices = plan.step_indices(step)
        seed = step_seed(plan.seed, plan.epoch(step), 0)
        parts = microbatches(indices, rank, world_size, accumulate)
        batches = [(dataset.batch(part.indices.tolist(), seed=seed), part.weight) for part in parts]
        if pin:
            batches = [({name: value.pin_memory() for name, value in b.items()}, w) for b, w in batches]
        return StepData(step, len(indices), batches)

    return read


def to_device(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    moved: dict[str, Tensor] = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
    return moved


def describe(plan: Plan) -> dict[str, Any]:
    return {"steps": plan.steps, "steps_per_epoch": plan.steps_per_epoch, "train_samples": plan.samples}
