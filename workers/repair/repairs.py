"""What has been done to a run, what is tried now, and what comes next. Every rank holds one; what rank 0's decides is agreed and done by all.

A trial lasts for its act's probation. When what was found is seen again after it, or something critical sooner, the next rung takes the act's place;
else the act is kept. What decides is a judgement of the run as it is now: steps that a rewind left behind are not part of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from workers.repair import quarantine, timeline
from workers.repair.acts import BY_PEOPLE, Act, Entry, Verdict
from workers.repair.contest import (
    about_rate,
    better,
    came_from,
    episode,
    is_doubtful,
    margin,
    newer_half,
    next_rate,
    window_of,
)
from workers.repair.data_answers import DataAnswers, why_not_about_data
from workers.repair.ladder import (
    REBUILDS,
    TOO_SHORT,
    Rung,
    Situation,
    answer,
    halfway,
    only_people,
    rewarm_steps,
    rungs,
    said_of,
    too_far,
)
from workers.repair.requests import Request
from workers.spec import Health

PROBATION = 0.06  # of the run, at least, and
LONGEST_PROBATION = 0.3  # at most: as long as it took to see what was wrong; where it began anew, always
PROBATION_STEPS = 30  # at least
EARLY = 0.1  # of the run: as old it is when it is compared with a changed model
RECENT = 20  # steps that say how a run stands
SETTLES = 5  # steps after an act that say nothing yet
Plan = Callable[[str], list[dict[str, Any]]]
LossOf = Callable[[range], float | None]


class Repairs:
    """``entries``: the record, oldest first."""

    def __init__(self, health: Health, steps: int, learning_rate: float) -> None:
        """``steps``, ``learning_rate`` (at the top of its schedule): of the job as it was asked for."""
        self._health, self._steps, self._learning_rate = health, steps, learning_rate
        self.taken: list[str] = []  # requests of people that were taken up
        self.entries: list[Entry] = []
        self._unfit: dict[str, int] = {}  # rungs of a code's ladder that this run cannot take
        self._plan: Plan | None = None
        self._data: DataAnswers | None = None
        self._loss_of: LossOf = lambda steps: None
        self.refused: set[str] = set()  # codes of which it was told why nothing is done
        self.left_to_people: str | None = None  # the first cause that only they can answer

    # --- what holds now -----------------------------------------------------------------------------------------------

    @property
    def lost(self) -> int:
        """Steps that rewinds have left behind, which the run makes up for at its end as far as it may."""
        return timeline.lost(self.entries)

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
        loss_of: LossOf = lambda steps: None,
        data: DataAnswers | None = None,
    ) -> Act | None:
        """What is to be done after ``step``. ``findings``: those that are open now, as documents, the first cause first. ``situation``: of the first
        that is more than a note; None without one. ``snapshots``: steps to which one can go back, ascending. ``plan``: name of a plan -> its patches,
        those of the model as it is included, or none; None: this model is not rebuilt. ``loss_of``: the training loss of some steps, its
        median; None: it is not finite. ``data``: what can be done about the training data."""
        self._plan, self._loss_of, self._data = plan, loss_of, data
        trial = self.trial
        situation = None if situation is not None and self._known_fact(situation.finding) else situation
        if trial is None and (found := self._about_data(findings, snapshots, step)) is not None:
            return found
        if situation is not None and only_people(situation, self._health.allow):
            self.left_to_people = self.left_to_people or situation.finding["code"]
        if trial is not None:
            return self._judged(trial, findings, situation, snapshots, step)
        if situation is None or self._spent or self.left_to_people is not None:
            return None
        code = situation.finding["code"]
        if self._unwanted(code):
            return None
        return self._next(situation, snapshots, step, instead_of=None)

    def _about_data(
        self, findings: Sequence[Mapping[str, Any]], snapshots: Sequence[int], step: int, instead_of: int | None = None
    ) -> Act | None:
        """Before anything is done to the run: what mends the data that it is trained on."""
        if self._data is None or "data" not in self._health.allow or self._spent:
            return None
        out = quarantine.left_out_now((), self.entries)
        tried = {sample for each in self.entries for sample in each.act.leaves_out or ()}
        for finding in findings:
            found = None if self._unwanted(finding["code"]) else self._data.answer(finding, out, tried)
            if found is None:
                continue
            situation = Situation(finding, step, self._steps, None, None, None)
            rung = Rung("data", back=found.back)
            back = self._target(rung, situation, self._further(snapshots, instead_of), step)
            seen = step + (probation := self._probation(situation, step)) <= self._steps + self.extra
            before = said_of(rung) if back is not None else None
            return found.act(len(self.entries) + 1, situation, before, back, instead_of, probation if seen else 0)
        return None

    def _next(self, situation: Situation, snapshots: Sequence[int], step: int, instead_of: int | None) -> Act | None:
        """The next rung of its ladder that this run can take."""
        code = situation.finding["code"]
        while True:
            rung = answer(situation, self._health.allow, self._before(code) + self._unfit.get(code, 0))
            if rung is None:
                return None
            if rung.plan is not None and not _is_failing(situation.finding):
                return self._beside(situation, rung, step)
            act = self._act(situation, rung, snapshots, step, instead_of)
            if act is not None:
                return act
            self._unfit[code] = self._unfit.get(code, 0) + 1

    def _beside(self, situation: Situation, rung: Rung, step: int) -> Act | None:
        """What is known from the start need not make a job fail: a changed model is tried beside the run as it is, and has to do better at the same
        age. None: it is too early, or was done, or the run is not as it was."""
        if step < self._share(EARLY) or 2 * step > self.most_extra or self._holding():
            return None
        if any(each.act.code == situation.finding["code"] for each in self.entries):
            return None
        act = self._act(situation, rung, (), step, None)
        rival = self._loss_of(newer_half(0, step))
        return replace(act, rival=rival, probation=step) if act is not None and rival is not None else None

    def _judged(
        self,
        trial: Entry,
        findings: Sequence[Mapping[str, Any]],
        situation: Situation | None,
        snapshots: Sequence[int],
        step: int,
    ) -> Act | None:
        """What becomes of a trial. That steps are too short is seen by its end only: until then the rate climbs."""
        due = step >= trial.act.step + trial.act.probation
        critical = any(each["severity"] == "critical" and each["code"] not in TOO_SHORT for each in findings)
        if step < trial.act.step + SETTLES or not (due or critical):
            return None
        rival = trial.act.rival if trial.act.against is None else None  # else both have beaten it
        if rival is not None and not critical:
            over = self._beaten(trial, rival, situation, snapshots, step) if due else None
            if over is not None or not _is_failing(trial.finding):
                return over
        if situation is None and not due:
            return None
        if situation is None or trial.act.against is not None:
            return self._compared(trial, situation is None, snapshots, step)
        return self._instead(trial, situation, snapshots, step)

    def _beaten(
        self, trial: Entry, rival: float, situation: Situation | None, snapshots: Sequence[int], step: int
    ) -> Act | None:
        """What becomes of a changed model beside the run that it was before. None: that had failed, and this does better, which is not all that is
        asked."""
        score = self._loss_of(newer_half(trial.act.step, step))
        wins = better(score, rival)
        if not _is_failing(trial.finding):
            return replace(self._ends(trial, "kept" if wins else "taken_back", step), score=score)
        if wins:
            return None
        found = situation or Situation(trial.finding, trial.act.step, self._steps, None, None, None)
        over = self._instead(trial, found, snapshots, step)
        return replace(over, score=score) if over is not None else None

    def _compared(self, trial: Entry, helped: bool, snapshots: Sequence[int], step: int) -> Act:
        """The next rate of the contest, or its end. ``helped``: nothing is wrong at the end of the trial."""
        act = trial.act
        window = act.probation if act.against is not None else window_of(act, step, PROBATION_STEPS)
        score = self._loss_of(newer_half(act.step, act.step + window)) if helped else None
        before = self.entries[act.against - 1] if act.against is not None else None
        wins = helped and (before is None or better(score, before.score, margin(act, before.act)))
        champion = act if wins or before is None else before.act
        goes_on = not wins or self._open_to_rivals(act, score)
        found = self._neighbour(champion, trial, snapshots, step, window) if goes_on else None
        if found is not None:
            return replace(found, score=score)
        if wins:
            return replace(self._ends(trial, "kept", step), score=score, against=act.against)
        back = came_from(act.number, self.entries)
        return replace(self._ends(trial, "taken_back", step), score=score, against=champion.number, rewind=back)

    def _open_to_rivals(self, act: Act, score: float | None) -> bool:
        """Whether something else may do better than what has just helped."""
        if score is None or not (about_rate(act) or act.plan is not None):
            return False
        first = self._loss_of(range(act.step + 1, act.step + 1 + SETTLES))
        return act.code in TOO_SHORT or is_doubtful(first, score)

    def _neighbour(self, champion: Act, trial: Entry, snapshots: Sequence[int], step: int, window: int) -> Act | None:
        """None: there is none that was not tried, or no room for its trial of ``window`` steps."""
        tried = [each.act for each in episode(trial.act.number, self.entries)]
        if self._spent or self.left_to_people is not None:
            return None
        found = self._other_model(champion, tried) if champion.plan else self._other_rate(champion, tried, snapshots)
        if found is None:
            return None
        found = replace(
            found, number=len(self.entries) + 1, step=step, instead_of=trial.act.number, against=champion.number,
            probation=window,
        )  # fmt: skip
        lost = timeline.lost([*self.entries, Entry(found, "trial", {})])
        return found if lost + window <= self.most_extra else None

    def _other_rate(self, champion: Act, tried: Sequence[Act], snapshots: Sequence[int]) -> Act | None:
        rate = next_rate(champion, tried, self._health.budget.lr_floor)
        if rate is None or champion.rewind not in snapshots:
            return None
        said = f"tries {rate / champion.rate:.2g} times the learning rate of repair {champion.number}, from the same weights"
        return replace(champion, rate=rate, words=said)

    def _other_model(self, champion: Act, tried: Sequence[Act]) -> Act | None:
        known = {act.plan for act in tried}
        for rung in REBUILDS[champion.code]:
            if rung.consent in self._health.allow and rung.plan not in known and self._plan is not None:
                patches = self._plan(str(rung.plan))
                if patches:
                    return replace(champion, plan=rung.plan, patches=patches, rate=rung.rate, words=said_of(rung))
        return None

    def _known_fact(self, finding: Mapping[str, Any]) -> bool:
        """What the job asks for stays as true as it was after it was answered; it says nothing of what became of it unless the job fails."""
        answered = any(each.act.code == finding["code"] and each.state in ("trial", "kept") for each in self.entries)
        return answered and finding["first_bad_step"] == 0 and finding["severity"] != "critical"

    def _instead(self, trial: Entry, situation: Situation, snapshots: Sequence[int], step: int) -> Act | None:
        """The next rung of the same ladder, or one halfway back; what is seen after an act may have another name, and the same reason."""
        if self._spent or self.left_to_people is not None:
            return self._ends(trial, "taken_back", step)
        number, code = trial.act.number, situation.finding["code"]
        same = replace(situation, finding=trial.finding, step=trial.act.step)  # as it was found
        found = self._about_data([situation.finding], snapshots, step, instead_of=number)
        if found is None and too_far(trial.act.rate, code):
            found = self._act(same, halfway(same, trial.act.rate), snapshots, step, instead_of=number)
        found = found or self._next(same, snapshots, step, instead_of=number)
        if found is None and code != trial.act.code:
            found = self._next(situation, snapshots, step, instead_of=number)
        return found or self._ends(trial, "taken_back", step)

    def _act(
        self, situation: Situation, rung: Rung | None, snapshots: Sequence[int], step: int, instead_of: int | None
    ) -> Act | None:
        """None where the run cannot take it, or nobody would see whether it helps."""
        if rung is None or rung.consent not in self._health.allow:
            return None
        back = self._target(rung, situation, self._further(snapshots, instead_of), step)
        patches = self._patches(rung, step)
        if (rung.back and back is None and not rung.cheaply) or (rung.plan is not None and not patches):
            return None
        probation = self._probation(situation, step) if rung.plan is None else self._share(LONGEST_PROBATION)
        if back is None and patches is None and not rung.ends and step + probation > self._steps + self.extra:
            return None
        return Act(
            number=len(self.entries) + 1,
            step=step,
            code=situation.finding["code"],
            consent=rung.consent,
            words=said_of(replace(rung, back=back is not None)),
            rewind=back,
            rate=rung.rate,
            rate_at_least=rung.rate_at_least,
            rewarm=rewarm_steps(situation) if rung.rewarm else 0,
            clip=rung.clip,
            decay=rung.decay,
            forgets_moments=rung.forgets_moments,
            ends=rung.ends,
            patches=patches,
            plan=rung.plan,
            rival=self._loss_of(range(step - RECENT + 1, step + 1)) if rung.plan is not None else None,
            instead_of=instead_of,
            probation=probation,
        )

    def _patches(self, rung: Rung, step: int) -> list[dict[str, Any]] | None:
        """None: it needs none, or none fit, or no time would be left for a run from its start."""
        if rung.plan is None or self._plan is None or step > self.most_extra:
            return None
        return self._plan(rung.plan) or None

    def _further(self, snapshots: Sequence[int], instead_of: int | None) -> Sequence[int]:
        """Where the one before it went back and that did not help, its weights were not from before it began: only earlier ones, or the first."""
        before = next((each.act.rewind for each in self.entries if each.act.number == instead_of), None)
        return snapshots if before is None else [kept for kept in snapshots if kept < before] or snapshots[:1]

    def _probation(self, situation: Situation, step: int) -> int:
        """As long as it took to see it, within bounds; what took longer would be seen again no sooner."""
        took = step - int(situation.finding["first_bad_step"])
        return max(self._share(PROBATION), min(took, self._share(LONGEST_PROBATION)))

    def _share(self, part: float) -> int:
        return max(PROBATION_STEPS, round(part * self._steps))

    def _target(self, rung: Rung, situation: Situation, snapshots: Sequence[int], step: int) -> int | None:
        """The newest snapshot from before it began, or else the first."""
        if not rung.back or not snapshots:
            return None
        begun = int(situation.finding["first_bad_step"])
        before = [kept for kept in snapshots if kept < begun]
        found = before[-1] if before else snapshots[0]
        dear = begun - found > max(step - begun, 1) or self.lost + step - found > self.most_extra
        return None if rung.cheaply and dear else found

    def _ends(self, trial: Entry, verdict: Verdict, step: int) -> Act:
        act, number = trial.act, trial.act.number
        rebuilt = verdict == "taken_back" and act.patches is not None
        back = came_from(number, self.entries) if rebuilt else None
        return Act(number, step, act.code, act.consent, act.words, verdict, rewind=back, instead_of=number)

    def _before(self, code: str) -> int:
        """Rungs of this ladder that have been tried since one of them was kept last; a least rate that is kept is not set again."""
        count = 0
        for each in self.entries:
            of_run = not each.act.changes_data and (each.act.against is None or each.state == "kept")
            if each.act.code == code and of_run:
                count = 0 if each.state == "kept" and not each.act.rate_at_least else count + 1
        return count

    def why_not(self, situation: Situation | None) -> str:
        """A part of a sentence: why nothing is done about it."""
        if situation is None:
            return "nothing is found"
        if self._unwanted(situation.finding["code"]):
            return "somebody undid a repair of it"
        if self.left_to_people not in (None, situation.finding["code"]):
            return f"it follows from {self.left_to_people}, and only a person can know what was meant"
        if self._spent:
            return f"all {self._health.budget.repairs} repairs of its budget are used up"
        found = rungs(situation)
        if not found:
            about_data = why_not_about_data(self._data, situation.finding["code"], self._health.allow)
            return (
                about_data
                or "nothing that may be done to a running job mends it, or only a person can know what was meant"
            )
        if all(rung.consent not in self._health.allow for rung in found):
            return f"health.allow would have to name {found[0].consent}"
        return "all that is known has been tried"

    def cannot(self, act: Act) -> None:
        """A rank has not what it takes: the next rung is asked for, not this one again."""
        self._unfit[act.code] = self._unfit.get(act.code, 0) + 1

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
            back = came_from(act.number, self.entries)
            return replace(act, step=step, verdict="undone", rewind=back, instead_of=act.number, request=request.id)
        said = []
        if request.learning_rate is not None:
            said.append(f"the learning rate is {request.learning_rate:.3g} at the top of its schedule")
        if request.clip_norm is not None:
            said.append(f"the gradient's norm is clipped at {request.clip_norm:.3g}")
        of_data = quarantine.said_of_request(request.leave_out, request.take_in)
        return Act(
            len(self.entries) + 1, step, BY_PEOPLE, "data" if of_data else "live", f"{' and '.join([*said, *of_data])}, as {request.by} asked",
            learning_rate=request.learning_rate, clip=request.clip_norm, leaves_out=request.leave_out, takes_in=request.take_in,
            request=request.id,
        )  # fmt: skip

    # --- record -------------------------------------------------------------------------------------------------------

    def done(self, act: Act, finding: Mapping[str, Any], values: Mapping[str, float]) -> Entry:
        """To be called by all ranks with the same act. ``values``: what the run shows now. The entry that changed."""
        if act.request is not None:
            self.taken.append(act.request)
        before = next((each for each in self.entries if each.act.number == act.instead_of), None)
        if before is not None:
            before.state = act.verdict or ("set_aside" if act.against == act.instead_of else "taken_back")
            before.after, before.ended, before.score = dict(values), act.step, act.score
            self._settles(before, act)
            if act.verdict is not None:
                return before
        if before is not None and (act.against is not None or not finding):
            finding = before.finding  # that both are about
        entry = Entry(act, "trial" if act.probation else "kept", dict(finding), dict(values))
        self.entries.append(entry)
        return entry

    def _settles(self, ended: Entry, act: Act) -> None:
        """What it means for the one that the ended trial was compared with."""
        if act.verdict in ("taken_back", "undone"):
            ended.returned = act.rewind
        if ended.act.against is None:
            return
        champion = self.entries[ended.act.against - 1]
        if act.verdict == "undone" or (act.verdict == "taken_back" and champion.state == "set_aside"):
            champion.state = "kept"
        elif champion.state == "set_aside" and ended.state in ("kept", "set_aside"):
            champion.state = "taken_back"

    def document(self) -> dict[str, Any]:
        return {
            "entries": [each.document() for each in self.entries],
            "taken": self.taken,
            "left_to_people": self.left_to_people,
        }

    def restore(self, document: Mapping[str, Any]) -> None:
        self.entries, self.taken = [Entry.of(each) for each in document["entries"]], list(document["taken"])
        self.left_to_people = document.get("left_to_people")


def _is_failing(finding: Mapping[str, Any]) -> bool:
    """What is known of a job from its start need not make it fail; once it does, it is critical."""
    return bool(finding["first_bad_step"] > 0 or finding["severity"] == "critical")
