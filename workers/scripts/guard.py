"""The process between a worker and a script: whatever the script has started ends with it, and all of it with the worker.

Run as ``python -I -S guard.py CONTROL STATUS OUT ERR -- COMMAND...`` with four open descriptors. It needs nothing but the standard library, because
it is started for every script. Over CONTROL it hears ``T`` (SIGTERM to the script's group) and ``K`` (SIGKILL to everything); its end, which the
kernel sees to when the worker dies in whatever way, means ``K``. To STATUS it writes ``pid N`` and at last ``exit N`` or ``signal N``.

It is a child subreaper: what the script's own children leave behind becomes its child, so that it finds it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
LEFTOVER_ROUNDS = 50  # processes that start others while they are being ended


def main(arguments: list[str]) -> None:
    control, status, out, err = map(int, arguments[:4])
    for descriptor in (control, status, out, err):
        os.set_inheritable(descriptor, False)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends after what it guards
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    child = start(arguments[5:], out, err)
    os.close(out)
    os.close(err)
    os.write(status, b"pid %d\n" % child)
    ended = guard(child, control, reading)
    end_leftovers(child)
    with contextlib.suppress(OSError):  # the worker is gone
        os.write(status, ended.encode() + b"\n")


def start(command: list[str], out: int, err: int) -> int:
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (out, 1), (err, 2)):
            os.dup2(source, target)  # inheritable, unlike all other descriptors
        os.execvp(command[0], command)
    except BaseException as error:
        os.write(2, f"{command[0]}: {error}\n".encode())
    os._exit(127)


def guard(child: int, control: int, woken: int) -> str:
    """How the script ended, as it is told."""
    while True:
        ready, _, _ = select.select([control, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            ended = reap(child)
            if ended is not None:
                return ended
        if control in ready:
            order = os.read(control, 1)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGTERM if order == b"T" else signal.SIGKILL)
            if order != b"T":
                _, status = os.waitpid(child, 0)
                return said(status)


def reap(child: int) -> str | None:
    """Buries whoever has ended; how the script did, when it was among them."""
    ended = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        if pid == child:
            ended = said(status)


def said(status: int) -> str:
    return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"


def end_leftovers(child: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    for _ in range(LEFTOVER_ROUNDS):
        found = descendants(os.getpid())
        if not found:
            return
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, 0)


def descendants(root: int) -> list[int]:
    parents = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as stream:
            state, parent = stream.read().rpartition(b")")[2].split()[:2]
            if state != b"Z" or int(parent) == root:
                parents[int(name)] = int(parent)
    found: list[int] = []
    for pid in (stack := [root]):
        children = [each for each, parent in parents.items() if parent == pid]
        found += children
        stack += children
    return found


def prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, ctypes.c_ulong(value), 0, 0, 0)


if __name__ == "__main__":
    main(sys.argv[1:])
