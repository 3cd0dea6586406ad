"""The process group of one generation: joining it, cutting it off from another thread, leaving it.

torch's gloo cannot be aborted: a rank that waits for a peer which has gone notices at once only if the two are neighbours in the algorithm that
happens to run, and else after the whole timeout. What always works is to shut the group's connections down: whoever waits on one of them fails,
leaves, shuts down its own, and so all survivors are free within milliseconds.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import queue
import socket
import stat
import threading
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store
from torch.distributed.distributed_c10d import _abort_process_group  # the only way to leave a group that is broken

SETTLE_SECONDS = 1.0
SETTLE_AT_EXIT_SECONDS = 0.2
CONNECT_PAUSE_SECONDS = 0.05
# Groups that were left, and when. gloo's destructor joins its threads while it holds Python's lock, and such a thread may need that lock to let go of
# a tensor: a group may only go when its threads have long had nothing to do.
_left: list[tuple[float, Any]] = []

TIMEOUT_SECONDS = 60.0  # of one collective; whoever forms the groups notices a hang sooner


def choose_device(local_rank: int, gpus: float) -> torch.device:
    """The device of a worker that was given ``gpus`` accelerators.

    Under Ray, CUDA_VISIBLE_DEVICES holds just this worker's devices, so its first one is the right one; under torchrun every worker
    sees all of them and ``local_rank`` chooses.
    """
    if gpus <= 0 or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def environment_rank() -> tuple[int, int, int]:
    """(rank, world size, local rank) as torchrun sets them; a process of its own without."""
    return tuple(int(os.environ.get(k, d)) for k, d in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")))  # type: ignore[return-value]


class GroupCutError(RuntimeError):
    """The group was cut off before it was joined."""


class ProcessGroup:
    """``join`` and ``leave`` are called by the thread that trains, ``cut`` by any other."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._before: dict[int, int] | None = None  # sockets that are not the group's
        self._own: dict[int, int] | None = None  # the group's; None: being joined, or there is none
        self._cut = False
        self.control: dist.ProcessGroup | None = None  # for objects and decisions, on the CPU; None: the default group

    def join(
        self,
        rank: int,
        world_size: int,
        store: tuple[str, int] | Store | None,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        """Joins the group: nccl on CUDA, gloo elsewhere. ``store``: where it meets, as (host, port) or as it is; None: MASTER_ADDR and MASTER_PORT.

        Raises GroupCutError, or what torch raises when a peer is lost meanwhile.
        """
        _let_go()
        with self._lock:
            if self._cut:
                self._cut = False
                raise GroupCutError("the group was cut off before it was joined")
            self._before, self._own = _sockets(), None
            if world_size == 1:
                self._own = {}  # whatever connections are made from now on are somebody else's
                return
        timeout = timedelta(seconds=timeout_seconds)
        cuda = self._device.type == "cuda"
        if cuda:
            torch.cuda.set_device(self._device)
        if isinstance(store, tuple):
            store = self._meet(store, timeout)
        backend = "nccl" if cuda else "gloo"
        if store is None:
            dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=timeout)
        else:
            dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
        self.control = dist.new_group(backend="gloo", timeout=timeout) if cuda else None
        with self._lock:
            if self._cut:
                raise GroupCutError("the group was cut off while it was being joined")
            self._own = {fd: inode for fd, inode in _sockets().items() if self._before.get(fd) != inode}

    def _meet(self, address: tuple[str, int], timeout: timedelta) -> Store:
        """A client of the store at ``address``.

        torch's own call is deaf while nobody listens there (it tries again and again), and for ever when who listens is frozen: so it is made by a
        thread that can be left behind.
        """
        found: queue.SimpleQueue[Store | BaseException] = queue.SimpleQueue()
        threading.Thread(target=_connect, args=(address, timeout, found), name="store", daemon=True).start()
        deadline = time.monotonic() + timeout.total_seconds()
        while not self._cut and time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                answer = found.get(timeout=CONNECT_PAUSE_SECONDS)
                if isinstance(answer, BaseException):
                    raise answer
                return answer
        raise GroupCutError(f"the group was cut off while it was being joined at {address[0]}:{address[1]}")

    def cut(self) -> None:
        """Makes every collective that waits here fail, and those of peers that wait for this rank. Harmless when there is no group.

        A peer that waits for a frozen third one alone has to be cut off itself.
        """
        with self._lock:
            self._cut = True
            if self._before is None:
                return
            now = _sockets()
            before = self._before
            own = self._own if self._own is not None else {f: i for f, i in now.items() if before.get(f) != i}
            for descriptor, inode in own.items():
                if now.get(descriptor) == inode:
                    _shut_down(descriptor)
        if self._device.type == "cuda" and dist.is_initialized():
            backend: Any = dist.distributed_c10d._get_default_group()._get_backend(self._device)
            backend.abort()  # kernels that wait for a peer end; what they leave in memory means nothing

    def leave(self) -> None:
        """Never waits for a peer."""
        self.cut()
        with self._lock:
            self._before = self._own = None
            self._cut = False
        _let_go()
        if dist.is_initialized():
            _left.append((time.monotonic(), (dist.distributed_c10d._get_default_group(), self.control)))
            _abort_process_group()
        # Names of groups count from here, also after one that was not joined to its end; ranks with different names would never meet.
        dist.distributed_c10d._world.group_count = 0
        self.control = None


def _let_go() -> None:
    while _left and time.monotonic() - _left[0][0] > SETTLE_SECONDS:
        _left.pop(0)


@atexit.register
def _let_all_go() -> None:
    """While the interpreter is still whole: a group that goes with it may end the process by SIGABRT."""
    if _left:
        time.sleep(SETTLE_AT_EXIT_SECONDS)
        _left.clear()
        gc.collect()


def _connect(address: tuple[str, int], timeout: timedelta, found: queue.SimpleQueue[Store | BaseException]) -> None:
    try:
        found.put(dist.TCPStore(*address, is_master=False, timeout=timeout))
    except Exception as error:  # raised again by whoever waits
        found.put(error)


def broken_by_peer(error: BaseException) -> bool:
    """Whether an exception tells of a peer that is gone, not of its own cause."""
    if isinstance(error, GroupCutError | dist.DistError):
        return True
    marks = (
        "gloo",
        "Connection closed by peer",
        "Connection reset by peer",
        "Application timeout caused pair closure",  # gloo's, without its name where a communication hook passes it on
        "Broken pipe",
        "failed to recv",
        "NCCL",
    )
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in marks)


def _sockets() -> dict[int, int]:
    """Descriptor -> inode of every socket of this process."""
    found = {}
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):  # closed since it was listed
            facts = os.fstat(int(name))
            if stat.S_ISSOCK(facts.st_mode):
                found[int(name)] = facts.st_ino
    return found


def _shut_down(descriptor: int) -> None:
    """Both ends see the end of the stream; the descriptor stays, for its owner to close.

    A listening socket is left alone: gloo would end the process.
    """
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
        listens = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if connection.family in (socket.AF_INET, socket.AF_INET6) and not listens:
            connection.shutdown(socket.SHUT_RDWR)
