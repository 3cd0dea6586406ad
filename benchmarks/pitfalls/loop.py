"""The suite's training loop: plain PyTorch, so that it can carry faults that the product's own loop makes impossible.

Data-parallel ranks are replicas in one process: the arithmetic of an all-reduce without its processes.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.pitfalls.case import Job
from benchmarks.pitfalls.data import Split
from benchmarks.pitfalls.recording import Recorder
from workers.gradients import clip_factor
from workers.watch.record import Record

EVALUATIONS = 20  # in a run


@dataclass(frozen=True)
class Outcome:
    metrics: Mapping[str, float]  # at the end
    record: Record | None
    seconds: float


class Steering:
    """What is decided for each step: here what the job says."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def rate(self, step: int, base: float) -> float:
        """Learning rate of a step, counted from 1, of parameters whose rate the optimizer was made with."""
        return base * self.job.schedule((step - 1) / self.job.steps)

    def clip_norm(self) -> float | None:
        return self.job.clip_norm

    def begins(self) -> None:
        """Before the passes of a step."""

    def leaves_out(self) -> bool:
        """Whether weights and optimizer stay as they are in this step; the gradients are averaged, measured and clipped."""
        return False


class Training:
    """A job under way, step by step: the same with and without repairs."""

    def __init__(self, job: Job, seed: int, *, watch: bool) -> None:
        torch.manual_seed(seed)
        self.began = time.perf_counter()
        self.watch = watch
        self.begins_with(job)
        self.batches = _batches(job, seed)
        self.waited = self.worked = 0.0

    def begins_with(self, job: Job) -> None:
        """Nothing is left of a model that was trained before; the order of samples goes on."""
        self.job = job
        self.replicas = [job.model, *(copy.deepcopy(job.model) for _ in range(job.ranks - 1))]
        self.optimizers = [job.optimizer(model) for model in self.replicas]
        self.rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self.scaler = torch.amp.GradScaler("cpu") if job.scaler else None
        self.recorder = Recorder(job, self.replicas[0], self.optimizers[0]) if self.watch else None

    def step(self, step: int, steering: Steering) -> None:
        """``step`` counts from 1."""
        began = time.perf_counter()
        job, recorder, replicas = self.job, self.recorder, self.replicas
        inputs, targets = next(self.batches)
        if job.stall:
            time.sleep(job.stall)
        wait = time.perf_counter() - began
        if job.disturb is not None:
            inputs, targets = job.disturb(step, inputs, targets)
        self._prepare(step, steering)
        if recorder:
            recorder.passes_begin(step, inputs, targets)
        loss = _passes(job, replicas, inputs, targets, self.scaler, recorder)
        clipped = self._exchange(step, steering)
        self._update(steering)
        seconds = time.perf_counter() - began
        self.waited, self.worked = self.waited + wait, self.worked + seconds
        if recorder:
            recorder.stepped(loss, steering.rate(step, self.rates[0][0]), clipped, seconds, wait, replicas)
        if recorder and step % max(1, job.steps // EVALUATIONS) == 0:
            recorder.evaluated(step, evaluate(job, replicas[0]))

    def _prepare(self, step: int, steering: Steering) -> None:
        for optimizer, base in zip(self.optimizers, self.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = steering.rate(step, rate)
            if self.job.clears:
                optimizer.zero_grad(set_to_none=True)
        steering.begins()

    def _exchange(self, step: int, steering: Steering) -> float:
        """From each rank's own gradients to the ones that all step with. By how much they were clipped."""
        if self.scaler is not None:
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)
        if self.job.tamper is not None:
            self.job.tamper(step, self.replicas)
        if self.recorder:
            self.recorder.own_gradients(self.replicas)
        _average(self.replicas)
        if self.recorder:
            self.recorder.before_update()
        return _clip(self.replicas, steering.clip_norm())

    def _update(self, steering: Steering) -> None:
        if not steering.leaves_out():
            for optimizer in self.optimizers:
                self.scaler.step(optimizer) if self.scaler is not None else optimizer.step()
        if self.scaler is not None:
            self.scaler.update()

    def outcome(self) -> Outcome:
        metrics = {**evaluate(self.job, self.replicas[0]), "wait_share": self.waited / self.worked}
        record = self.recorder.record() if self.recorder else None
        return Outcome(metrics, record, time.perf_counter() - self.began)


def run(job: Job, seed: int, *, watch: bool = False) -> Outcome:
    """Trains ``job``. ``seed``: of the order of samples, of drop-out and noise; the weights have had theirs when the job was built."""
    training, steering = Training(job, seed, watch=watch), Steering(job)
    for step in range(1, job.steps + 1):
        training.step(step, steering)
    return training.outcome()


def _batches(job: Job, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled anew every epoch; an incomplete batch at its end is left out."""
    generator = torch.Generator().manual_seed(seed)
    size = min(job.batch, len(job.train))
    while True:
        order = torch.randperm(len(job.train), generator=generator)
        for start in range(0, len(order) - size + 1, size):
            batch = job.train.at(order[start : start + size])
            yield batch.inputs, batch.targets


def _passes(
    job: Job,
    replicas: list[nn.Module],
    inputs: Tensor,
    targets: Tensor,
    scaler: torch.amp.GradScaler | None,
    recorder: Recorder | None,
) -> float:
    """Forward and backward on every rank's part, in microbatches. The mean loss."""
    total = 0.0
    parts = zip(replicas, inputs.chunk(job.ranks), targets.chunk(job.ranks), strict=True)
    for rank, (model, own_inputs, own_targets) in enumerate(parts):
        model.train()
        own = 0.0
        micro = zip(own_inputs.chunk(job.accumulate), own_targets.chunk(job.accumulate), strict=True)
        for x, y in micro:
            seen = recorder.pass_begins(x, y) if recorder and rank == 0 else contextlib.nullcontext()
            with _precision(job), seen:
                loss = objective(job, model, x, y)
            if recorder and rank == 0:
                recorder.loss_was(loss, x)
            share = loss / job.accumulate
            if share.requires_grad:
                (scaler.scale(share) if scaler is not None else share).backward()
            own += float(share.detach())
        if recorder:
            recorder.passed(rank, own, len(own_inputs))
        total += own / job.ranks
    return total


def _precision(job: Job) -> contextlib.AbstractContextManager[object]:
    return torch.autocast("cpu", job.autocast) if job.autocast is not None else contextlib.nullcontext()


def objective(job: Job, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return job.objective(model, inputs, targets) if job.objective is not None else job.loss(model(inputs), targets)


@torch.no_grad()
def _average(replicas: list[nn.Module]) -> None:
    if len(replicas) == 1:
        return
    for parameters in zip(*(model.parameters() for model in replicas), strict=True):
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if gradients:
            mean = torch.stack(gradients).mean(0)
            for gradient in gradients:
                gradient.copy_(mean)


@torch.no_grad()
def _clip(replicas: list[nn.Module], limit: float | None) -> float:
    if limit is None:
        return 1.0
    factor = 1.0
    for model in replicas:
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        scale = clip_factor(torch.stack(torch._foreach_norm(gradients)).norm(), limit)
        torch._foreach_mul_(gradients, scale)
        factor = float(scale)
    return factor


@torch.no_grad()
def evaluate(job: Job, model: nn.Module) -> dict[str, float]:
    model.eval()
    with _precision(job):
        metrics = dict((job.measure or standard)(model, job.validation))
        if "loss" not in metrics and job.objective is None:
            metrics["loss"] = float(job.loss(model(job.validation.inputs), job.validation.targets))
    model.train()
    return metrics


def standard(model: nn.Module, split: Split) -> Mapping[str, float]:
    """``accuracy`` of class numbers (N,) or (N, T) against (..., C); ``r2`` of floats, the share of their variance explained."""
    output, targets = model(split.inputs).float(), split.targets
    if not targets.is_floating_point():
        if output.isnan().any():  # argmax would give the first class
            return {"accuracy": math.nan}
        return {"accuracy": float((output.argmax(-1) == targets).float().mean())}
    if output.shape != targets.shape:
        raise ValueError(f"output {tuple(output.shape)} and targets {tuple(targets.shape)} differ; give a measure")
    rest = (output - targets).square().mean() / (targets - targets.mean(0)).square().mean()
    return {"r2": float(1 - rest)}
