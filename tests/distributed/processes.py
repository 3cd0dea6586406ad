"""Real worker processes for tests: started once, they run one function after another, each time in a new gloo group."""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from torch._C._distributed_c10d import FileStore

TIMEOUT_SECONDS = 150.0


class Processes:
    """``run`` gives each rank's result. A rank that raises, dies or hangs fails the test; the next test gets new processes."""

    def __init__(self) -> None:
        self._started: list[tuple[Any, Connection]] = []

    def run(self, world_size: int, folder: Path, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Calls ``function(rank, world_size, *arguments)`` in ``world_size`` processes that form a group."""
        while len(self._started) < world_size:
            self._start()
        chosen = self._started[:world_size]
        store = str(folder / f"store-{os.urandom(4).hex()}")
        for rank, (_, pipe) in enumerate(chosen):
            pipe.send((function, rank, world_size, store, arguments))
        answers: list[tuple[str, Any]] = []
        for rank, (_, pipe) in enumerate(chosen):
            try:
                answers.append(pipe.recv() if pipe.poll(TIMEOUT_SECONDS) else ("hangs", f"for {TIMEOUT_SECONDS} s"))
            except EOFError:
                answers.append(("died", f"rank {rank}"))
        problems = [answer for answer in answers if answer[0] != "ok"]
        if problems:
            self.close()
            raise AssertionError("\n".join(f"{kind}: {text}" for kind, text in problems))
        return [pickle.loads(result) for _, result in answers]

    def _start(self) -> None:
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        self._started.append((process, ours))

    def close(self) -> None:
        for process, pipe in self._started:
            pipe.close()
            process.kill()
            process.join()
        self._started.clear()


def _serve(pipe: Connection) -> None:
    import torch

    torch.set_num_threads(1)
    while True:
        try:
            function, rank, world_size, store, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(("ok", pickle.dumps(_grouped(function, rank, world_size, store, arguments))))
        except BaseException:  # whatever it was, the test wants to see it
            pipe.send(("raised", f"rank {rank}\n{traceback.format_exc()}"))


def _grouped(function: Callable[..., Any], rank: int, world_size: int, store: str, arguments: tuple[Any, ...]) -> Any:
    import torch

    from workers.process_group import ProcessGroup

    meeting = FileStore(store, world_size) if world_size > 1 else None
    if getattr(function, "forms_its_own_group", False):
        return function(rank, world_size, *arguments, meeting=meeting)
    group = ProcessGroup(torch.device("cpu"))
    group.join(rank, world_size, meeting, 30.0)
    try:
        return function(rank, world_size, *arguments)
    finally:
        group.leave()
