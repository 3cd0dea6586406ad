"""A quick look at the images of a job."""

from __future__ import annotations

import os
import sys

from workers.kinds.hub import is_folder
from workers.kinds.image_data import DigitsData, HuggingFaceData, IdxData, NpzData, ParquetData
from workers.kinds.images import ImageClassificationTask, TransformersImageModel
from workers.sources import arrays, encoded, folders
from workers.sources.pretrained import read_checkpoint
from workers.sources.problems import BadDataError

MAX_HEADERS = 2000  # image files that are looked into; the worker checks each one when it reads it


def training_samples(task: ImageClassificationTask) -> int:
    """How many images there are to train on. Raises BadDataError for what cannot be used."""
    data, model = task.data, task.model
    if isinstance(model, TransformersImageModel) and model.checkpoint is not None and is_folder(model.checkpoint):
        read_checkpoint(model.checkpoint, model.architecture)
    if isinstance(data, DigitsData):
        return 1437
    if isinstance(data, NpzData):
        return len(arrays.read_npz(data).train.labels)
    if isinstance(data, IdxData):
        return len(arrays.read_idx(data).train.labels)
    if isinstance(data, ParquetData):
        return encoded.training_rows(data)
    if isinstance(data, HuggingFaceData):
        return _of_library(data)
    images = folders.read_folder(data)
    for path in (*images.train.paths, *images.evaluation.paths)[:MAX_HEADERS]:
        folders.check_header(path)
    return len(images.train.paths)


def _of_library(data: HuggingFaceData) -> int:
    """Loading the data set is the workers' matter: it may have to be fetched, and converted first."""
    if is_folder(data.path) and not os.path.isdir(os.path.expanduser(data.path)):
        raise BadDataError("task.data.path", f"there is no folder {data.path}")
    return sys.maxsize
