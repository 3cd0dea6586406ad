"""What is done to a script that fails, as far as it can be done around its optimizer's steps: decided here, on rank 0's worker, and done in the
script's process (``site/chainrule_repairing.py``), which says after which step it holds.

The ladder is that of every other kind of job, cut down: nothing goes back to earlier weights, nothing of the optimizer's memory or of the model is
touched. So a run is judged from its newest act on, as one that begins there.
"""

from __future__ import annotations

import copy
import json
import math
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from workers.kinds.scripts import ScriptTask
from workers.repair.acts import BY_PEOPLE, Act, Entry
from workers.repair.ladder import Rung, Situation, rungs
from workers.repair.repairs import PROBATION_STEPS, Repairs
from workers.repair.requests import Request, asked
from workers.repair.told import ADVICE, DONE, KEPT, NONE, REFUSED, SKIPPED, TAKEN_BACK, UNDONE
from workers.reports import Level
from workers.run_state import RunContext
from workers.scripts.recorder import ScriptRecorder
from workers.spec import Health, JobSpec
from workers.watch.findings import Judgement

ASK_SECONDS = 1.0  # between two looks at what people ask
KEPT_AS = "script_repairs.json"  # in the job's folder, for the next start of a script that goes on by itself
UNKNOWN_STEPS = (
    10 * PROBATION_STEPS
)  # that a run is thought to have left, whose length nobody knows, and at least as many as it has made
STAY = "the script's weights and the optimizer's memory stay as they are"


@dataclass(frozen=True)
class Steering:
    """What becomes of the script's own rate: ``max(times * rate, at_least)``, after ``rewarm`` steps in which it climbs. ``clip``: largest norm."""

    times: float = 1.0
    at_least: float = 0.0
    clip: float | None = None
    rewarm: int = 0
    rewarmed: int = 0  # steps of it that are behind

    def rate(self, own: float) -> float:
        """What it is in a step, of an optimizer with one group of parameters."""
        return max(self.times * own, self.at_least) * min(1.0, (self.rewarmed + 1) / max(1, self.rewarm))


class ScriptRepairs(Repairs):
    """The record, and what comes next. ``limits``: of rate, clip and skip what this script cannot have, and why."""

    def __init__(self, health: Health) -> None:
        super().__init__(health, 0, 0.0)
        self.limits: Mapping[str, str] = {}

    def knows(self, step: int, steps: int | None, learning_rate: float | None) -> None:
        """How far the run is, how long it will be (None: nobody knows), and the largest rate of its own schedule so far."""
        self._steps = steps or step + max(step, UNKNOWN_STEPS)
        if not any(act.learning_rate is not None for act in self._holding()):  # else what it was asked against stays
            self._learning_rate = learning_rate or 0.0

    @property
    def length(self) -> int:
        """Of the run in steps, as far as that is known."""
        return self._steps

    @property
    def top_rate(self) -> float:
        """The largest of the script's own schedule so far; 0: not known."""
        return self._learning_rate

    @property
    def lost(self) -> int:
        """Nothing goes back."""
        return 0

    def steering(self, step: int) -> Steering:
        """After that step: ``rate`` for any rate of the script's."""
        times, least = 1.0, 0.0
        for act in self._holding():
            if act.learning_rate is not None:
                times, least = act.learning_rate / self._learning_rate, 0.0
            times, least = times * act.rate, max(least, act.rate_at_least) * act.rate
            if act.rate < 1:
                times = max(times, self._health.budget.lr_floor)
        newest = next((act for act in reversed(self._holding()) if act.rewarm), None)
        if newest is None or step >= newest.step + newest.rewarm:
            return Steering(times, least, self.clip(None))
        return Steering(times, least, self.clip(None), newest.rewarm, step - newest.step)

    def reduced(self, rung: Rung) -> Rung | None:
        """What of it can be done around a step; None: nothing."""
        clip = rung.clip if "clip" not in self.limits else None
        rate, least = (rung.rate, rung.rate_at_least) if "rate" not in self.limits else (1.0, 0.0)
        if rung.plan is not None or rung.ends or (clip is None and rate == 1.0 and not least):
            return None
        rewarm = rung.rewarm and (rate != 1.0 or least > 0)
        return Rung(rung.consent, rate=rate, rate_at_least=least, clip=clip, rewarm=rewarm)

    def _act(
        self, situation: Situation, rung: Rung | None, snapshots: Sequence[int], step: int, instead_of: int | None
    ) -> Act | None:
        found = self.reduced(rung) if rung is not None else None
        return super()._act(situation, found, snapshots, step, instead_of)

    def why_not(self, situation: Situation | None) -> str:
        if situation is None or self._spent or self._unwanted(situation.finding["code"]):
            return super().why_not(situation)
        if situation.finding["code"] == "nonfinite_gradient" and not rungs(situation):
            left_out = "updates that are no number are left out, so the weights stay sound"
            return self.limits.get("skip", left_out)
        known = rungs(situation)
        if not known or self.left_to_people is not None or any(self.reduced(rung) for rung in known):
            return super().why_not(situation)
        reasons = "; ".join(sorted({self.limits[what] for what in ("rate", "clip") if what in self.limits}))
        if reasons:
            return f"neither its learning rate nor its gradient can be changed: {reasons}"
        return "of a script only the learning rate, clipping and updates that are no number can be changed; what else helps, its finding says"

    def asked(self, request: Request, step: int) -> Act | str:
        for what, wanted in (("rate", request.learning_rate), ("clip", request.clip_norm)):
            if wanted is not None and what in self.limits:
                return self.limits[what]
        if request.learning_rate is not None and not self._learning_rate:
            return "the script's own learning rate is not known yet, or is 0"
        return super().asked(request, step)


class ScriptRepairing:
    """``look``s at every judgement; what is to be done is written for the script, and is done when that says so. Called by two threads."""

    def __init__(self, spec: JobSpec, context: RunContext, acts: Path) -> None:
        """``acts``: the file in which the script finds what holds."""
        assert isinstance(spec.task, ScriptTask)
        self._context, self._acts = context, acts
        self._kept = context.model_folder.parent / KEPT_AS
        self._repairs = ScriptRepairs(spec.health)
        self._lock = threading.RLock()
        self._version = 0
        self._pending: tuple[Act, Mapping[str, Any]] | None = (
            None  # that the script has not taken up yet, and the finding that it answers
        )
        self._asked_at, self._origin = 0.0, 0
        self._stopped: str | None = None
        if spec.task.resumable and self._kept.exists():  # it goes on where it was, and so does what it was given
            document = json.loads(self._kept.read_text("utf-8"))
            self._repairs.restore(document)
            self._repairs.knows(document["step"], None, document["learning_rate"])
            self._write(document["step"])

    # --- by the thread that looks after the script --------------------------------------------------------------------

    def consider(
        self, judgement: Judgement, recorder: ScriptRecorder, steps: int | None, *, final: bool = False
    ) -> None:
        """``steps``: of the whole run. ``final``: the script has ended."""
        with self._lock:
            step = recorder.steps
            if self._pending is not None or not step:
                return
            self._repairs.knows(step, steps, recorder.largest_rate)
            alarms = [asdict(finding) for finding in judgement.findings if finding.severity != "note"]
            situation = self._situation(alarms[0], recorder, step) if alarms else None
            wanted = self._repairs.next_act(alarms, situation, (), step) if self._stopped is None else None
            if wanted is not None and wanted.verdict == "kept":
                entry = self._repairs.done(wanted, alarms[0] if alarms else {}, _values(recorder))
                self._tell_act(wanted, entry, recorder)
                self._keep(step)
            elif wanted is not None and not final:
                self._ask_of_the_script(wanted, alarms[0] if alarms else {})
            elif alarms and self._repairs.trial is None:
                self._tell_none(alarms[0]["code"], situation, step)

    def hear_people(self, recorder: ScriptRecorder, steps: int | None) -> None:
        """What people ask of the run."""
        folder, now = self._context.requests, time.monotonic()
        if folder is None or now - self._asked_at < ASK_SECONDS:
            return
        with self._lock:
            if self._pending is not None or not recorder.steps:  # nothing is known of its rate yet
                return
            self._asked_at = now
            step = recorder.steps
            self._repairs.knows(step, steps, recorder.largest_rate)
            for request in asked(folder, self._repairs.taken):
                found = self._stopped or self._repairs.asked(request, step)
                if isinstance(found, Act):
                    self._ask_of_the_script(found, {})
                    return
                self._repairs.taken.append(request.id)
                said = f"What {request.by} asked for is not done: {found}."
                self._tell(REFUSED, said, {"step": step, "request": request.id}, "warning")

    def _situation(self, finding: Mapping[str, Any], recorder: ScriptRecorder, step: int) -> Situation:
        facts = recorder.facts
        return Situation(
            finding=finding,
            step=step,
            total=self._repairs.length,
            usual_norm=recorder.usual_norm(int(finding["first_bad_step"])),
            optimizer=facts.optimizer if facts is not None else None,
            learning_rate=recorder.largest_rate,
        )

    def _tell_none(self, code: str, situation: Situation | None, step: int) -> None:
        if code in self._repairs.refused | ADVICE:
            return
        self._repairs.refused.add(code)
        why = self._stopped or self._repairs.why_not(situation)
        self._tell(NONE, f"{code} is not repaired: {why}.", {"step": step, "code": code}, "warning")

    # --- what the script is to do -------------------------------------------------------------------------------------

    def _ask_of_the_script(self, act: Act, finding: Mapping[str, Any]) -> None:
        """As it would hold if it were done now; it is done when the script has taken it up."""
        self._pending = (act, finding)
        document = copy.deepcopy(self._repairs.document())
        self._repairs.done(act, finding, {})
        self._write(act.step)
        self._repairs.restore(document)

    def _write(self, step: int) -> None:
        self._version += 1
        partial = self._acts.with_suffix(".part")
        partial.write_text(json.dumps({"version": self._version, **asdict(self._repairs.steering(step))}), "utf-8")
        os.replace(partial, self._acts)

    # --- by the thread that listens to it -----------------------------------------------------------------------------

    def held(self, version: int, step: int, recorder: ScriptRecorder | None) -> None:
        """From after that step on, on all ranks."""
        with self._lock:
            if self._pending is None or version != self._version or recorder is None:
                return
            act, finding = self._pending
            self._pending = None
            act = replace(act, step=step)
            entry = self._repairs.done(act, finding, _values(recorder))
            if act.code != BY_PEOPLE or act.verdict is not None:
                recorder.judged_from(step)
                self._origin = step
            recorder.steered = True
            self._tell_act(act, entry, recorder)
            self._keep(step)

    def skipped(self, count: int, step: int) -> None:
        said = f"The update of step {step} is left out, because its gradient is no number ({count} so far)."
        self._tell(SKIPPED, said, {"step": step, "skipped": count}, "warning")

    def take_limits(self, limits: Mapping[str, str]) -> None:
        words = {
            "rate": "its learning rate is left alone",
            "clip": "its gradient is not clipped",
            "skip": "no update is left out",
        }
        with self._lock:
            fresh = {what: why for what, why in limits.items() if what not in self._repairs.limits}
            self._repairs.limits = dict(limits)
            if {"rate", "clip"} <= limits.keys():  # what was asked for would wait for ever
                self._pending = None
        said = "; ".join(f"{words[what]}, because {why}" for what, why in fresh.items() if what in words)
        if said:
            self._tell(
                "repair.limited",
                f"Not everything can be repaired in this script: {said}.",
                {"limits": dict(limits)},
                "info",
            )

    def stop(self, error: str) -> None:
        """Nothing is changed from now on."""
        with self._lock:
            self._stopped, self._pending = f"the script's steps cannot be changed any more ({error})", None

    # --- telling ------------------------------------------------------------------------------------------------------

    def _tell_act(self, act: Act, entry: Entry, recorder: ScriptRecorder) -> None:
        step = act.step
        if act.verdict == "kept":
            steps = step - entry.act.step
            said = f"Repair {act.number} helped and is kept: {act.code} was not seen again in {steps} steps."
            self._tell_change(KEPT, said, entry, step, "info")
            return
        if act.verdict == "undone":
            said = f"Repair {act.number} is undone, as asked: rate and clipping are after step {step} what they would be without it; {STAY}."
            self._tell_change(UNDONE, said, entry, step, "warning")
            return
        if act.instead_of is not None:
            before = self._repairs.entries[act.instead_of - 1]
            said = f"Repair {before.act.number} did not help and is taken back after {step - before.act.step} steps; {STAY}."
            self._tell_change(TAKEN_BACK, said, before, step, "warning")
        if act.verdict is not None:
            return
        if act.code == BY_PEOPLE:
            self._tell_change(DONE, f"After step {step} {act.words}.", entry, step, "info")
            return
        said = f"Repair {act.number}, for {act.code}, after step {step}: {act.words}. It is on trial for {act.probation} steps."
        self._tell_change(DONE, said, entry, step, "warning")

    def _tell_change(self, type: str, said: str, entry: Entry, step: int, level: Level) -> None:
        """``origin``: the step from which on the run is judged, for whoever does it again from the record."""
        self._tell(type, said, {"step": step, "repair": {**entry.document(), "origin": self._origin}}, level)

    def _tell(self, type: str, said: str, data: dict[str, Any], level: Level) -> None:
        self._context.reporter.event(level, type, said, data)

    def _keep(self, step: int) -> None:
        document = {**self._repairs.document(), "step": step, "learning_rate": self._repairs.top_rate}
        partial = self._kept.with_suffix(".part")
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(document), encoding="utf-8")
        partial.replace(self._kept)


def _values(recorder: ScriptRecorder) -> dict[str, float]:
    names = ("train/loss", "gradient/norm", "train/learning_rate")
    found = {name: recorder.latest[name] for name in names if name in recorder.latest}
    return {name: value for name, value in found.items() if math.isfinite(value)}
