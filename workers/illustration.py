"""Asking a task to show what its model does now, without the training noticing.

Training with and without pictures is the same, bit for bit: random generators are put back, gradients are off, and what the task raises is told
and forgotten.
"""

from __future__ import annotations

import contextlib
import random
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from workers import artifacts, parallel, sharding
from workers.process_group import broken_by_peer
from workers.tasks.base import Illustrated, Task

Tell = Callable[..., None]


class Illustrator:
    """One worker's part in it. ``folder``: where the job's artifacts are kept; None: nowhere, and nothing is asked."""

    def __init__(
        self, task: Task, folder: Path | None, device: torch.device, *, bf16: bool, compiled: bool, tell: Tell
    ) -> None:
        self._task = cast(Illustrated, task) if hasattr(task, "illustrate") else None
        self._folder, self._device, self._tell = folder, device, tell
        self._bf16, self._compiled = bf16, compiled
        self._drawn_step = -1
        self._told: str | None = None  # the problem that was told last: it is not told after every evaluation

    def illustrate(
        self, model: nn.Module, step: int, *, rank: int, world_size: int, control: dist.ProcessGroup | None
    ) -> None:
        """Called by all workers. ``model`` is the plain one. Where a forward pass communicates all of them make it, else only rank 0.

        They leave together: who waits here is known to evaluate, one that had gone ahead would seem to hang in the next step.
        """
        if self._task is None or self._folder is None:
            return
        together = parallel.lockstep(model)
        files, problem = None, None
        # A group that breaks while the others wait here comes again, for the same step.
        if together or (rank == 0 and self._drawn_step != step):
            files, problem = self._files(self._task, model, together)
            self._drawn_step = step
        if rank == 0 and not together and (files is not None or problem):
            self._keep(self._folder, step, files, problem)
        problem = _first_of_all(problem, world_size, control)
        if rank == 0 and together:
            self._keep(self._folder, step, files, problem)

    def _files(
        self, task: Illustrated, model: nn.Module, together: bool
    ) -> tuple[Mapping[str, bytes] | None, str | None]:
        try:
            with shown(model, self._device, bf16=self._bf16, compiled=self._compiled):
                files = dict(task.illustrate(model, self._device))
            artifacts.check(files)
            return files, None
        except Exception as error:
            if together and broken_by_peer(error):
                raise
            traceback.print_exc()  # into the worker's log; the event has the last line of it
            return None, f"{type(error).__name__}: {error}"

    def _keep(self, folder: Path, step: int, files: Mapping[str, bytes] | None, problem: str | None) -> None:
        if problem is None and files:
            try:
                artifacts.write(folder, step, files)
            except OSError as error:
                problem = f"{type(error).__name__}: {error}"
        if problem is not None:
            if problem != self._told:
                message = f"Nothing shows what the model does after step {step}: {problem}. Training goes on."
                self._tell("artifacts.failed", message, {"step": step, "problem": problem}, level="warning")
        elif files:
            self._tell("artifacts.written", _sentence(step, files), _facts(step, files))
        self._told = problem


@contextlib.contextmanager
def shown(model: nn.Module, device: torch.device, *, bf16: bool, compiled: bool = False) -> Iterator[None]:
    """The model as in an evaluation, and afterwards everything as it was: its mode and the random generators.

    A compiled model runs uncompiled here: sampling would compile it anew for each length.
    """
    stance: Any = torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()
    model.eval()
    try:
        with (
            kept_generators(device),
            torch.no_grad(),
            torch.autocast(device.type, torch.bfloat16, enabled=bf16),
            stance,
        ):
            yield
    finally:
        model.train()
        sharding.free(model)


@contextlib.contextmanager
def kept_generators(device: torch.device) -> Iterator[None]:
    """The global generators of torch (CPU and ``device``), numpy and Python are put back."""
    python, array = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)


def _first_of_all(problem: str | None, world_size: int, control: dist.ProcessGroup | None) -> str | None:
    """What the lowest rank that has a problem says, on all of them. Collective."""
    if world_size == 1:
        return problem
    found: list[str | None] = [None] * world_size
    dist.all_gather_object(found, problem, group=control)
    return next((each for each in found if each), None)


def _sentence(step: int, files: Mapping[str, bytes]) -> str:
    few = ", ".join(list(files)[:5]) + (", ..." if len(files) > 5 else "")
    return f"After step {step}: {few}."


def _facts(step: int, files: Mapping[str, bytes]) -> dict[str, Any]:
    return {"step": step, "files": list(files), "bytes": sum(map(len, files.values()))}
