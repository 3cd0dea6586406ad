"""Makes what is into what is wanted, one pass at a time: claim, observe, decide, act, record.

The database is asked in short transactions and the cluster outside of them. What is acted on was recorded before (a start) or can
be seen on the cluster again (everything else), so a scheduler may die at any line and another goes on from there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

from service import usage
from service.cluster import Capacity, Cluster, ClusterUnavailableError, Launch
from service.decisions import (
    AttemptState,
    Decision,
    JobState,
    Limits,
    Sight,
    at_work,
    decide,
    decide_idle,
    expected,
    may_remove,
    may_start,
    never_fits,
    shape_wanted,
    shows,
)
from service.errors import ServiceError
from service.leases import LeaseLostError
from service.placement import fits
from service.planning import Active, Candidate, Plan, Rules, plan
from service.records import Records
from service.settings import Settings
from service.stored_files import StoredFiles
from service.values import Status
from workers.jobfolder import JobFolder
from workers.reports import GroupShape, Observation
from workers.spec import code_of

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 0.5  # progress alone is written no more often, for each job
REPEAT_SECONDS = 2.0  # a launch or stop that shows no effect is sent again
CAPACITY_SECONDS = 2.0
ORPHANS_SECONDS = 5.0
CLUSTER_RECORD_SECONDS = 5.0  # an unchanged cluster is recorded anew so often, as a sign of life
WAITING_SECONDS = 1.0


@dataclass(frozen=True)
class Pass:
    active: bool  # something is, or may be, on the cluster
    changed: bool  # another pass at once has work to do


@dataclass
class Watch:
    """What this process remembers of an attempt: times (monotonic seconds) and what it wrote last. Can be lost."""

    missing_since: float | None = None
    silent_since: float | None = None
    cluster_was_away: bool = False
    shape: GroupShape | None = None  # that was sent last
    sent: dict[str, float] = field(default_factory=dict)
    shown: str | None = None
    shown_at: float = float("-inf")

    def sight(self, answers: Mapping[str, Observation | None], name: str, tick: float) -> Sight:
        seen = answers.get(name)
        if seen is not None:
            self.missing_since = self.silent_since = None
            self.cluster_was_away = False
            return Sight(seen)
        if name in answers:
            self.silent_since = None
            self.missing_since = tick if self.missing_since is None else self.missing_since
            return Sight(None, missing_seconds=tick - self.missing_since, cluster_was_away=self.cluster_was_away)
        self.missing_since = None
        self.silent_since = tick if self.silent_since is None else self.silent_since
        return Sight(None, silent_seconds=tick - self.silent_since, cluster_was_away=self.cluster_was_away)

    def due(self, action: str, tick: float) -> bool:
        """Whether to send it (again)."""
        if tick - self.sent.get(action, float("-inf")) < REPEAT_SECONDS:
            return False
        self.sent[action] = tick
        return True


class Reconciler:
    """``run_pass`` is called with the time: ``now`` for what is recorded, ``tick`` (monotonic seconds) for waiting."""

    def __init__(self, records: Records, cluster: Cluster, settings: Settings) -> None:
        self._records = records
        self._cluster = cluster
        self._settings = settings
        self._limits = Limits.of(settings)
        self._watches: dict[str, Watch] = {}
        self._rules = Rules(
            backfill=timedelta(seconds=settings.backfill_seconds),
            elastic=timedelta(seconds=settings.elastic_seconds),
            preemption=settings.preemption,
        )
        self._capacity: Capacity | None = None  # None: never seen, or the cluster is away
        self._cordoned: frozenset[str] = frozenset()
        self._problem: str | None = None
        self._recorded_cluster: object = None
        self._times: dict[str, float] = {}
        self._too_small_since: dict[str, float] = {}

    def run_pass(self, now: datetime, tick: float) -> Pass:
        jobs, self._cordoned = self._records.claim(), self._records.cordoned()
        self._forget_all_but(jobs)
        answers = self._observe(jobs, tick)
        changed = False
        if answers is not None:
            changed = self._each(jobs, lambda job: self._attend(job, answers, now, tick))
        idle = [job for job in jobs if job.current is None and not job.status.ended]
        changed |= self._each(idle, lambda job: self._attend_idle(job, now, tick))
        changed |= self._start(jobs, answers or {}, now, tick)
        self._record_cluster(now, tick)
        return Pass(active=any(job.attempts for job in jobs), changed=changed)

    # --- observe ------------------------------------------------------------------------------------------------------

    def _observe(self, jobs: Iterable[JobState], tick: float) -> Mapping[str, Observation | None] | None:
        """One question for all attempts. None when the cluster is away: then everything on it is left as it is."""
        wanted = {job.name(attempt): attempt.relayed for job in jobs for attempt in job.attempts}
        try:
            if self._capacity is None or self._due("capacity", CAPACITY_SECONDS, tick):
                self._capacity = self._cluster.capacity()
            if self._due("orphans", ORPHANS_SECONDS, tick):
                self._remove_orphans(wanted)
            answers = self._cluster.observe(wanted) if wanted else {}
        except ClusterUnavailableError as error:
            self._away(error)
            return None
        if self._problem is not None:
            log.info("the cluster answers again")
        self._problem = None
        return {name: seen and self._with_public_links(seen) for name, seen in answers.items()}

    def _with_public_links(self, seen: Observation) -> Observation:
        """Workers know the address of MLflow inside the deployment only."""
        inside, public = self._settings.mlflow_url, self._settings.mlflow_public_url
        link = seen.links.get("mlflow")
        if not (inside and public and link and link.startswith(inside)):
            return seen
        return replace(seen, links={**seen.links, "mlflow": public.rstrip("/") + link.removeprefix(inside.rstrip("/"))})

    def _remove_orphans(self, wanted: Mapping[str, int]) -> None:
        """Ends what nobody wants: left by a scheduler that was frozen, or whose database was restored."""
        for name in sorted(self._cluster.names() - wanted.keys()):
            log.warning("removing %s, which the database does not know", name)
            self._cluster.remove(name)

    def _away(self, error: ClusterUnavailableError) -> None:
        if self._problem is None:
            log.warning("the cluster cannot be reached: %s", error)
        self._problem = str(error)
        self._capacity = None
        for watch in self._watches.values():  # what was not seen because nothing could be seen does not count
            watch.missing_since = watch.silent_since = None
            watch.cluster_was_away = True

    # --- decide, act, record ------------------------------------------------------------------------------------------

    def _each(self, jobs: Iterable[JobState], attend: Callable[[JobState], bool]) -> bool:
        """One job's trouble is not another's."""
        changed = False
        for job in jobs:
            try:
                changed |= attend(job)
            except ClusterUnavailableError as error:
                self._away(error)
                return changed
            except (ServiceError, LeaseLostError):
                raise
            except Exception:
                log.exception("%s could not be attended to", job.id)
        return changed

    def _attend(self, job: JobState, answers: Mapping[str, Observation | None], now: datetime, tick: float) -> bool:
        changed = False
        for attempt in job.attempts:
            watch = self._watches.setdefault(job.name(attempt), Watch())
            sight = replace(
                watch.sight(answers, job.name(attempt), tick), cluster_replaced=self._is_of_another_cluster(attempt)
            )
            if attempt.finished_at is None:
                decision = decide(job, attempt, sight, now, self._limits)
                self._act(job, attempt, decision, watch, tick)
                self._regroup(job, attempt, sight, decision, watch, tick)
                changed |= self._record(job, attempt, sight.observation, decision, watch, now, tick)
            else:
                changed |= self._attend_ended(job, attempt, sight, watch, now, tick)
        return changed

    def _attend_ended(
        self, job: JobState, attempt: AttemptState, sight: Sight, watch: Watch, now: datetime, tick: float
    ) -> bool:
        self._record(job, attempt, sight.observation, Decision(), watch, now, tick)
        if not may_remove(job, attempt, sight, now, self._limits):
            return False
        self._cluster.remove(job.name(attempt))
        self._records.removed(job, attempt, now)
        usage.keep(self._records.store, job.id, self._folder(job))  # its folder may be gone when somebody asks
        return True

    def _act(self, job: JobState, attempt: AttemptState, decision: Decision, watch: Watch, tick: float) -> None:
        name = job.name(attempt)
        if decision.launch and watch.due("launch", tick):
            launch = self._launch(job, attempt)
            self._cluster.launch(launch)
            watch.shape = launch.shape
        if decision.stop is not None and watch.due(decision.stop, tick):
            self._cluster.stop(name, decision.stop)
        if decision.remove:
            self._cluster.remove(name)

    def _regroup(
        self, job: JobState, attempt: AttemptState, sight: Sight, decision: Decision, watch: Watch, tick: float
    ) -> None:
        """Says how the group should be, once, and again while it is not so."""
        shape = shape_wanted(attempt, sight, decision, self._avoid())
        if shape is None or sight.observation is None:
            return
        if shape != watch.shape or (not shows(sight.observation, shape) and watch.due("reshape", tick)):
            self._cluster.reshape(job.name(attempt), shape)
            watch.shape = shape

    def _launch(self, job: JobState, attempt: AttemptState) -> Launch:
        folder = self._folder(job)
        spec, healthy_from = self._records.asked(job.id)
        code = code_of(spec)
        return Launch(
            name=job.name(attempt),
            job_id=job.id,
            attempt=attempt.number,
            spec=spec,
            shape=GroupShape(attempt.size, self._avoid()),
            folder=str(folder.path),
            mlflow_url=self._settings.mlflow_url,
            experiment=self._settings.experiment,
            checkpoints=folder.checkpoints_root,
            bundle=str(StoredFiles(self._settings.storage).path(code.file)) if code and code.file else None,
            healthy_from=healthy_from,
        )

    def _folder(self, job: JobState) -> JobFolder:
        return JobFolder(Path(self._settings.storage), job.id, self._settings.checkpoints)

    def _record(
        self,
        job: JobState,
        attempt: AttemptState,
        seen: Observation | None,
        decision: Decision,
        watch: Watch,
        now: datetime,
        tick: float,
    ) -> bool:
        """Writes when there is something new; progress and metrics alone, not too often."""
        moves = decision.status is not None or decision.end is not None
        if seen is None and not moves:
            return False
        # As text, because NaN does not even equal itself.
        shown = (
            None
            if seen is None
            else repr((seen.progress, seen.latest, seen.health, seen.workers, seen.links, seen.recoveries))
        )
        news = seen is not None and (not attempt.seen or any(e.sequence > attempt.relayed for e in seen.events))
        fresh = shown != watch.shown and tick - watch.shown_at >= PROGRESS_SECONDS
        if not (moves or news or fresh):
            return False
        if self._records.apply(job, attempt, seen, decision, now):
            watch.shown, watch.shown_at = shown, tick
        return moves

    def _attend_idle(self, job: JobState, now: datetime, tick: float) -> bool:
        decision = decide_idle(job, now)
        if decision == Decision() and self._capacity is not None and self._capacity.nodes:
            decision = never_fits(job, self._capacity, self._too_small_seconds(job, self._capacity, tick), self._limits)
        if decision == Decision():
            return False
        return self._records.apply(job, None, None, decision, now)

    def _too_small_seconds(self, job: JobState, capacity: Capacity, tick: float) -> float:
        """How long the cluster has been too small for the job, as far as this process knows."""
        if fits(capacity, job.gang):
            self._too_small_since.pop(job.id, None)
            return 0
        return tick - self._too_small_since.setdefault(job.id, tick)

    # --- the queue ----------------------------------------------------------------------------------------------------

    def _start(
        self, jobs: Iterable[JobState], answers: Mapping[str, Observation | None], now: datetime, tick: float
    ) -> bool:
        idle = {job.id: job for job in jobs if job.current is None and not job.status.ended}
        ready = [_candidate(job) for job in idle.values() if may_start(job, now) and not decide_idle(job, now).finish]
        changed = False
        if self._capacity is None:
            problem = f"waits for the cluster: {self._problem or 'it has not answered yet'}"
            waiting = {candidate.job_id: problem for candidate in ready}
        else:
            active = {job.id: job for job in jobs if job.current is not None}
            actives = [_active(job, job.current, answers) for job in active.values() if job.current is not None]
            soon = [job.gang for job in idle.values() if expected(job, now)]
            planned = plan(self._usable(self._capacity), actives, ready, now, self._rules, soon)
            waiting = dict(planned.waiting)
            changed |= self._change_groups(planned, active, now)
            for job_id, size in planned.start.items():
                changed |= self._records.start_attempt(idle[job_id], size, self._capacity.cluster_id, now)
        news = {job_id: reason for job_id, reason in waiting.items() if idle[job_id].waiting != reason}
        if news and self._due("waiting", WAITING_SECONDS, tick):
            self._records.waiting(news)
        return changed

    def _change_groups(self, planned: Plan, active: Mapping[str, JobState], now: datetime) -> bool:
        changed = False
        for job_id, other in planned.preempt.items():
            changed |= self._records.preempt(active[job_id], other, now)
        for job_id, resize in planned.resize.items():
            changed |= self._records.resize(active[job_id], resize.workers, resize.why, now)
        return changed

    def _usable(self, capacity: Capacity) -> Capacity:
        """As Ray says, and with the nodes that admins have cordoned."""
        nodes = (replace(node, draining=node.draining or node.id in self._cordoned) for node in capacity.nodes)
        return replace(capacity, nodes=tuple(nodes))

    def _avoid(self) -> frozenset[str]:
        nodes = self._usable(self._capacity).nodes if self._capacity is not None else ()
        return frozenset(node.id for node in nodes if node.draining)

    def _is_of_another_cluster(self, attempt: AttemptState) -> bool:
        known = self._capacity.cluster_id if self._capacity is not None else None
        return None not in (known, attempt.cluster_id) and known != attempt.cluster_id

    # --- bookkeeping --------------------------------------------------------------------------------------------------

    def _record_cluster(self, now: datetime, tick: float) -> None:
        state = (self._capacity, self._problem)
        if state != self._recorded_cluster or self._due("cluster", CLUSTER_RECORD_SECONDS, tick):
            problem = self._problem if self._capacity is None else None
            self._records.cluster(self._capacity or Capacity(()), problem, now)
            self._recorded_cluster = state
            self._times["cluster"] = tick

    def _forget_all_but(self, jobs: Iterable[JobState]) -> None:
        names = {job.name(attempt) for job in jobs for attempt in job.attempts}
        self._watches = {name: watch for name, watch in self._watches.items() if name in names}
        queued = {job.id for job in jobs if not job.attempt}
        self._too_small_since = {key: since for key, since in self._too_small_since.items() if key in queued}

    def _due(self, what: str, seconds: float, tick: float) -> bool:
        if tick - self._times.get(what, float("-inf")) < seconds:
            return False
        self._times[what] = tick
        return True


def _candidate(job: JobState) -> Candidate:
    return Candidate(job.id, job.each, job.fewest, job.most, job.priority, job.created_at, job.ready_at)


def _active(job: JobState, attempt: AttemptState, answers: Mapping[str, Observation | None]) -> Active:
    seen = answers.get(job.name(attempt))
    there = at_work(seen) if seen is not None else []
    ready = seen is not None and seen.phase == "running" and shows(seen, GroupShape(attempt.size))
    return Active(
        job_id=job.id,
        each=job.each,
        size=attempt.size,
        fewest=job.fewest,
        most=job.most,
        priority=job.priority,
        created_at=job.created_at,
        resized_at=attempt.resized_at or attempt.created_at,
        # A worker that is being started has no place yet.
        places=tuple(worker.node_id or worker.node for worker in there if worker.node_id or worker.node),
        ending=job.leaving or (seen is not None and seen.phase in ("stopping", "finished")),
        known=seen is not None and seen.phase in ("running", "recovering"),
        settled=ready and job.status is Status.RUNNING,
        resumable=job.resumable or job.status is Status.STARTING,  # nothing is lost that has not begun
    )
