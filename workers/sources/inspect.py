"""A quick look at a job's data before it is accepted: everything that can be seen in bounded time, without torch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path

from workers.problems import Problem
from workers.sources.problems import BadDataError
from workers.spec import JobSpec, code_of

# kind -> a function that takes the task (for kinds with code of the user's own also the uploaded bundle), gives the number of its training samples
# (None: nobody knows) and raises BadDataError for what cannot be used.
LOOKS: Mapping[str, str] = {
    "image_classification": "workers.sources.images:training_samples",
    "language_model": "workers.sources.language:training_samples",
    "protein_structure": "workers.sources.chains:training_samples",
    "script": "workers.sources.scripts:look_at_script",
    "tabular": "workers.sources.tables:training_samples",
    "custom": "workers.sources.code:look_at_factory",
}

# Readers that come with the extra `training`: the machine of the API need not have them.
ON_WORKERS = frozenset({"biotite", "datasets"})


def inspect_data(spec: JobSpec, bundle: Path | None = None) -> list[Problem]:
    """What is wrong with the data of ``spec``, or with its code, as far as can be seen quickly. Empty: nothing found."""
    module, _, look = LOOKS[spec.task.kind].partition(":")
    try:
        looking = getattr(importlib.import_module(module), look)
        samples: int | None = looking(spec.task) if code_of(spec) is None else looking(spec.task, bundle)
    except BadDataError as error:
        return [Problem(error.field, error.message)]
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ON_WORKERS:
            raise
        return []  # the worker looks when it reads
    batch_size = spec.training.batch_size
    if samples is not None and batch_size > samples:
        return [
            Problem(
                "training.batch_size", f"larger than the {samples} training samples; at most {samples}", str(batch_size)
            )
        ]
    if samples is not None and spec.training.leave_out:
        from workers.sample_order import why_not_left_out  # NumPy, which was needed for the look too

        problem = why_not_left_out(spec.training.leave_out, samples, batch_size)
        if problem is not None:
            return [Problem("training.leave_out", problem)]
    return []
