"""The process beneath which ``chainrule up`` runs its services: it starts them, starts those again that die, and ends them all.

It is told by the kernel when ``up`` dies, and every orphan beneath it (Ray's daemons, the workers of detached actors) becomes its
child. So nothing is left behind however ``up`` ends. Should the guardian itself be killed, ``up`` inherits its children and ends them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from api.processes import become_subreaper, die_with_parent, end_descendants, end_session, reap

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, STEADY_SECONDS = 0.5, 30.0, 60.0


@dataclass
class Child:
    """One service, in a session of its own. It is started again when it ends, soon at first, later after growing pauses."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    pid: int | None = None
    started_at: float = 0.0
    pause: float = FIRST_PAUSE_SECONDS
    start_at: float = field(default=0.0)

    def start(self) -> None:
        self.started_at = time.monotonic()
        try:
            with self.log.open("ab") as log:
                process = subprocess.Popen(
                    self.command,
                    env={**os.environ, **self.environment},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:  # a full disk, no process left to be had: no reason to end what runs
            self._again(f"cannot be started: {error}")
            return
        self.pid = process.pid
        process.returncode = 0  # reap() collects it; Popen must neither wait for it nor complain

    def ended(self, status: int) -> None:
        """What it left behind is ended first: it may hold the port that the next one needs."""
        assert self.pid is not None
        if left := end_session(self.pid):
            say(f"could not end what {self.name} left behind: {left}")
        self.pid = None
        self._again(f"ended with status {status}")

    def _again(self, why: str) -> None:
        now = time.monotonic()
        if now - self.started_at > STEADY_SECONDS:
            self.pause = FIRST_PAUSE_SECONDS
        say(f"{self.name} {why}; starting it again in {self.pause:.1f} s")
        self.start_at = now + self.pause
        self.pause = min(self.pause * 2, LONGEST_PAUSE_SECONDS)


def say(message: str) -> None:
    with contextlib.suppress(OSError):  # a full disk
        print(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} guardian: {message}", flush=True)


def main() -> int:
    """The plan comes as JSON on standard input: children, the parent's pid, a folder to be removed at the end."""
    plan: dict[str, Any] = json.loads(sys.stdin.buffer.read())
    stop: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, _: stop.append(signum))
    become_subreaper()
    die_with_parent(plan["parent"])
    children = [Child(c["name"], c["command"], c["environment"], Path(c["log"])) for c in plan["children"]]
    while not stop:
        for child in children:
            if child.pid is None and time.monotonic() >= child.start_at:
                child.start()
        ended = reap()
        for child in children:
            if child.pid in ended:
                child.ended(ended[child.pid])
        time.sleep(0.1)
    # In order: first what gives orders, then what trains.
    for name in ("api", "scheduler", "mlflow"):
        for child in children:
            if child.name == name and child.pid is not None:
                _terminate(child.pid)
    left = end_descendants()
    shutil.rmtree(plan["folder"], ignore_errors=True)
    if left:
        say(f"could not end {left}")
    return 1 if left else 0


def _terminate(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    raise SystemExit(main())
