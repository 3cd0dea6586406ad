"""A quick look at a job's data before it is accepted: everything that can be seen in bounded time, without torch."""

from __future__ import annotations

from workers.problems import Problem
from workers.sources.problems import BadDataError
from workers.spec import JobSpec
from workers.task_spec import (
    BreastCancerData,
    DigitsData,
    FolderData,
    IdxData,
    ImageClassificationTask,
    NpzData,
    TableData,
    TabularTask,
)

MAX_HEADERS = 2000  # image files that are looked into; the worker checks each one when it reads it


def inspect_data(spec: JobSpec) -> list[Problem]:
    """What is wrong with the data of ``spec``, as far as can be seen quickly. Empty: nothing found."""
    try:
        samples = _training_samples(spec)
    except BadDataError as error:
        return [Problem(error.field, error.message)]
    batch_size = spec.training.batch_size
    if batch_size > samples:
        return [
            Problem(
                "training.batch_size", f"larger than the {samples} training samples; at most {samples}", str(batch_size)
            )
        ]
    return []


def _training_samples(spec: JobSpec) -> int:
    task = spec.task
    if isinstance(task, ImageClassificationTask):
        return _training_images(task)
    assert isinstance(task, TabularTask)
    from workers.sources import tables

    if isinstance(task.data, BreastCancerData):
        return 455
    assert isinstance(task.data, TableData)
    return len(tables.read_table(task.data, task.objective).train.targets)


def _training_images(task: ImageClassificationTask) -> int:
    from workers.sources import arrays, folders

    data = task.data
    if isinstance(data, DigitsData):
        return 1437
    if isinstance(data, NpzData):
        return len(arrays.read_npz(data).train.labels)
    if isinstance(data, IdxData):
        return len(arrays.read_idx(data).train.labels)
    assert isinstance(data, FolderData)
    images = folders.read_folder(data)
    for path in (*images.train.paths, *images.evaluation.paths)[:MAX_HEADERS]:
        folders.check_header(path)
    return len(images.train.paths)
