"""A quick look at the images of a job."""

from __future__ import annotations

from workers.kinds.image_data import DigitsData, FolderData, IdxData, NpzData
from workers.kinds.images import ImageClassificationTask
from workers.sources import arrays, folders

MAX_HEADERS = 2000  # image files that are looked into; the worker checks each one when it reads it


def training_samples(task: ImageClassificationTask) -> int:
    """How many images there are to train on. Raises BadDataError for what cannot be used."""
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
