"""The kinds of tasks. Each module named here has a factory, and what the exported model needs (workers/export.py)."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workers.tasks.base import Task

FACTORIES: Mapping[str, str] = {
    "image_classification": "workers.tasks.image_classification:ImageClassification",
    "language_model": "workers.tasks.language_model:LanguageModelling",
    "tabular": "workers.tasks.tabular:Tabular",
}


def build_task(spec: Any, seed: int) -> Task:
    """The task of ``JobSpec.task``."""
    module, _, factory = FACTORIES[spec.kind].partition(":")
    task: Task = getattr(importlib.import_module(module), factory)(spec, seed=seed)
    return task
