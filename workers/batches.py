"""The samples of a step as batches on a device, read ahead in a thread, and the seeds of a step. Which they are says ``sample_order``."""

from __future__ import annotations

import contextlib
import queue
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workers.sample_order import Indices, Microbatch, Plan, microbatches, permutation, plan_of, share
from workers.tasks.base import Batch, Dataset

__all__ = [
    "Indices",
    "Microbatch",
    "Plan",
    "Prefetcher",
    "StepData",
    "describe",
    "microbatches",
    "permutation",
    "plan_of",
    "seed_everything",
    "share",
    "step_seed",
    "to_device",
]


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
