"""JobController: one actor a job attempt. It places the workers, forms their group and forms it anew when one is lost or their number is to change,
and keeps the job folder. Everything it must remember is in that folder, so that Ray may restart it at any moment: it finds its workers by name and
goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
import traceback
from collections.abc import Mapping
from typing import Any, Literal

from ray.exceptions import RayError

from workers import group_decisions as decisions
from workers.acting import Acting, accept, accepted
from workers.crew import Crew, Member
from workers.data_checks.control import DataControl
from workers.group_decisions import View
from workers.jobfolder import JobFolder
from workers.ledger import Ledger
from workers.lost_workers import LostWorkers
from workers.membership import GENERATIONS, Membership
from workers.pace import Pace
from workers.placing import Attempt, end_workers, free_room
from workers.preflight.control import PreflightControl
from workers.reports import GroupShape, Observation, Outcome, ReasonCode, StopMode
from workers.scripts.control import FAULTS_OF_A_SIGNAL, ScriptControl
from workers.spec import JobSpec
from workers.stacks import stack_of
from workers.stopping import Stopping
from workers.tracking import Shipper

NEWS_SECONDS = (
    0.5  # between two looks at a group at work, of which each takes a millisecond; a change is heard of at once
)
FORM_SECONDS = 0.05  # while a group is being formed
REPLACEMENT_SECONDS = 300.0  # for which survivors wait, with all that they have reserved
STATE = "controller.json"

Phase = Literal["starting", "running", "recovering", "stopping", "finished"]


class JobController:
    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._spec = JobSpec.model_validate_json(attempt.spec_json)
        self._folder = JobFolder.at(attempt.folder, attempt.checkpoints)
        self._lock = threading.Lock()
        self._phase: Phase = "starting"
        self._outcome: Outcome | None = None
        self._shape = attempt.shape
        self._stopping = Stopping()
        self._generation = 0
        self._forming_since: float | None = time.monotonic()
        self._losses = LostWorkers()
        self._adopted = False  # the group was formed by a controller before this one
        self._broken_up = 0  # generation that was broken up although nobody was lost
        self._pace = Pace()
        self._ledger = Ledger(self._folder, attempt.attempt)
        self._crew = Crew(attempt, self._spec)
        self._known = self._restore()
        if self._known is None:
            self._folder.create(attempt.spec_json)
        untouched = self._generation == 0 and self._outcome is None
        acting = Acting(self._spec.health.on_critical, accepted(self._folder))
        self._data = DataControl(self._spec, self._folder, self._ledger, acting, look=untouched)
        self._preflight = PreflightControl(attempt, self._spec, self._folder, self._ledger, acting, look=untouched)
        self._shipper = (
            Shipper(attempt, self._spec, self._folder, lambda: self._ledger.health) if attempt.mlflow_url else None
        )
        is_script = self._spec.task.kind == "script"
        self._script = (
            ScriptControl(attempt, self._spec, self._shipper, self._ledger, self._crew, acting) if is_script else None
        )
        threading.Thread(target=self._main, name="controller", daemon=True).start()

    # --- asked by the control plane ---------------------------------------------------------------------------------

    def observe(self, after: int) -> Observation:
        """Everything after event ``after``."""
        with self._lock:
            links = {"mlflow": self._shipper.run_url} if self._shipper and self._shipper.run_url else {}
            return Observation(
                phase=self._phase,
                outcome=self._outcome,
                progress=self._ledger.progress,
                latest=dict(self._ledger.latest),
                health=self._ledger.health,
                workers=self._crew.statuses(),
                events=self._ledger.events[after:],
                links=links,
                recoveries=list(self._losses.recovered),
            )

    def stop(self, mode: StopMode) -> None:
        """May be called again, and with a stronger mode."""
        if self._stopping.ask(mode):
            self._crew.wake()

    def reshape(self, shape: GroupShape) -> None:
        """What the group should be like from now on; it changes at a step boundary."""
        if shape != self._shape:
            self._shape = shape
            self._crew.wake()

    def pid(self) -> int:
        return os.getpid()

    # --- the controller's own thread ----------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            outcome = self._outcome or self._run()
        except Exception as error:
            outcome = Outcome(
                ReasonCode.INTERNAL_ERROR,
                f"the controller failed: {type(error).__name__}: {error}",
                {"traceback": traceback.format_exc()},
            )
        self._tear_down()
        self._finish(outcome)

    def _run(self) -> Outcome:
        """Look, and do the one thing that is to be done, until the job has come to an end."""
        if self._known is not None:
            self._adopt(self._known)
        if self._shipper and self._script:
            self._shipper.start()  # a script is told its run
        while True:
            self._look()
            outcome = (
                self._stopped()
                or self._data.outcome()
                or (None if self._data.pending else self._preflight.outcome(self._shape.avoid))
                or self._concluded()
                or (self._script and self._script.silent(self._view(), self._stopping.mode))
                or self._broken()
                or self._given_up()
            )
            if outcome is not None:
                return outcome
            if self._data.pending or self._preflight.pending:  # no group is taken before that is over
                self._forming_since = time.monotonic()
                self._preflight.wait(FORM_SECONDS)
                continue
            self._end_hung()
            self._staff()
            if self._forming_since is not None:
                self._form()
            elif decisions.should_regroup(self._view()):
                self._crew.ask_to_regroup(self._generation)
            self._crew.wait_for_news(FORM_SECONDS if self._forming_since is not None else NEWS_SECONDS)

    def _look(self) -> None:
        for member, poll in self._crew.poll(self._ledger.told_through):
            self._ledger.take(member.name, member.rank, poll)
            member.saw(poll)
        for member in self._crew.newly_lost():
            self._tell_lost(member)
            if self._forming_since is not None:  # while the next group is formed: one more that has to be replaced
                self._losses.count(self._steps_done)
                self._blame(member)
        self._pace.saw(self._steps_done)
        self._note_recovery()

    @property
    def _steps_done(self) -> int:
        return self._ledger.progress.step if self._ledger.progress else 0

    def _view(self) -> View:
        return View(
            generation=self._generation,
            forming=self._forming_since is not None,
            wanted=self._shape.workers,
            fewest=min(self._spec.workers.fewest, self._shape.workers),
            seats=self._crew.seats(self._shape.avoid),
            forming_seconds=0.0 if self._forming_since is None else time.monotonic() - self._forming_since,
            still_seconds=self._pace.still_seconds,
            step_seconds=self._pace.step_seconds,
            compiles=self._spec.training.compile,
        )

    # --- what is to be done ---------------------------------------------------------------------------------------------

    def _stopped(self) -> Outcome | None:
        if self._script and self._generation:
            self._stopping.ask_because(self._script.critical())
        outcome = self._stopping.due(self._crew, self._generation, self._pace.still_seconds)
        if self._stopping.mode is not None and outcome is None:
            self._set_phase("stopping")
        return outcome

    def _concluded(self) -> Outcome | None:
        outcome = decisions.conclude(self._view())
        if outcome is not None:
            self._drain()
            for member in self._crew.members:
                if member.failure is not None:
                    self._ledger.tell(
                        "error",
                        "worker.failed",
                        f"Rank {member.rank}: {member.failure.message}",
                        {"rank": member.rank, "traceback": member.failure.traceback},
                    )
            if self._script and self._stopping.mode is not None and outcome.code in FAULTS_OF_A_SIGNAL:
                return self._stopping.ended("while its script was ending")
            return self._stopping.as_asked(outcome)
        return None

    def _broken(self) -> Outcome | None:
        """Notices that the group has come apart. An Outcome when trying again has become pointless."""
        if self._stranded():
            self._crew.break_group(self._generation)
            self._forming_since, self._adopted = time.monotonic(), False
            return None
        if not decisions.broke(self._view()):
            return None
        self._forming_since = time.monotonic()
        lost = [member for member in self._crew.group() if member.gone]
        broken = {m.rank: m.broken for m in self._crew.group() if m.rank is not None and m.broken}
        if not lost and not broken:
            return None  # they left it by agreement
        self._crew.break_group(self._generation)
        self._losses.begin(self._steps_done, broken)
        for member in lost:
            self._blame(member)
        if self._stopping.mode is None:
            self._set_phase("recovering")
        return None

    def _stranded(self) -> bool:
        """Whether an earlier controller died between seating the group and telling its members: they wait for a word that nobody will say."""
        waiting = (m for m in self._crew.group() if m.state == "waiting" and m.joined < self._generation)
        return self._adopted and self._forming_since is None and any(waiting)

    def _blame(self, member: Member) -> None:
        self._losses.blame(member.planned_rank if member.rank is None else member.rank, member.why or "lost")

    def _given_up(self) -> Outcome | None:
        exhausted = self._losses.exhausted(self._spec.retry.max_attempts)
        if exhausted is not None:
            return exhausted
        view = self._view()
        if self._generation and self._stopping.mode is None and view.forming_seconds > REPLACEMENT_SECONDS:
            message = f"no replacement for a lost worker could be placed within {REPLACEMENT_SECONDS:.0f} s"
            return Outcome(ReasonCode.NO_PROGRESS, message)
        return None

    def _end_hung(self) -> None:
        """A worker that holds all others up is ended, after everybody's stack was taken; what follows is as after any other death."""
        hung = decisions.hung(self._view())
        if not hung or self._broken_up == self._generation:
            return
        group = self._crew.group()
        stacks = {str(m.rank): stack_of(m.actor, m.place.pid, m.place.node_id) for m in group if m.place and not m.gone}
        self._crew.pardon()
        whole = len(hung) == len(group) > 1
        for member in group:
            if member.number in hung:
                why = hung[member.number]
                self._ledger.tell(
                    "warning",
                    "worker.hung",
                    f"Rank {member.rank} hangs: {why}."
                    + (" So do all others: the group is formed anew." if whole else ""),
                    {
                        "rank": member.rank,
                        "pid": member.place.pid if member.place else None,
                        "why": why,
                        "stacks": stacks,
                    },
                )
                if not whole:
                    member.end(f"it hung: {why}")
        if whole:  # nobody is to blame: the connections are
            self._broken_up = self._generation
            self._crew.break_group(self._generation)

    def _staff(self) -> None:
        view = self._view()
        done = [member for member in self._crew.group() if member.state == "done"]
        if self._forming_since is not None and done:  # they have finished, but rank 0 could not: somebody else must
            for member in done:
                member.end("it was done")
            self._losses.begin_without_cause()
            view = self._view()
        for number in decisions.surplus(view):
            self._crew.dismiss(number, "not needed any more")
        for _ in range(decisions.missing(view)):
            self._crew.add(self._shape.avoid)
            self._remember()
        if self._crew.advance():
            self._remember()

    def _form(self) -> None:
        view = self._view()
        formation = decisions.form(view)
        if formation is None:
            return
        environment = self._script.environment() if self._script else {}
        if environment is None:
            return
        first = self._generation == 0
        store = self._crew.host_store(formation.members[0]) if len(formation.members) > 1 else None
        if len(formation.members) > 1 and store is None:
            return  # it has just died; the next look says so
        self._generation += 1
        self._losses.goes_on_from("memory" if formation.position else "start" if self._script else "checkpoint")
        self._crew.seat(formation.members)
        self._adopted = False
        self._forming_since = None
        self._pace.restart()
        self._remember()  # before they are told: a restarted controller knows them
        for rank, number in enumerate(formation.members):
            self._crew.member(number).actor.join.remote(
                Membership(
                    self._generation,
                    rank,
                    len(formation.members),
                    formation.position,
                    formation.source,
                    store,
                    self._attempt.attempt * GENERATIONS + self._generation,
                    self._ledger.told_through,
                    environment,
                )
            )
        self._crew.dismiss_unseated()
        if not self._losses.is_open and self._stopping.mode is None:
            self._set_phase("running")
        self._tell_formed(first)
        if self._shipper:
            self._shipper.start()

    def _note_recovery(self) -> None:
        """A recovery is over when the group has done its next step, or the run has come to its end."""
        if not self._losses.is_open or self._forming_since is not None:
            return
        # An answer from just before it joined still tells of the group before.
        here = [member for member in self._crew.group() if member.joined == self._generation]
        done_at = min((member.stepped_at for member in here if member.stepped_at), default=None)
        if done_at is None and not any(member.state == "done" for member in self._crew.group()):
            return
        with self._lock:
            recovery = self._losses.end(done_at)
        if self._stopping.mode is None:
            self._set_phase("running")
        source = {"memory": "the memory of a survivor", "checkpoint": "the newest checkpoint"}.get(
            recovery.source, "the script's own start"
        )
        self._ledger.tell(
            "info",
            "workers.recovered",
            f"Training goes on {recovery.seconds:.1f} s after the loss, from {source}.",
            dataclasses.asdict(recovery) | {"generation": self._generation},
        )
        self._remember()

    # --- telling ------------------------------------------------------------------------------------------------------

    def _tell_lost(self, member: Member) -> None:
        self._ledger.tell(
            "warning",
            "worker.lost",
            f"{'Rank ' + str(member.rank) if member.rank is not None else 'A worker that was to join'} was lost: {member.why}.",
            {
                "rank": member.rank,
                "pid": member.place.pid if member.place else None,
                "cause": member.why,
                "generation": self._generation,
            },
        )

    def _tell_formed(self, first: bool) -> None:
        group = self._crew.group()
        places = ", ".join(f"rank {m.rank} pid {m.place.pid} on {m.place.node}" for m in group if m.place)
        data = {
            "generation": self._generation,
            "workers": [dataclasses.asdict(member.status()) for member in group],
        }
        kind = "workers.started" if first else "workers.formed"
        said = "1 worker goes" if len(group) == 1 else f"{len(group)} workers go"
        self._ledger.tell("info", kind, f"{said} {'ahead' if first else 'on'}: {places}.", data)

    # --- ending -------------------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        """What the living still have to tell, within bounds."""
        deadline = time.monotonic() + 5.0
        while time.monotonic() < deadline:
            polled = self._crew.poll(self._ledger.told_through)
            for member, poll in polled:
                self._ledger.take(member.name, member.rank, poll)
                member.saw(poll)
            if not any(poll.reports for _, poll in polled):
                return

    def _tear_down(self) -> None:
        self._data.end()
        with contextlib.suppress(RayError):
            self._crew.end_all()
            end_workers(self._attempt.name)
            free_room(self._attempt.name)

    def _finish(self, outcome: Outcome) -> None:
        accept(self._folder, outcome)
        with self._lock:
            self._outcome, self._phase = outcome, "finished"
        self._remember()
        if self._shipper:
            self._shipper.start()
            self._shipper.finish(outcome, self._ledger.health, lambda: self._tracked())
        else:
            self._tracked()

    def _tracked(self) -> None:
        if not any(event.type == "tracking.complete" for event in self._ledger.events):
            where = self._shipper.run_url if self._shipper else None
            message = f"Everything is in MLflow: {where}" if where else "Nothing was to be sent to MLflow."
            self._ledger.tell("info", "tracking.complete", message, {"mlflow": where})

    # --- memory -------------------------------------------------------------------------------------------------------

    def _set_phase(self, phase: Phase) -> None:
        if phase != self._phase:
            with self._lock:
                self._phase = phase
            self._remember()

    def _remember(self) -> None:
        self._folder.write_document(
            STATE,
            {
                "name": self._attempt.name,
                "phase": self._phase,
                "generation": self._generation,
                "forming": self._forming_since is not None,
                "stopping": self._stopping.document(),
                "shape": {"workers": self._shape.workers, "avoid": sorted(self._shape.avoid)},
                "outcome": dataclasses.asdict(self._outcome) if self._outcome else None,
                "crew": self._crew.document(),
                **self._losses.document(),
            },
        )

    def _restore(self) -> Mapping[str, Any] | None:
        state = self._folder.read_document(STATE)
        if state is None or state["name"] != self._attempt.name:
            return None
        self._phase, self._generation = state["phase"], state["generation"]
        self._stopping.restore(state.get("stopping"))
        self._shape = GroupShape(state["shape"]["workers"], frozenset(state["shape"]["avoid"]))
        self._losses.restore(state)
        if not state["forming"]:
            self._forming_since = None
        if state["outcome"]:
            known = state["outcome"]
            self._outcome = Outcome(ReasonCode(known["code"]), known["message"], known["detail"])
        self._ledger.restore()
        return state

    def _adopt(self, state: Mapping[str, Any]) -> None:
        """After a restart of this controller: takes over the workers that it had placed."""
        self._crew.adopt(state["crew"])
        self._adopted = True
        if self._crew.members:
            self._ledger.tell("warning", "controller.restarted", "The controller was restarted and found its workers.")
