"""What a process is doing, also one that does not answer: its Python stack, read from outside."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

ANSWER_SECONDS = 2.0
OUTSIDE_SECONDS = 8.0


def stack_of(actor: Any, pid: int, node_id: str) -> str:
    """The process's own word, or, when it is frozen, what py-spy reads in its memory. Never raises."""
    try:
        return str(ray.get(actor.stacks.remote(), timeout=ANSWER_SECONDS))
    except (GetTimeoutError, RayError):
        pass
    if node_id == ray.get_runtime_context().get_node_id():
        return read_stack(pid)
    pinned = NodeAffinitySchedulingStrategy(node_id, soft=False)
    reading = ray.remote(read_stack).options(num_cpus=0, scheduling_strategy=pinned, max_retries=0).remote(pid)
    try:
        return str(ray.get(reading, timeout=OUTSIDE_SECONDS))
    except (GetTimeoutError, RayError) as error:
        return f"no stack: {type(error).__name__}"


def script_stack_of(actor: Any) -> str:
    """Of the script that a worker runs. Never raises."""
    try:
        return str(ray.get(actor.script_stack.remote(), timeout=OUTSIDE_SECONDS + ANSWER_SECONDS))
    except (GetTimeoutError, RayError) as error:
        return f"no stack: {type(error).__name__}"


def place_of(stack: str) -> str:
    """Where the main thread is, in py-spy's words: the innermost frame of code that is not a library's, and the innermost of all."""
    threads = stack.split("\nThread ")[1:]
    pid = re.match(r"Process (\d+)", stack)
    main = [thread for thread in threads if '"MainThread"' in thread or (pid and thread.startswith(f"{pid[1]} "))]
    frames = [line.strip() for line in (main or threads or [""])[0].splitlines()[1:] if line.strip()]
    if not frames:
        return "somewhere"
    own = next(
        (frame for frame in frames if not re.search(r"site-packages|/torch/|lib/python|\(torch/", frame)), frames[0]
    )
    return f"in {own}" if own == frames[0] else f"in {own}, inside {frames[0]}"


def read_stack(pid: int) -> str:
    """Without pausing the process: a frozen one cannot be paused."""
    command = [str(Path(sys.executable).with_name("py-spy")), "dump", "--nonblocking", "--pid", str(pid)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=OUTSIDE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"no stack: {error}"
    return done.stdout or f"no stack: {done.stderr.strip()}"
