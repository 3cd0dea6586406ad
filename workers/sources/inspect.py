"""A quick look at a job's data before it is accepted: everything that can be seen in bounded time, without torch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from workers.problems import Problem
from workers.sources.problems import BadDataError
from workers.spec import JobSpec

# kind -> a function that takes the task, gives the number of its training samples (None: nobody knows) and raises BadDataError for what cannot be
# used.
LOOKS: Mapping[str, str] = {
    "image_classification": "workers.sources.images:training_samples",
    "language_model": "workers.sources.language:training_samples",
    "protein_structure": "workers.sources.chains:training_samples",
    "script": "workers.sources.scripts:training_samples",
    "tabular": "workers.sources.tables:training_samples",
}


def inspect_data(spec: JobSpec) -> list[Problem]:
    """What is wrong with the data of ``spec``, as far as can be seen quickly. Empty: nothing found."""
    module, _, look = LOOKS[spec.task.kind].partition(":")
    try:
        samples: int | None = getattr(importlib.import_module(module), look)(spec.task)
    except BadDataError as error:
        return [Problem(error.field, error.message)]
    batch_size = spec.training.batch_size
    if samples is not None and batch_size > samples:
        return [
            Problem(
                "training.batch_size", f"larger than the {samples} training samples; at most {samples}", str(batch_size)
            )
        ]
    return []
