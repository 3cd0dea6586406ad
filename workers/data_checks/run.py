"""The look at a job's data: which one, and what becomes of what it meets."""

from __future__ import annotations

import os

from workers.data_checks.report import Clock, Report
from workers.kinds.image_data import DigitsData
from workers.kinds.images import ImageClassificationTask
from workers.kinds.language import DocumentData, LanguageModelTask, TextData
from workers.kinds.proteins import ProteinStructureTask
from workers.kinds.tables import BreastCancerData, TabularTask
from workers.sources.inspect import ON_WORKERS
from workers.sources.problems import BadDataError
from workers.spec import JobSpec, data_paths

LOOK_SECONDS = 10.0  # after which a sample must do


def to_be_checked(spec: JobSpec) -> bool:
    """Not what comes with the package and is known, nor what only the user's own code can read."""
    task = spec.task
    if not spec.health.data_checks:
        return False
    if isinstance(task, ImageClassificationTask | TabularTask):
        return not isinstance(task.data, DigitsData | BreastCancerData)
    return isinstance(task, LanguageModelTask | ProteinStructureTask)


def check(spec: JobSpec, seconds: float = LOOK_SECONDS) -> Report:
    """What the data is like, as far as it can be seen in about ``seconds``; reading it comes on top. Never raises for bad data."""
    missing = [
        path
        for field, path in data_paths(spec)
        if field.startswith("task.data") and not os.path.exists(os.path.expanduser(path))
    ]
    if missing:
        return Report(unchecked=f"{missing[0]} is not on this machine; the workers look for it")
    try:
        return _look(spec, Clock(seconds))
    except BadDataError as error:
        if _out_of_memory(error):
            return Report(unchecked="it does not fit into the memory for this look")
        return Report(problem=(error.field, error.message))
    except MemoryError:
        return Report(unchecked="it does not fit into the memory for this look")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ON_WORKERS:
            raise
        return Report(unchecked=f"this machine has no {error.name}, which reads it")


def _look(spec: JobSpec, clock: Clock) -> Report:
    from workers.data_checks import chains, images, tables, texts, tokens

    task = spec.task
    if isinstance(task, ImageClassificationTask):
        return images.check(task, clock, _used(spec))
    if isinstance(task, TabularTask):
        return tables.check(task, clock)
    if isinstance(task, ProteinStructureTask):
        return chains.check(task, clock)
    assert isinstance(task, LanguageModelTask)
    if isinstance(task.data, TextData):
        return texts.check_texts(task, task.data, clock)
    if isinstance(task.data, DocumentData):
        return texts.check_documents(task.data, clock)
    return tokens.check(task, task.data, clock)


def _used(spec: JobSpec) -> int | None:
    """Samples that the run trains on; None: all of them, at least once."""
    unit, length = spec.training.length
    return None if unit == "epochs" else length * spec.training.batch_size


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error.__cause__, MemoryError)
