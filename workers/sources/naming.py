"""What the samples of a training set are called where they come from: files, rows, lines. Without torch."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import lru_cache

from workers.kinds.image_data import FolderData
from workers.kinds.tables import BreastCancerData, TabularTask
from workers.sources.problems import BadDataError
from workers.spec import JobSpec, parse_spec

Name = Callable[[int], str]
LARGEST_TABLE = 64 << 20  # bytes of a file that is read to find out which of its rows were held out


def names_of(spec: JobSpec, samples: int) -> Name | None:
    """Index of a training sample -> its name. None where the source has none, is not on this machine, or has another number of samples than the
    training had, so that an index would name another one."""
    found = _namer(spec.task.model_dump_json())
    if found is None:
        return None
    name, there = found
    return name if there == samples else None


@lru_cache(maxsize=4)
def _namer(task_json: str) -> tuple[Name, int] | None:
    """(names, how many there are). Reads what names need: a listing, or the columns of a table."""
    task = parse_spec({"name": "names", "task": json.loads(task_json)}).task
    try:
        if isinstance(task, TabularTask):
            return _of_table(task)
        data = getattr(task, "data", None)
        if isinstance(data, FolderData):
            return _of_folder(data)
    except BadDataError:
        return None
    return None


def _of_folder(data: FolderData) -> tuple[Name, int]:
    from workers.sources.folders import read_folder

    paths = read_folder(data).train.paths
    return lambda index: str(paths[index]), len(paths)


def _of_table(task: TabularTask) -> tuple[Name, int] | None:
    from workers.sources.tables import read_breast_cancer, read_table

    data = task.data
    if isinstance(data, BreastCancerData):
        train, where = read_breast_cancer(data).train, "breast_cancer"
    elif os.path.isfile(data.path) and os.path.getsize(data.path) <= LARGEST_TABLE:
        train, where = read_table(data, task.objective).train, data.path
    else:
        return None
    rows = train.rows
    return lambda index: f"row {index if rows is None else int(rows[index])} of {where}", len(train.targets)
