"""Whole trees of processes: becoming the one that orphans come home to, and ending everything beneath."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable

import psutil

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def become_subreaper() -> None:
    """Descendants whose parents die become children of this process instead of init's. Linux only; elsewhere nothing happens."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """SIGTERM for this process when its parent dies, however it dies. ``parent``: its pid, for it may be gone already."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def reap() -> dict[int, int]:
    """Collects all children that have ended: pid -> exit status (negative: the signal)."""
    ended = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended[pid] = os.waitstatus_to_exitcode(status)
    return ended


def end_descendants(grace_seconds: float = 5.0, limit_seconds: float = 20.0) -> list[int]:
    """Ends every process beneath this one. Returns pids that outlived it, normally none."""
    return _end(_descendants, grace_seconds, limit_seconds, reap)


def end_service(leader: int, variable: str, value: str) -> list[int]:
    """Ends what a dead session leader left behind beneath this process: its session, and daemons that made one of their own but
    still carry the variable in their environment. Returns pids that outlived it, normally none.

    Collects nobody: whoever calls ``reap`` next learns of them.
    """

    def left() -> list[psutil.Process]:
        return [each for each in _descendants() if _session(each) == leader or _carries(each, variable, value)]

    return _end(left, grace_seconds=1.0, limit_seconds=10.0)


def is_alive(process: psutil.Process) -> bool:
    """Whether it has not ended, collected or not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _end(
    find: Callable[[], list[psutil.Process]],
    grace_seconds: float,
    limit_seconds: float,
    collect: Callable[[], object] = lambda: None,
) -> list[int]:
    """SIGTERM once for each, and after the grace SIGKILL, until none is left: dying parents hand over new orphans."""
    started = time.monotonic()
    told: set[int] = set()
    while True:
        collect()
        left = find()
        waited = time.monotonic() - started
        if not left or waited > limit_seconds:
            return [process.pid for process in left]
        number = signal.SIGTERM if waited < grace_seconds else signal.SIGKILL
        for process in left:
            if number == signal.SIGKILL or process.pid not in told:
                told.add(process.pid)
                with contextlib.suppress(psutil.Error):
                    process.send_signal(number)
        time.sleep(0.1)


def _descendants() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _session(process: psutil.Process) -> int | None:
    """None for one that has ended, collected or not."""
    try:
        return os.getsid(process.pid) if is_alive(process) else None
    except OSError:
        return None


def _carries(process: psutil.Process, variable: str, value: str) -> bool:
    try:
        return is_alive(process) and process.environ().get(variable) == value
    except (OSError, psutil.Error):
        return False
