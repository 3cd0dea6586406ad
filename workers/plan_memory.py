"""From one simulated step to the memory of a worker under any strategy, number of workers and accumulation; and what to do when it does not fit.

ddp: every worker holds everything; with several workers, or several microbatches, all gradients live all the time. fsdp: weights, gradients and
optimizer state are split; the root and two units of weights are gathered at a time, with the gradients of them on their way (torch's FSDP2 as
``workers/sharding.py`` uses it). While microbatches are added up there, gradients are whole on each worker.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from workers.simulation import Simulation

Strategy = Literal["ddp", "fsdp"]
MOST_WORKERS = 64
GIB = 1 << 30


@dataclass(frozen=True)
class Layout:
    strategy: Strategy
    workers: int
    accumulate: int
    batch_size: int  # over all workers

    @property
    def microbatch(self) -> int:
        """Samples of the largest one."""
        return math.ceil(math.ceil(self.batch_size / self.accumulate) / self.workers)

    @property
    def possible(self) -> bool:
        return self.workers * self.accumulate <= self.batch_size


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker. ``process``: all that is no tensor of the step, which the device's memory holds too."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    buffers: int  # gathered weights and gradients on their way
    process: int

    @property
    def total(self) -> int:
        return sum(asdict(self).values())

    @property
    def tensors(self) -> int:
        return self.total - self.process


def memory(found: Simulation, layout: Layout, process: int) -> Memory:
    samples, split = layout.microbatch, layout.workers if layout.strategy == "fsdp" else 1
    if layout.workers == 1 and layout.accumulate == 1:  # gradients come while activations go
        gradients = found.at(samples, lambda step: step.peak.gradients)
        activations = found.at(samples, lambda step: step.peak.activations)
        activations = max(activations, found.gradients - gradients)  # at the end of the backward pass all are there
    else:
        gradients = float(found.gradients)
        activations = found.at(samples, lambda step: step.most_activations)
    if split > 1 and layout.accumulate == 1:
        gradients /= split
    moving = 2 * found.root + 4 * found.largest_unit if split > 1 else 0
    return Memory(
        weights=math.ceil(found.weights / split),
        gradients=math.ceil(gradients),
        optimizer=math.ceil(found.optimizer / split),
        activations=math.ceil(activations),
        buffers=min(moving, 4 * found.weights),
        process=process,
    )


def table(found: Simulation, asked: Layout, process: int, limit: int | None) -> list[dict[str, Any]]:
    """The layout that was asked for, first, and others to compare it with."""
    layouts = [asked]
    for workers in sorted({1, 2, 4, 8, asked.workers}):
        for strategy in ("ddp", "fsdp"):
            layout = Layout(strategy, workers, asked.accumulate, asked.batch_size)
            if layout.possible and layout not in layouts and (strategy == "ddp" or workers > 1):
                layouts.append(layout)
    return [row(layout, memory(found, layout, process), limit) for layout in layouts]


def row(layout: Layout, needed: Memory, limit: int | None) -> dict[str, Any]:
    return {
        "strategy": layout.strategy,
        "workers": layout.workers,
        "accumulate": layout.accumulate,
        "microbatch": layout.microbatch,
        "memory": {**asdict(needed), "total": needed.total},
        "fits": None if limit is None else needed.total <= limit,
    }


def advice(found: Simulation, asked: Layout, process: int, limit: int | None, limit_name: str) -> list[str]:
    needed = memory(found, asked, process)
    if limit is None:
        return []
    if needed.total <= limit:
        return _less_talk(found, asked, process, limit)
    said = f"Does not fit: a worker needs {size(needed.total)}, {limit_name} is {size(limit)}."
    ways = [_words(layout, asked, memory(found, layout, process)) for layout in _ways(found, asked, process, limit)]
    if ways:
        return [said, *(f"What does: {way}." for way in ways)]
    least = memory(found, Layout("fsdp", 1, 1, 1), process)
    held = size(least.weights + found.gradients + found.optimizer)
    return [
        said,
        f"Nothing up to {MOST_WORKERS} workers does: weights, gradients and optimizer state are {held}, "
        f"and the activations of one sample {size(math.ceil(found.at(1, lambda step: step.most_activations)))}.",
    ]


def _less_talk(found: Simulation, asked: Layout, process: int, limit: int) -> list[str]:
    if asked.strategy == "fsdp" and asked.workers > 1:
        whole = Layout("ddp", asked.workers, asked.accumulate, asked.batch_size)
        if memory(found, whole, process).total <= limit:
            return ["ddp fits as well and communicates less than fsdp."]
    return []


def _ways(found: Simulation, asked: Layout, process: int, limit: int) -> Iterator[Layout]:
    """The least change of each sort that fits: smaller microbatches, splitting over the same workers, more workers."""
    for strategy in dict.fromkeys((asked.strategy, "fsdp")):
        doubled = (asked.accumulate * 2**power for power in range(17))
        same = (Layout(strategy, asked.workers, count, asked.batch_size) for count in doubled)
        if strategy == "ddp" or asked.workers > 1:
            yield from _first(found, same, asked, process, limit)
    counts = (2**power for power in range(1, 7))
    more = (Layout("fsdp", count, asked.accumulate, asked.batch_size) for count in counts if count > asked.workers)
    yield from _first(found, more, asked, process, limit)


def _first(found: Simulation, layouts: Iterator[Layout], asked: Layout, process: int, limit: int) -> Iterator[Layout]:
    for layout in layouts:
        if layout.possible and layout != asked and memory(found, layout, process).total <= limit:
            yield layout
            return


def _words(layout: Layout, asked: Layout, needed: Memory) -> str:
    parts = []
    if layout.strategy != asked.strategy:
        parts.append(f"workers.strategy {layout.strategy}")
    if layout.workers != asked.workers:
        parts.append(f"{layout.workers} workers")
    if layout.accumulate != asked.accumulate:
        parts.append(f"training.accumulate {layout.accumulate} (microbatches of {layout.microbatch})")
    return f"{' with '.join(parts)}, {size(needed.total)}"


def size(count: float) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / (1 << 20):.0f} MiB"
