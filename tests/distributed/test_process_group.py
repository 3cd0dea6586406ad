"""Groups of real processes that break: whoever is left is free at once, and forms another."""

from __future__ import annotations

import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.helpers import free_port
from workers import process_group
from workers.process_group import ProcessGroup, broken_by_peer

pytestmark = pytest.mark.distributed

FREE_SECONDS = 5.0  # far below the timeout of a collective
TIMEOUT_SECONDS = 60.0
START_SECONDS = 150.0  # of four processes that import torch on a busy machine
# torch asks for the name of every address that it connects to. Where nobody answers, that takes 5 s a time.
RESOLVER = "timeout:1 attempts:1"


@dataclass(frozen=True)
class Answer:
    value: Any  # what came out of it, or the exception as text
    raised: bool
    by_peer: bool
    at: float  # time.monotonic(), which all processes share


class Rank:
    """A process whose main thread joins groups and calculates in them, while another one listens."""

    def __init__(self) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self.owes = 0  # answers

    def tell(self, command: str, *arguments: Any) -> None:
        self._pipe.send((command, *arguments))
        self.owes += 1

    def cut(self) -> None:
        """Heard by the thread that listens, whatever the other one waits for. Is not answered."""
        self._pipe.send(("cut",))

    def answer(self, seconds: float = TIMEOUT_SECONDS) -> Answer:
        assert self.answers(seconds), f"no answer within {seconds:.0f} s"
        found: Answer = self._pipe.recv()
        self.owes -= 1
        return found

    def answers(self, seconds: float) -> bool:
        return self._pipe.poll(seconds)

    def ask(self, command: str, *arguments: Any, seconds: float = TIMEOUT_SECONDS) -> Any:
        self.tell(command, *arguments)
        found = self.answer(seconds)
        assert not found.raised, found.value
        return found.value

    def send(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def lives(self, seconds: float = 0) -> bool:
        """Whether it still does after so many seconds; returns as soon as it does not."""
        self._process.join(seconds)
        return self._process.is_alive()

    def end(self) -> None:
        self._process.kill()  # a stopped one too
        self._process.join()
        self._pipe.close()


def serve(pipe: Connection) -> None:
    torch.set_num_threads(1)
    group, commands = ProcessGroup(torch.device("cpu")), queue.Queue[tuple[Any, ...]]()
    threading.Thread(target=listen, args=(pipe, group, commands), daemon=True).start()
    while True:
        command, *arguments = commands.get()
        if command == "end":
            return
        try:
            value, raised, by_peer = COMMANDS[command](group, *arguments), False, False
        except Exception as error:
            value, raised, by_peer = f"{type(error).__name__}: {error}", True, broken_by_peer(error)
        pipe.send(Answer(value, raised, by_peer, time.monotonic()))


def listen(pipe: Connection, group: ProcessGroup, commands: queue.Queue[tuple[Any, ...]]) -> None:
    while True:
        try:
            told = pipe.recv()
        except (EOFError, OSError):  # the test is over
            commands.put(("end",))
            return
        if told == ("cut",):
            group.cut()
        else:
            commands.put(told)


def join(group: ProcessGroup, rank: int, world_size: int, meeting: tuple[str, int]) -> None:
    group.join(rank, world_size, meeting, TIMEOUT_SECONDS)


def total(group: ProcessGroup, value: float, elements: int = 4) -> float:
    tensor = torch.full((elements,), value)
    dist.all_reduce(tensor)
    assert tensor.unique().numel() == 1
    return tensor[0].item()


def die_in_all_reduce(group: ProcessGroup, elements: int) -> None:
    dist.all_reduce(torch.ones(elements), async_op=True)
    os.kill(os.getpid(), signal.SIGKILL)


def leave(group: ProcessGroup) -> float:
    """Seconds that it took."""
    started = time.monotonic()
    group.leave()
    return time.monotonic() - started


def leave_while_it_reduces(group: ProcessGroup) -> float:
    dist.all_reduce(torch.ones(1 << 20), async_op=True)
    return leave(group)


def live_through(
    group: ProcessGroup, rank: int, world_size: int, meetings: list[tuple[str, int]]
) -> tuple[list[float], list[int]]:
    """(the sum, the number of sockets) of one group after another, each left as soon as this rank has its result."""
    sums, sockets = [], []
    for number, meeting in enumerate(meetings):
        group.join(rank, world_size, meeting, TIMEOUT_SECONDS)
        sums.append(total(group, float(rank + number), 1 << 16))
        sockets.append(len(process_group._sockets()))
        group.leave()
    return sums, sockets


def facts(group: ProcessGroup) -> tuple[int, int]:
    """(sockets, threads) of this process, once what was left has had the time to go."""
    time.sleep(process_group.SETTLE_SECONDS + 0.1)
    group.leave()
    return len(process_group._sockets()), len(os.listdir("/proc/self/task"))


COMMANDS: dict[str, Any] = {
    function.__name__: function
    for function in (join, total, die_in_all_reduce, leave, leave_while_it_reduces, live_through, facts)
}


class Ranks:
    """Processes that one test leaves to the next: each takes seconds to start."""

    def __init__(self) -> None:
        self._free: list[Rank] = []
        self._stores: list[dist.TCPStore] = []

    def take(self, count: int) -> list[Rank]:
        self._free = [rank for rank in self._free if rank.lives()]
        started = [Rank() for _ in range(count - len(self._free))]
        for rank in started:
            rank.ask("leave", seconds=START_SECONDS)  # answered when it has begun
        self._free += started
        return self._free[:count]

    def meeting(self) -> tuple[str, int]:
        """A store of this process, at which a group meets."""
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._stores.append(store)
        return "127.0.0.1", store.port

    def group(self, count: int) -> list[Rank]:
        found = self.take(count)
        form(found, self.meeting())
        return found

    def tidy(self) -> None:
        """A test that fails leaves nothing to the next one."""
        for rank in self._free:
            if rank.owes:
                rank.end()
        self._free = [rank for rank in self._free if rank.lives()]
        for rank in self._free:
            rank.ask("leave")

    def close(self) -> None:
        for rank in self._free:
            rank.end()
        self._free.clear()
        self._stores.clear()


def form(ranks: list[Rank], meeting: tuple[str, int]) -> None:
    """They form a group and calculate in it."""
    for number, rank in enumerate(ranks):
        rank.tell("join", number, len(ranks), meeting)
    for rank in ranks:
        joined = rank.answer()
        assert not joined.raised, joined.value
    for number, rank in enumerate(ranks):
        rank.tell("total", float(number + 1))
    assert [rank.answer().value for rank in ranks] == [sum(range(1, len(ranks) + 1))] * len(ranks)


@pytest.fixture(scope="module")
def all_ranks() -> Iterator[Ranks]:
    found = Ranks()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RES_OPTIONS", RESOLVER)  # here and in the processes
        yield found
    found.close()


@pytest.fixture
def ranks(all_ranks: Ranks) -> Iterator[Ranks]:
    yield all_ranks
    all_ranks.tidy()


# --- a peer that dies -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", [0, 2])
@pytest.mark.parametrize("elements", [4, 4_000_000], ids=["small", "large"])
def test_survivors_are_free_and_form_another_group(ranks: Ranks, victim: int, elements: int) -> None:
    """Not all of them are neighbours of the dead one: each leaves as soon as it knows, which frees the next."""
    members = ranks.group(4)
    survivors = [rank for number, rank in enumerate(members) if number != victim]
    for rank in survivors:
        rank.tell("total", 1.0, elements)
        rank.tell("leave")
    members[victim].tell("die_in_all_reduce", elements)
    assert not members[victim].lives(FREE_SECONDS)
    died_at = time.monotonic()
    broken = [(rank.answer(2 * FREE_SECONDS), rank.answer(2 * FREE_SECONDS)) for rank in survivors]
    for reduced, left in broken:
        # A few bytes may have been through before the sender died.
        assert reduced.raised or elements == 4
        assert reduced.by_peer or not reduced.raised, reduced.value
        assert left.at - died_at < FREE_SECONDS
        assert left.value < FREE_SECONDS
    form(survivors, ranks.meeting())


# --- a peer that hangs ------------------------------------------------------------------------------------------------


def test_a_cut_frees_all_that_wait_for_a_frozen_peer(ranks: Ranks) -> None:
    """By themselves they would notice nothing before the timeout. Who waits for the frozen one alone has to be cut off itself."""
    members = ranks.group(3)
    members[2].send(signal.SIGSTOP)
    for rank in members[:2]:
        rank.tell("total", 1.0)
    assert not any(rank.answers(1.0) for rank in members[:2]), "they were to wait"
    cut_at = time.monotonic()
    for rank in members[:2]:
        rank.cut()
        rank.tell("leave")
    for rank in members[:2]:
        reduced, left = rank.answer(FREE_SECONDS), rank.answer(FREE_SECONDS)
        assert reduced.raised
        assert reduced.by_peer, reduced.value
        assert left.at - cut_at < FREE_SECONDS
    members[2].end()
    form(members[:2], ranks.meeting())


def test_leaving_waits_for_nobody(ranks: Ranks) -> None:
    """Neither for a frozen peer nor for a collective that is under way, and the group that was left goes too."""
    members = ranks.group(2)
    before = facts_of(members)
    form(members, ranks.meeting())
    members[1].send(signal.SIGSTOP)
    try:
        assert members[0].ask("leave_while_it_reduces") < FREE_SECONDS
        assert facts_of(members[:1]) == before[:1]
    finally:
        members[1].end()


def facts_of(members: list[Rank]) -> list[tuple[int, int]]:
    """Of processes that leave their group first."""
    for rank in members:
        rank.ask("leave")
    for rank in members:
        rank.tell("facts")
    return [rank.answer().value for rank in members]


# --- a peer that does not come ----------------------------------------------------------------------------------------


def test_a_cut_frees_who_joins_and_waits_for_a_peer(ranks: Ranks) -> None:
    alone, other = ranks.take(2)
    alone.tell("join", 0, 2, ranks.meeting())
    assert not alone.answers(1.0), "it was to wait"
    alone.cut()
    cut_at = time.monotonic()
    joined = alone.answer(FREE_SECONDS)
    assert joined.raised
    assert joined.by_peer, joined.value
    assert joined.at - cut_at < FREE_SECONDS
    alone.ask("leave")
    form([other, alone], ranks.meeting())


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "dead"])
def test_a_cut_frees_who_waits_for_a_store_that_does_not_answer(ranks: Ranks, frozen: bool) -> None:
    """The worker that hosts it is frozen (the system takes up connections, and nobody reads), or gone (connecting is tried again and again)."""
    alone, other = ranks.take(2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        if not frozen:
            listener.close()
        alone.tell("join", 0, 2, listener.getsockname() if frozen else ("127.0.0.1", free_port()))
        assert not alone.answers(1.0), "it was to wait"
        alone.cut()
        joined = alone.answer(FREE_SECONDS)
        assert joined.raised
        assert joined.by_peer, joined.value
    alone.ask("leave")
    form([other, alone], ranks.meeting())


def test_a_cut_that_comes_before_the_group_is_joined_counts(ranks: Ranks) -> None:
    """Else the worker would wait for a peer that is known to be lost."""
    alone, other = ranks.take(2)
    alone.cut()
    alone.tell("join", 0, 2, ranks.meeting())
    joined = alone.answer(FREE_SECONDS)
    assert joined.raised
    assert joined.by_peer, joined.value
    alone.ask("leave")
    form([other, alone], ranks.meeting())


def test_a_cut_after_a_group_was_left_is_forgotten_with_it(ranks: Ranks) -> None:
    members = ranks.group(2)
    for rank in members:
        rank.cut()
        rank.ask("leave")
    form(members, ranks.meeting())


# --- many groups ------------------------------------------------------------------------------------------------------


def test_many_groups_leave_nothing_behind(ranks: Ranks) -> None:
    """Each rank leaves as soon as it has its result, and so takes nothing from the others, which may not have theirs."""
    members, generations = ranks.group(3), 20
    before = facts_of(members)
    meetings = [ranks.meeting() for _ in range(generations)]
    for number, rank in enumerate(members):
        rank.tell("live_through", number, 3, meetings)
    for rank in members:
        lived = rank.answer()
        assert not lived.raised, lived.value
        sums, _ = lived.value
        assert sums == [3.0 + 3 * number for number in range(generations)]
    assert facts_of(members) == before
