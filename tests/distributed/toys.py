"""A small task whose parts the tests choose, a reporter that remembers, and a run of the training loop with both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from workers.membership import Alone, Link, MeetingPoint
from workers.reports import Outcome, Progress, Reporter, StopMode
from workers.spec import JobSpec, parse_spec
from workers.tasks.base import BadDataError, Batch, Datasets, ModelFacts
from workers.train import RunContext, run
from workers.watch.probe_rows import WHOLE, Names, probes_of, unpack
from workers.watch.rank_rows import checksums_of, ranks_in, ranks_of
from workers.watch.rank_rows import unpack as unpack_ranks
from workers.watch.record import Checksums, Probes, Ranks

FEATURES, CLASSES = 12, 4


class Points:
    """Clouds of points around one centre a class; the same for every process."""

    def __init__(self, samples: int, seed: int, bad_sample: int | None = None) -> None:
        generator = torch.Generator().manual_seed(seed)
        centres = torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(99))
        self.labels = torch.randint(0, CLASSES, (samples,), generator=generator)
        self.points = centres[self.labels] + torch.randn(samples, FEATURES, generator=generator)
        self.bad_sample = bad_sample
        self.read: list[list[int]] = []  # every batch that was asked for, in order

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Sequence[int], *, seed: int) -> Batch:
        if self.bad_sample in indices:
            raise BadDataError("task.data.path", f"sample {self.bad_sample} cannot be read")
        self.read.append(list(indices))
        return {"x": self.points[list(indices)], "y": self.labels[list(indices)]}


@dataclass(frozen=True)
class Toy:
    """What is trained. Travels to the worker processes."""

    samples: int = 50
    evaluation_samples: int = 23
    normalization: bool = False
    dropout: float = 0.0
    bad_sample: int | None = None
    broken_loss_from: int | None = None  # call of the loss from which on it is NaN
    loud_from: int | None = (
        None  # call of the loss from which on it is a million times as large: gradients explode, to finite numbers
    )
    counts_weights: bool = False  # the loss's terms are not the samples
    deep: bool = False  # ten layers of sigmoids, through which no gradient comes
    untaught: bool = False  # the evaluation's labels are random: its loss soon rises


class ToyTask:
    def __init__(self, toy: Toy) -> None:
        self.toy = toy
        self.loss_calls = 0
        self.train = Points(toy.samples, seed=1, bad_sample=toy.bad_sample)

    def datasets(self) -> Datasets:
        toy = self.toy
        evaluation = Points(toy.evaluation_samples, seed=2) if toy.evaluation_samples else None
        if toy.untaught and evaluation:
            evaluation.labels = evaluation.labels.flip(0)
        return Datasets(self.train, evaluation)

    def model(self) -> nn.Module:
        norm = [nn.BatchNorm1d(16)] if self.toy.normalization else []
        if self.toy.deep:
            hidden = [each for _ in range(10) for each in (nn.Linear(16, 16), nn.Sigmoid())]
            return nn.Sequential(nn.Linear(FEATURES, 16), nn.Sigmoid(), *hidden, nn.Linear(16, CLASSES))
        drop = [nn.Dropout(self.toy.dropout)] if self.toy.dropout else []
        return nn.Sequential(
            nn.Linear(FEATURES, 16), *norm, nn.ReLU(), *drop, nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, CLASSES)
        )

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        self.loss_calls += 1
        losses = F.cross_entropy(model(batch["x"]), batch["y"], reduction="none")
        if self.toy.broken_loss_from is not None and self.loss_calls >= self.toy.broken_loss_from:
            losses = losses * float("nan")
        if self.toy.loud_from is not None and self.loss_calls >= self.toy.loud_from:
            losses = losses * 1e6
        if self.toy.counts_weights:  # as a language model counts tokens: samples have different numbers of terms
            terms = 1.0 + batch["y"].float()
            return (losses * terms).sum(), terms.sum()
        return losses.sum(), torch.tensor(float(len(losses)))

    def evaluate(self, model: nn.Module, batch: Batch) -> Mapping[str, tuple[Tensor, Tensor]]:
        logits = model(batch["x"])
        count = torch.tensor(float(len(logits)))
        return {
            "loss": (F.cross_entropy(logits, batch["y"], reduction="sum"), count),
            "accuracy": ((logits.argmax(1) == batch["y"]).sum(), count),
        }

    def facts(self) -> ModelFacts:
        return ModelFacts((FEATURES,), tuple(f"class {number}" for number in range(CLASSES)))


def job(**parts: Any) -> JobSpec:
    """A job whose task is never built: the tests hand over a Toy instead."""
    threads = {"threads": 1, **parts.pop("workers", {})}
    return parse_spec(
        {
            "name": "toy",
            "task": {"kind": "tabular", "data": {"source": "breast_cancer"}},
            "training": {"epochs": 3, "batch_size": 12, **parts.pop("training", {})},
            "workers": threads,
            **parts,
        }
    )


@dataclass
class Memory:
    """A Reporter that keeps everything."""

    rows: dict[int, dict[str, float]] = field(default_factory=dict)
    layers: tuple[str, ...] = ()
    norms: dict[int, list[float]] = field(default_factory=dict)
    events: list[tuple[str, str, Mapping[str, Any]]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)  # of the events
    probe_names: Names = field(default_factory=lambda: Names((), ()))
    probe_rows: dict[int, str] = field(default_factory=dict)
    rank_rows: list[str] = field(default_factory=list)
    progressed: list[Progress] = field(default_factory=list)

    def metrics(self, step: int, values: Mapping[str, float], timestamp: float) -> None:
        self.rows.setdefault(step, {}).update(values)

    def gradients(self, layers: Sequence[str], rows: Sequence[tuple[int, Sequence[float]]]) -> None:
        self.layers = tuple(layers)
        self.norms.update({step: list(norms) for step, norms in rows})

    def probes(self, layers: Sequence[str], activations: Sequence[str], rows: Sequence[tuple[int, str]]) -> None:
        self.probe_names = Names(tuple(layers), tuple(activations))
        self.probe_rows.update(rows)

    def ranks(self, rows: Sequence[str]) -> None:
        self.rank_rows.extend(rows)

    def probed(self) -> Probes:
        return probes_of(self.probe_names, unpack(self.probe_names, list(self.probe_rows.values())))

    def ranked(self) -> tuple[Ranks, Checksums]:
        """Rows of the last group's number of ranks."""
        ranks = ranks_in(self.rank_rows[-1])
        records = unpack_ranks(ranks, [row for row in self.rank_rows if ranks_in(row) == ranks])
        return ranks_of(records), checksums_of(records)

    def probe_histograms(self) -> NDArray[np.float64]:
        """(P, L, BINS), shares"""
        records = unpack(self.probe_names, list(self.probe_rows.values()))
        return np.asarray(records["histograms"] / WHOLE)

    def progress(self, progress: Progress) -> None:
        self.progressed.append(progress)

    def event(self, level: str, type: str, message: str, data: Mapping[str, Any] | None = None) -> None:
        self.events.append((level, type, dict(data or {})))
        self.messages.append(message)

    def series(self, key: str) -> list[float]:
        return [row[key] for _, row in sorted(self.rows.items()) if key in row]

    def found(self, type: str) -> list[Mapping[str, Any]]:
        return [data for _, kind, data in self.events if kind == type]


@dataclass
class Result:
    outcome: Outcome
    memory: Memory
    read: list[list[int]]  # training batches of this rank, in order


def context_in(folder: Path, reporter: Reporter, link: Link, **more: Any) -> RunContext:
    """On the CPU, with everything that is kept in ``folder``."""
    return RunContext(torch.device("cpu"), reporter, link, str(folder / "checkpoints"), folder / "model", **more)


def train_toy(
    rank: int,
    world_size: int,
    toy: Toy,
    spec: JobSpec,
    folder: Path,
    stop_after: int | None = None,
    stopper: int = 0,
    memory: Memory | None = None,
    meeting: MeetingPoint = None,
    **context_of: Any,
) -> Result:
    """Trains in this process. ``stop_after``: rank ``stopper`` asks to stop in the step of that number (from 1)."""
    memory, asked = memory or Memory(), 0

    def stop_requested() -> StopMode | None:
        nonlocal asked
        asked += 1
        return StopMode.CANCEL if rank == stopper and asked == stop_after else None

    context = context_in(folder, memory, Alone(rank, world_size, stop_requested, meeting), **context_of)
    task = ToyTask(toy)
    return Result(run(task, spec, context), memory, task.train.read)


train_toy.forms_its_own_group = True  # type: ignore[attr-defined]  # told to Processes
