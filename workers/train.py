"""The training loop. ``Run.train`` is all of it; everything else on this page is one of its steps.

Alone: ``python -m workers.train job.yaml``; data-parallel: ``torchrun --nproc-per-node 2 -m workers.train job.yaml``.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from workers import batches, checkpoints, optim, parallel
from workers.agreement import Agreement, Signal
from workers.checkpoint_folders import Retention
from workers.checkpoint_saver import Saver
from workers.checkpoints import CheckpointError, Failed, Saved, StorageFullError
from workers.evaluation import evaluate
from workers.gradients import GradientDigest, GradientMonitor, clip_factor
from workers.health import Judgement
from workers.recording import NONFINITE_LIMIT, HostValues, Recorder
from workers.reports import Outcome, ReasonCode, Reporter, StopMode
from workers.spec import JobSpec
from workers.tasks.base import BadDataError, Task
from workers.weights import finite, parameters_sha256

JUDGE_SECONDS = 5.0
COLLECT_GARBAGE_EVERY = 500  # steps; on all ranks at once, so that no rank waits for another's collector


@dataclass(frozen=True)
class RunContext:
    """Where and as which of the workers this process trains. With world_size > 1 the process group is there already."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    reporter: Reporter
    checkpoints: str  # folder or URL, shared by all ranks
    model_folder: Path  # rank 0 exports the finished model here
    stop_requested: Callable[[], StopMode | None]  # asked once a step: must be quick


def train(spec: JobSpec, context: RunContext) -> Outcome:
    """Trains the job from its newest complete checkpoint, or from its start, to its end.

    Raises BadDataError for data that cannot be used, CheckpointError when none can be written, and whatever a model raises.
    """
    from workers.tasks import build_task

    return run(build_task(spec.task, spec.training.seed), spec, context)


def run(task: Task, spec: JobSpec, context: RunContext) -> Outcome:
    """``train`` with a task that is built already."""
    training = Run(task, spec, context)
    try:
        return training.train()
    finally:
        training.close()


class Run:
    """One worker's part of a run: the state, and the steps of the loop."""

    def __init__(self, task: Task, spec: JobSpec, context: RunContext) -> None:
        self.task, self.spec, self.context = task, spec, context
        self.bf16 = spec.training.precision == "bf16"
        torch.set_num_threads(spec.workers.threads_per_worker)
        self.datasets = task.datasets()
        self.plan = batches.plan_of(spec, len(self.datasets.train))
        batches.seed_everything(spec.training.seed)  # the same first weights on every rank
        self.model = parallel.wrap(task.model(), context.device, context.world_size)
        self.plain_model = parallel.unwrap(self.model)
        self.optimizer = optim.build_optimizer(spec.optimizer, self.model.parameters(), context.device)
        self.monitor = GradientMonitor(self.plain_model, context.device)
        self.agreement = Agreement(context.device, context.world_size)
        self.saver = self.new_saver()
        self.recorder = Recorder(
            context.reporter,
            self.monitor.layers.names,
            context.device,
            steps=self.plan.steps,
            every_steps=spec.gradients.every_steps,
            warmup_steps=spec.schedule.warmup_steps,
        )
        self.gradient_digest, self.sample_digest = GradientDigest(), hashlib.sha256()
        self.samples_seen = 0
        self.step = 0  # optimizer steps done
        self.best: float | None = None
        self.evaluations_without_gain = 0
        self.metrics: dict[str, float] = {}
        self.judged_at = time.monotonic()
        self.prefetcher: batches.Prefetcher | None = None

    def train(self) -> Outcome:
        """The loop: batch, forward, backward with all-reduce, measure, clip, step; when due log, evaluate, checkpoint."""
        started_at = time.monotonic()
        self.resume()
        self.announce()
        outcome = self.over_before()
        with steady_memory():
            waited_since = time.perf_counter()
            for data in self.open_data() if outcome is None else ():
                host = self.host_values(data, time.perf_counter() - waited_since)
                batches.seed_everything(batches.step_seed(self.spec.training.seed, self.step, self.context.rank))
                optim.set_learning_rate(self.optimizer, host.learning_rate)
                self.forward_backward(data)
                loss_sum, count, signal, votes = self.agreement.result()
                self.step_with_gradients(data, loss_sum, count, host)
                self.tell_of_checkpoint(self.saver.agreed(*votes))
                outcome = self.failed(signal) or self.evaluate_when_due() or self.completed() or self.stopped(signal)
                self.save_when_due(last=outcome is not None)
                self.look_after()
                if outcome is not None:
                    break
                waited_since = time.perf_counter()
        assert outcome is not None  # the last step is an end
        return self.finish(outcome, time.monotonic() - started_at)

    # --- one step -----------------------------------------------------------------------------------------------------

    def forward_backward(self, data: batches.StepData) -> None:
        """Gradients of the mean loss over the step's samples of all workers, all-reduced."""
        scale = self.context.world_size / data.samples  # DDP divides by the number of workers
        last = len(data.microbatches) - 1
        totals = torch.zeros(2, dtype=torch.float64, device=self.context.device)
        for index, (batch, weight) in enumerate(data.microbatches):
            with self.accumulating(index < last), parallel.counted(self.plain_model, weight > 0):
                with torch.autocast(self.context.device.type, torch.bfloat16, enabled=self.bf16):
                    loss_sum, count = self.task.loss(self.model, batch)
                totals += torch.stack([loss_sum.detach().double(), count.detach().double()]) * weight
                if index == last:
                    self.agreement.start(
                        totals, self.signal(), self.saver.votes()
                    )  # travels while the backward pass computes
                torch.autograd.backward(loss_sum * (scale * weight))
            self.samples_seen += int(weight) * len(next(iter(batch.values())))

    def accumulating(self, more_to_come: bool) -> contextlib.AbstractContextManager[None]:
        if more_to_come and isinstance(self.model, nn.parallel.DistributedDataParallel):
            return self.model.no_sync()
        return contextlib.nullcontext()

    def step_with_gradients(self, data: batches.StepData, loss_sum: Tensor, count: Tensor, host: HostValues) -> None:
        norms = self.monitor.measure()
        # Gradients were scaled by the number of samples; a task may count something else (tokens, say).
        correction = data.samples / count
        norms = norms * correction
        norm = norms.square().sum().sqrt()
        factor = clip_factor(norm, self.spec.training.clip_norm)
        self.monitor.scale(factor * correction)
        self.saver.before_update()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.digest(norms, data.step)
        if self.context.rank == 0:
            self.recorder.record(self.step, loss_sum, count, norms, norm, factor, host)

    def host_values(self, data: batches.StepData, data_wait_seconds: float) -> HostValues:
        rate = optim.learning_rate(self.step, self.plan.steps, self.spec.schedule, self.spec.optimizer.learning_rate)
        return HostValues(rate, data.samples, (self.step + 1) / self.plan.steps_per_epoch, data_wait_seconds)

    def digest(self, norms: Tensor, step: int) -> None:
        """Evidence that all workers saw equal gradients and each its own samples; not on accelerators, where it would wait."""
        if self.context.device.type == "cpu":
            self.gradient_digest.add(norms)
        indices, accumulate = self.plan.step_indices(step), self.spec.training.accumulate
        for part in batches.microbatches(indices, self.context.rank, self.context.world_size, accumulate):
            if part.weight:
                self.sample_digest.update(part.indices.tobytes())

    # --- what is agreed -----------------------------------------------------------------------------------------------

    def signal(self) -> Signal:
        """What this worker wants of all: they act on it together, after the step that is under way."""
        if self.context.stop_requested() is not None:
            return Signal.STOP
        if self.context.rank == 0 and self.recorder.bad_steps >= NONFINITE_LIMIT:
            return Signal.NONFINITE
        return Signal.NONE

    def failed(self, signal: Signal) -> Outcome | None:
        if signal is not Signal.NONFINITE:
            return None
        return Outcome(
            ReasonCode.NONFINITE,
            f"the loss has been NaN or infinite for {NONFINITE_LIMIT} steps in a row (now step {self.step})",
        )

    def stopped(self, signal: Signal) -> Outcome | None:
        """Asked after the step's evaluation, so that a run that goes on later has made every evaluation just once."""
        if signal is not Signal.STOP:
            return None
        self.tell("training.stopping", f"Stopping after step {self.step}, as asked.", {"step": self.step})
        return Outcome(ReasonCode.CANCELLED, f"stopped on request after step {self.step} of {self.plan.steps}")

    def completed(self) -> Outcome | None:
        if self.step < self.plan.steps:
            return None
        return Outcome(ReasonCode.COMPLETED, f"all {self.plan.steps} steps done")

    def over_before(self) -> Outcome | None:
        """Of a run that was resumed at its very end: its last attempt died between the last checkpoint and the export."""
        return self.without_gain() or self.completed()

    # --- now and then -------------------------------------------------------------------------------------------------

    def evaluate_when_due(self) -> Outcome | None:
        every = self.spec.evaluation.every_steps or self.plan.steps_per_epoch
        if self.datasets.evaluation is None or not (self.step % every == 0 or self.step == self.plan.steps):
            return None
        values = evaluate(
            self.task,
            self.plain_model,
            self.datasets.evaluation,
            batch_size=self.spec.evaluation.batch_size or self.spec.training.batch_size,
            rank=self.context.rank,
            world_size=self.context.world_size,
            device=self.context.device,
            bf16=self.bf16,
        )
        self.metrics = {f"eval/{name}": value for name, value in values.items()}
        if self.context.rank == 0:
            self.recorder.flush()
            self.recorder.scalars(self.step, self.metrics)
            shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            self.tell("evaluation", f"Step {self.step}: {shown}.", {"step": self.step, "metrics": self.metrics})
        return self.early_stop()

    def early_stop(self) -> Outcome | None:
        evaluation = self.spec.evaluation
        if evaluation.best not in self.metrics:
            raise BadDataError(
                "evaluation.best", f"there is no metric {evaluation.best!r}; there are: {', '.join(self.metrics)}"
            )
        value = self.metrics[evaluation.best] * (-1 if evaluation.mode == "max" else 1)
        stopping = evaluation.early_stopping
        target = math.inf if self.best is None else self.best - (stopping.min_delta if stopping else 0.0)
        if value < target:  # never true of NaN
            self.best, self.evaluations_without_gain = value, 0
        else:
            self.evaluations_without_gain += 1
        return self.without_gain()

    def without_gain(self) -> Outcome | None:
        evaluation = self.spec.evaluation
        stopping = evaluation.early_stopping
        if stopping is None or self.evaluations_without_gain < stopping.patience:
            return None
        return Outcome(
            ReasonCode.EARLY_STOPPED,
            f"{evaluation.best} did not improve in {stopping.patience} evaluations; stopped after step {self.step}",
        )

    def save_when_due(self, *, last: bool) -> None:
        every = self.spec.checkpoint.every_steps
        if not last and not (every and self.step % every == 0):
            return
        if not finite(self.plain_model):  # on all ranks alike: their weights are equal
            self.tell(
                "checkpoint.skipped",
                f"No checkpoint of step {self.step}: its weights are not finite numbers. The older ones are kept.",
                {"step": self.step},
                level="warning",
            )
            return
        self.recorder.flush()  # what a checkpoint stands on is reported before it
        self.tell_of_checkpoint(self.saver.settle(self.agreement.group))
        state = {
            "best": self.best,
            "evaluations_without_gain": self.evaluations_without_gain,
            "saved_metrics": self.metrics,
            "beginning": self.recorder.beginning(),
        }
        metrics = {name: value for name, value in self.metrics.items() if math.isfinite(value)}
        self.saver.begin(self.step, self.plain_model, self.optimizer, state, metrics, "unknown")
        if last:
            self.tell_of_checkpoint(self.saver.settle(self.agreement.group))

    def look_after(self) -> None:
        """What keeps a long run steady, outside of the timed step."""
        if self.step % COLLECT_GARBAGE_EVERY == 0:
            gc.collect()
        if self.context.rank == 0:
            if time.monotonic() - self.judged_at > JUDGE_SECONDS:
                self.recorder.flush()
                self.recorder.judge()
                self.judged_at = time.monotonic()
            self.recorder.step_begins()

    # --- before and after ---------------------------------------------------------------------------------------------

    def resume(self) -> None:
        """From the newest checkpoint that verifies. Rank 0 chooses, all load."""
        chosen: list[Any] = [None]
        if self.context.rank == 0:
            checkpoint, damaged = checkpoints.newest(self.context.checkpoints)
            for found in damaged:
                self.tell(
                    "checkpoint.damaged",
                    f"Checkpoint {found.path.name} is passed over: {found.problem}.",
                    {"path": str(found.path), "problem": found.problem},
                    level="warning",
                )
            chosen = [checkpoint]
        if self.context.world_size > 1:
            dist.broadcast_object_list(chosen, src=0, group=self.agreement.group)
        checkpoint = chosen[0]
        if checkpoint is None:
            return
        state = checkpoints.load(checkpoint, self.plain_model, self.optimizer, self.context.device)
        self.step = checkpoint.step
        self.best, self.evaluations_without_gain = state["best"], state["evaluations_without_gain"]
        self.metrics = dict(state["saved_metrics"])
        self.recorder.restore(state["beginning"])
        self.tell(
            "training.resumed", f"Going on after step {self.step}, from {checkpoint.path.name}.", {"step": self.step}
        )

    def announce(self) -> None:
        context = self.context
        parameters = sum(parameter.numel() for parameter in self.plain_model.parameters())
        device = "CPU" if context.device.type == "cpu" else torch.cuda.get_device_name(context.device)
        self.tell(
            "training.started",
            f"{parameters:,} parameters in {len(self.monitor.layers.names)} layers, {self.plan.samples:,} training samples, "
            f"{self.plan.steps:,} steps, {context.world_size} worker{'s' if context.world_size > 1 else ''} on {device}.",
            {
                **batches.describe(self.plan),
                "evaluation_samples": len(self.datasets.evaluation) if self.datasets.evaluation else 0,
                "parameters": parameters,
                "layers": list(self.monitor.layers.names),
                "device": device,
                "threads": torch.get_num_threads(),
                "world_size": context.world_size,
                "resumed_from": self.step or None,
            },
        )

    def open_data(self) -> batches.Prefetcher:
        self.model.train()
        self.recorder.step_begins()
        self.prefetcher = batches.Prefetcher(
            self.datasets.train,
            self.plan,
            first=self.step,
            rank=self.context.rank,
            world_size=self.context.world_size,
            accumulate=self.spec.training.accumulate,
            device=self.context.device,
        )
        return self.prefetcher

    def finish(self, outcome: Outcome, seconds: float) -> Outcome:
        finished = outcome.code in (ReasonCode.COMPLETED, ReasonCode.EARLY_STOPPED)
        judgement: Judgement | None = None
        if self.context.rank == 0:
            self.recorder.flush()
            judgement = self.recorder.judge(final=True)
            if finished:
                from workers.export import export_model

                export_model(self.context.model_folder, self.plain_model, self.task, self.spec)
        detail = {
            "steps": self.step,
            "epochs": self.step / self.plan.steps_per_epoch,
            "seconds": seconds,
            "metrics": {**self.recorder.latest, **self.metrics},
            "health": judgement.as_dict() if judgement else None,
            "model": str(self.context.model_folder) if finished else None,
            "samples_seen": self.samples_seen,
            "samples_sha256": self.sample_digest.hexdigest(),
            "gradients_sha256": self.gradient_digest.hexdigest(),
            "parameters_sha256": parameters_sha256(self.plain_model),
        }
        # Every rank tells: that the digests agree is the evidence that all of them took part in one and the same training.
        evidence = ("samples_seen", "samples_sha256", "gradients_sha256", "parameters_sha256")
        self.context.reporter.event(
            "info",
            "training.finished",
            f"Rank {self.context.rank}: {outcome.message}.",
            {
                "rank": self.context.rank,
                "step": self.step,
                "seconds": seconds,
                **{key: detail[key] for key in evidence},
            },
        )
        return Outcome(outcome.code, outcome.message, detail)

    def tell_of_checkpoint(self, result: Saved | Failed | None) -> None:
        if isinstance(result, Failed):
            raise (StorageFullError if result.storage_full else CheckpointError)(result.problem)
        if result is None:
            return
        self.tell(
            "checkpoint.saved",
            f"Checkpoint of step {result.step}: {result.bytes / 1e6:.1f} MB in {result.seconds:.2f} s.",
            {
                "step": result.step,
                "path": result.path,
                "bytes": result.bytes,
                "seconds": result.seconds,
                "blocked_seconds": result.blocked_seconds,
                "metrics": dict(result.metrics),
            },
        )

    def tell(self, type: str, message: str, data: Mapping[str, Any], level: str = "info") -> None:
        if self.context.rank == 0:
            self.context.reporter.event("warning" if level == "warning" else "info", type, message, data)

    def new_saver(self) -> Saver:
        keep, evaluation, context = self.spec.checkpoint, self.spec.evaluation, self.context
        return Saver(
            context.checkpoints,
            rank=context.rank,
            world_size=context.world_size,
            generation=1,
            retention=Retention(keep.keep_last, keep.keep_best, evaluation.best, evaluation.mode),
        )

    def close(self) -> None:
        self.saver.abandon()
        if self.context.rank == 0 and self.context.device.type == "cpu":
            self.recorder.flush()  # what was measured before an exception; a failed accelerator cannot tell any more
        if self.prefetcher is not None:
            self.prefetcher.close()


@contextlib.contextmanager
def steady_memory() -> Any:
    """Automatic garbage collection stops one rank at a time and all wait for it; here it runs on steps that all share."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


if __name__ == "__main__":
    from workers.standalone import main

    raise SystemExit(main())
