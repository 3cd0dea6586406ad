"""What tests of all kinds use: waiting with a deadline, free ports, ending what they started."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil

T = TypeVar("T")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(what: str, look: Callable[[], T | None], seconds: float = 30.0) -> T:
    """The first result that is neither None nor False; fails with ``what`` after ``seconds``."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = look()
        if found is not None and found is not False:
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds:.0f} s in vain for {what}")


def end_tree(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and everything beneath it, by pid."""
    with contextlib.suppress(psutil.NoSuchProcess):
        tree = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
        for child in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(tree, timeout=10)
    if process.poll() is None:
        process.kill()
        process.wait(timeout=10)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def must_live(process: subprocess.Popen[bytes], log: Path) -> bool:
    """False while ``process`` lives, which goes on waiting; fails with the end of its log when it has ended."""
    if process.poll() is not None:
        raise AssertionError(f"ended with {process.returncode}: {log.read_text()[-2000:]}")
    return False
