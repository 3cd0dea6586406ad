"""What a run of the suite leaves: the one place where the suite's loop meets the product's parts that measure.

Facts come from the first pass, norms and probes from the product's own classes. What the suite has by itself is what the product's loop does not
have: ranks that are replicas in one process, so that each one's gradients and weights are looked at here; and gradients that are not cleared, which
that loop makes impossible.
"""

from __future__ import annotations

import contextlib
import hashlib
from contextlib import AbstractContextManager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.pitfalls.case import Job
from workers.gradients import GradientMonitor
from workers.watch.facts import MARKS, FirstPass
from workers.watch.memory import median_loss
from workers.watch.probe_rows import ProbeLog, pack
from workers.watch.probes import Prober
from workers.watch.record import Checksums, Evaluations, Facts, Ranks, Record, Series
from workers.watch.spending import Spending, surely_probed

# Of a run, besides the first steps that are always probed. What a budget of seconds pays for is another number on each machine, and next to nothing
# where a step takes a millisecond; a run of the suite stands for one of thousands of steps, of which 2 % of the time pay for about so many.
PROBES = 50
PRECISIONS = {torch.bfloat16: "bf16", torch.float16: "fp16"}


class Recorder:
    """Of a run that it is told of step by step. Facts, norms and probes are of the first replica, whose gradients are those of all when they are
    measured."""

    def __init__(self, job: Job, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.job, self.model, self.optimizer = job, model, optimizer
        device = torch.device("cpu")
        self.monitor = GradientMonitor(model, device)
        self.spending = Spending(1.0)
        self.prober = Prober(model, optimizer, device, self.spending)
        self.probes = ProbeLog(self.prober.names)
        self.first: FirstPass | None = None
        self.told = False  # the first pass, of what its loss was
        self.every = max(1, job.steps // PROBES)
        self.step = 0
        self.total = job.steps  # of the run, as long as it is now
        self.steps: list[int] = []
        self.norms: list[np.ndarray] = []
        self.rows: list[tuple[float, float, float, float, float]] = []  # loss, rate, clip, seconds, wait
        self.nonfinite: list[int] = []
        self.evaluations: list[tuple[int, dict[str, float]]] = []
        self.own: list[list[float]] = [[] for _ in range(job.ranks)]
        self.losses: list[list[float]] = [[] for _ in range(job.ranks)]
        self.samples: list[list[float]] = [[] for _ in range(job.ranks)]
        self.checksums: list[tuple[int, list[int]]] = []
        self.uncleared: float | None = None
        group = optimizer.param_groups[0]
        self.rate, self.momentum, self.decay = group["lr"], group.get("momentum"), group.get("weight_decay")

    @property
    def probing(self) -> bool:
        return surely_probed(self.step) or self.step % self.every == 0

    def passes_begin(self, step: int, inputs: Tensor, targets: Tensor) -> None:
        self.step = step
        self.nonfinite.append(sum(int((~each.isfinite()).sum()) for each in (inputs, targets)))
        if step == 2 and self.norms:  # the first one may have been left behind
            left = float(self.monitor.measure().square().sum().sqrt())
            first = float(np.sqrt(np.square(self.norms[0]).sum()))
            self.uncleared = left / first if first > 0 else 0.0
        if self.probing:
            self.prober.begin(step)

    def pass_begins(self, inputs: Tensor, targets: Tensor) -> AbstractContextManager[None]:
        """Around the loss of a microbatch of the first replica."""
        self.prober.begin_pass(True)
        if self.first is not None:
            return contextlib.nullcontext()
        batch = {"inputs": inputs, "targets": targets}
        self.first = FirstPass(self.model, batch, self.optimizer, see_calls=True)
        return self.first.watch()

    def passed(self, rank: int, loss: float, samples: int) -> None:
        self.losses[rank].append(loss)
        self.samples[rank].append(samples)

    def loss_was(self, loss: Tensor, inputs: Tensor) -> None:
        """Of that microbatch, the mean over its samples."""
        if not self.told and self.first is not None:
            self.told = True
            count = torch.tensor(float(len(inputs)))
            train = cast(Any, SimpleNamespace(labels=self.job.train.targets))  # all that counting classes asks for
            self.first.took(loss * count, count, train)

    def own_gradients(self, replicas: list[nn.Module]) -> None:
        if len(replicas) == 1:
            return
        for rank, model in enumerate(replicas):
            gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
            norms = torch._foreach_norm(gradients) if gradients else (torch.zeros(()),)
            self.own[rank].append(float(torch.stack(list(norms)).norm()))

    def before_update(self) -> None:
        """Gradients are averaged and not yet clipped."""
        self.norms.append(self.monitor.measure().numpy())
        self.prober.before_update(torch.ones(()))

    def stepped(
        self, loss: float, rate: float, clipped: float, seconds: float, wait: float, replicas: list[nn.Module]
    ) -> None:
        self.steps.append(self.step)
        self.rows.append((loss, rate, clipped, seconds, wait))
        self.spending.step_took(seconds)
        row = self.prober.after_update()
        if row is not None:
            self.probes.add(pack(self.prober.names, self.step, self.spending.share, row.numpy()))
        if len(replicas) > 1 and self.probing:
            self.checksums.append((self.step, [_checksum(model) for model in replicas]))

    def evaluated(self, step: int, metrics: dict[str, float]) -> None:
        self.evaluations.append((step, metrics))

    def begin_anew(self, after: int, through: int, steps: int) -> None:
        """The run was changed: steps that it has left behind are not judged any more. ``steps``: its length now."""
        rows = [row for row, step in enumerate(self.steps) if not after < step <= through]
        logs: list[list[Any]] = [self.steps, self.norms, self.rows, self.nonfinite]
        for log in [*logs, *self.own, *self.losses, *self.samples]:
            log[:] = [log[row] for row in rows] if log else []
        self.evaluations = [each for each in self.evaluations if not after < each[0] <= through]
        self.checksums = [each for each in self.checksums if not after < each[0] <= through]
        self.probes.forget(after, through)
        self.total = steps

    def loss_of(self, steps: range) -> float | None:
        """Median of the training loss of these; None: there are none, or it is not finite."""
        return median_loss([row[0] for row, number in zip(self.rows, self.steps, strict=True) if number in steps])

    def record(self) -> Record:
        names = sorted({name for _, metrics in self.evaluations for name in metrics})
        steps = np.array(self.steps, dtype=np.int64)
        losses, rates, clips, seconds, waits = np.array(self.rows, dtype=np.float64).T
        several = self.job.ranks > 1
        return Record(
            facts=self._facts(),
            series=Series(
                self.monitor.layers.names, steps, losses, np.array(self.norms), rates, clips, seconds, waits,
                np.array(self.nonfinite, dtype=np.float64),
            ),
            probes=self.probes.probes(),
            evaluations=Evaluations(
                np.array([step for step, _ in self.evaluations], dtype=np.int64),
                {name: np.array([m.get(name, np.nan) for _, m in self.evaluations]) for name in names},
            ),
            ranks=Ranks(steps, np.array(self.own).T, np.array(self.samples).T, np.array(self.losses).T)
            if several
            else Ranks(),
            checksums=Checksums(
                np.array([step for step, _ in self.checksums]),
                np.array([values for _, values in self.checksums], dtype=np.uint64),
            )
            if several
            else Checksums(),
            uncleared=self.uncleared,
        )  # fmt: skip

    @property
    def norm(self) -> float:
        """Of the gradients of the newest step, before they were clipped."""
        return float(np.sqrt(np.square(self.norms[-1]).sum()))

    def _facts(self) -> Facts:
        """What the first pass showed, with what the product reads from a job's specification."""
        assert self.first is not None
        return self.planned(self.first.seen())

    def planned(self, facts: Facts | None = None) -> Facts:
        """What is known before the first pass, beside ``facts``."""
        job, size = self.job, min(self.job.batch, len(self.job.train))
        return replace(
            facts or Facts(),
            total_steps=self.total,
            warmup_steps=job.warmup_steps,
            steps_per_epoch=len(job.train) // size,
            batch_size=size,
            world_size=job.ranks,
            optimizer=type(self.optimizer).__name__.lower(),
            learning_rate=self.rate
            * max(job.schedule(share) for share in (*MARKS.values(), job.warmup_steps / job.steps)),
            momentum=self.momentum,
            weight_decay=self.decay,
            schedule={name: self.rate * job.schedule(share) for name, share in MARKS.items()},
            precision=PRECISIONS.get(job.autocast or torch.float32, "fp32"),
            begins_trained=job.begins_trained,
        )


def _checksum(model: nn.Module) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for parameter in model.parameters():
        digest.update(parameter.detach().reshape(-1).view(torch.uint8).numpy().tobytes())
    return int.from_bytes(digest.digest(), "little")
