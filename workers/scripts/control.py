"""What a controller does for scripts and for no other kind of job: says what they find around them, and notices that they hang. Without torch."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from workers import group_decisions as decisions
from workers.acting import Acting
from workers.crew import Crew
from workers.group_decisions import View
from workers.kinds.scripts import ScriptTask
from workers.ledger import Ledger
from workers.placing import Attempt
from workers.repair.told import NONE
from workers.reports import Outcome, ReasonCode, StopMode
from workers.spec import JobSpec
from workers.stacks import place_of, script_stack_of
from workers.tracking import Shipper

TRACKING_SECONDS = 20.0  # for which a script waits to be told its run in MLflow

# With which a script, or its peers, may end when it was asked to.
FAULTS_OF_A_SIGNAL = frozenset({ReasonCode.USER_ERROR, ReasonCode.SCRIPT_KILLED})


class ScriptControl:
    def __init__(
        self, attempt: Attempt, spec: JobSpec, shipper: Shipper | None, ledger: Ledger, crew: Crew, acting: Acting
    ) -> None:
        assert isinstance(spec.task, ScriptTask)
        self._attempt, self._task = attempt, spec.task
        self._shipper, self._ledger, self._crew, self._acting = shipper, ledger, crew, acting
        self._started_at, self._repairs = time.monotonic(), spec.health.mode == "repair"

    def environment(self) -> dict[str, str] | None:
        """What a script is told of its job. None: its run in MLflow is not known yet, and may be soon."""
        found = {"CHAINRULE_JOB_ID": self._attempt.job_id, "CHAINRULE_ATTEMPT": str(self._attempt.attempt)}
        if self._shipper is None:
            return found
        run = self._shipper.run_variables
        if "MLFLOW_RUN_ID" not in run:
            if time.monotonic() - self._started_at < TRACKING_SECONDS:
                return None
            said = "MLflow does not answer: the script is not told its run, and what it logs there lands elsewhere."
            self._ledger.tell("warning", "tracking.unknown", said)
        return found | run

    def critical(self) -> Outcome | None:
        """What the job is to end with because of what was found in it; its scripts are to be stopped then, all at once."""
        step = self._ledger.progress.step if self._ledger.progress else 0
        return self._acting.stops(self._final(self._ledger.health["findings"]), f"after step {step}")

    def _final(self, findings: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """What can be repaired is repaired before anybody stops for it: those of which was told that nothing is done, and of the data."""
        if not self._repairs or not findings:
            return findings
        given_up = {event.data["code"] for event in list(self._ledger.events) if event.type == NONE}
        given_up |= {each["code"] for each in (*self._ledger.data_findings, *self._ledger.preflight_findings)}
        return [finding for finding in findings if finding["code"] in given_up]

    def silent(self, view: View, stop: StopMode | None) -> Outcome | None:
        """Scripts hang, or so it looks: the job ends, because what would be started again would hang again."""
        limit, seconds = self._task.hang_seconds, decisions.silent_seconds(view)
        if limit is None or seconds <= limit or stop is not None:
            return None
        group = [member for member in self._crew.group() if member.actor is not None and not member.gone]
        stacks = {str(member.rank): script_stack_of(member.actor) for member in group}
        steps = {str(member.rank): member.activity.step for member in group if member.activity}
        where = "; ".join(
            f"rank {rank} after step {steps.get(rank, 0)} {place_of(stack)}" for rank, stack in stacks.items()
        )
        message = f"the script hangs: no optimizer step and no output for {seconds:.0f} s; {where}"
        self._ledger.tell("error", "script.hung", f"{message}.", {"seconds": seconds, "steps": steps, "stacks": stacks})
        return Outcome(ReasonCode.HUNG, message, {"steps": steps, "stacks": stacks})
