"""One rank's part of a stretch of steps that is done again, in a process of its own. Nothing is written but into a scratch folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import FileStore

from workers import checkpoints
from workers.agreement import Agreed, Signal
from workers.batches import StepData, seed_everything, step_seed
from workers.gradients import clip_factor
from workers.membership import Alone, Membership, Stage
from workers.parallel import plain
from workers.recording import HostValues
from workers.repair.acts import Act
from workers.replay_look import Look, Seen, Update
from workers.reports import Level, Outcome, Progress, ReasonCode
from workers.run_state import RunContext
from workers.spec import JobSpec, code_of
from workers.tasks import build_task
from workers.tasks.base import Batch, Task
from workers.train import Run
from workers.user_code import UserCode, provide, provided


@dataclass(frozen=True)
class Part:
    """What all ranks of one group do. Travels to their processes."""

    spec: JobSpec
    world_size: int
    accumulate: int
    first: int  # step, from 1
    last: int
    begins: checkpoints.Checkpoint | None  # None: at the start
    under_way: bool  # the group had made steps before these
    acts: Sequence[Mapping[str, Any]]  # documents of what was done to the run meanwhile, in order
    looked_at: bool  # the last step
    scratch: Path
    bundle: (
        Path | None
    )  # the user's code, as it was submitted; None: as it lies unpacked in the scratch folder, if there is any

    @property
    def store(self) -> Path:
        return self.scratch / f"store-{self.first}"

    @property
    def saved(self) -> str:
        return str(self.scratch / "checkpoints")

    @property
    def code(self) -> Path:
        return self.scratch / "code"


class CannotBeRedoneError(Exception):
    """Something of the run cannot be done again exactly. ``str()`` names it."""


class Told:
    """A reporter that keeps the series of one step."""

    def __init__(self, step: int) -> None:
        self._step = step
        self.values: dict[str, float] = {}

    def metrics(self, step: int, values: Mapping[str, float], timestamp: float) -> None:
        if step == self._step:
            self.values.update(values)

    def gradients(self, layers: Sequence[str], rows: Sequence[tuple[int, Sequence[float]]]) -> None: ...

    def probes(self, layers: Sequence[str], activations: Sequence[str], rows: Sequence[tuple[int, str]]) -> None: ...

    def ranks(self, rows: Sequence[str]) -> None: ...

    def progress(self, progress: Progress) -> None: ...

    def event(self, level: Level, type: str, message: str, data: Mapping[str, Any] | None = None) -> None: ...


def redo(part: Part, rank: int) -> Seen:
    """In a process that has no group yet. Raises CannotBeRedoneError, and whatever a task raises."""
    store = FileStore(str(part.store), part.world_size) if part.world_size > 1 else None
    told = Told(part.last)
    context = RunContext(
        device=torch.device("cpu"),
        reporter=told,
        link=Alone(rank, part.world_size, store=store),
        checkpoints=part.saved,
        model_folder=part.scratch / "model",
        code=_own_code(part),
    )
    spec = _unwatched(part.spec)
    run = Replay(build_task(spec.task, spec.training.seed, context.code), spec, context, part)
    try:
        run.train()
    finally:
        run.close()
    return replace(run.seen, values=told.values)


def _own_code(part: Part) -> UserCode | None:
    code = code_of(part.spec)
    if code is None:
        return None
    if code.path is not None or part.bundle is not None:
        return provide(code, part.bundle, part.code)
    return provided(code, part.code)


def _unwatched(spec: JobSpec) -> JobSpec:
    """Probes read, and cost; norms are wanted of the step whatever the job says."""
    return spec.model_copy(update={"gradients": spec.gradients.model_copy(update={"overhead_budget": 0.0})})


class Replay(Run):
    """The same loop with nothing around its steps but what was done to the run then."""

    def __init__(self, task: Task, spec: JobSpec, context: RunContext, part: Part) -> None:
        self.part, self.seen = part, Seen()
        self._look: Look | None = None
        self._warm = not part.under_way
        self._acts = [Act.of(each) for each in part.acts]
        self._back_to = {act.rewind for act in self._acts if act.rewind is not None and act.verdict is None}
        super().__init__(task, spec, context)

    # --- where it begins and ends -------------------------------------------------------------------------------------

    def checkpoint_to_go_on_from(self) -> checkpoints.Checkpoint | None:
        return self.part.begins

    def take_state(self, membership: Membership) -> None:
        super().take_state(membership)
        self.accumulate = self.part.accumulate

    def over_before(self) -> Outcome | None:
        self.redo_acts()
        return None

    def after_step(self, signal: Signal) -> Outcome | None:
        over = self.step >= self.part.last
        if over and self.part.looked_at:
            return Outcome(ReasonCode.PAUSED, f"step {self.step} is done again")
        self.redo_acts()
        if over and self.save_when_due(last=True) is not None:
            raise CannotBeRedoneError(f"there is no room for what the run has become after step {self.step}")
        self.stage = Stage.COMPLETE
        return Outcome(ReasonCode.PAUSED, f"up to step {self.step}") if over else None

    def finish(self, outcome: Outcome) -> Outcome:
        self.recorder.flush()
        return outcome

    def signal(self) -> Signal:
        return Signal.NONE

    def fits_in_smaller(self, error: Exception) -> bool:
        """Other microbatches would be another step."""
        return False

    def watched_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.task.loss(self.model, batch)

    # --- what was done to the run -------------------------------------------------------------------------------------

    def redo_acts(self) -> None:
        """By all ranks alike, with the code that did it then."""
        while self._acts and self._acts[0].step == self.step:
            act = self._acts.pop(0)
            known = {entry.act.number: entry.state for entry in self.repairs.entries}
            if act.number in known if act.verdict is None else known.get(act.number) == act.verdict:
                continue  # the checkpoint was made behind it
            kept = self.snapshots.steps if act.verdict is None else [each.step for each in self.before.values()]
            if act.rewind is not None and act.rewind not in kept:
                raise CannotBeRedoneError(
                    f"repair {act.number} goes back to step {act.rewind}, of which nothing is kept here"
                )
            before = [entry.document() for entry in self.repairs.entries]
            self.wanted, self.found = act, {}
            self.repair()
            if before == [entry.document() for entry in self.repairs.entries]:
                raise CannotBeRedoneError(
                    f"repair {act.number} ({act.words}) after step {act.step} cannot be done again"
                )

    def snapshot_vote(self) -> float:
        return 0.0

    def keep_snapshot_when_due(self, agreed: Agreed | None) -> None:
        """Those to which the run went back, instead of those that would have been there."""
        if self.step in self._back_to and self.step not in self.snapshots.steps:
            self.snapshots.take(self.step, plain(self.model), self.optimizer)

    # --- the step that is looked at -----------------------------------------------------------------------------------

    @property
    def looking(self) -> bool:
        return self.part.looked_at and self.step + 1 == self.part.last

    def counted(self, weight: float) -> AbstractContextManager[None]:
        if self._look is not None:
            self._look.begin_pass(weight > 0)
        return super().counted(weight)

    def forward_backward(self, data: StepData) -> None:
        if not self._warm and self.world_size > 2:
            self._warm_up(data)
        self._warm = True
        if not self.looking:
            super().forward_backward(data)
            return
        with self._looked_at():
            super().forward_backward(data)

    def _warm_up(self, data: StepData) -> None:
        """DDP lays its buckets out anew after the first backward pass of a group, and where an element lies decides in which order what more than
        two ranks have of it is added up. Nothing stays of these passes but that."""
        super().forward_backward(data)
        self.agreement.result()
        self.optimizer.zero_grad(set_to_none=True)
        self.buffers.put_back()
        self.buffers.keep()
        seed_everything(step_seed(self.spec.training.seed, self.step, self.rank))

    @contextlib.contextmanager
    def _looked_at(self) -> Iterator[None]:
        if self.spec.training.compile:
            yield
            return
        self._look = Look(plain(self.model))
        self._look.begin()
        try:
            yield
        finally:
            self.seen.calls = self._look.end()
            self._look = None

    def step_with_gradients(self, data: StepData, agreed: Agreed, host: HostValues) -> None:
        if not self.looking:
            super().step_with_gradients(data, agreed, host)
            return
        correction = float(data.samples / agreed.count)
        update = Update(plain(self.model))
        update.before(correction)
        # Gradients were scaled by the divisor of the group, which takes a mean then.
        self.seen.scale = correction / self.ranks.gradient_divisor
        super().step_with_gradients(data, agreed, host)
        self.seen.weights = update.after()

    def digest(self, norms: Tensor, step: int) -> None:
        super().digest(norms, step)
        if self.part.looked_at and step + 1 == self.part.last:
            self.seen.layers, self.seen.norms = self.monitor.layers.names, norms.tolist()
            whole = norms.square().sum().sqrt()
            self.seen.clipping = float(clip_factor(whole, self.repairs.clip(self.spec.training.clip_norm)))
