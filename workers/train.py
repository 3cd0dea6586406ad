"""The training loop. ``Run.loop`` is all of it; everything else on this page is one of its steps.

Alone: ``python -m workers.train job.yaml``; data-parallel: ``torchrun --nproc-per-node 2 -m workers.train job.yaml``.
"""

from __future__ import annotations

import contextlib
import gc
import time
import traceback
from collections.abc import Iterator

import torch
from torch import Tensor

from workers import batches, optim, parallel
from workers.agreement import Agreed, Signal, Votes
from workers.gradients import clip_factor
from workers.membership import MisplacedError, RegroupError, Stage, Work
from workers.memory import advice, is_out_of_memory
from workers.process_group import broken_by_peer
from workers.recording import NONFINITE_LIMIT, HostValues
from workers.reports import Outcome, ReasonCode, StopMode
from workers.run_repairs import RunRepairs
from workers.run_state import RunContext
from workers.spec import JobSpec
from workers.tasks.base import Batch, Task
from workers.weights import full_state_dict, parameters_sha256

__all__ = ["Run", "RunContext", "run", "train"]


def train(spec: JobSpec, context: RunContext) -> Outcome:
    """Trains the job from its newest complete checkpoint, or from its start, to its end.

    Raises BadDataError for data that cannot be used, CheckpointError when none can be written, DismissedError, ScriptFailedError, and whatever a
    model raises.
    """
    from workers.tasks import build_task, runner_of

    runner = runner_of(spec.task)
    if runner is not None:
        return runner(spec, context)
    return run(build_task(spec.task, spec.training.seed, context.code), spec, context)


def run(task: Task, spec: JobSpec, context: RunContext) -> Outcome:
    """``train`` with a task that is built already."""
    training = Run(task, spec, context)
    try:
        return training.train()
    except Exception as error:
        if is_out_of_memory(error):
            error.add_note(advice(spec, training.accumulate))
        raise
    finally:
        training.close()


class Run(RunRepairs):
    """One worker's part of a run: the loop and its steps."""

    def train(self) -> Outcome:
        """Generation after generation, until one of them comes to the run's end."""
        broken: str | None = None
        while True:
            membership = self.link.next_group(self.position, broken)
            try:
                self.join(membership)
                return self.finish(self.steps_that_fit())
            except RegroupError:
                broken = None
            except Exception as error:
                if not (isinstance(error, MisplacedError) or broken_by_peer(error) or self.fits_in_smaller(error)):
                    raise
                broken = f"{type(error).__name__}: {error}"
                traceback.clear_frames(error.__traceback__)  # they hold the group that is to be left
            self.leave()

    def steps_that_fit(self) -> Outcome:
        """The loop; begun again, alone, when memory ran out. With others the group is formed anew, because they wait for this one."""
        while True:
            try:
                return self.loop()
            except Exception as error:
                if self.world_size > 1 or not self.fits_in_smaller(error):
                    raise
                traceback.clear_frames(error.__traceback__)  # they hold the activations
            self.break_off()
            self.announce_group()

    def loop(self) -> Outcome:
        """Batch, forward, backward with all-reduce, measure, clip, step; when due evaluate and checkpoint."""
        outcome = self.after_step(Signal.NONE) if self.stage is Stage.STEPPED else self.over_before()
        self.keep_snapshot_when_due(None)
        with steady_memory():
            while outcome is None:  # the last step is an end
                outcome = self.steps_of_plan()
        return outcome

    def steps_of_plan(self) -> Outcome | None:
        """None: the plan has become another one."""
        plan = self.plan
        for data in self.read_data():
            host = self.host_values(data)
            self.begin_step(host)
            self.forward_backward(data)
            agreed = self.agreement.result()
            self.prober.agree(agreed.votes.next_probe)
            self.ranks.agree(agreed.votes.next_norms, agreed.votes.next_checksums)
            self.step_with_gradients(data, agreed, host)
            outcome = self.hear_of_checkpoint(agreed) or self.after_step(agreed.signal)
            if outcome is not None or self.plan is not plan:
                return outcome
            self.keep_snapshot_when_due(agreed)
        return None

    # --- one step -----------------------------------------------------------------------------------------------------

    def begin_step(self, host: HostValues) -> None:
        self.link.at(Work.FORWARD, self.step)
        self.buffers.keep()
        self.in_step = self.in_passes = True
        batches.seed_everything(batches.step_seed(self.spec.training.seed, self.step, self.rank))
        optim.set_learning_rate(self.optimizer, host.learning_rate)
        if self.repairing:
            optim.scale_weight_decay(self.optimizer, self.repairs.decay)
        self.prober.begin(self.step + 1)
        self.ranks.begin(self.step + 1)

    def forward_backward(self, data: batches.StepData) -> None:
        """Gradients of the mean loss over the step's samples of all workers, all-reduced."""
        scale = self.ranks.gradient_divisor / data.samples
        last, samples = len(data.microbatches) - 1, 0
        totals = torch.zeros(2, dtype=torch.float64, device=self.context.device)
        for index, (batch, weight) in enumerate(data.microbatches):
            more = index < last
            self.prober.begin_pass(weight > 0)
            with parallel.no_sync(self.model) if more else contextlib.nullcontext(), self.counted(weight):
                with torch.autocast(self.context.device.type, torch.bfloat16, enabled=self.bf16):
                    loss_sum, count = self.watched_loss(batch)
                totals += torch.stack([loss_sum.detach().double(), count.detach().double()]) * weight
                if not more:
                    self.link.at(Work.EXCHANGE, self.step)
                    # Travels while the backward pass computes.
                    votes = Votes(self.saver.votes(), self.prober.vote(), *self.ranks.votes(), self.snapshot_vote())
                    self.agreement.start(totals, self.signal(), votes, self.ranks.row())
                torch.autograd.backward(loss_sum * (scale * weight))
            samples += int(weight) * len(next(iter(batch.values())))
        self.samples_seen += samples
        self.ranks.after_backward(totals, samples, scale)
        if self.exchanged is not None:
            self.exchanged.record()
        self.in_passes = False

    def watched_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The task's loss; of a run's first pass the facts are taken, on the rank that tells."""
        if self.recorder.facts is not None or self.rank > 0:
            return self.task.loss(self.model, batch)
        seen = self.first_pass(batch)
        with seen.watch() if seen is not None else contextlib.nullcontext():
            loss_sum, count = self.task.loss(self.model, batch)
        self.tell_facts(seen, loss_sum, count)
        return loss_sum, count

    def fits_in_smaller(self, error: Exception) -> bool:
        """Whether ``error`` is memory that ran out in the passes of a step and smaller microbatches may help: they are halved then."""
        training, before = self.spec.training, self.accumulate
        most = max(1, training.batch_size // self.world_size)
        if not (training.microbatch == "auto" and self.in_passes and before < most and is_out_of_memory(error)):
            return False
        self.accumulate = min(2 * before, most)
        self.context.reporter.event(
            "warning",
            "memory.microbatch_halved",
            f"Memory ran out in step {self.step + 1} on rank {self.rank}: the batch of {training.batch_size} is now split into "
            f"{self.accumulate} microbatches instead of {before}, and the step is done again.",
            {"step": self.step, "rank": self.rank, "accumulate": self.accumulate, "error": str(error)[:1000]},
        )
        return True

    def counted(self, weight: float) -> contextlib.AbstractContextManager[None]:
        return parallel.counted(parallel.plain(self.model), weight > 0)

    def step_with_gradients(self, data: batches.StepData, agreed: Agreed, host: HostValues) -> None:
        norms = self.monitor.measure()
        # Gradients were scaled by the number of samples; a task may count something else (tokens, say).
        correction = data.samples / agreed.count
        norms = norms * correction
        norm = norms.square().sum().sqrt()
        factor = clip_factor(norm, self.repairs.clip(self.spec.training.clip_norm))
        self.prober.before_update(correction)
        self.monitor.scale(factor * correction)
        self.link.at(Work.UPDATE, self.step)
        self.saver.before_update()
        if self.passes_over(norm):
            self.buffers.put_back()
        else:
            self.optimizer.step()
        self.ranks.after_update()
        self.step, self.stage, self.in_step = self.step + 1, Stage.STEPPED, False
        # Communicates only when sharded: then nothing of a step outlives a lost worker, so that no row can be missing where this breaks off.
        probe = self.prober.after_update()
        self.optimizer.zero_grad(set_to_none=True)
        self.digest(norms, data.step)
        heard = self.ranks.heard(agreed.table)
        self.recorder.record(self.step, agreed.loss_sum, agreed.count, norms, norm, factor, host, probe, heard)

    def host_values(self, data: batches.StepData) -> HostValues:
        at = self.repairs.schedule_step(self.step)
        rate = optim.learning_rate(at, self.job_steps, self.spec.schedule, self.spec.optimizer.learning_rate)
        rate = self.repairs.rate(self.step, rate)
        epoch = (self.step + 1) / self.plan.steps_per_epoch
        return HostValues(rate, data.samples, epoch, self.waited_seconds, self.world_size)

    def digest(self, norms: Tensor, step: int) -> None:
        """Evidence that all workers saw equal gradients and each its own samples; not on accelerators, where it would wait."""
        if self.context.device.type == "cpu":
            self.gradient_digest.add(norms)
        indices = self.plan.step_indices(step)
        for part in batches.microbatches(indices, self.rank, self.world_size, self.accumulate):
            if part.weight:
                self.sample_digest.update(part.indices.tobytes())

    # --- what is agreed -----------------------------------------------------------------------------------------------

    def signal(self) -> Signal:
        """What this worker wants of all: they act on it together, after the step that is under way."""
        if self.recorder.bad_steps >= NONFINITE_LIMIT and self.wanted is None and not (self.repairing and self.rank):
            return Signal.NONFINITE
        stop = self.link.stop_requested()
        if stop not in (None, StopMode.PAUSE):
            return Signal.CANCEL
        if self.acting.found and self.rank == 0:  # whose outcome is read; each rank looks at times of its own
            return Signal.CRITICAL
        if stop is not None:
            return Signal.PAUSE
        if self.wanted is not None and self.rank == 0:
            return Signal.REPAIR
        return Signal.REGROUP if self.link.regroup_requested() else Signal.NONE

    def after_step(self, signal: Signal) -> Outcome | None:
        outcome = self.failed(signal) or self.evaluate_when_due() or self.completed() or self.stopped(signal)
        regroup = outcome is None and signal is Signal.REGROUP
        outcome = self.save_when_due(last=outcome is not None or (regroup and self.sharded)) or outcome
        if regroup and outcome is None:
            outcome = self.settle()
        if signal is Signal.REPAIR and outcome is None:
            outcome = self.repair()
            outcome = self.save_when_due(last=True) or outcome if outcome is not None else None
        self.stage = Stage.COMPLETE
        self.look_after()
        if regroup and outcome is None:
            raise RegroupError
        return outcome

    def failed(self, signal: Signal) -> Outcome | None:
        if signal is not Signal.NONFINITE:
            return None
        self.recorder.flush()
        self.hear(self.recorder.judge())
        if self.acting.pauses:
            return self.acting.outcome(f"after step {self.step} of {self.plan.steps}")
        return Outcome(
            ReasonCode.NONFINITE,
            f"the loss has been NaN or infinite for {NONFINITE_LIMIT} steps in a row (now step {self.step})",
        )

    def stopped(self, signal: Signal) -> Outcome | None:
        """Asked after the step's evaluation, so that a run that goes on later has made every evaluation just once."""
        if signal is Signal.CRITICAL:
            found = [finding["code"] for finding in self.acting.found]
            said = f"Stopping after step {self.step}, as health.on_critical says: {', '.join(found)}."
            self.tell("training.stopping", said, {"step": self.step, "critical": found}, level="warning")
            return self.acting.outcome(f"after step {self.step} of {self.plan.steps}")
        if signal not in (Signal.PAUSE, Signal.CANCEL):
            return None
        self.tell("training.stopping", f"Stopping after step {self.step}, as asked.", {"step": self.step})
        if signal is Signal.PAUSE:
            return Outcome(ReasonCode.PAUSED, f"paused after step {self.step} of {self.plan.steps}")
        return Outcome(ReasonCode.CANCELLED, f"stopped on request after step {self.step} of {self.plan.steps}")

    def completed(self) -> Outcome | None:
        if self.step < self.plan.steps:
            return None
        return Outcome(ReasonCode.COMPLETED, f"all {self.plan.steps} steps done")

    def over_before(self) -> Outcome | None:
        """Of a run that begins at its very end: what had to be done after the last checkpoint was not done."""
        return self.score.without_gain(self.step) or self.completed()

    # --- before and after ---------------------------------------------------------------------------------------------

    def read_data(self) -> Iterator[batches.StepData]:
        self.model.train()
        self.recorder.step_begins()
        self.prefetcher = batches.Prefetcher(
            self.datasets.train,
            self.plan,
            first=self.step,
            rank=self.rank,
            world_size=self.world_size,
            accumulate=self.accumulate,
            device=self.context.device,
        )
        self.link.at(Work.DATA, self.step)
        asked_at = time.perf_counter()
        for data in self.prefetcher:
            self.waited_seconds = time.perf_counter() - asked_at
            yield data
            self.link.at(Work.DATA, self.step)
            asked_at = time.perf_counter()

    def finish(self, outcome: Outcome) -> Outcome:
        finished = outcome.code in (ReasonCode.COMPLETED, ReasonCode.EARLY_STOPPED)
        self.recorder.flush()
        tested = self.test() if finished else {}
        self.link.at(Work.FINISH, self.step)
        seconds = time.monotonic() - self.started_at
        judgement = self.recorder.judge(final=True)
        self.rejudge(judgement)
        model = parallel.plain(self.model)
        if finished:
            weights = full_state_dict(model, keep=self.rank == 0)
            if self.rank == 0:
                from workers.export import export_model

                export_model(self.context.model_folder, weights, self.task, self.spec, self.repairs.patches)
        detail = {
            **outcome.detail,
            "steps": self.step,
            "epochs": self.step / self.plan.steps_per_epoch,
            "seconds": seconds,
            "metrics": {**self.recorder.latest, **self.score.metrics, **tested},
            "health": judgement.as_dict(),
            "model": str(self.context.model_folder) if finished else None,
            "samples_seen": self.samples_seen,
            "samples_sha256": self.sample_digest.hexdigest(),
            "gradients_sha256": self.gradient_digest.hexdigest(),
            "parameters_sha256": parameters_sha256(model),
        }
        # Every rank tells: that the digests agree is the evidence that all of them took part in one and the same training.
        evidence = ("samples_seen", "samples_sha256", "gradients_sha256", "parameters_sha256")
        self.context.reporter.event(
            "info",
            "training.finished",
            f"Rank {self.rank}: {outcome.message}.",
            {"rank": self.rank, "step": self.step, "seconds": seconds, **{key: detail[key] for key in evidence}},
        )
        return Outcome(outcome.code, outcome.message, detail)

    def close(self) -> None:
        if self.context.device.type == "cpu":
            self.recorder.flush()  # what was measured before an exception; a failed accelerator cannot tell any more
        self.stop_reading()
        if self.joined:
            self.saver.abandon()
        self.group.leave()


@contextlib.contextmanager
def steady_memory() -> Iterator[None]:
    """Automatic garbage collection stops one rank at a time and all wait for it; here it runs on steps that all share."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


if __name__ == "__main__":
    from workers.standalone import main

    raise SystemExit(main())
