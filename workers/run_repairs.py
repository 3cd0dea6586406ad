"""How a run is mended between its steps (``health.mode: repair``): what rank 0 decides all ranks do, after the same step."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from workers import parallel
from workers.agreement import Agreed
from workers.handover import hand_over
from workers.membership import Stage, Work
from workers.repair.acts import BY_PEOPLE, Act, State
from workers.repair.contest import gives_way
from workers.repair.ladder import Situation
from workers.repair.moments import forget_moments
from workers.repair.rebuilding import planned, rebuildable
from workers.repair.repairs import Plan
from workers.repair.requests import asked
from workers.repair.sentences import changed
from workers.repair.snapshots import Snapshot, copied, put_back
from workers.repair.told import ADVICE
from workers.reports import Outcome, ReasonCode
from workers.run_quarantine import RunQuarantine
from workers.watch.findings import Judgement

ASK_SECONDS = 1.0  # between two looks at what people ask
EXAMPLE_ROWS = 64  # samples by which a changed model is judged before it is trained
UNDOABLE = 2  # acts whose state before is kept
SNAPSHOT_SHARE = 0.005  # of the time, at most, for taking snapshots
SNAPSHOTS = 50  # in a run, at most
SNAPSHOT_STEPS = 5  # at least between two of them


class RunRepairs(RunQuarantine):
    """Does nothing, and costs nothing, in any other mode."""

    # --- what rank 0 wants --------------------------------------------------------------------------------------------

    @property
    def repairing(self) -> bool:
        return self.spec.health.mode == "repair"

    def hear(self, judgement: Judgement | None) -> None:
        """What can be mended is mended before anybody stops for it."""
        if judgement is None:
            return
        if self.repairing:
            self.consider([asdict(finding) for finding in judgement.findings])
            if self.wanted is not None or self.repairs.trial is not None:
                return
        super().hear(judgement)

    def consider(self, findings: Sequence[Mapping[str, Any]]) -> None:
        alarms = [finding for finding in findings if finding["severity"] != "note"]
        self.sick = bool(alarms)
        situation = self.situation(alarms[0]) if alarms else None
        kept, patches, data = self.snapshots.steps, self.plan_of_patches(), self.data_answers()
        self.wanted = self.repairs.next_act(alarms, situation, kept, self.step, patches, self.recorder.loss_of, data)
        code = self.wanted.code if self.wanted is not None else None
        self.found = next((each for each in alarms if each["code"] == code), alarms[0]) if alarms else {}
        if (
            self.wanted is None
            and alarms
            and self.repairs.trial is None
            and alarms[0]["code"] not in self.repairs.refused | ADVICE
        ):
            self.repairs.refused.add(alarms[0]["code"])
            why = self.repairs.why_not(situation)
            self.tell(
                "repair.none",
                f"{alarms[0]['code']} is not repaired: {why}.",
                {"step": self.step, "code": alarms[0]["code"]},
            )

    def situation(self, finding: Mapping[str, Any]) -> Situation:
        return Situation(
            finding=finding,
            step=self.step,
            total=self.plan.steps,
            usual_norm=self.recorder.usual_norm(int(finding["first_bad_step"])),
            optimizer=self.spec.optimizer.name,
            learning_rate=self.spec.optimizer.learning_rate,
        )

    def plan_of_patches(self) -> Plan | None:
        """On rank 0, which decides: what a plan would change of this job's model. None: it is not rebuilt."""
        if self.rank > 0 or not rebuildable(self.task, compiled=self.spec.training.compile):
            return None

        def plan(name: str) -> list[dict[str, Any]]:
            self.link.at(
                Work.DATA, self.step
            )  # behind the others, which may have to wait in the next step: it is not they that hang
            rows = self.plan.step_indices(self.step)[:EXAMPLE_ROWS].tolist()
            batch = self.datasets.train.batch(rows, seed=self.spec.training.seed)
            known = self.repairs.patches_before_trial
            found = planned(name, self.own_model, self.task, batch, known, self.spec.training.seed)
            return [*known, *found] if found else []

        return plan

    # --- what all do --------------------------------------------------------------------------------------------------

    def repair(self) -> Outcome | None:
        """Called by all ranks after the same step. Nothing of it is left where it breaks off before the last line: the group that forms next takes
        over from a rank that has done all of it, or it is decided anew."""
        wanted = replace(self.wanted, step=self.step) if self.wanted is not None else None
        sent = self.from_rank_0([wanted.document(), dict(self.found)] if wanted is not None else None)
        self.wanted = None
        if sent is None:
            return None
        act, finding = Act.of(sent[0]), sent[1]
        self.link.at(Work.SAVE, self.step)
        self.saver.before_update()
        self.recorder.flush()
        before = self.state_before(act)
        if act.verdict == "undone" and before is None:
            said = f"Repair {act.number} cannot be undone: the state before it is not in memory any more."
            self.tell("repair.refused", said, {"step": self.step, "request": act.request}, level="warning")
            self.repairs.taken.append(act.request or "")
            return None
        if not self.changed(act):
            self.repairs.cannot(act)
            return None
        if before is None and act.verdict is not None:
            act = replace(act, rewind=None)  # the state before is not in memory any more
        states = [each.state for each in self.repairs.entries]
        self.repairs.done(act, finding, self.values_now())
        if self.repairs.patches != self.built or act.patches is not None:
            self.rebuild()
        if before is not None:
            put_back(before, parallel.plain(self.model), self.optimizer)
        self.forget_left_out(act)
        self.stretch()
        self.weigh_classes()
        self.facts_of_weights(act)
        if act.verdict == "undone" or (act.code != BY_PEOPLE and act.verdict != "kept") or act.changes_data:
            back = 0 if act.patches is not None and act.verdict is None else act.rewind
            back = self.best_at if act.ends and act.verdict is None else back
            back = 0 if act.class_weights else back  # losses before and after it are not of one measure
            self.recorder.begin_anew(
                self.step if back is None else back, self.step, self.plan.steps, self.repairs.origin
            )
            self.facts_due = self.recorder.facts is None
        if not self.snapshots.steps:
            self.snapshots.take(self.step, parallel.plain(self.model), self.optimizer)
        self.tell_repairs(act, states)
        self.stage = Stage.REPAIRED
        if act.ends and act.verdict is None:
            said = f"stopped after step {self.step}, with the weights that did best in validation (step {self.best_at})"
            return Outcome(ReasonCode.EARLY_STOPPED, said)
        return None

    def changed(self, act: Act) -> bool:
        """Does to the weights and the optimizer what a change says. False: a rank cannot, and nothing was done."""
        model = parallel.plain(self.model)
        if act.verdict is not None:
            return True
        self.keep_before(act)
        for number in sorted(self.before)[:-UNDOABLE]:
            del self.before[number]
        if act.rewind is not None and not self.go_back(act.rewind):
            return False
        if act.ends:
            if not self.everywhere(self.best is not None):
                return False
            put_back(self.best or copied(self.step, model, self.optimizer), model, self.optimizer)
        if act.forgets_moments:
            forget_moments(self.optimizer)
        return True

    def keep_before(self, act: Act) -> None:
        """What takes the place of something that leaves nothing behind is taken back to what was before both."""
        replaced = self.repairs.entries[act.instead_of - 1].act if act.instead_of is not None else None
        if replaced is None or not gives_way(act, replaced):
            self.before[act.number] = copied(self.step, parallel.plain(self.model), self.optimizer)
        elif replaced.number in self.before:
            self.before[act.number] = self.before.pop(replaced.number)

    def evaluate_when_due(self) -> Outcome | None:
        outcome = super().evaluate_when_due()
        if self.repairing and self.score.best_at == self.score.evaluations and self.score.evaluations != self.kept_best:
            self.best, self.best_at = copied(self.step, parallel.plain(self.model), self.optimizer), self.step
            self.kept_best = self.score.evaluations
        return outcome

    def state_before(self, act: Act) -> Snapshot | None:
        """What a verdict puts back; None: nothing, or it is not here any more on a rank."""
        if act.verdict is None or act.rewind is None or not self.everywhere(act.number in self.before):
            return None
        self.snapshots.drop_after(act.rewind)
        return self.before.pop(act.number)

    def everywhere(self, here: bool) -> bool:
        """Whether it is so on all ranks."""
        found = torch.tensor(int(here))
        if self.world_size > 1:
            dist.all_reduce(found, dist.ReduceOp.MIN, group=self.group.control)
        return bool(found)

    def from_rank_0(self, document: Any) -> Any:
        if self.world_size == 1:
            return document
        sent = [document if self.rank == 0 else None]
        dist.broadcast_object_list(sent, src=0, group=self.group.control)
        return sent[0]

    def go_back(self, step: int) -> bool:
        """To the snapshot of that step. A rank that came later gets it from rank 0; of parts that only it would have nobody has it: False."""
        here = step in self.snapshots.steps
        everywhere = self.everywhere(here)
        model = parallel.plain(self.model)
        if not everywhere and self.sharded:
            return False
        if here:
            self.snapshots.restore(step, model, self.optimizer)
        if not everywhere:
            hand_over(
                model, self.optimizer, {}, rank=self.rank, source=0, same=here, device=self.context.device,
                group=self.group.control,
            )  # fmt: skip
        return True

    def stretch(self) -> None:
        """The run becomes longer by what was lost, within its budget; what is read ahead knows only the old end, and the old samples."""
        plan = self.plan_now()
        if plan != self.plan:
            self.plan = plan
            self.stop_reading()

    def values_now(self) -> dict[str, float]:
        names = ("train/loss", "gradient/norm", "train/learning_rate")
        found = {name: self.recorder.latest[name] for name in names if name in self.recorder.latest}
        return {name: value for name, value in {**found, **self.score.metrics}.items() if math.isfinite(value)}

    def tell_repairs(self, act: Act, states: Sequence[State]) -> None:
        """What has changed, the newest last. ``states``: of all, before."""
        entries = self.repairs.entries
        for entry, before in zip(entries, [*states, None], strict=False):
            if entry.state != before:
                told = changed(entry, entries, self.step)
                self.tell(told.type, told.message, {"step": self.step, "repair": entry.document()}, level=told.level)

    # --- what people ask for ------------------------------------------------------------------------------------------

    def look_after(self) -> None:
        super().look_after()
        folder, now = self.context.requests, time.monotonic()
        if folder is None or self.rank > 0 or self.wanted is not None or now - self.asked_at < ASK_SECONDS:
            return
        self.asked_at = now
        for request in asked(folder, self.repairs.taken):
            found = self.why_not_asked(request) or self.repairs.asked(request, self.step)
            if isinstance(found, Act):
                self.wanted, self.found = found, {}
                return
            self.repairs.taken.append(request.id)
            said = f"What {request.by} asked for is not done: {found}."
            self.tell("repair.refused", said, {"step": self.step, "request": request.id}, level="warning")

    # --- step by step -------------------------------------------------------------------------------------------------

    def keep_snapshot_when_due(self, agreed: Agreed | None) -> None:
        """``agreed``: what came with the step; None: before the first one."""
        if not self.repairing:
            return
        due = agreed is None or 0 < agreed.votes.next_snapshot <= self.step
        if not due or (agreed is None and self.snapshots.steps):
            return
        began = time.perf_counter()
        self.snapshots.take(self.step, parallel.plain(self.model), self.optimizer)
        self.snapshot_at, self.snapshot_seconds = time.monotonic(), time.perf_counter() - began

    def snapshot_vote(self) -> float:
        """Rank 0's: the step that is under way, when it is time to keep how the run stands after it, and it is well."""
        if not self.repairing or self.rank > 0 or self.sick or self.repairs.trial is not None:
            return 0.0
        since = self.step + 1 - (self.snapshots.steps[-1] if self.snapshots.steps else 0)
        seconds = time.monotonic() - self.snapshot_at
        often = (
            since >= max(SNAPSHOT_STEPS, self.job_steps // SNAPSHOTS)
            and seconds * SNAPSHOT_SHARE >= self.snapshot_seconds
        )
        return float(self.step + 1) if often else 0.0

    def passes_over(self, norm: Tensor) -> bool:
        """Whether this update is left out, because the gradient is no number: the same on all ranks, whose norm is the same."""
        if not self.repairing or bool(torch.isfinite(norm)):
            return False
        self.passed_over += 1
        if self.passed_over in (1, 10, 100) or self.passed_over % 1000 == 0:
            said = f"The update of step {self.step + 1} is left out, because its gradient is no number ({self.passed_over} so far)."
            self.tell("repair.skipped", said, {"step": self.step + 1, "skipped": self.passed_over}, level="warning")
        return True
