"""Who starts, shrinks, gives way and grows. Pure: from the machines, the jobs at work on them and the queue to a plan.

Order is priority, then age. A job's workers start together or not at all. Smaller jobs overtake a job that does not fit yet, but
only for so long: then everything behind it waits, so that what ends makes room for it.

For a job that does not fit, room is made where that helps at all: jobs with a range of workers shrink, those of equal priority too;
if that is not enough, jobs of strictly lower priority are paused besides, as few and as small ones as will do, and only such as go on later from
where they were. Until the room is
free, nobody else is put into it. Jobs with a range grow only while nobody waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import groupby

from service.cluster import Capacity, Resources
from service.placement import Gang, Held, fits, free_resources, index_of, place, room, shortage

START = timedelta(seconds=30)  # given to an attempt before anybody else may need its room more


@dataclass(frozen=True)
class Rules:
    backfill: timedelta  # how long smaller jobs may overtake
    elastic: timedelta  # how long a job keeps its size before it grows
    preemption: bool


@dataclass(frozen=True)
class Candidate:
    """A job in the queue."""

    job_id: str
    each: Resources
    size: int  # workers that it needs to start, its fewest
    most: int
    priority: int
    created_at: datetime
    ready_at: datetime  # since when it could start, had there been room

    @property
    def gang(self) -> Gang:
        return Gang(self.size, self.each)


@dataclass(frozen=True)
class Active:
    """A job with an attempt under way."""

    job_id: str
    each: Resources
    size: int  # workers that it should have
    fewest: int
    most: int
    priority: int
    created_at: datetime
    resized_at: datetime  # or when it started
    places: tuple[str, ...] = ()  # node id, or address, of each worker at work, by rank
    ending: bool = False  # paused, cancelled, ...: what it holds will be free
    known: bool = True  # its controller has said which workers there are
    settled: bool = True  # it trains, with as many workers as it should have
    resumable: bool = (
        True  # after a pause it goes on from where it was; a script that cannot is never paused for another job
    )


@dataclass(frozen=True)
class Resize:
    workers: int
    why: str


@dataclass(frozen=True)
class Plan:
    """Keys are job ids."""

    start: Mapping[str, int]  # with so many workers, in the order of the queue
    resize: Mapping[str, Resize]
    preempt: Mapping[str, str]  # -> the job to which it gives way
    waiting: Mapping[str, str]  # why not yet


def plan(
    capacity: Capacity,
    actives: Sequence[Active],
    queue: Iterable[Candidate],
    now: datetime,
    rules: Rules,
    expected: Iterable[Gang] = (),
) -> Plan:
    """``expected``: of jobs that are about to be in the queue, and for which nobody should grow meanwhile."""
    planner = _Planner(capacity, actives, now, rules)
    planner.keep_to_bounds()
    for job in sorted(queue, key=_order):
        planner.consider(job)
    planner.grow(expected)
    return planner.plan()


class _Planner:
    """A plan in the making."""

    def __init__(self, capacity: Capacity, actives: Sequence[Active], now: datetime, rules: Rules) -> None:
        self._capacity, self._now, self._rules = capacity, now, rules
        self._index = index_of(capacity)
        self._before = {active.job_id: active for active in actives}
        self._active = dict(self._before)
        self._why: dict[str, str] = {}
        self._started: dict[str, Candidate] = {}  # with the gangs that they get
        self._promised: list[Gang] = []  # to jobs for which room is being made
        self._preempt: dict[str, str] = {}
        self._waiting: dict[str, str] = {}
        self._blocked = False  # somebody waits who could use whatever is free
        self._closed_by: str | None = None
        self._free: list[Resources] = []  # now
        self._soon: list[Resources] = []  # when everything that is ending or shrinking is done with it

    def keep_to_bounds(self) -> None:
        """Sizes go down to what the range allows, and to what the machines that are left can hold."""
        free = free_resources(self._capacity, [Held(Gang(0, a.each), a.places) for a in self._active.values()])
        for active in sorted(self._active.values(), key=_order):
            if active.ending:
                continue
            if active.size > active.most:
                active = self._change(replace(active, size=active.most), "its range changed")
            missing = max(0, active.size - len(self._kept(active)))
            there = sum(room(node, active.each) for node in free)
            if missing > there and active.known and active.size > active.fewest:
                size = max(active.fewest, active.size - (missing - there))
                active = self._change(replace(active, size=size), "the machines that are left hold no more")
            place(free, Gang(min(missing, there), active.each))
        self._free = free_resources(self._capacity, [self._held(a) for a in self._active.values()])
        self._soon = self._free_soon(self._active)

    def consider(self, job: Candidate) -> None:
        if self._closed_by is not None:
            self._waiting[job.job_id] = (
                f"waits for {self._closed_by}, which is ahead in the queue and has waited for long"
            )
        elif self._take(job.gang):
            self._started[job.job_id] = job
        else:
            self._waiting[job.job_id] = self._make_room(job) or self._spared(job) or self._shortage(job.gang)
            if self._now - job.ready_at >= self._rules.backfill:
                self._closed_by = job.job_id
        self._blocked |= job.job_id in self._waiting and fits(self._capacity, job.gang)

    def grow(self, expected: Iterable[Gang]) -> None:
        """What is free goes, worker by worker, to those who may have more: first of all to jobs whose fewest was raised."""
        if self._closed_by is not None:
            return
        settled = [active for active in self._active.values() if active.settled and not active.ending]
        short = {active.job_id: active.fewest for active in settled if active.size < active.fewest}
        self._share_out(short, "its range changed")
        if not self._blocked and not any(fits(self._capacity, gang) for gang in expected):
            able = [a for a in settled if a.job_id not in short and self._now - a.resized_at >= self._rules.elastic]
            more: list[Active | Candidate] = [*able, *self._started.values()]
            self._share_out({job.job_id: job.most for job in more}, "there is room for more")

    def plan(self) -> Plan:
        resized = {key: a for key, a in self._active.items() if a.size != self._before[key].size and not a.ending}
        return Plan(
            start={key: job.size for key, job in self._started.items()},
            resize={key: Resize(active.size, self._why[key]) for key, active in resized.items()},
            preempt=self._preempt,
            waiting=self._waiting,
        )

    # --- making room --------------------------------------------------------------------------------------------------

    def _make_room(self, job: Candidate) -> str | None:
        """A sentence for the user when there will be room."""
        changes = {} if self._would_fit(job.gang, {}) else self._give_way(job)
        if changes is None:
            return None
        for key, active in changes.items():
            if active.ending:
                self._preempt[key] = job.job_id
            self._change(active, f"to make room for {job.job_id}")
        self._soon = self._free_soon(self._active)
        place(self._soon, job.gang)
        self._promised.append(job.gang)
        leaving = sorted(key for key, active in changes.items() if active.ending)
        return f"waits while {' and '.join(leaving)} is paused for it" if leaving else "waits while room is made for it"

    def _give_way(self, job: Candidate) -> dict[str, Active] | None:
        """The jobs that shrink or end, as they are then; None when nothing that may be done would help."""
        those = [active for active in self._active.values() if self._may_be_disturbed(active)]
        least = {
            active.job_id: replace(active, size=active.fewest)
            for active in those
            if active.priority <= job.priority and active.size > active.fewest
        }
        lower = [a for a in those if a.priority < job.priority and a.resumable] if self._rules.preemption else []
        if not least and not lower:
            return None
        changes = dict(least)
        if not self._would_fit(job.gang, changes):
            changes |= {active.job_id: replace(active, ending=True) for active in lower}
            if not self._would_fit(job.gang, changes):
                return None
            for active in sorted(lower, key=_worth):
                spared = changes | {active.job_id: least.get(active.job_id, active)}
                if self._would_fit(job.gang, spared):
                    changes = spared
        for key in sorted(least, key=lambda key: _worth(self._active[key])):
            if not changes[key].ending:
                changes[key] = self._largest(job.gang, changes, key)
        return {key: active for key, active in changes.items() if active != self._active[key]}

    def _may_be_disturbed(self, active: Active) -> bool:
        """Not one that just starts: where it will be is a guess, and so is whether it is in anybody's way."""
        return not active.ending and (active.known or self._now - active.resized_at >= START)

    def _spared(self, job: Candidate) -> str | None:
        """A sentence for the user where only jobs are in the way that would lose all they have done."""
        those = [a for a in self._active.values() if not a.ending and not a.resumable and a.priority < job.priority]
        changes = {active.job_id: replace(active, ending=True) for active in those}
        if not (those and self._rules.preemption and self._would_fit(job.gang, changes)):
            return None
        scripts = f"scripts {' and '.join(sorted(changes))}" if len(those) > 1 else f"script {those[0].job_id}"
        return f"waits for {scripts} of lower priority, which would begin anew after a pause (task.resumable is false)"

    def _largest(self, gang: Gang, changes: Mapping[str, Active], key: str) -> Active:
        """Of the sizes that a shrinking job can keep."""
        sizes = (replace(changes[key], size=size) for size in range(self._active[key].size, changes[key].size, -1))
        return next((active for active in sizes if self._would_fit(gang, {**changes, key: active})), changes[key])

    def _would_fit(self, gang: Gang, changes: Mapping[str, Active]) -> bool:
        return place(self._free_soon({**self._active, **changes}) if changes else list(self._soon), gang)

    def _free_soon(self, actives: Mapping[str, Active]) -> list[Resources]:
        held = [self._held_in_the_end(active) for active in actives.values() if not active.ending]
        free = free_resources(self._capacity, held)
        for gang in (*(job.gang for job in self._started.values()), *self._promised):
            place(free, gang)
        return free

    def _shortage(self, gang: Gang) -> str:
        return shortage(self._free, gang, sum(node.draining for node in self._capacity.nodes))

    # --- room that is there -------------------------------------------------------------------------------------------

    def _take(self, gang: Gang) -> bool:
        """If it is free now, and will not be missed by those to whom it is promised."""
        free, soon = list(self._free), list(self._soon)
        if not (place(free, gang) and place(soon, gang)):
            return False
        self._free, self._soon = free, soon
        return True

    def _share_out(self, limits: Mapping[str, int], why: str) -> None:
        """Worker by worker to jobs of one priority, before those of the next."""
        jobs: dict[str, Active | Candidate] = {**self._active, **self._started}
        ordered = sorted((jobs[key] for key in limits), key=_order)
        for _, equals in groupby(ordered, key=lambda job: job.priority):
            hungry = list(equals)
            while hungry := [job for job in hungry if job.size < limits[job.job_id] and self._take(Gang(1, job.each))]:
                hungry = [self._with_one_more(job, why) for job in hungry]

    def _with_one_more(self, job: Active | Candidate, why: str) -> Active | Candidate:
        if isinstance(job, Active):
            return self._change(replace(job, size=job.size + 1), why)
        self._started[job.job_id] = replace(job, size=job.size + 1)
        return self._started[job.job_id]

    def _held(self, active: Active) -> Held:
        """What it has now, and what it is to have."""
        kept, has = len(self._kept(active)), len(active.places)
        moving = 0 if active.ending else max(0, min(has, active.size) - kept)
        return Held(Gang(max(has, active.size), active.each), active.places, moving)

    def _held_in_the_end(self, active: Active) -> Held:
        """Without what it has too much."""
        kept, has = tuple(self._kept(active)[: active.size]), len(active.places)
        unknown, moving = max(0, active.size - has), min(has, active.size) - len(kept)
        return Held(Gang(len(kept) + unknown, active.each), kept, max(0, moving))

    def _kept(self, active: Active) -> list[str]:
        """The places on machines that stay."""
        return [where for where in active.places if where in self._index]

    def _change(self, active: Active, why: str) -> Active:
        self._active[active.job_id] = active
        self._why[active.job_id] = why
        return active


def _order(job: Active | Candidate) -> tuple[int, datetime, str]:
    return -job.priority, job.created_at, job.job_id


def _worth(active: Active) -> tuple[int, float, float, datetime, str]:
    """First those that should be left alone: more important, larger, older."""
    return (
        -active.priority,
        -active.size * active.each.gpus,
        -active.size * active.each.cpus,
        active.created_at,
        active.job_id,
    )
