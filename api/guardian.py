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

import psutil

from api.processes import become_subreaper, die_with_parent, end_descendants, end_service, is_alive, reap

SERVICE = "CHAINRULE_SERVICE"  # in the environment of everything that belongs to one child
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, STEADY_SECONDS = 0.5, 30.0, 60.0
LOOK_SECONDS = 1.0
GAVE_UP = 3  # exit status


@dataclass(frozen=True)
class Limit:
    """Ends of a service beyond which starting it again is of no use, and nothing goes without it."""

    ends: int
    seconds: float


@dataclass
class Child:
    """One service, in a session of its own. It is started again when it ends, soon at first, later after growing pauses."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    vital: Sequence[str] = ()  # names of processes right beneath it; without one of them it is of no use
    limit: Limit | None = None
    pid: int | None = None
    started_at: float = 0.0
    pause: float = FIRST_PAUSE_SECONDS
    start_at: float = 0.0
    look_at: float = 0.0
    ends: list[float] = field(default_factory=list)  # within the limit's time
    is_given_up: bool = False
    found: dict[str, psutil.Process] = field(default_factory=dict)  # of the vital ones

    @classmethod
    def planned(cls, plan: Mapping[str, Any]) -> Child:
        limit = Limit(**plan["limit"]) if "limit" in plan else None
        vital = plan.get("vital", ())
        return cls(plan["name"], plan["command"], plan["environment"], Path(plan["log"]), vital=vital, limit=limit)

    def start(self) -> None:
        self.started_at = time.monotonic()
        self.found = {}
        try:
            with self.log.open("ab") as log:
                process = subprocess.Popen(
                    self.command,
                    env={**os.environ, **self.environment, SERVICE: self.name},
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
        if left := end_service(self.pid, SERVICE, self.name):
            say(f"could not end what {self.name} left behind: {left}")
        self.pid = None
        if self.limit is not None:
            now = time.monotonic()
            self.ends = [*(end for end in self.ends if now - end < self.limit.seconds), now]
            self.is_given_up = len(self.ends) >= self.limit.ends
        if self.is_given_up:
            times = f"as {len(self.ends)} times by now"
            say(f"{self.name} ended with status {status}, {times}; nothing goes without it, so everything ends now")
        else:
            self._again(f"ended with status {status}")

    def look(self) -> None:
        """Ends it when a vital part is gone. Ray's head goes on for ever without the parts that were asked to end, which whoever
        types ``kill`` does."""
        if self.pid is None or not self.vital or time.monotonic() < self.look_at:
            return
        self.look_at = time.monotonic() + LOOK_SECONDS
        if lost := [name for name, process in self.found.items() if not is_alive(process)]:
            say(f"{self.name} has lost {', '.join(lost)}; ending the rest of it")
            os.kill(self.pid, signal.SIGKILL)  # still ours to collect: the number cannot be another process yet
            self.found = {}
        elif len(self.found) < len(self.vital):
            with contextlib.suppress(psutil.Error):
                beneath = {process.name(): process for process in psutil.Process(self.pid).children()}
                self.found = {name: beneath[name] for name in self.vital if name in beneath}

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
    children = [Child.planned(each) for each in plan["children"]]
    while not stop and not any(child.is_given_up for child in children):
        for child in children:
            if child.pid is None and time.monotonic() >= child.start_at:
                child.start()
            child.look()
        ended = reap()
        for child in children:
            if child.pid in ended:
                child.ended(ended[child.pid])
        time.sleep(0.1)
    left = _end(children)
    shutil.rmtree(plan["folder"], ignore_errors=True)
    if left:
        say(f"could not end {left}")
    return GAVE_UP if not stop else 1 if left else 0


def _end(children: Sequence[Child]) -> list[int]:
    """Ends everything. In order: first what gives orders, then what trains."""
    for name in ("api", "scheduler", "mlflow"):
        for child in children:
            if child.name == name and child.pid is not None:
                _terminate(child.pid)
    return end_descendants()


def _terminate(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    raise SystemExit(main())
