"""Images and rows as arrays: scikit-learn's built-in sets, ``.npz`` and idx files, and how they are checked and split."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import math
import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.kinds.image_data import DigitsData, IdxData, NpzData
from workers.sources.problems import BadDataError

MAX_CLASSES = 1_000_000
SPLIT_SEED = 20150601  # of the held-out samples: the same for every job, so that results can be compared
IDX_TYPES = {0x08: np.uint8, 0x09: np.int8, 0x0B: np.int16, 0x0C: np.int32, 0x0D: np.float32, 0x0E: np.float64}


@dataclass(frozen=True)
class Images:
    """``pixels`` (N, H, W, C), uint8 in 0-255 or float32; ``labels`` (N,) int64 in [0, classes).

    ``rows`` (N,): which ones of the file's they are, where a part is held out; None: all, in their order.
    """

    pixels: NDArray[Any]
    labels: NDArray[np.int64]
    rows: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class ImageArrays:
    train: Images
    evaluation: Images
    classes: int
    class_names: tuple[str, ...]
    scale: float  # pixels divided by this are in 0-1
    test: Images | None = None


def read_digits(_: DigitsData) -> ImageArrays:
    """1,797 digits of 8 x 8 pixels with values 0-16; a stratified fifth, 360 images, is held out."""
    table = np.array(builtin_rows("digits.csv.gz", skip=0), dtype=np.float32)
    pixels, labels = table[:, :64].reshape(-1, 8, 8, 1), table[:, 64].astype(np.int64)
    held_out = stratified_holdout(labels, 360)
    images = Images(pixels, labels)
    return ImageArrays(
        _taken(images, ~held_out),
        _taken(images, held_out),
        10,
        tuple("0123456789"),
        16.0,
    )


def builtin_rows(name: str, skip: int) -> list[list[str]]:
    """Rows of a CSV file that scikit-learn ships. Its package is located, not imported: importing takes a second."""
    package = importlib.util.find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    path = Path(package.origin).parent / "datasets" / "data" / name
    opener = gzip.open if name.endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8") as stream:
        return list(csv.reader(stream))[skip:]


def read_npz(data: NpzData) -> ImageArrays:
    fields = ["train_images", "train_labels"]
    fields += ["evaluation_images", "evaluation_labels"] if data.evaluation_images is not None else []
    fields += ["test_images", "test_labels"] if data.test_images is not None else []
    arrays = _npz_arrays(data.path, [getattr(data, field) for field in fields])
    return _checked(dict(zip(fields, arrays, strict=True)), data.classes, data.holdout)


def _npz_arrays(path: str, names: Sequence[str]) -> list[NDArray[Any]]:
    field = "task.data.path"
    if os.path.exists(path) and not zipfile.is_zipfile(path):
        raise BadDataError(field, f"{path} cannot be read as .npz: it is no zip archive, or cut off")
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
            missing = [name for name in names if name not in archive.files]
            if missing:
                raise BadDataError(field, f"{path} has no array {missing[0]!r}; it has: {', '.join(archive.files)}")
            return [archive[name] for name in names]
    except FileNotFoundError:
        raise BadDataError(field, f"there is no file {path}") from None
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, MemoryError, zlib.error) as error:
        if isinstance(error, BadDataError):
            raise
        raise BadDataError(field, f"{path} cannot be read as .npz: {error}") from error


def read_idx(data: IdxData) -> ImageArrays:
    fields = ["train_images", "train_labels"]
    if data.evaluation_images is not None:
        fields += ["evaluation_images", "evaluation_labels"]
    return _checked({field: _idx_array(field, getattr(data, field)) for field in fields}, data.classes, data.holdout)


def _idx_array(field: str, path: str) -> NDArray[Any]:
    """The format of the MNIST files: two zero bytes, type, number of dimensions, sizes (big-endian), values."""
    where = f"task.data.{field}"
    try:
        opener = gzip.open if path.endswith(".gz") else open
        with opener(path, "rb") as stream:
            content = stream.read()
    except FileNotFoundError:
        raise BadDataError(where, f"there is no file {path}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise BadDataError(where, f"{path} cannot be read: {error}") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in IDX_TYPES:
        raise BadDataError(where, f"{path} is not in the idx format")
    dtype = np.dtype(IDX_TYPES[content[2]]).newbyteorder(">")
    start = 4 + 4 * content[3]
    shape = tuple(int(size) for size in np.frombuffer(content[4:start], dtype=">u4"))
    expected = start + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise BadDataError(where, f"{path} has {len(content)} bytes; its header {shape} needs {expected}")
    return np.frombuffer(content, dtype=dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


# --- checks and splits ------------------------------------------------------------------------------------------------


def _checked(arrays: dict[str, NDArray[Any]], classes: int | None, holdout: float) -> ImageArrays:
    train = _images("train", arrays["train_images"], arrays["train_labels"])
    count = classes or max(2, int(train.labels.max()) + 1)
    if count > MAX_CLASSES:
        raise BadDataError(
            "task.data.train_labels",
            f"label {count - 1} would make {count} classes; at most {MAX_CLASSES:,} are allowed",
        )
    check_labels("task.data.train_labels", train.labels, count)
    evaluation = _other_part("evaluation", arrays, train, count)
    test = _other_part("test", arrays, train, count)
    if evaluation is None:
        train, evaluation = _split(train, holdout)
    scale = 255.0 if train.pixels.dtype == np.uint8 else 1.0
    return ImageArrays(train, evaluation, count, tuple(str(label) for label in range(count)), scale, test)


def _other_part(part: str, arrays: dict[str, NDArray[Any]], train: Images, classes: int) -> Images | None:
    if f"{part}_images" not in arrays:
        return None
    found = _images(part, arrays[f"{part}_images"], arrays[f"{part}_labels"])
    where = f"task.data.{part}_images"
    if found.pixels.shape[1:] != train.pixels.shape[1:]:
        raise BadDataError(
            where, f"images of shape {found.pixels.shape[1:]} do not fit training images of {train.pixels.shape[1:]}"
        )
    if (found.pixels.dtype == np.uint8) != (train.pixels.dtype == np.uint8):
        raise BadDataError(where, f"training and {part} images must both be uint8 or both be floats")
    check_labels(f"task.data.{part}_labels", found.labels, classes)
    return found


def _images(part: str, pixels: NDArray[Any], labels: NDArray[Any]) -> Images:
    where = f"task.data.{part}_images"
    if pixels.ndim == 3:
        pixels = pixels[..., np.newaxis]
    if pixels.ndim != 4 or pixels.shape[-1] not in (1, 3):
        raise BadDataError(
            where, f"images must have shape (N, H, W), (N, H, W, 1) or (N, H, W, 3); this is {pixels.shape}"
        )
    if len(pixels) == 0:
        raise BadDataError(where, "there are no images")
    if pixels.dtype != np.uint8:
        if pixels.dtype.kind != "f":
            raise BadDataError(where, f"images must be uint8 or floats; these are {pixels.dtype}")
        pixels = pixels.astype(np.float32, copy=False)
        bad = ~np.isfinite(pixels.reshape(len(pixels), -1)).all(axis=1)
        if bad.any():
            others = int(bad.sum()) - 1
            also = f", and so {'has' if others == 1 else 'have'} {others} other{'s' * (others > 1)}" if others else ""
            raise BadDataError(where, f"image {int(np.argmax(bad))} has a value that is NaN or infinite{also}")
    return Images(pixels, _labels(f"task.data.{part}_labels", labels, len(pixels)))


def _labels(where: str, labels: NDArray[Any], images: int) -> NDArray[np.int64]:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise BadDataError(
            where, f"labels must be integers of shape (N,) or (N, 1); these are {labels.dtype} of {labels.shape}"
        )
    if len(labels) != images:
        raise BadDataError(where, f"there are {len(labels)} labels for {images} images")
    return labels.astype(np.int64)


def check_labels(where: str, labels: NDArray[np.int64], classes: int) -> None:
    bad = (labels < 0) | (labels >= classes)
    if bad.any():
        row = int(np.argmax(bad))
        raise BadDataError(
            where, f"label {int(labels[row])} of row {row} is out of range; allowed is 0 to {classes - 1}"
        )


def _split(images: Images, holdout: float) -> tuple[Images, Images]:
    size = round(len(images.labels) * holdout)
    if not 0 < size < len(images.labels):
        raise BadDataError("task.data.holdout", f"{holdout} of {len(images.labels)} images leaves a part without any")
    held_out = stratified_holdout(images.labels, size)
    return _taken(images, ~held_out), _taken(images, held_out)


def _taken(images: Images, mask: NDArray[np.bool_]) -> Images:
    return Images(images.pixels[mask], images.labels[mask], np.flatnonzero(mask))


def stratified_holdout(labels: NDArray[np.int64], size: int) -> NDArray[np.bool_]:
    """A mask of ``size`` rows, as nearly as can be the same share of every class, drawn with a fixed seed.

    Rows are ordered by their rank within their class; the first ``size`` of that order are taken.
    """
    generator = np.random.default_rng(SPLIT_SEED)
    order = generator.permutation(len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        place[rows] = (np.arange(len(rows)) + generator.random()) / len(rows)
    mask = np.zeros(len(labels), dtype=np.bool_)
    mask[np.argsort(place, kind="stable")[:size]] = True
    return mask
