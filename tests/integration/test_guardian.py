"""The guardian over children that die, refuse to die, leave orphans, or cannot even be started. No Ray, no MLflow."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
import pytest

from api.guardian import GAVE_UP
from tests.helpers import free_port, listens, wait_for

pytestmark = pytest.mark.integration

# Ignores SIGTERM, listens on the port given, and says its pid in the folder that it runs for.
STUBBORN = """
import os, signal, socket, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
open(sys.argv[2], "w").write(str(os.getpid()))
time.sleep(600)
"""
# Starts a stubborn child as MLflow starts its server and Ray its daemons, and waits.
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"
# The stubborn one as a daemon: its parent is gone at once.
DAEMON = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', *sys.argv[1:]], start_new_session=True)"


class Guarded:
    """A guardian beneath a process of its own that stands for ``up``, so that it can be killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = f"CHAINRULE_GUARD_MARK={folder}"
        self.up: subprocess.Popen[bytes] | None = None

    def start(self, more: Mapping[str, Mapping[str, Any]] = MappingProxyType({}), **commands: list[str]) -> None:
        """``more``: what the plan says of a child besides its command."""
        up = (
            "import json, os, subprocess, sys\n"
            "plan = json.loads(sys.argv[1]) | {'parent': os.getpid()}\n"
            "g = subprocess.Popen([sys.executable, '-P', '-m', 'api.guardian'], stdin=subprocess.PIPE, start_new_session=True)\n"
            "g.stdin.write(json.dumps(plan).encode()); g.stdin.close()\n"
            "sys.exit(g.wait())\n"
        )
        (self.folder / "scratch").mkdir()
        children = [
            {"name": name, "command": command, "environment": {}, "log": str(self.folder / f"{name}.log")}
            | dict(more.get(name, {}))
            for name, command in commands.items()
        ]
        plan = {"folder": str(self.folder / "scratch"), "children": children}
        key, _, value = self.mark.partition("=")
        with (self.folder / "guardian.log").open("wb") as log:
            self.up = subprocess.Popen(
                [sys.executable, "-c", up, json.dumps(plan)], env={**os.environ, key: value}, stdout=log, stderr=log
            )

    @property
    def guardian(self) -> psutil.Process:
        assert self.up
        (guardian,) = psutil.Process(self.up.pid).children()
        return guardian

    def log(self) -> str:
        return (self.folder / "guardian.log").read_text()

    def alive(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                environment = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if self.mark.encode() in environment and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        return found

    def pid(self, name: str, other_than: int = 0) -> int:
        def look() -> int | None:
            path = self.folder / name
            pid = int(path.read_text() or 0) if path.exists() else 0
            return pid if pid and pid != other_than else None

        return wait_for(name, look, 20)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Guarded]:
    guarded = Guarded(tmp_path)
    try:
        yield guarded
    finally:
        left = guarded.alive()
        for process in left:
            process.kill()
        if guarded.up:
            guarded.up.wait(timeout=10)


# Says its pid, starts two parts, and goes on whatever becomes of them, as Ray's head does with parts that were asked to end.
HEAD = """
import subprocess, sys, time
parts = [subprocess.Popen(["/bin/sleep", "600"]), subprocess.Popen(["/bin/tail", "-f", "/dev/null"])]
open(sys.argv[1], "w").write(str(parts[0].pid))
while True:
    time.sleep(0.1)
    [part.poll() for part in parts]
"""


def stubborn(port: int, said: Path) -> list[str]:
    return [STUBBORN, str(port), str(said)]


@pytest.mark.parametrize("how", ["SIGTERM to the guardian", "SIGKILL of up"])
def test_everything_ends_daemons_and_the_stubborn_too(guarded: Guarded, how: str) -> None:
    said = guarded.folder
    guarded.start(
        ray=[sys.executable, "-c", PARENT, *stubborn(free_port(), said / "child")],
        api=[sys.executable, "-c", DAEMON, *stubborn(free_port(), said / "daemon")],
    )
    guarded.pid("child")
    guarded.pid("daemon")
    assert guarded.up
    if how == "SIGKILL of up":
        guarded.up.kill()
        guarded.up.wait(timeout=10)
    else:
        guarded.guardian.terminate()
        assert guarded.up.wait(timeout=20) == 0
    wait_for("the end of everything", lambda: not guarded.alive(), 20)
    assert not (guarded.folder / "scratch").exists(), "Ray's folder would be left in /tmp"


def test_a_child_that_dies_is_started_again_after_its_orphans_are_gone(guarded: Guarded) -> None:
    """The server beneath a killed `mlflow server` goes on and holds the port, for which every next one would wait in vain."""
    port = free_port()
    guarded.start(mlflow=[sys.executable, "-c", PARENT, *stubborn(port, guarded.folder / "server")])
    server = guarded.pid("server")
    parent = psutil.Process(server).parent()
    assert parent
    parent.send_signal(signal.SIGKILL)
    again = guarded.pid("server", other_than=server)
    assert not psutil.pid_exists(server)
    assert listens(port)
    assert psutil.pid_exists(again)
    assert guarded.log().count("mlflow ended with status -9; starting it again") == 1


def test_a_daemon_ends_with_its_service_and_no_other_does(guarded: Guarded) -> None:
    """A worker of Ray may start what Ray does not know, in a session of its own: it would keep memory, files and ports."""
    said = guarded.folder
    lasting = f"{DAEMON}; import time; time.sleep(600)"
    guarded.start(
        ray=[sys.executable, "-c", lasting, *stubborn(free_port(), said / "ray-daemon")],
        api=[sys.executable, "-c", lasting, *stubborn(free_port(), said / "api-daemon")],
    )
    rays, apis = guarded.pid("ray-daemon"), guarded.pid("api-daemon")
    (ray,) = (
        child
        for child in guarded.guardian.children()
        if lasting in child.cmdline() and child.cmdline()[-1].endswith("ray-daemon")
    )
    ray.kill()
    guarded.pid("ray-daemon", other_than=rays)
    assert not psutil.pid_exists(rays)
    assert psutil.pid_exists(apis)
    assert "could not end" not in guarded.log()


def test_a_service_that_lost_a_vital_part_is_started_again(guarded: Guarded) -> None:
    """Asked to end with SIGTERM, Ray's parts leave a head that goes on for ever and is of no use."""
    guarded.start({"ray": {"vital": ["sleep", "tail"]}}, ray=[sys.executable, "-c", HEAD, str(guarded.folder / "part")])
    first = guarded.pid("part")
    time.sleep(1.5)  # it is looked for once a second
    os.kill(first, signal.SIGTERM)
    again = guarded.pid("part", other_than=first)
    assert psutil.pid_exists(again)
    assert "ray has lost sleep; ending the rest of it" in guarded.log()
    assert sum(process.name() == "tail" for process in guarded.alive()) == 1, (
        "the other part of the first was left behind"
    )


def test_what_nothing_goes_without_is_not_tried_for_ever(guarded: Guarded) -> None:
    limit = {"ray": {"limit": {"ends": 3, "seconds": 60.0}}}
    guarded.start(
        limit,
        ray=[sys.executable, "-c", "raise SystemExit(3)"],
        api=[sys.executable, "-c", *stubborn(free_port(), guarded.folder / "api-pid")],
    )
    assert guarded.up
    assert guarded.up.wait(timeout=30) == GAVE_UP
    assert guarded.log().count("ray ended with status 3") == 3
    assert "everything ends now" in guarded.log()
    assert not guarded.alive()
    assert not (guarded.folder / "scratch").exists()


def test_pauses_between_starts_grow(guarded: Guarded) -> None:
    guarded.start(api=[sys.executable, "-c", "raise SystemExit(3)"])
    wait_for("three ends", lambda: guarded.log().count("api ended with status 3") >= 3, 20)
    pauses = [line.rpartition(" in ")[2] for line in guarded.log().splitlines()[:3]]
    assert pauses == ["0.5 s", "1.0 s", "2.0 s"]


def test_a_child_that_cannot_be_started_does_not_end_the_others(guarded: Guarded) -> None:
    said = guarded.folder
    guarded.start(
        api=[str(said / "there-is-no-such-program")],
        ray=[sys.executable, "-c", *stubborn(free_port(), said / "ray-pid")],
    )
    pid = guarded.pid("ray-pid")
    wait_for("the message", lambda: "api cannot be started" in guarded.log(), 10)
    assert psutil.pid_exists(pid)
    assert guarded.guardian.is_running()


def test_a_guardian_whose_parent_is_gone_already_starts_nothing(tmp_path: Path) -> None:
    """Between the start of the guardian and its wish to be told of the parent's death, the parent may die."""
    command = [sys.executable, "-c", "open('started', 'w')"]
    child = {"name": "api", "command": command, "environment": {}, "log": str(tmp_path / "log")}
    plan = {"parent": 2**22 + 1, "folder": str(tmp_path / "none"), "children": [child]}
    run = subprocess.run(
        [sys.executable, "-m", "api.guardian"],
        input=json.dumps(plan).encode(),
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert run.returncode == 0
    assert not (tmp_path / "log").exists()


def test_ports_that_are_asked_for_twice_or_taken_are_said() -> None:
    from api.supervisor import StartError, claim_port

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        with pytest.raises(StartError, match=f"--port {port} on 127.0.0.1 cannot be used"):
            claim_port("127.0.0.1", port, "--port")
    with pytest.raises(StartError, match="--mlflow-port 8500 is asked for twice"):
        claim_port("127.0.0.1", 8500, "--mlflow-port", {8500})
    with pytest.raises(StartError, match=r"--port 0 on 192\.0\.2\.77 cannot be used"):
        claim_port("192.0.2.77", 0, "--port")
