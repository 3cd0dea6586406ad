"""The workers of an attempt, as their controller holds them: placing, asking, ending. What to do with them is decided elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayError

from workers.group_decisions import COMING, GONE, Seat, State, position_of
from workers.placing import Attempt, Slot, Slots, ask_for_devices, place_worker
from workers.ray_names import NAMESPACE, cause_of_death, kill_actor
from workers.reports import Outcome, StopMode, WorkerStatus
from workers.spec import JobSpec
from workers.worker import Place
from workers.worker_link import Activity, Failure, Poll

KEPT = 100  # workers of the past
ANSWER_SECONDS = 1.0  # for which a round of questions waits; who is later is heard in the next
STORE_SECONDS = 5.0


@dataclass
class Member:
    """One worker. ``rank``: in the group of the present generation, None for a newcomer."""

    number: int
    slot: Slot | None  # None: handed on to its replacement
    planned_rank: int  # that it was placed for
    rank: int | None = None
    name: str = ""  # of the actor, once there is one
    actor: Any = None
    state: State = "placed"
    place: Place | None = None
    joined: int = 0
    position: tuple[int, int] | None = None
    broken: str | None = None
    activity: Activity | None = None
    stepped_at: float | None = None
    acknowledged: int = 0
    version: int = -1
    outcome: Outcome | None = None
    failure: Failure | None = None
    why: str | None = None  # it ended
    started_at: float = field(default_factory=time.time)
    ended_at: float | None = None
    mourned: bool = False
    devices: Any = None  # calls that are under way
    beginning: Any = None
    polling: Any = None
    news: Any = None
    asked_at: float | None = None  # monotonic; of the poll that is under way

    @property
    def gone(self) -> bool:
        return self.state in GONE

    def saw(self, poll: Poll) -> None:
        if self.gone:
            return
        if poll.state == "running" or poll.state == "waiting" or poll.state == "building":
            self.state = poll.state
        elif not poll.reports and poll.state in ("done", "failed", "dismissed"):  # everything else has been told
            self.state, self.outcome, self.failure = poll.state, poll.outcome, poll.failure
        self.joined, self.position, self.broken = poll.generation, poll.position, poll.broken
        self.activity, self.stepped_at, self.version = poll.activity, poll.stepped_at, poll.version
        if poll.reports:
            self.acknowledged = poll.reports[-1].sequence

    def lost(self, why: str, state: State = "lost") -> None:
        if not self.gone:
            self.state, self.why, self.ended_at = state, why, time.time()
        self.beginning = self.polling = self.news = None

    def end(self, why: str, state: State = "lost") -> None:
        """Kills its process; a frozen one too."""
        if self.name:
            with contextlib.suppress(RayError):
                kill_actor(self.name)
        self.lost(why, state)

    def status(self) -> WorkerStatus:
        place = self.place or Place(0, "", "", "")
        shown = {
            "running": "running",
            "waiting": "starting",
            "done": "done",
            "lost": "lost",
            "failed": "lost",
            "dismissed": "left",
        }
        return WorkerStatus(
            self.planned_rank if self.rank is None else self.rank,
            place.pid,
            place.node,
            place.node_id,
            place.device,
            shown.get(self.state, "starting"),  # type: ignore[arg-type]  # one of them
            self.started_at,
            self.ended_at,
            self.why,
        )


class Crew:
    def __init__(self, attempt: Attempt, spec: JobSpec) -> None:
        self._attempt, self._spec = attempt, spec
        self._slots = Slots(attempt, spec)
        self._next = 1
        self._past: deque[WorkerStatus] = deque(maxlen=KEPT)
        self._woken = False
        self.members: list[Member] = []

    # --- who is there -------------------------------------------------------------------------------------------------

    def group(self) -> list[Member]:
        """In the order of ranks."""
        return sorted((m for m in self.members if m.rank is not None), key=lambda member: member.rank or 0)

    def member(self, number: int) -> Member:
        return next(member for member in self.members if member.number == number)

    def seats(self, avoid: frozenset[str]) -> list[Seat]:
        now = time.monotonic()
        return [
            Seat(
                m.number,
                m.rank,
                m.state,
                m.joined,
                position_of(m.position),
                m.place is not None and m.place.node_id in avoid,
                m.activity,
                now - m.asked_at if m.polling is not None and m.asked_at is not None else 0.0,
                m.outcome,
                m.failure,
            )
            for m in self.members
        ]

    def statuses(self) -> list[WorkerStatus]:
        members = list(self.members)
        return [*self._past, *(m.status() for m in sorted(members, key=lambda m: (m.rank is None, m.rank or 0)))]

    # --- placing ------------------------------------------------------------------------------------------------------

    def add(self, avoid: frozenset[str]) -> None:
        """Room for one more worker is reserved; ``advance`` puts a worker there once there is some."""
        ranks = {m.rank if m.rank is not None else m.planned_rank for m in self.members if not m.gone}
        rank = next(rank for rank in range(len(self.members) + 1) if rank not in ranks)
        self.members.append(Member(self._next, self._inherited(avoid) or self._slots.take(avoid), rank))
        self._next += 1

    def _inherited(self, avoid: frozenset[str]) -> Slot | None:
        """The room of a worker that is gone, unless its machine is gone too."""
        for member in self.members:
            if member.gone and member.slot is not None:
                node_id = self._slots.node_of(member.slot)
                if node_id is not None and node_id not in avoid:
                    slot, member.slot = member.slot, None
                    return slot
        return None

    def advance(self) -> bool:
        """Takes those that are being placed a step further; whether any of them was."""
        moved = False
        for member in self.members:
            if member.state == "placed" and member.slot is not None:
                moved = self._place(member, member.slot) or moved
            elif member.beginning is not None and ray.wait([member.beginning], timeout=0)[0]:
                moved = True
                try:
                    member.place = ray.get(member.beginning)
                    member.beginning = None
                    member.state = "building" if member.state == "starting" else member.state
                except RayActorError as error:
                    member.lost(cause_of_death(error))
        return moved

    def _place(self, member: Member, slot: Slot) -> bool:
        node_id = self._slots.node_of(slot)
        if node_id is None:
            return False
        devices: Sequence[str] | None = None
        if self._spec.workers.gpus:
            member.devices = member.devices or ask_for_devices(slot, self._spec.workers.gpus)
            if not ray.wait([member.devices], timeout=0)[0]:
                return False
            try:
                devices = ray.get(member.devices)
            except RayActorError:
                member.devices = None  # asked for again
                return False
        member.name, member.actor = place_worker(
            self._attempt, self._spec, member.number, member.planned_rank, slot, node_id, devices
        )
        member.beginning = member.actor.begin.remote()
        member.state = "starting"
        return True

    def seat(self, numbers: Sequence[int]) -> None:
        """The group of a new generation: members by rank."""
        for member in self.members:
            member.rank = numbers.index(member.number) if member.number in numbers else None
            member.stepped_at = member.broken = None
        self._bury()

    def dismiss_unseated(self) -> None:
        """Those that a group has left behind."""
        for member in list(self.members):
            if member.rank is None and member.state not in COMING:
                self.dismiss(member.number, "not needed any more")

    def dismiss(self, number: int, why: str) -> None:
        member = self.member(number)
        member.end(why, "dismissed")
        self._bury()

    def _bury(self) -> None:
        for member in [m for m in self.members if m.gone and m.rank is None]:
            if member.slot is not None:
                self._slots.give_back(member.slot)
            self._past.append(member.status())
            self.members.remove(member)

    # --- asking -------------------------------------------------------------------------------------------------------

    def poll(self, told_through: int, timeout: float = ANSWER_SECONDS) -> list[tuple[Member, Poll]]:
        """One round. A worker that does not answer in time is asked no second time until it does."""
        for member in self.members:
            if member.place is not None and not member.gone and member.polling is None:
                member.polling = member.actor.poll.remote(member.acknowledged, told_through)
                member.asked_at = time.monotonic()
        asked = {member.polling: member for member in self.members if member.polling is not None}
        if not asked:
            return []
        prompt = [ref for ref, member in asked.items() if time.monotonic() - (member.asked_at or 0) < ANSWER_SECONDS]
        ray.wait(list(asked), num_returns=max(1, len(prompt)), timeout=timeout if prompt else 0)
        answers = []
        for ref in ray.wait(list(asked), num_returns=len(asked), timeout=0)[0]:
            member = asked[ref]
            member.polling = member.asked_at = None
            try:
                answers.append((member, ray.get(ref)))
            except ActorUnavailableError:
                continue  # not reachable just now, which is not dead
            except RayActorError as error:
                member.lost(cause_of_death(error))
        return answers

    def newly_lost(self) -> list[Member]:
        found = [member for member in self.members if member.state == "lost" and not member.mourned]
        for member in found:
            member.mourned = True
        return found

    def wait_for_news(self, timeout: float) -> None:
        """Until a worker has something new to tell, or has died, or ``timeout`` is over."""
        if self._woken:
            self._woken = False
            return
        for member in self.members:
            if member.place is not None and not member.gone and member.news is None:
                member.news = member.actor.news.remote(member.version)
        waiting = {member.news: member for member in self.members if member.news is not None}
        waiting |= {member.beginning: member for member in self.members if member.beginning is not None}
        if not waiting:
            time.sleep(timeout)
            return
        for ref in ray.wait(list(waiting), num_returns=1, timeout=timeout)[0]:
            member = waiting[ref]
            if ref is member.news:
                member.news = None
                try:
                    ray.get(ref)
                except ActorUnavailableError:
                    time.sleep(0.1)
                except RayActorError as error:
                    member.lost(cause_of_death(error))

    def wake(self) -> None:
        """The next wait for news does not wait."""
        self._woken = True

    # --- telling ------------------------------------------------------------------------------------------------------

    def host_store(self, number: int) -> tuple[str, int] | None:
        """None: that worker has died."""
        member = self.member(number)
        try:
            found: tuple[str, int] = ray.get(member.actor.host_store.remote(), timeout=STORE_SECONDS)
        except (RayActorError, GetTimeoutError):
            return None
        return found

    def pardon(self) -> None:
        """Whoever has not answered yet is silent only from now on: it was stopped while its stack was read."""
        for member in self.members:
            if member.polling is not None:
                member.asked_at = time.monotonic()

    def ask_to_regroup(self, generation: int) -> None:
        for member in self.group():
            member.actor.regroup.remote(generation)

    def ask_to_stop(self, mode: StopMode) -> None:
        for member in self.group():
            if not member.gone:
                member.actor.stop.remote(mode)

    def break_group(self, generation: int) -> None:
        for member in self.group():
            if not member.gone:
                member.actor.break_group.remote(generation)

    def end_all(self) -> None:
        for member in self.members:
            if not member.gone:
                member.ended_at = time.time()
                member.why = member.why or ("the job ended" if member.state != "failed" else "it failed")
                if member.state != "failed":
                    member.state = "done" if member.outcome else "dismissed"
            if member.name:
                kill_actor(member.name)

    # --- memory -------------------------------------------------------------------------------------------------------

    def document(self) -> dict[str, Any]:
        return {
            "next": self._next,
            "past": [asdict(status) for status in self._past],
            "members": [
                {
                    "number": m.number,
                    "slot": [m.slot.group, m.slot.bundle] if m.slot else None,
                    "planned_rank": m.planned_rank,
                    "rank": m.rank,
                    "name": m.name,
                    "place": asdict(m.place) if m.place else None,
                    "started_at": m.started_at,
                }
                for m in self.members
            ],
        }

    def adopt(self, document: Mapping[str, Any]) -> None:
        """Takes over what an earlier controller has placed; those that are not there any more are lost."""
        self._next = document["next"]
        self._past.extend(WorkerStatus(**status) for status in document["past"])
        for known in document["members"]:
            slot = Slot(*known["slot"]) if known["slot"] else None
            member = Member(known["number"], slot, known["planned_rank"], known["rank"], known["name"])
            member.started_at = known["started_at"]
            member.place = Place(**known["place"]) if known["place"] else None
            if slot is not None:
                self._slots.adopt(slot)
            self.members.append(member)
            if not member.name:
                continue  # it waits for room
            try:
                member.actor = ray.get_actor(member.name, namespace=NAMESPACE)
            except ValueError:
                member.lost("it died while the controller was away")
                continue
            member.beginning = member.actor.begin.remote()  # says where it is, and does nothing a second time
            member.state = "running" if member.rank is not None else "starting"
