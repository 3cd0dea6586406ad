"""A controller's trial of its job on one worker, before it takes the whole group. Without torch."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from workers.acting import Acting
from workers.crew import Crew
from workers.jobfolder import JobFolder
from workers.ledger import Ledger
from workers.membership import Membership
from workers.placing import Attempt, end_workers, free_room
from workers.preflight.telling import REPORT, report_of, tell, untried
from workers.reports import GroupShape, Outcome
from workers.spec import JobSpec

GIVE_UP_SECONDS = 180.0  # from asking for room to the last step


class PreflightControl:
    """The result is kept in the job's folder, so that no later attempt tries again. Whatever becomes of the worker, the job goes on."""

    def __init__(
        self,
        attempt: Attempt,
        spec: JobSpec,
        folder: JobFolder,
        ledger: Ledger,
        acting: Acting,
        *,
        look: bool,
        seconds: float = GIVE_UP_SECONDS,
    ) -> None:
        """``acting``: what is to become of a job with critical findings. ``look``: no group was taken yet; else only what is known already
        counts. ``seconds``: after which the job goes on without."""
        self._attempt, self._spec, self._folder, self._ledger = attempt, spec, folder, ledger
        self._acting, self._look, self._seconds = acting, look, seconds
        self._crew: Crew | None = None
        self._joined = False
        known = folder.read_document(REPORT)
        self.pending = known is None and look and spec.health.preflight
        if known is not None:
            ledger.know_preflight(known["findings"])

    def outcome(self, avoid: frozenset[str]) -> Outcome | None:
        """Takes the trial a step further. An Outcome when the job is to be stopped for what was found. ``avoid``: ids of nodes."""
        if self.pending:
            self._advance(avoid)
        if self.pending or not self._look:
            return None
        self._look = False
        return self._acting.stops(self._ledger.preflight_findings, "before its workers were taken")

    # --- the worker ---------------------------------------------------------------------------------------------------

    def _advance(self, avoid: frozenset[str]) -> None:
        if self._crew is None:
            self._crew = self._start(avoid)
        crew = self._crew
        crew.advance()
        for member, poll in crew.poll(-1):
            member.saw(poll)
        (member,) = crew.members
        if member.state == "waiting" and not self._joined:
            self._joined = True
            member.actor.join.remote(Membership(1, 0, 1, writer=1))
        if member.state == "done" and member.outcome is not None:
            self._over(report_of(member.outcome, time.monotonic() - self._started_at))
        elif member.state == "failed" and member.failure is not None:
            self._over(untried(member.failure.message))
        elif member.gone:
            self._over(untried(f"its worker was lost ({member.why})"))
        elif time.monotonic() - self._started_at > self._seconds:
            self._over(untried(f"it takes longer than {self._seconds:.0f} s"))

    def _start(self, avoid: frozenset[str]) -> Crew:
        # What a controller has left that died in the midst of this; nobody else works for the attempt yet.
        end_workers(self._attempt.name)
        free_room(self._attempt.name)
        self._started_at = time.monotonic()
        alone = replace(
            self._attempt,
            name=f"{self._attempt.name}/preflight-{os.getpid()}",  # Ray may still know the names of what was left
            shape=GroupShape(1, avoid),
            train="workers.preflight.run:probe",
        )
        crew = Crew(alone, self._spec)
        crew.add(avoid)
        return crew

    def _over(self, report: Mapping[str, Any]) -> None:
        assert self._crew is not None
        self._crew.dismiss(self._crew.members[0].number, "the trial is over")  # its room is free for the group
        self._folder.write_document(REPORT, report)
        tell(self._ledger.tell, report)
        self._ledger.know_preflight(report["findings"])
        self.pending = False

    def wait(self, seconds: float) -> None:
        """Until there is news of the worker."""
        if self._crew is not None:
            self._crew.wait_for_news(seconds)
        else:
            time.sleep(seconds)
