"""JobController: one actor a job attempt. It places the workers, follows them, forms the group anew when one dies, and keeps the
job folder. Everything it must remember is in that folder, so that Ray may restart it at any moment: it finds its workers by name and goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError
from ray.util.placement_group import remove_placement_group

from workers.group_decisions import End, Recover, Recoveries, Seen, conclude
from workers.jobfolder import GradientWriter, JobFolder, append_lines, encode
from workers.placing import Attempt, end_workers, place_worker, reserve
from workers.ray_names import NAMESPACE, cause_of_death, find_placement_group, group_name
from workers.reports import Event, Level, Observation, Outcome, Progress, ReasonCode, Recovery, StopMode, WorkerStatus
from workers.spec import JobSpec
from workers.tracking import Shipper
from workers.worker import Failure, Poll, Ready

FORM_SECONDS = 0.1  # between looks while a group is being formed
POLL_SECONDS = 0.5  # each poll takes a millisecond of the training process
STOP_GRACE_SECONDS = 60.0  # without a step, after a worker was asked to stop
STATE = "controller.json"

Phase = Literal["starting", "running", "recovering", "stopping", "finished"]


class StoppedError(Exception):
    """Somebody asked for a stop while the group was being formed."""


class WorkerLostError(Exception):
    """A worker died while the group was being formed."""

    def __init__(self, ranks: Mapping[int, str]) -> None:
        self.ranks = ranks
        super().__init__(str(ranks))


@dataclass
class Member:
    """One worker of the present generation."""

    rank: int
    name: str  # of the actor
    actor: Any
    acknowledged: int = 0
    state: Literal["starting", "running", "lost", "done"] = "starting"
    ready: Ready | None = None
    pending: Any = None  # a poll that is under way
    end: Any = None  # a call that returns when its training ends
    end_heard: bool = False
    outcome: Outcome | None = None
    failure: Failure | None = None
    dead: str | None = None
    drained: bool = False
    started_at: float = field(default_factory=time.time)

    def status(self) -> WorkerStatus:
        ready = self.ready
        place = (ready.pid, ready.node, "", ready.device) if ready else (0, "", "", "")
        return WorkerStatus(self.rank, *place, self.state, self.started_at)


class JobController:
    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._spec = JobSpec.model_validate_json(attempt.spec_json)
        self._folder = JobFolder.at(attempt.folder)
        self._lock = threading.Lock()
        self._phase: Phase = "starting"
        self._outcome: Outcome | None = None
        self._progress: Progress | None = None
        self._latest: dict[str, float] = {}
        self._health: Mapping[str, Any] = {"verdict": "unknown", "findings": []}
        self._members: list[Member] = []
        self._events: list[Event] = []
        self._told: set[tuple[int, int, int]] = set()  # (generation, rank, sequence) of workers' events already kept
        self._stop: StopMode | None = None
        self._generation = 0
        self._recoveries = Recoveries()
        self._recovered: list[Recovery] = []
        self._loss: tuple[float, Recover] | None = None  # when, and who; until the group is formed anew
        self._gradients = GradientWriter(self._folder.gradients_path, attempt.attempt)
        self._restore()
        if not self._generation:
            self._folder.create(attempt.spec_json)
        self._shipper = Shipper(attempt, self._spec, self._folder) if attempt.mlflow_url else None
        threading.Thread(target=self._main, name="controller", daemon=True).start()

    # --- asked by the control plane ---------------------------------------------------------------------------------

    def observe(self, after: int) -> Observation:
        """Everything after event ``after``."""
        with self._lock:
            links = {"mlflow": self._shipper.run_url} if self._shipper and self._shipper.run_url else {}
            return Observation(
                phase=self._phase,
                outcome=self._outcome,
                progress=self._progress,
                latest=dict(self._latest),
                health=self._health,
                workers=[member.status() for member in self._members],
                events=self._events[after:],
                links=links,
                recoveries=list(self._recovered),
            )

    def stop(self, mode: StopMode) -> None:
        """May be called again, and with a stronger mode."""
        if self._stop is not StopMode.KILL:
            self._stop = mode
            self._remember()

    def pid(self) -> int:
        return os.getpid()

    # --- the controller's own thread ----------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            outcome = self._outcome or self._run()
        except StoppedError:
            outcome = self._stopped_outcome()
        except Exception as error:
            outcome = Outcome(
                ReasonCode.INTERNAL_ERROR,
                f"the controller failed: {type(error).__name__}: {error}",
                {"traceback": traceback.format_exc()},
            )
        self._tear_down()
        self._finish(outcome)

    def _run(self) -> Outcome:
        """Generation after generation, until one comes to an end."""
        lost_at: float | None = None
        there = self._adopt()
        while True:
            try:
                if not there:
                    self._form_group(lost_at)
                if self._shipper:
                    self._shipper.start()
                end = self._follow()
            except WorkerLostError as lost:
                end = Recover(lost.ranks)
            if isinstance(end, Outcome):
                return end
            there, lost_at = False, time.monotonic()
            exhausted = self._lost(end)
            if exhausted:
                return exhausted
            self._end_generation()

    def _form_group(self, lost_at: float | None = None) -> None:
        """Places and prepares all workers, then lets them begin together. Raises StoppedError, WorkerLostError."""
        self._generation += 1
        self._remember()
        group = reserve(self._attempt, self._spec)
        placed = group.ready()
        while not ray.wait([placed], timeout=FORM_SECONDS)[0]:
            self._heed_stop()
        self._members = []
        for rank in range(self._attempt.shape.workers):
            name, actor = place_worker(self._attempt, self._spec, self._generation, rank, group)
            self._members.append(Member(rank, name, actor))
        preparing = {member.actor.prepare.remote(): member for member in self._members}
        while preparing:
            ready, _ = ray.wait(list(preparing), num_returns=1, timeout=FORM_SECONDS)
            self._heed_stop()
            for ref in ready:
                member = preparing.pop(ref)
                try:
                    member.ready = ray.get(ref)
                except RayActorError as error:
                    raise WorkerLostError({member.rank: cause_of_death(error)}) from error
        store = self._members[0].ready.store if self._members[0].ready else None
        for member in self._members:
            member.actor.begin.remote(store)  # a worker that dies now is noticed by the first poll
        for member in self._members:
            member.state = "running"
        self._set_phase("running")
        places = ", ".join(f"rank {m.rank} pid {m.ready.pid} on {m.ready.node}" for m in self._members if m.ready)
        data = {"generation": self._generation, "workers": [dataclasses.asdict(m.status()) for m in self._members]}
        if lost_at is None:
            self._tell("info", "workers.started", f"{len(self._members)} workers began: {places}.", data)
        else:
            seconds = time.monotonic() - lost_at
            message = f"The group was formed anew in {seconds:.1f} s: {places}."
            if self._loss is not None:
                at, lost = self._loss
                step = self._progress.step if self._progress else 0
                cause = "; ".join(f"rank {rank}: {cause}" for rank, cause in sorted(lost.ranks.items()))
                self._recovered.append(Recovery(at, sorted(lost.ranks), cause, step, "checkpoint", seconds))
            self._tell("info", "workers.recovered", message, data | {"seconds": seconds})

    def _adopt(self) -> bool:
        """After a restart of this controller: takes over the workers of the generation that it had formed, if they all began."""
        if not self._generation or self._phase not in ("running", "stopping"):
            self._end_generation()
            return False
        try:
            self._members = [
                Member(rank, name, ray.get_actor(name, namespace=NAMESPACE), state="running")
                for rank, name in enumerate(self._known_names)
            ]
        except ValueError:
            self._end_generation()
            return False
        for member, known in zip(self._members, self._known_members, strict=False):
            member.ready, member.started_at = (
                Ready(known["pid"], known["node"], known["device"], None),
                known["started_at"],
            )
        self._tell("warning", "controller.restarted", "The controller was restarted and found its workers at work.")
        return True

    # --- following ----------------------------------------------------------------------------------------------------

    def _follow(self) -> Outcome | Recover:
        """Polls the workers until the group comes to an end, one way or another."""
        first_failure_at: float | None = None
        stop_sent: StopMode | None = None
        moved_at, last_step = time.monotonic(), -1
        while True:
            self._poll_all()
            if self._progress and self._progress.step != last_step:
                moved_at, last_step = time.monotonic(), self._progress.step
            if self._stop is StopMode.KILL:
                return self._stopped_outcome()
            if self._stop is not None and stop_sent is None:
                stop_sent, moved_at = self._stop, time.monotonic()
                self._set_phase("stopping")
                for member in self._members:
                    member.actor.stop.remote(self._stop)
            if stop_sent and time.monotonic() - moved_at > STOP_GRACE_SECONDS:
                return Outcome(
                    ReasonCode.CANCELLED, f"stopped by force: no step in {STOP_GRACE_SECONDS:.0f} s after the request"
                )
            if any(member.failure for member in self._members) and first_failure_at is None:
                first_failure_at = time.monotonic()
            conclusion = conclude(self._seen(first_failure_at))
            if isinstance(conclusion, End):
                self._drain()
                self._report_failures()
                return conclusion.outcome
            if isinstance(conclusion, Recover):
                self._drain()
                if self._stop is not None:
                    return self._stopped_outcome()
                return conclusion
            self._wait_for_news()

    def _wait_for_news(self) -> None:
        """Until the next poll is due, or a worker's training has ended, by itself or by its death."""
        for member in self._members:
            if member.end is None and not member.end_heard:
                member.end = member.actor.ended.remote()
        waiting = {member.end: member for member in self._members if member.end is not None}
        if not waiting:
            time.sleep(FORM_SECONDS)
            return
        ended, _ = ray.wait(list(waiting), num_returns=1, timeout=POLL_SECONDS)
        for ref in ended:
            waiting[ref].end, waiting[ref].end_heard = None, True

    def _seen(self, first_failure_at: float | None) -> Seen:
        return Seen(
            world_size=len(self._members),
            done={member.rank: member.outcome for member in self._members if member.outcome},
            failed={member.rank: member.failure for member in self._members if member.failure},
            dead={member.rank: member.dead for member in self._members if member.dead},
            seconds_since_first_failure=time.monotonic() - first_failure_at if first_failure_at else 0.0,
        )

    def _poll_all(self, timeout: float = 1.0) -> int:
        """One round. A worker that does not answer in time is asked no second time until it does. Returns the reports taken."""
        for member in self._members:
            if member.dead is None and member.pending is None:
                member.pending = member.actor.poll.remote(member.acknowledged)
        pending = {member.pending: member for member in self._members if member.pending is not None}
        if not pending:
            return 0
        ready, _ = ray.wait(list(pending), num_returns=len(pending), timeout=timeout)
        taken = 0
        for ref in ready:
            member = pending[ref]
            member.pending = None
            try:
                taken += self._take(member, ray.get(ref))
            except ActorUnavailableError:
                continue  # not reachable just now, which is not dead
            except RayActorError as error:
                member.dead, member.state = cause_of_death(error), "lost"
        return taken

    def _take(self, member: Member, poll: Poll) -> int:
        """Keeps what a worker reported; only then is it acknowledged, with the next poll."""
        fresh = [report for report in poll.reports if report.sequence > member.acknowledged]
        metrics = [report.body for report in fresh if report.kind == "metrics"]
        append_lines(
            self._folder.metrics_path(self._attempt.attempt),
            [
                row | {"values": {key: encode(value) for key, value in row["values"].items()}}
                for row in map(dict, metrics)
            ],
        )
        rows: list[tuple[int, Sequence[float]]] = []
        layers: Sequence[str] = ()
        for report in fresh:
            if report.kind == "gradients":
                layers = report.body["layers"]
                rows.extend(report.body["rows"])
        if rows:
            self._gradients.append(layers, rows)
        for report in fresh:
            if report.kind == "event":
                self._relay(member, report.sequence, report.body)
        with self._lock:
            for row in metrics:
                self._latest.update(row["values"])
            if poll.progress is not None:
                self._progress = poll.progress
        if fresh:
            member.acknowledged = fresh[-1].sequence
        if poll.state == "done" and not poll.reports:
            member.outcome, member.state = poll.outcome, "done"
        if poll.state == "failed" and not poll.reports:
            member.failure = poll.failure
        return len(fresh)

    def _relay(self, member: Member, sequence: int, body: Mapping[str, Any]) -> None:
        source = (self._generation, member.rank, sequence)
        if source in self._told:
            return  # kept before this controller was restarted
        if body["type"] == "health.verdict":
            with self._lock:
                self._health = {key: body["data"][key] for key in ("verdict", "sentence", "findings")}
        self._tell(body["level"], body["type"], body["message"], body["data"], body["timestamp"], source)

    def _drain(self) -> None:
        """What the living still have to tell, within bounds."""
        deadline = time.monotonic() + 5.0
        while self._poll_all() and time.monotonic() < deadline:
            continue

    def _report_failures(self) -> None:
        for member in self._members:
            if member.failure and not member.failure.collateral:
                self._tell(
                    "error",
                    "worker.failed",
                    f"Rank {member.rank}: {member.failure.message}",
                    {"rank": member.rank, "traceback": member.failure.traceback},
                )

    def _lost(self, recover: Recover) -> Outcome | None:
        """Tells who died and why. An Outcome when trying again has become pointless."""
        self._set_phase("recovering")
        for rank, cause in sorted(recover.ranks.items()):
            ready = self._members[rank].ready
            pid = ready.pid if ready else None
            self._tell(
                "warning",
                "worker.lost",
                f"Rank {rank} was lost: {cause}. Going on from the newest checkpoint.",
                {"rank": rank, "pid": pid, "cause": cause, "generation": self._generation},
            )
        self._loss = (time.time(), recover)
        self._recoveries = self._recoveries.another(self._progress.step if self._progress else 0)
        self._remember()
        return self._recoveries.exhausted(self._spec.retry.max_attempts, recover.ranks)

    # --- ending -------------------------------------------------------------------------------------------------------

    def _end_generation(self) -> None:
        """Ends all workers of this attempt. Those of a broken group may be stuck in a collective: they are killed."""
        end_workers(self._attempt.name)
        self._members = []

    def _tear_down(self) -> None:
        with contextlib.suppress(RayError):
            end_workers(self._attempt.name)
            group = find_placement_group(group_name(self._attempt.name))
            if group is not None:
                remove_placement_group(group)

    def _finish(self, outcome: Outcome) -> None:
        with self._lock:
            self._outcome, self._phase = outcome, "finished"
        self._remember()
        if self._shipper:
            self._shipper.start()
            self._shipper.finish(outcome, self._health, lambda: self._tracked())
        else:
            self._tracked()

    def _tracked(self) -> None:
        if not any(event.type == "tracking.complete" for event in self._events):
            where = self._shipper.run_url if self._shipper else None
            message = f"Everything is in MLflow: {where}" if where else "Nothing was to be sent to MLflow."
            self._tell("info", "tracking.complete", message, {"mlflow": where})

    def _stopped_outcome(self) -> Outcome:
        if self._stop is StopMode.KILL:
            return Outcome(ReasonCode.KILLED, "killed on request; nothing was written")
        step = self._progress.step if self._progress else 0
        return Outcome(ReasonCode.CANCELLED, f"cancelled after step {step}")

    def _heed_stop(self) -> None:
        if self._stop is not None:
            raise StoppedError

    # --- memory -------------------------------------------------------------------------------------------------------

    def _tell(
        self,
        level: Level,
        type: str,
        message: str,
        data: Mapping[str, Any] | None = None,
        timestamp: float | None = None,
        source: tuple[int, int, int] | None = None,
    ) -> None:
        with self._lock:
            event = Event(len(self._events) + 1, timestamp or time.time(), level, type, message, data or {})
            append_lines(
                self._folder.events_path(self._attempt.attempt), [dataclasses.asdict(event) | {"source": source}]
            )
            self._events.append(event)

    def _set_phase(self, phase: Phase) -> None:
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
                "stop": self._stop,
                "recoveries": dataclasses.asdict(self._recoveries),
                "outcome": dataclasses.asdict(self._outcome) if self._outcome else None,
                "actors": [member.name for member in self._members],
                "members": [dataclasses.asdict(member.status()) for member in self._members],
            },
        )

    def _restore(self) -> None:
        self._known_members: list[dict[str, Any]] = []
        self._known_names: list[str] = []
        state = self._folder.read_document(STATE)
        if state is None or state["name"] != self._attempt.name:
            return
        self._phase, self._generation = state["phase"], state["generation"]
        self._stop = StopMode(state["stop"]) if state["stop"] else None
        self._recoveries = Recoveries(**state["recoveries"])
        self._known_members, self._known_names = state["members"], state["actors"]
        if state["outcome"]:
            known = state["outcome"]
            self._outcome = Outcome(ReasonCode(known["code"]), known["message"], known["detail"])
        for row in self._folder.events(self._attempt.attempt):
            source = row.pop("source")
            self._events.append(Event(**row))
            if source:
                self._told.add(tuple(source))
            if row["type"] == "health.verdict":
                self._health = {key: row["data"][key] for key in ("verdict", "sentence", "findings")}
