"""Runs of the suite with repairs: what the product does to a job that fails, with the product's own parts that decide and do it.

Looks at the record, snapshots and acts come after the same steps as in a job; what is left out is that a job has several processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.pitfalls.case import Case, Job
from benchmarks.pitfalls.judging import LOOKS
from benchmarks.pitfalls.loop import Steering, Training, objective
from benchmarks.pitfalls.recording import Recorder
from workers.handover import BufferKeeper
from workers.optim import scale_weight_decay
from workers.repair.acts import Act, Entry
from workers.repair.contest import gives_way
from workers.repair.ladder import Situation
from workers.repair.moments import forget_moments
from workers.repair.rebuilding import patched, planned
from workers.repair.repairs import Repairs
from workers.repair.snapshots import Snapshot, Snapshots, copied, put_back
from workers.repair.usual import usual_norm
from workers.run_repairs import EXAMPLE_ROWS, SNAPSHOT_STEPS, SNAPSHOTS
from workers.spec import Consent, Health
from workers.watch.findings import Finding
from workers.watch.record import Record
from workers.watch.watching import Watch

LIVE: list[Consent] = ["live"]
PARTS = ("job", "replicas", "optimizers", "rates", "scaler", "recorder")  # of a training, that are its model's
EVERYTHING: list[Consent] = ["live", "weights", "architecture"]


@dataclass(frozen=True)
class Mended:
    metrics: Mapping[str, float]  # at the end, of the model as it was trained
    entries: list[Entry]  # of the acts
    codes: list[str]  # of findings that were told, in the order in which each was first of all
    steps: int  # that the run had in the end
    left_out: int  # updates that were no number
    record: Record = field(repr=False)
    model: nn.Module = field(repr=False)

    @property
    def touched(self) -> bool:
        return bool(self.entries or self.left_out)


class Mending(Steering):
    """Of one run: decides and does what rank 0 decides and all do. Each replica has its own snapshots, as each rank has."""

    def __init__(self, training: Training, build: Callable[[], Job], allow: Sequence[Consent], seed: int) -> None:
        """``build``: the job anew, with the model that it begins with."""
        super().__init__(training.job)
        self.training, self.build, self.seed = training, build, seed
        self.facts = self.recorder.planned()
        health = Health(mode="repair", allow=list(allow))
        self.repairs = Repairs(health, self.job.steps, self.facts.learning_rate or 0.0)
        self._begins_with_model()
        self.watch = Watch()
        self.sick, self.left_out, self.ended_at = False, 0, 0
        self.best: tuple[float, list[Snapshot]] = (math.inf, [])  # validation loss
        self.codes: list[str] = []
        self.before: dict[int, Before] = {}  # by number of the act

    def _begins_with_model(self) -> None:
        self.snapshots = [Snapshots() for _ in self.training.replicas]
        self.buffers = [BufferKeeper(model) for model in self.training.replicas]

    @property
    def recorder(self) -> Recorder:
        assert self.training.recorder is not None
        return self.training.recorder

    @property
    def steps(self) -> int:
        """Of the run, as long as it is now."""
        return self.ended_at or self.job.steps + self.repairs.extra

    # --- each step ----------------------------------------------------------------------------------------------------

    def rate(self, step: int, base: float) -> float:
        done = step - 1
        scheduled = base * self.job.schedule(self.repairs.schedule_step(done) / self.job.steps)
        return self.repairs.rate(done, scheduled)

    def clip_norm(self) -> float | None:
        return self.repairs.clip(self.job.clip_norm)

    def begins(self) -> None:
        for buffers in self.buffers:
            buffers.keep()
        for optimizer in self.training.optimizers:
            scale_weight_decay(optimizer, self.repairs.decay)

    def leaves_out(self) -> bool:
        if math.isfinite(self.recorder.norm):
            return False
        self.left_out += 1
        for buffers in self.buffers:
            buffers.put_back()
        return True

    def keep_when_due(self, step: int) -> None:
        kept = self.snapshots[0].steps
        due = step - (kept[-1] if kept else 0) >= max(SNAPSHOT_STEPS, self.job.steps // SNAPSHOTS)
        if (kept and (self.sick or self.repairs.trial is not None or not due)) or not whole(self.training):
            return
        for snapshots, model, optimizer in self._ranks():
            snapshots.take(step, model, optimizer)

    def _ranks(self) -> Any:
        return zip(self.snapshots, self.training.replicas, self.training.optimizers, strict=True)

    # --- looks --------------------------------------------------------------------------------------------------------

    def keep_best(self, step: int) -> None:
        at, metrics = self.recorder.evaluations[-1] if self.recorder.evaluations else (0, {})
        loss = metrics.get("loss", math.inf)
        if at == step and loss < self.best[0] and whole(self.training):
            self.best = loss, [copied(step, model, optimizer) for _, model, optimizer in self._ranks()]

    def look(self, step: int) -> None:
        """At the end of the run nothing is changed any more."""
        self.keep_best(step)
        record = self.recorder.record()
        final = step == self.steps
        record = record.since(self.repairs.origin) if self.repairs.origin else record
        judgement = self.watch.look(record, final=final).judgement
        alarms = [finding for finding in judgement.findings if finding.severity != "note"]
        self.sick = bool(alarms)
        if alarms and alarms[0].code not in self.codes:
            self.codes.append(alarms[0].code)
        if final:
            return
        situation = self._situation(alarms[0], step, record) if alarms else None
        findings = [asdict(finding) for finding in alarms]
        kept = self.snapshots[0].steps if whole(self.training) else ()
        act = self.repairs.next_act(findings, situation, kept, step, self._plan, self.recorder.loss_of)
        if act is not None:
            self._do(act, findings[0] if findings else {}, step)

    def _situation(self, finding: Finding, step: int, record: Record) -> Situation:
        return Situation(
            finding=asdict(finding),
            step=step,
            total=self.steps,
            usual_norm=usual_norm(record.series, finding.first_bad_step),
            optimizer=self.facts.optimizer,
            learning_rate=self.facts.learning_rate,
        )

    def _plan(self, name: str) -> list[dict[str, Any]]:
        """What a plan would change of the model, beside what is changed already."""
        known, job = self.repairs.patches_before_trial, self.build()
        rows = min(EXAMPLE_ROWS, len(job.train))
        batch = {"inputs": job.train.inputs[:rows], "targets": job.train.targets[:rows]}
        task = cast(Any, SimpleNamespace(loss=lambda model, batch: _loss(job, model, batch)))
        found = planned(name, lambda: self.build().model, task, batch, known, self.seed)
        return [*known, *found] if found else []

    def _do(self, act: Act, finding: Mapping[str, Any], step: int) -> None:
        if act.verdict is None:
            self._keep_before(act, step)
            for snapshots, model, optimizer in self._ranks():
                if act.rewind is not None:
                    snapshots.restore(act.rewind, model, optimizer)
                if act.forgets_moments:
                    forget_moments(optimizer)
            if act.ends:
                self.ended_at = step
                for best, (_, model, optimizer) in zip(self.best[1], self._ranks(), strict=False):
                    put_back(best, model, optimizer)
        patches = self.repairs.patches
        self.repairs.done(act, finding, {"train/loss": self.recorder.rows[-1][0]})
        if act.verdict is not None and act.rewind is not None:
            self._put_back(self.before[act.number])
        elif act.patches is not None or self.repairs.patches != patches:
            self._rebuild()
        if act.verdict != "kept":
            back = 0 if act.patches is not None else step if act.rewind is None else act.rewind
            self.recorder.begin_anew(back, step, self.steps)
            self.watch.forget()

    def _keep_before(self, act: Act, step: int) -> None:
        """As ``RunRepairs.keep_before``."""
        replaced = self.repairs.entries[act.instead_of - 1].act if act.instead_of is not None else None
        if replaced is not None and gives_way(act, replaced):
            self.before[act.number] = self.before.pop(replaced.number)
        else:
            self.before[act.number] = Before(step, self.training, self.snapshots, self.buffers)

    def _rebuild(self) -> None:
        """The run begins anew with a changed model, or with the job's own where an act takes the place of one that had changed it."""
        job = self.build()
        self.best = (math.inf, [])
        self.training.begins_with(replace(job, model=patched(job.model, self.repairs.patches, self.seed)))
        self._begins_with_model()
        self.keep_when_due(0)

    def _put_back(self, before: Before) -> None:
        before.into(self.training)
        self.snapshots, self.buffers = before.snapshots, before.buffers
        for snapshots in self.snapshots:
            snapshots.drop_after(before.step)


def whole(training: Training) -> bool:
    """Whether an optimizer holds only what its model has, as those do that the product makes: else nobody can go back."""
    return all(
        {*map(id, model.parameters())} >= {id(each) for group in optimizer.param_groups for each in group["params"]}
        for model, optimizer in zip(training.replicas, training.optimizers, strict=True)
    )


class Before:
    """What was trained before an act: the model itself, which is not trained further where the run begins anew, and its values."""

    def __init__(self, step: int, training: Training, snapshots: list[Snapshots], buffers: list[BufferKeeper]) -> None:
        self.step, self.snapshots, self.buffers = step, snapshots, buffers
        self._parts = {name: getattr(training, name) for name in PARTS}
        pairs = zip(training.replicas, training.optimizers, strict=True)
        self._values = [copied(step, model, optimizer) for model, optimizer in pairs] if whole(training) else []

    def into(self, training: Training) -> None:
        for name, part in self._parts.items():
            setattr(training, name, part)
        for values, model, optimizer in zip(self._values, training.replicas, training.optimizers, strict=False):
            put_back(values, model, optimizer)


def _loss(job: Job, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, int]:
    """Sum and count, as a task has it."""
    rows = len(batch["inputs"])
    return objective(job, model, batch["inputs"], batch["targets"]) * rows, rows


def run(case: Case, seed: int, allow: Sequence[Consent] = LIVE) -> Mended:
    """As ``loop.run``, with repairs."""

    def build() -> Job:
        with torch.random.fork_rng(devices=[]):
            return case.build(seed)

    job = case.build(seed)
    training = Training(job, seed, watch=True)
    mending = Mending(training, build, allow, seed)
    mending.keep_when_due(0)
    every, step = max(1, job.steps // LOOKS), 0
    while step < mending.steps:
        step += 1
        training.step(step, mending)
        if step == 1 or step % every == 0 or step == mending.steps:
            mending.look(step)
        mending.keep_when_due(step)
    outcome = training.outcome()
    assert outcome.record is not None
    model = training.replicas[0]
    return Mended(
        outcome.metrics, mending.repairs.entries, mending.codes, step, mending.left_out, outcome.record, model
    )
