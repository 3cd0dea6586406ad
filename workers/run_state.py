"""What a worker holds of a run (weights, optimizer, scores, how far it has come), and how it joins and leaves a group with it."""

from __future__ import annotations

import gc
import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from workers import batches, checkpoints, optim, parallel
from workers.acting import Acting
from workers.agreement import Agreement
from workers.checkpoint_folders import Retention, newest_generation
from workers.checkpoint_saver import Saver
from workers.flops import rates_of
from workers.gradients import GradientDigest, GradientMonitor
from workers.handover import BufferKeeper, hand_over
from workers.illustration import Illustrator
from workers.machine import machine
from workers.membership import Link, Membership, MisplacedError, Position, Stage, Work
from workers.process_group import TIMEOUT_SECONDS, ProcessGroup
from workers.recording import Recorder
from workers.repair.acts import Act
from workers.repair.class_weights import weights_now
from workers.repair.quarantine import left_out_now
from workers.repair.rebuilding import patched
from workers.repair.repairs import Repairs
from workers.repair.snapshots import Snapshot, Snapshots
from workers.reports import Level, Reporter
from workers.scoring import Score
from workers.spec import JobSpec
from workers.tasks.base import Task, Weighing
from workers.user_code import UserCode
from workers.watch.facts_json import from_json, to_json
from workers.watch.findings import Key
from workers.watch.probes import Prober
from workers.watch.ranks import RankWatch
from workers.watch.record import Facts
from workers.watch.spending import Spending

NO_REPAIRS: Mapping[str, Any] = {"entries": [], "taken": []}
COMPILING_SECONDS = 600.0  # for which a worker waits for another one's compiler


@dataclass(frozen=True)
class RunContext:
    """Where this process trains, what it tells, and who says which of the workers it is."""

    device: torch.device
    reporter: Reporter
    link: Link
    checkpoints: str  # folder or URL, shared by all ranks
    model_folder: Path  # rank 0 exports the finished model here
    code: UserCode | None = None  # the user's own, for kinds that have any
    artifacts_folder: Path | None = (
        None  # rank 0 keeps here what the task shows after evaluations; None: it is not asked
    )
    accepted: frozenset[Key] = frozenset()  # critical findings for which the job was paused before
    requests: Path | None = None  # what people ask of the run while it goes on, see workers/repair/requests.py
    healthy_before: int = (
        0  # a generation: of what earlier ones have written only healthy checkpoints are gone on from, if there are any
    )


class RunState:
    """One worker's part of a run, between the steps."""

    optimizer: torch.optim.Optimizer
    model: nn.Module  # what the loop calls: the plain one, or its wrapper of this generation
    agreement: Agreement
    saver: Saver

    def __init__(self, task: Task, spec: JobSpec, context: RunContext) -> None:
        # What is there before, all imported code above all, is not looked at any more: a collection takes milliseconds then.
        gc.collect()
        gc.freeze()
        self.task, self.spec, self.context, self.link = task, spec, context, context.link
        self.bf16 = spec.training.precision == "bf16"
        self.sharded = spec.workers.strategy == "fsdp"
        torch.set_num_threads(spec.workers.threads_per_worker)
        self.link.at(Work.BUILD, 0)
        self.datasets = task.datasets()
        self.plan = batches.plan_of(spec, len(self.datasets.train))
        self.rank, self.world_size = 0, 1
        self.group = ProcessGroup(context.device)
        self.score = Score(spec.evaluation)
        self.job_steps = self.plan.steps  # as the job says; repairs may make the run longer
        self.repairs, self.snapshots = Repairs(spec.health, self.plan.steps, spec.optimizer.learning_rate), Snapshots()
        self.wanted: Act | None = None  # what this rank would have all do next
        self.found: Mapping[str, Any] = {}  # the finding that it answers
        self.sick = False  # something is open that is more than a note
        self.snapshot_at, self.snapshot_seconds = time.monotonic(), 0.0
        self.passed_over = 0  # updates that were left out
        self.best: Snapshot | None = None  # by the evaluations of this process
        self.best_at = self.kept_best = 0  # step, and which evaluation it was
        self.before: dict[int, Snapshot] = {}  # by number of the act: as it was before the latest of them
        self.asked_at = 0.0  # when rank 0 looked for what people ask
        self.acting = Acting(spec.health.on_critical, context.accepted)
        self.illustrator = Illustrator(
            task,
            context.artifacts_folder,
            context.device,
            bf16=self.bf16,
            compiled=spec.training.compile,
            tell=self.tell,
        )
        self.gradient_digest, self.sample_digest = GradientDigest(), hashlib.sha256()
        self.samples_seen = 0  # by this process
        self.accumulate = spec.training.accumulate  # grows when memory runs out
        self.step, self.stage = 0, Stage.COMPLETE  # optimizer steps done
        self.has_state = False  # everything here is as it should be after ``step`` and ``stage``
        self.joined = False
        self.in_step = False  # buffers and gradients are those of a step that is under way
        self.in_passes = False  # forward and backward passes are under way: no weight has changed
        self.exchanged = (
            torch.cuda.Event() if context.device.type == "cuda" else None
        )  # the newest gradients are all-reduced
        self.suspect = (
            False  # a collective was cut off on the device, and something may have been computed from what it left
        )
        self.started_at = time.monotonic()
        self.facts_due = False  # the others have to be told of what rank 0 will see in the run's first pass
        self.prefetcher: batches.Prefetcher | None = None
        self.build()
        self.spending = Spending(spec.gradients.overhead_budget)
        self.recorder = Recorder(
            context.reporter,
            GradientMonitor(self.plain_model, context.device).layers.names,
            context.device,
            steps=self.plan.steps,
            every_steps=spec.gradients.every_steps,
            warmup_steps=spec.schedule.warmup_steps,
            told_through=self.link.told_through,
            terms=getattr(task, "terms", None),
            rates=rates_of(task, self.plain_model, spec, context.device),
            spending=self.spending,
        )
        self.fresh = self.document()

    def build(self) -> None:
        """A new model with the weights that every worker begins with, as repairs have changed it."""
        model = patched(self.own_model(), self.repairs.patches, self.spec.training.seed)
        self.plain_model = parallel.prepare(model, self.context.device)
        self.built = self.repairs.patches
        self.untouched = True

    def own_model(self) -> nn.Module:
        """As the job says, on the CPU."""
        batches.seed_everything(self.spec.training.seed)
        return self.task.model()

    @property
    def position(self) -> Position | None:
        return Position(self.step, self.stage) if self.has_state else None

    # --- joining and leaving ------------------------------------------------------------------------------------------

    def join(self, membership: Membership) -> None:
        """Forms the group with the others and takes over the state that it begins with."""
        self.rank, self.world_size = membership.rank, membership.world_size
        self.link.joining(self.cut)
        self.link.at(Work.JOIN, self.step)
        patience = COMPILING_SECONDS if self.spec.training.compile else TIMEOUT_SECONDS
        self.group.join(self.rank, self.world_size, membership.store, patience)
        self.agree_on_model(membership)
        if not self.untouched and (self.sharded or membership.position is None):
            self.build()
            self.snapshots.forget()  # parts are others in another group
        self.wrap()
        self.agree_on_microbatches()
        self.agreement = Agreement(self.context.device, self.world_size, self.group.control)
        self.saver = self.new_saver(membership.writer or self.next_writer())
        self.joined = True
        self.wanted = None  # it was decided of what the run was before
        self.recorder.tell(self.rank == 0)
        self.take_state(membership)
        if membership.position is not None:
            self.announce_group()
        self.share_facts()
        if membership.position is not None and self.recorder.facts is not None:
            self.announce_facts(
                self.recorder.facts
            )  # who told it may have been lost before it was heard; it is kept once

    def wrap(self) -> None:
        """The plain model for this group, an optimizer for one that is new, and everything that looks at both. Collective."""
        device = self.context.device
        self.model = parallel.distribute(
            self.plain_model, device, self.world_size, self.spec.workers.strategy, compiled=self.spec.training.compile
        )
        if self.untouched:
            self.optimizer = optim.build_optimizer(self.spec.optimizer, self.model.parameters(), device)
        self.untouched = False
        self.monitor = GradientMonitor(parallel.plain(self.model), device)
        self.prober = self.new_prober()
        self.recorder.probes_have(self.prober.names)
        self.ranks = self.new_rank_watch()
        self.buffers = BufferKeeper(parallel.plain(self.model))

    def rebuild(self) -> None:
        """The model as repairs have it now, from its start. Collective."""
        parallel.dissolve(self.model)
        self.build_other()
        self.wrap()

    def build_other(self) -> None:
        """Nothing that is known of the model before holds for this one."""
        self.build()
        self.snapshots.forget()
        self.best, self.kept_best = None, self.score.evaluations
        self.score.begin_anew()
        self.recorder.layers_are(GradientMonitor(self.plain_model, self.context.device).layers.names)

    def agree_on_model(self, membership: Membership) -> None:
        """Before it is wrapped: a worker that takes over another's state has that one's model."""
        if membership.position is None:
            self.repairs.restore(NO_REPAIRS)  # what the checkpoint says of them holds
        found = [self.repairs.document()]
        if membership.source is not None and self.world_size > 1:
            dist.broadcast_object_list(found, src=membership.source, group=self.group.control)
        if self.rank != membership.source and membership.source is not None:
            self.repairs.restore(found[0])
        if self.built != self.repairs.patches:
            self.build_other()

    def share_facts(self) -> None:
        """Any rank may be the one that tells, later: all know what one of them knows. Called by all ranks at once."""
        if self.world_size == 1:
            return
        facts = self.recorder.facts
        knows = torch.tensor(self.rank if facts is not None else self.world_size)
        dist.all_reduce(knows, dist.ReduceOp.MIN, group=self.group.control)
        source = int(knows)
        self.facts_due = source == self.world_size
        if not self.facts_due:
            found = [to_json(facts) if facts is not None else None]
            dist.broadcast_object_list(found, src=source, group=self.group.control)
            self.recorder.facts = from_json(found[0] or {})

    def agree_on_microbatches(self) -> None:
        """All ranks take the smallest that any of them needs: those of a rank whose memory ran out, or of an older generation."""
        if self.world_size > 1 and self.spec.training.microbatch == "auto":
            most = torch.tensor(self.accumulate)
            dist.all_reduce(most, dist.ReduceOp.MAX, group=self.group.control)
            self.accumulate = int(most)

    def new_prober(self) -> Prober:
        return Prober(
            parallel.plain(self.model),
            self.optimizer,
            self.context.device,
            self.spending,
            rank=self.rank,
            world_size=self.world_size,
            control=self.group.control,
            compiled=self.spec.training.compile,
        )

    def new_rank_watch(self) -> RankWatch:
        return RankWatch(
            self.model,
            self.context.device,
            budget=self.spec.gradients.overhead_budget,
            rank=self.rank,
            world_size=self.world_size,
        )

    def new_saver(self, generation: int) -> Saver:
        keep, evaluation = self.spec.checkpoint, self.spec.evaluation
        return Saver(
            self.context.checkpoints,
            rank=self.rank,
            world_size=self.world_size,
            generation=generation,
            retention=Retention(keep.keep_last, keep.keep_best, evaluation.best, evaluation.mode),
        )

    def next_writer(self) -> int:
        found: list[int] = [1 + newest_generation(self.context.checkpoints) if self.rank == 0 else 0]
        if self.world_size > 1:
            dist.broadcast_object_list(found, src=0, group=self.group.control)
        return found[0]

    def take_state(self, membership: Membership) -> None:
        """Raises MisplacedError when others are to go on from a state of this worker that it does not have."""
        thought_there = membership.position is not None and membership.source in (None, self.rank)
        if thought_there and self.position != membership.position:
            raise MisplacedError(f"is at {self.position}, not at {membership.position}")
        if membership.position is None:
            self.has_state = False
            self.step, self.stage = 0, Stage.COMPLETE
            self.resume()
            self.announce()
        elif membership.source is not None:
            same = self.position == membership.position
            self.has_state = same
            document = hand_over(
                parallel.plain(self.model),
                self.optimizer,
                self.document() if self.rank == membership.source else {},
                rank=self.rank,
                source=membership.source,
                same=same,
                device=self.context.device,
                group=self.group.control,
            )
            if not same:
                self.take_document(document)
                self.step, self.stage = membership.position.step, membership.position.stage
        self.has_state = True

    def resume(self) -> None:
        """From the newest checkpoint that verifies, or the newest healthy one. Rank 0 chooses, all load."""
        chosen: list[Any] = [self.checkpoint_to_go_on_from() if self.rank == 0 else None]
        if self.world_size > 1:
            dist.broadcast_object_list(chosen, src=0, group=self.group.control)
        checkpoint = chosen[0]
        if checkpoint is None:
            self.take_document(self.fresh)  # who trained before forgets it too
            return
        known = checkpoints.document_of(checkpoint)
        self.repairs.restore(known.get("repairs") or NO_REPAIRS)
        if self.built != self.repairs.patches:
            self.rebuild()
        document = checkpoints.load(checkpoint, parallel.plain(self.model), self.optimizer, self.context.device)
        self.take_document(document)
        self.recorder.tell_verdict_anew()  # this attempt has none yet
        self.step = checkpoint.step
        data, said = {"step": self.step}, ""
        if self.context.healthy_before:
            data |= {"verdict": checkpoint.verdict}
            said = f" Its verdict is {checkpoint.verdict}: the last healthy one was asked for."
        self.tell("training.resumed", f"Going on after step {self.step}, from {checkpoint.path.name}.{said}", data)

    def checkpoint_to_go_on_from(self) -> checkpoints.Checkpoint | None:
        healthy_before = self.context.healthy_before
        checkpoint, damaged = checkpoints.newest(self.context.checkpoints, healthy_before)
        if checkpoint is None and healthy_before:
            checkpoint, damaged = checkpoints.newest(self.context.checkpoints)
            if checkpoint is not None:
                said = "There is no healthy checkpoint to go on from: the newest one is taken."
                self.tell("checkpoint.none_healthy", said, {"step": checkpoint.step}, level="warning")
        for found in damaged:
            self.tell(
                "checkpoint.damaged",
                f"Checkpoint {found.path.name} is passed over: {found.problem}.",
                {"path": str(found.path), "problem": found.problem},
                level="warning",
            )
        return checkpoint

    def document(self) -> dict[str, Any]:
        """Besides tensors, what another worker or a later run needs to go on from here: JSON values."""
        self.recorder.flush()
        return {
            "score": self.score.document(),
            "recorder": self.recorder.document(),
            "gradient_digest": self.gradient_digest.hexdigest(),
            "accumulate": self.accumulate,
            "repairs": self.repairs.document(),
        }

    def take_document(self, document: Mapping[str, Any]) -> None:
        self.score.restore(document["score"])
        self.recorder.restore(document["recorder"])
        self.gradient_digest = GradientDigest(document["gradient_digest"])
        self.accumulate = max(self.accumulate, document.get("accumulate", 1))
        if "repairs" in document:  # not in those of earlier versions
            self.repairs.restore(document["repairs"])
            self.plan = self.plan_now()
            self.weigh_classes()
            self.recorder.runs(self.plan.steps, self.repairs.origin)

    def plan_now(self) -> batches.Plan:
        """As repairs have it: the run may be longer, and leave samples out."""
        steps = self.job_steps + self.repairs.extra
        return replace(
            self.plan, steps=steps, left_out=left_out_now(self.spec.training.leave_out, self.repairs.entries)
        )

    def weigh_classes(self) -> None:
        """As repairs have it."""
        if isinstance(self.task, Weighing):
            self.task.weigh(weights_now(self.repairs.entries))

    def cut(self) -> None:
        """Frees the training thread from whatever it waits for in its group. Called by any thread."""
        if self.exchanged is not None and not self.exchanged.query():
            self.suspect = True
        self.group.cut()

    def leave(self) -> None:
        """Out of the group, with everything as it stood when the step began that broke off."""
        self.link.joining(lambda: None)  # a cut that comes late is about this group, not about the next
        self.cut()
        if not self.joined:  # it broke off while it was being formed
            self.stop_reading()
            self.group.leave()
            return
        self.joined = False
        self.saver.abandon()
        parallel.dissolve(self.model)
        self.model = self.plain_model
        self.group.leave()
        self.break_off()
        if self.sharded or self.suspect:  # shards are lost with their rank
            self.has_state = self.suspect = False

    def break_off(self) -> None:
        """Everything is again as it stood when the step began that is under way, if one is."""
        self.stop_reading()
        self.prober.abandon()
        self.optimizer.zero_grad(set_to_none=True)
        if self.in_step:
            self.buffers.put_back()
            self.in_step = self.in_passes = False

    def stop_reading(self) -> None:
        if self.prefetcher is not None:
            self.prefetcher.close()
            self.prefetcher = None

    # --- telling ------------------------------------------------------------------------------------------------------

    def announce(self) -> None:
        parameters = sum(parameter.numel() for parameter in self.plain_model.parameters())
        device = self.context.device
        name = "CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)
        layers = self.monitor.layers.names
        self.tell(
            "training.started",
            f"{parameters:,} parameters in {len(layers)} layers, {self.plan.samples:,} training samples, "
            f"{self.plan.steps:,} steps, {self.world_size} worker{'s' if self.world_size > 1 else ''} on {name}.",
            {
                **batches.describe(self.plan),
                "evaluation_samples": len(self.datasets.evaluation) if self.datasets.evaluation else 0,
                "parameters": parameters,
                "layers": list(layers),
                "device": name,
                "threads": torch.get_num_threads(),
                "world_size": self.world_size,
                "accumulate": self.accumulate,
                "resumed_from": self.step or None,
                "machine": machine(),
                "activations": list(self.prober.names.activations),
            },
        )
        if self.spec.training.compile and self.spec.gradients.overhead_budget > 0:
            self.tell(
                "watch.activations_skipped",
                "What activations give is not watched, because the model is compiled: silent units and saturation are not measured. "
                "Zero rows of gradients still show dead units.",
                {},
            )

    def announce_group(self) -> None:
        """By this, and by what is told at a start, anybody knows later which workers made which step of which samples."""
        self.tell(
            "training.continued",
            f"Going on after step {self.step} with {self.world_size} worker{'s' if self.world_size > 1 else ''}, "
            f"{self.accumulate} microbatch{'es' if self.accumulate > 1 else ''} each.",
            {"step": self.step, "world_size": self.world_size, "accumulate": self.accumulate},
        )

    def announce_facts(self, facts: Facts) -> None:
        if facts.layers:
            loss = facts.loss.function or "no loss function that is known by name"
            self.tell("facts", f"Before the first step: {len(facts.layers)} layers; {loss}.", to_json(facts))

    def tell(self, type: str, message: str, data: Mapping[str, Any], level: Level = "info") -> None:
        if self.rank == 0:
            self.context.reporter.event(level, type, message, data)
