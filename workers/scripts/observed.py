"""What is known of a script while it runs, from its observer and from what it posts: told on, and judged."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from workers.kinds.scripts import ScriptTask
from workers.reports import Progress
from workers.run_state import RunContext
from workers.scripts.observations import Hearer, Measured, Observations, Probed
from workers.scripts.progress_server import ProgressServer, Status
from workers.scripts.recorder import ScriptRecorder
from workers.scripts.repairing import ScriptRepairing
from workers.spec import JobSpec
from workers.watch.facts_json import from_json, to_json
from workers.watch.probe_rows import Names

UNKNOWN: Mapping[str, Any] = {"verdict": "unknown", "sentence": "No step has been measured.", "findings": []}

# What is told once when the observer cannot look at something; the script goes on.
TROUBLES = {
    "facts": ("facts.unknown", "What is to be known of the script before its first step could not be found out."),
    "probes": ("probes.stopped", "The script's steps are not looked at closely any more; losses and norms are still measured."),
    "repairs": ("script.unrepaired", "The script's steps cannot be changed any more; what was changed of them is taken back."),
    "observer": ("script.unobserved", "The script is not observed any more."),
}  # fmt: skip


class Observed(Hearer):
    """``tells``: it is rank 0's, which reports for all."""

    def __init__(self, spec: JobSpec, context: RunContext, *, tells: bool) -> None:
        assert isinstance(spec.task, ScriptTask)
        self._spec, self._task, self._context, self._tells = spec, spec.task, context, tells
        self._recorder: ScriptRecorder | None = None
        self._started_at: float | None = None  # of the first step that is known
        self._first_step = 0
        self._posted: Status | None = None
        self._posted_steps = 0  # of the whole run, as it was posted; not every post says it
        self.overhead: float | None = None
        self._observations = Observations(self) if spec.task.observe else None
        self._server = ProgressServer(self._take_status) if tells else None
        self._repairs = spec.health.mode == "repair" and self._observations is not None
        self._repairing: ScriptRepairing | None = None
        if self._repairs and tells:
            self._repairing = ScriptRepairing(spec, context, Path(self._acts))

    @property
    def variables(self) -> dict[str, str]:
        found = dict(self._server.variables) if self._server else {}
        if self._observations is not None:
            found["CHAINRULE_OBSERVER"] = self._observations.address
            found["CHAINRULE_OVERHEAD_BUDGET"] = str(self._task.overhead_budget)
        if self._repairs:
            found["CHAINRULE_REPAIRS"] = self._acts
        return found

    @property
    def _acts(self) -> str:
        """The file in which the script finds what is asked of its steps."""
        assert self._observations is not None
        return f"{self._observations.address}.acts"

    @property
    def step(self) -> int:
        return self._observations.step if self._observations else 0

    @property
    def beats(self) -> int:
        return self._observations.beats if self._observations else 0

    @property
    def latest(self) -> dict[str, float]:
        return dict(self._recorder.latest) if self._recorder else {}

    def judge(self, *, final: bool = False) -> Mapping[str, Any]:
        if self._recorder is None:
            return UNKNOWN
        judgement = self._recorder.judge(final=final)
        if self._repairing is not None and final:
            self._repairing.consider(judgement, self._recorder, self._steps, final=True)
        return judgement.as_dict()

    def judge_when_due(self) -> None:
        if self._recorder is None:
            return
        judgement = self._recorder.judge_when_due(repairing=self._repairing is not None)
        if self._repairing is None:
            return
        if judgement is not None:
            self._repairing.consider(judgement, self._recorder, self._steps)
        self._repairing.hear_people(self._recorder, self._steps)

    @property
    def _steps(self) -> int | None:
        """Of the whole run, as far as anybody said."""
        return self._task.steps or self._posted_steps or None

    def finish(self) -> None:
        """Takes what the script has sent until its end. May be called again."""
        if self._observations is not None:
            self._observations.finish()

    def close(self) -> None:
        self.finish()
        if self._server is not None:
            self._server.close()

    # --- by the threads that listen -----------------------------------------------------------------------------------

    def take_layers(self, layers: tuple[str, ...], sharded: bool) -> None:
        before = self._recorder
        self._recorder = ScriptRecorder(
            self._context.reporter,
            layers,
            steps=self._task.steps,
            every_steps=self._spec.gradients.every_steps,
            told_through=self._context.link.told_through,
        )
        if before is not None:
            self._recorder.take_over(before)
        self._recorder.tell(self._tells)
        if before is None and self._tells:
            part = (
                "; each worker has a part of the gradients, these are rank 0's, and no step is looked at closely"
                if sharded
                else ""
            )
            said = f"The script's optimizer was found: {len(layers)} layers are measured{part}."
            data = {"layers": list(layers), "sharded": sharded, "steps": self._task.steps}
            self._context.reporter.event("info", "script.observed", said, data)

    def take_rows(self, rows: Sequence[Measured]) -> None:
        assert self._recorder is not None, "layers come first"
        self._recorder.take(rows)
        if self._started_at is None and rows:
            self._started_at, self._first_step = rows[0].timestamp, rows[0].step - 1
        self._tell_progress()

    def take_probe_names(self, layers: tuple[str, ...], activations: tuple[str, ...]) -> None:
        assert self._recorder is not None, "layers come first"
        self._recorder.take_probe_names(Names(layers, activations))

    def take_probes(self, probes: Sequence[Probed]) -> None:
        assert self._recorder is not None, "layers come first"
        self._recorder.take_probes(probes)

    def take_facts(self, facts: Mapping[str, Any], uncleared: float | None) -> None:
        assert self._recorder is not None, "layers come first"
        found = replace(from_json(facts), total_steps=self._task.steps)
        self._recorder.take_facts(found, uncleared)
        if self._tells:
            loss = found.loss.function or "no loss function that is known by name"
            said = f"Before the first step: {len(found.layers)} layers; {loss}."
            self._context.reporter.event("info", "facts", said, to_json(found) | {"uncleared": uncleared})

    def take_held(self, version: int, step: int) -> None:
        if self._repairing is not None:
            self._repairing.held(version, step, self._recorder)

    def take_skipped(self, count: int, step: int) -> None:
        if self._repairing is not None:
            self._repairing.skipped(count, step)

    def take_limits(self, limits: Mapping[str, str]) -> None:
        if self._repairing is not None:
            self._repairing.take_limits(limits)

    def take_trouble(self, of: str, error: str) -> None:
        if self._repairing is not None and of in ("repairs", "observer"):
            self._repairing.stop(error)
        if self._tells:
            type, said = TROUBLES.get(of, TROUBLES["observer"])
            self._context.reporter.event("warning", type, f"{said} {error}", {"error": error})

    def take_end(self, overhead: float) -> None:
        self.overhead = overhead
        self._tell_progress()

    def _take_status(self, status: Status) -> None:
        self._posted = status
        if status.metrics:
            named = {f"script/{name}": value for name, value in status.metrics.items()}
            step = int(status.metrics.get("current_step", self.step))
            self._posted_steps = int(status.metrics.get("total_steps", self._posted_steps))
            self._context.reporter.metrics(step, named, status.at)
        self._tell_progress()

    def _tell_progress(self) -> None:
        """From what the script says of itself, else from its steps."""
        step, steps, posted = self.step, self._task.steps or 0, self._posted
        left: float | None = None
        if posted is not None:
            step = max(step, int(posted.metrics.get("current_step", 0)))
            steps = steps or self._posted_steps
            left = None if posted.left_seconds is None else max(0.0, posted.left_seconds - (time.time() - posted.at))
        elif steps and self._started_at is not None and step > self._first_step:
            left = max(0, steps - step) * (time.time() - self._started_at) / (step - self._first_step)
        epoch = posted.metrics.get("current_epoch", 0.0) if posted else 0.0
        if self._tells:
            self._context.reporter.progress(Progress(step, steps, epoch, None, left))
