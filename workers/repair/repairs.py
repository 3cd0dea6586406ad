"""What has been done to a run, what is tried now, and what comes next. Every rank holds one; what rank 0's decides is agreed and done by all.

A trial lasts for its act's probation. When what was found is seen again after it, or something critical sooner, the next rung takes the act's place;
else the act is kept. What decides is a judgement of the run as it is now: steps that a rewind left behind are not part of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from workers.repair.acts import BY_PEOPLE, Act, Entry, Verdict
from workers.repair.ladder import Rung, Situation, answer, rewarm_steps, rungs
from workers.repair.requests import Request
from workers.spec import Health

PROBATION = 0.06  # of the run
REBUILT = 0.3  # of the run, where it began anew: what is flat shows by then
PROBATION_STEPS = 30  # at least
SETTLES = 5  # steps after an act that say nothing yet
Plan = Callable[[str], list[dict[str, Any]]]


class Repairs:
    """``entries``: the record, oldest first."""

    def __init__(self, health: Health, steps: int, learning_rate: float) -> None:
        """``steps``, ``learning_rate`` (at the top of its schedule): of the job as it was asked for."""
        self._health, self._steps, self._learning_rate = health, steps, learning_rate
        self.taken: list[str] = []  # requests of people that were taken up
        self.entries: list[Entry] = []
        self._unfit: dict[str, int] = {}  # rungs of a code's ladder that this run cannot take
        self._plan: Plan | None = None
        self.refused: set[str] = set()  # codes of which it was told why nothing is done

    # --- what holds now -----------------------------------------------------------------------------------------------

    @property
    def lost(self) -> int:
        """Steps that rewinds have left behind, which the run makes up for at its end as far as it may."""
        found = 0
        for entry in self.entries:
            if entry.state == "undone" and entry.ended is not None:
                found += entry.ended - entry.act.step  # what came of it is gone
            elif entry.act.patches is not None:
                found = entry.act.step
            elif entry.act.rewind is not None:
                found += max(0, entry.act.step - entry.act.rewind)
        return found

    @property
    def origin(self) -> int:
        """The step after which the run began anew last."""
        return max((act.step for act in self._holding() if act.patches is not None), default=0)

    @property
    def patches(self) -> list[dict[str, Any]]:
        """Of the model that trains now, as ``patches.from_json`` reads them."""
        return next((act.patches for act in reversed(self._holding()) if act.patches is not None), [])

    @property
    def extra(self) -> int:
        """By how many steps the run is longer than its job says."""
        return min(self.lost, self.most_extra)

    @property
    def most_extra(self) -> int:
        return round(self._health.budget.extra_steps * self._steps)

    def schedule_step(self, step: int) -> int:
        """Where the job's own schedule stands: a rewind sets it back too."""
        return max(0, step - self.extra)

    def rate(self, step: int, scheduled: float) -> float:
        """What becomes of the rate that the job's schedule gives."""
        found = scheduled
        for act in self._holding():
            if act.learning_rate is not None:
                found = (
                    scheduled * act.learning_rate / self._learning_rate if self._learning_rate else act.learning_rate
                )
            found = max(found, act.rate_at_least) * act.rate
            if act.rate < 1:
                found = max(found, self._health.budget.lr_floor * scheduled)
        newest = next((act for act in reversed(self._holding()) if act.rewarm), None)
        if newest is None or step >= newest.step + newest.rewarm:
            return found
        return found * (step - newest.step + 1) / newest.rewarm

    @property
    def decay(self) -> float:
        """What the job's weight decay is multiplied with."""
        return math.prod(act.decay for act in self._holding())

    def clip(self, limit: float | None) -> float | None:
        """What becomes of the job's own."""
        for act in self._holding():
            if act.clip is not None:
                limit = act.clip if limit is None or act.code == BY_PEOPLE else min(limit, act.clip)
        return limit

    def _holding(self) -> list[Act]:
        return [each.act for each in self.entries if each.state in ("trial", "kept")]

    @property
    def patches_before_trial(self) -> list[dict[str, Any]]:
        """What is on trial gives way to what is tried next."""
        kept = [each.act.patches for each in self.entries if each.state == "kept" and each.act.patches is not None]
        return kept[-1] if kept else []

    # --- what comes next ----------------------------------------------------------------------------------------------

    @property
    def trial(self) -> Entry | None:
        return next((each for each in self.entries if each.state == "trial"), None)

    def next_act(
        self,
        findings: Sequence[Mapping[str, Any]],
        situation: Situation | None,
        snapshots: Sequence[int],
        step: int,
        plan: Plan | None = None,
    ) -> Act | None:
        """What is to be done after ``step``. ``findings``: those that are open now, as documents, the first cause first. ``situation``: of the first
        that is more than a note; None without one. ``snapshots``: steps to which one can go back, ascending. ``plan``: name of a plan -> its patches,
        those of the model as it is included, or none; None: this model is not rebuilt."""
        self._plan = plan
        trial = self.trial
        if trial is not None:
            critical = any(each["severity"] == "critical" for each in findings)
            due = step >= trial.act.step + trial.act.probation
            if step < trial.act.step + SETTLES or not (due or critical):
                return None
            if situation is None:
                return self._ends(trial, "kept", step) if due else None
            return self._instead(trial, situation, snapshots, step)
        if situation is None or self._spent:
            return None
        code = situation.finding["code"]
        if self._unwanted(code):
            return None
        return self._act(situation, self._before(code), snapshots, step, instead_of=None)

    def _instead(self, trial: Entry, situation: Situation, snapshots: Sequence[int], step: int) -> Act | None:
        """The next rung of the same ladder; what is seen after an act may have another name, and the same reason."""
        if self._spent:
            return self._ends(trial, "taken_back", step)
        same = replace(situation, finding=trial.finding)
        found = self._act(same, self._before(trial.act.code), snapshots, step, instead_of=trial.act.number)
        if found is None and situation.finding["code"] != trial.act.code:
            code = situation.finding["code"]
            found = self._act(situation, self._before(code), snapshots, step, instead_of=trial.act.number)
        return found or self._ends(trial, "taken_back", step)

    def _act(
        self, situation: Situation, tried: int, snapshots: Sequence[int], step: int, instead_of: int | None
    ) -> Act | None:
        code = situation.finding["code"]
        rung = answer(situation, self._health.allow, tried + self._unfit.get(code, 0))
        if rung is None:
            return None
        back = self._target(rung, situation, snapshots)
        patches = self._patches(rung, step)
        if (rung.back and back is None) or (rung.plan is not None and not patches):
            self._unfit[code] = self._unfit.get(code, 0) + 1
            return self._act(situation, tried, snapshots, step, instead_of)
        part = REBUILT if rung.plan is not None else PROBATION
        return Act(
            number=len(self.entries) + 1,
            step=step,
            code=situation.finding["code"],
            consent=rung.consent,
            words=rung.words,
            rewind=back,
            rate=rung.rate,
            rate_at_least=rung.rate_at_least,
            rewarm=rewarm_steps(situation) if rung.rewarm else 0,
            clip=rung.clip,
            forgets_moments=rung.forgets_moments,
            patches=patches,
            instead_of=instead_of,
            probation=max(PROBATION_STEPS, round(part * self._steps)),
        )

    def _patches(self, rung: Rung, step: int) -> list[dict[str, Any]] | None:
        """None: it needs none, or none fit, or there would be no time left for a run from its start."""
        if rung.plan is None or self._plan is None or step > self.most_extra:
            return None
        return self._plan(rung.plan) or None

    def _target(self, rung: Rung, situation: Situation, snapshots: Sequence[int]) -> int | None:
        """The newest snapshot from before it began; a second try goes back as far as the first, which was not far enough, or further."""
        if not rung.back or not snapshots:
            return None
        begun = int(situation.finding["first_bad_step"])
        before = [step for step in snapshots if step < begun]
        return before[-1] if before else snapshots[0]

    def _ends(self, trial: Entry, verdict: Verdict, step: int) -> Act:
        act, number = trial.act, trial.act.number
        return Act(number, step, act.code, act.consent, act.words, verdict, instead_of=number)

    def _before(self, code: str) -> int:
        """Rungs of this ladder that have been tried since one of them was kept last."""
        count = 0
        for each in self.entries:
            if each.act.code == code:
                count = 0 if each.state == "kept" else count + 1
        return count

    def why_not(self, situation: Situation | None) -> str:
        """A part of a sentence: why nothing is done about it."""
        if situation is None:
            return "nothing is found"
        if self._unwanted(situation.finding["code"]):
            return "somebody undid a repair of it"
        if self._spent:
            return f"all {self._health.budget.repairs} repairs of its budget are used up"
        found = rungs(situation)
        if not found:
            return "nothing that may be done to a running job mends it, or only a person can know what was meant"
        if all(rung.consent not in self._health.allow for rung in found):
            return f"health.allow would have to name {found[0].consent}"
        return "all that is known has been tried"

    @property
    def _spent(self) -> bool:
        return sum(each.act.code != BY_PEOPLE for each in self.entries) >= self._health.budget.repairs

    def _unwanted(self, code: str) -> bool:
        return any(each.state == "undone" and each.act.code == code for each in self.entries)

    # --- what people ask for ------------------------------------------------------------------------------------------

    def asked(self, request: Request, step: int) -> Act | str:
        """What answers it, or why nothing does."""
        if request.kind == "undo":
            entry = next((each for each in self.entries if each.act.number == request.number), None)
            if entry is None:
                return f"there is no repair {request.number}"
            if entry.state not in ("trial", "kept"):
                return f"repair {request.number} is {entry.state.replace('_', ' ')} already"
            if any(each.state in ("trial", "kept") and each.act.number > entry.act.number for each in self.entries):
                return f"a later repair holds; undo that one first, repair {request.number} after it"
            act = entry.act
            return replace(act, step=step, verdict="undone", instead_of=act.number, request=request.id)
        said = []
        if request.learning_rate is not None:
            said.append(f"the learning rate is {request.learning_rate:.3g} at the top of its schedule")
        if request.clip_norm is not None:
            said.append(f"the gradient's norm is clipped at {request.clip_norm:.3g}")
        return Act(
            len(self.entries) + 1, step, BY_PEOPLE, "live", f"{' and '.join(said)}, as {request.by} asked",
            learning_rate=request.learning_rate, clip=request.clip_norm, request=request.id,
        )  # fmt: skip

    # --- record -------------------------------------------------------------------------------------------------------

    def done(self, act: Act, finding: Mapping[str, Any], values: Mapping[str, float]) -> Entry:
        """To be called by all ranks with the same act. ``values``: what the run shows now. The entry that changed."""
        if act.request is not None:
            self.taken.append(act.request)
        before = next((each for each in self.entries if each.act.number == act.instead_of), None)
        if before is not None:
            before.state = act.verdict or "taken_back"
            before.after, before.ended = dict(values), act.step
            if act.verdict is not None:
                return before
        entry = Entry(act, "trial" if act.probation else "kept", dict(finding), dict(values))
        self.entries.append(entry)
        return entry

    def document(self) -> dict[str, Any]:
        return {"entries": [each.document() for each in self.entries], "taken": self.taken}

    def restore(self, document: Mapping[str, Any]) -> None:
        self.entries, self.taken = [Entry.of(each) for each in document["entries"]], list(document["taken"])
