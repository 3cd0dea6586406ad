"""Why a script ended, in the words of a job's reasons."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from pathlib import Path

from workers.reports import ReasonCode
from workers.scripts.process import End

SHOWN_LINES = 40
OOM_KILLS = Path("/proc/vmstat")
OUT_OF_MEMORY = re.compile(
    r"\b(MemoryError|torch\.OutOfMemoryError|torch\.cuda\.OutOfMemoryError|CUDA out of memory)\b"
)
# What a script prints when another rank's process has gone while it waited for it: its own end is a consequence.
PEER_GONE = re.compile(
    r"Connection (closed by peer|reset by peer|refused)|Broken pipe|recvBytes|sendBytes|failed to (recv|send)"
    r"|DistNetworkError|DistStoreError|DistBackendError|remote process exited|ncclRemoteError|ncclSystemError"
    r"|Read error|Write error|Timed out waiting \d+ms for (recv|send)",
    re.IGNORECASE,
)
ERROR_LINE = re.compile(r"^([A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit|Warning)|[A-Za-z_][\w.]*\.[A-Z]\w*): .+")


class ScriptFailedError(Exception):
    """A script that did not end well. ``tail``: what it printed last on stderr."""

    def __init__(self, code: ReasonCode, message: str, tail: str, at: float) -> None:
        super().__init__(message)
        self.code, self.tail, self.at = code, tail, at

    def __reduce__(self) -> tuple[type[ScriptFailedError], tuple[ReasonCode, str, str, float]]:
        return ScriptFailedError, (self.code, str(self), self.tail, self.at)


def failure_of(end: End, errors: Sequence[str], oom_kills: int) -> ScriptFailedError:
    """``errors``: its last lines on stderr. ``oom_kills``: how often the kernel killed for want of memory here while it ran."""
    tail = "\n".join(errors[-SHOWN_LINES:])
    said = last_error(errors)
    if end.signal is not None:
        return ScriptFailedError(*_of_signal(end.signal, oom_kills), tail, end.at)
    code = ReasonCode.OUT_OF_MEMORY if said and OUT_OF_MEMORY.search(said) else ReasonCode.USER_ERROR
    message = f"the script ended with exit code {end.exit_code}" + (f": {said}" if said else "")
    return ScriptFailedError(code, message, tail, end.at)


def _of_signal(number: int, oom_kills: int) -> tuple[ReasonCode, str]:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    if number == signal.SIGKILL and oom_kills:
        return (
            ReasonCode.OUT_OF_MEMORY,
            "the script was killed by the kernel (SIGKILL) for want of memory; give workers.memory, or use less",
        )
    if number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        return ReasonCode.SCRIPT_KILLED, f"the script was killed from outside with {name}"
    return ReasonCode.USER_ERROR, f"the script crashed with {name} in native code; what it printed last is in the log"


def last_error(errors: Sequence[str]) -> str | None:
    """The last line that a traceback ends with, without torchrun-like prefixes."""
    for line in reversed(errors):
        line = re.sub(r"^\[rank\d+\]:\s?", "", line)
        if ERROR_LINE.match(line):
            return line[:500]
    return None


def lost_a_peer(errors: Sequence[str]) -> bool:
    """Whether it looks as if another rank's end had brought this one down."""
    said = last_error(errors)
    return bool(said and PEER_GONE.search(said))


def oom_kills() -> int:
    """How often the kernel has killed a process on this machine for want of memory."""
    try:
        lines = OOM_KILLS.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
