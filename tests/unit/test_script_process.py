"""Starting a script and hearing how it ended: real processes, real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.helpers import wait_for
from workers.reports import ReasonCode
from workers.scripts.ending import failure_of, last_error, lost_a_peer
from workers.scripts.process import End, ScriptProcess

pytestmark = pytest.mark.unit


class Run:
    def __init__(self, code: str, folder: Path) -> None:
        self.lines: list[str] = []
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self.process = ScriptProcess([sys.executable, "-c", code], environment, folder, self.lines.append)

    def end(self) -> End:
        return wait_for("its end", lambda: self.process.wait(0.05), 30)

    def says(self, line: str) -> None:
        wait_for(line, lambda: line in self.lines, 30)


@pytest.mark.parametrize("code", [0, 3, 130, 255])
def test_an_exit_code_arrives(tmp_path: Path, code: int) -> None:
    run = Run(f"import sys; print('out'); print('err', file=sys.stderr); sys.exit({code})", tmp_path)
    end = run.end()
    assert (end.exit_code, end.signal) == (code, None)
    assert sorted(run.lines) == ["err", "out"]
    assert list(run.process.errors.tail) == ["err"]


def test_a_signal_arrives(tmp_path: Path) -> None:
    end = Run("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", tmp_path).end()
    assert (end.exit_code, end.signal) == (None, signal.SIGSEGV)


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    process = ScriptProcess(["/nowhere/python"], {}, tmp_path, lambda line: None)
    end = wait_for("its end", lambda: process.wait(0.05))
    assert end.exit_code == 127
    assert "/nowhere/python" in process.errors.tail[0]


def test_a_progress_bar_is_one_line(tmp_path: Path) -> None:
    run = Run(
        r"import sys; [sys.stdout.write(f'\r{n}%') for n in range(100)]; print('\rdone'); print('é', end='')", tmp_path
    )
    run.end()
    assert run.lines[-2:] == ["done", "é"]
    assert len(run.lines) <= 3


def test_it_hears_sigterm_with_its_handlers(tmp_path: Path) -> None:
    code = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(7)); print('ready'); time.sleep(60)"
    run = Run(code, tmp_path)
    run.says("ready")
    run.process.terminate()
    assert run.end().exit_code == 7


CHILDREN = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(child.pid)
print("ready")
if {stay}: time.sleep(600)
"""


@pytest.mark.parametrize("how", ["kill", "close", "ended by itself"])
def test_nothing_that_it_started_stays(tmp_path: Path, how: str) -> None:
    """In a session of its own, too: what is orphaned comes to the guard."""
    run = Run(CHILDREN.format(stay=how != "ended by itself"), tmp_path)
    run.says("ready")
    if how == "close":
        run.process.close()
    else:
        if how == "kill":
            run.process.kill()
        run.end()
    wait_for(
        "the end of all", lambda: not psutil.pid_exists(int(run.lines[0])) and not psutil.pid_exists(run.process.pid)
    )


def test_it_ends_with_a_worker_that_is_killed(tmp_path: Path) -> None:
    """SIGKILL leaves the worker no word: the kernel closes its pipe."""
    worker = (
        "import os, sys, time; from pathlib import Path; from workers.scripts.process import ScriptProcess\n"
        f"s = ScriptProcess([sys.executable, '-c', {CHILDREN.format(stay=True)!r}], os.environ, Path('.'), print)\n"
        "print(s.pid, flush=True); time.sleep(600)"
    )
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", worker], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        pids = [int(line) for line in (process.stdout.readline() for _ in range(3)) if line.strip().isdigit()]
        process.kill()
    assert len(pids) == 2
    wait_for("the end of all", lambda: not any(psutil.pid_exists(pid) for pid in pids))


# --- what an end means ------------------------------------------------------------------------------------------------


def ended(code: int | None = None, number: int | None = None) -> End:
    return End(code, number, 0.0)  # a fixed time: it is in the names of the tests


@pytest.mark.parametrize(
    ("end", "errors", "oom_kills", "code", "said"),
    [
        (ended(3), [], 0, ReasonCode.USER_ERROR, "the script ended with exit code 3"),
        (
            ended(1),
            ["Traceback", "ValueError: no such column"],
            0,
            ReasonCode.USER_ERROR,
            "exit code 1: ValueError: no such column",
        ),
        (ended(1), ["torch.OutOfMemoryError: CUDA out of memory."], 0, ReasonCode.OUT_OF_MEMORY, "out of memory"),
        (ended(number=9), [], 1, ReasonCode.OUT_OF_MEMORY, "by the kernel"),
        (ended(number=9), [], 0, ReasonCode.SCRIPT_KILLED, "from outside with SIGKILL"),
        (ended(number=11), [], 0, ReasonCode.USER_ERROR, "crashed with SIGSEGV"),
    ],
    ids=str,
)
def test_ends_become_reasons(end: End, errors: list[str], oom_kills: int, code: ReasonCode, said: str) -> None:
    failure = failure_of(end, errors, oom_kills)
    assert failure.code is code
    assert said in str(failure)


def test_the_error_of_a_traceback_is_found() -> None:
    torn = ["[rank1]: Traceback (most recent call last):", "[rank1]: KeyError: 'a'", "note: run with --debug"]
    assert last_error(torn) == "KeyError: 'a'"
    assert last_error(["nothing of the kind"]) is None
    assert lost_a_peer(["RuntimeError: [..gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:2"])
    assert not lost_a_peer(["RuntimeError: shapes do not fit"])
