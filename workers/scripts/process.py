"""A script that runs: its output line by line, its end, and asking it to stop. It does not outlive this process."""

from __future__ import annotations

import codecs
import contextlib
import os
import select
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

GUARD = Path(__file__).with_name("guard.py")
TAIL_LINES = 200
LONGEST_LINE = 16 << 10
BAR_SECONDS = 5.0  # a line that is written over again and again, as progress bars are, is shown so often
DRAIN_SECONDS = 2.0


@dataclass(frozen=True)
class End:
    """How the script's process ended: by an exit code, or by a signal."""

    exit_code: int | None
    signal: int | None
    at: float  # seconds since the epoch


class ScriptProcess:
    """``show`` gets each line of output, from threads of its own."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], folder: Path, show: Callable[[str], None]
    ) -> None:
        out, out_writing = os.pipe()
        err, err_writing = os.pipe()
        control_reading, self._control = os.pipe()
        self._status, status_writing = os.pipe()
        given = (control_reading, status_writing, out_writing, err_writing)
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", str(GUARD), *map(str, given), "--", *command],
            pass_fds=given,
            env=dict(environment),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        for descriptor in given:
            os.close(descriptor)
        self._said = b""
        self.pid = int(self._status_line().split()[1])
        self.output = Lines(out, show)
        self.errors = Lines(err, show)

    @property
    def output_at(self) -> float:
        """When it printed last (monotonic); its start, before that."""
        return max(self.output.at, self.errors.at)

    def wait(self, seconds: float) -> End | None:
        """Its end, when that comes within ``seconds``; all of its output has been shown then."""
        if not select.select([self._status], [], [], seconds)[0]:
            return None
        kind, _, number = self._status_line().partition(" ")
        at = time.time()
        for lines in (self.output, self.errors):
            lines.finish(DRAIN_SECONDS)
        self.close()
        if kind == "exit":
            return End(int(number), None, at)
        return End(None, int(number) if kind == "signal" else 9, at)  # nothing was said: the guard itself was killed

    def terminate(self) -> None:
        self._order(b"T")

    def kill(self) -> None:
        """It and all that it has started."""
        self._order(b"K")

    def close(self) -> None:
        """Kills what is left. May be called again."""
        if self._control >= 0:
            os.close(self._control)
            self._control = -1
            self._guard.wait()
            os.close(self._status)

    def _order(self, order: bytes) -> None:
        if self._control >= 0:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._control, order)

    def _status_line(self) -> str:
        while b"\n" not in self._said:
            part = os.read(self._status, 4096)
            if not part:
                return "gone"
            self._said += part
        line, _, self._said = self._said.partition(b"\n")
        return line.decode()


class Lines:
    """Follows one stream. A carriage return begins the line anew, as on a terminal."""

    def __init__(self, descriptor: int, show: Callable[[str], None]) -> None:
        self._descriptor, self._show = descriptor, show
        self._line, self._bar_shown_at = "", 0.0
        self.at = time.monotonic()
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._thread = threading.Thread(target=self._follow, name="script-output", daemon=True)
        self._thread.start()

    def finish(self, seconds: float) -> None:
        self._thread.join(seconds)

    def _follow(self) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        while part := os.read(self._descriptor, 1 << 16):
            self.at = time.monotonic()
            self._take(decoder.decode(part))
        if self._line:
            self._end_line()
        os.close(self._descriptor)

    def _take(self, text: str) -> None:
        *whole, rest = (self._line + text.replace("\r\n", "\n")).split("\n")
        for line in whole:
            self._line = line
            self._end_line()
        self._line = rest
        if "\r" in rest.rstrip("\r") and time.monotonic() - self._bar_shown_at > BAR_SECONDS:
            self._bar_shown_at = time.monotonic()
            self._show(_seen(rest))
        if "\r" in rest:
            self._line = _seen(rest) + "\r" * rest.endswith("\r")
        if len(self._line) > LONGEST_LINE:
            self._end_line()

    def _end_line(self) -> None:
        line, self._line = _seen(self._line), ""
        self.tail.append(line)
        self._show(line)


def _seen(line: str) -> str:
    """What stands on a terminal after ``line``."""
    return line.rstrip("\r").rpartition("\r")[2]
