"""The kinds of tasks. Each module named here has a factory, and what the exported model needs (workers/export.py)."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workers.reports import Outcome
    from workers.tasks.base import Task
    from workers.user_code import UserCode

FACTORIES: Mapping[str, str] = {
    "image_classification": "workers.tasks.image_classification:ImageClassification",
    "language_model": "workers.tasks.language_model:LanguageModelling",
    "protein_structure": "workers.tasks.protein_structure:ProteinStructure",
    "tabular": "workers.tasks.tabular:Tabular",
    "custom": "workers.tasks.custom:Custom",
}

# Kinds whose own code is the whole training: a function that takes the job and the worker's context, as ``workers.train.train`` does.
RUNNERS: Mapping[str, str] = {"script": "workers.scripts.run:run_script"}


def runner_of(spec: Any) -> Callable[[Any, Any], Outcome] | None:
    """None: this kind is trained by our loop."""
    if spec.kind not in RUNNERS:
        return None
    module, _, name = RUNNERS[spec.kind].partition(":")
    found: Callable[[Any, Any], Outcome] = getattr(importlib.import_module(module), name)
    return found


def build_task(spec: Any, seed: int, code: UserCode | None = None) -> Task:
    """The task of ``JobSpec.task``. ``code``: the user's own, for kinds that have any."""
    module, _, factory = FACTORIES[spec.kind].partition(":")
    more = {} if code is None else {"code": code}
    task: Task = getattr(importlib.import_module(module), factory)(spec, seed=seed, **more)
    return task
