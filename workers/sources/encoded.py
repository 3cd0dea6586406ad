"""Encoded images in a column: Parquet files and Hugging Face data sets."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from workers.kinds.hub import is_folder
from workers.kinds.image_data import EncodedData, HuggingFaceData, ParquetData
from workers.problems import first_line
from workers.sources import folders
from workers.sources.arrays import check_labels, stratified_holdout
from workers.sources.problems import BadDataError

MAX_LOOKED_AT = 256  # images of a Parquet file whose headers are checked before a job is accepted


class Column(Protocol):
    """Images one by one: bytes, or a mapping with ``bytes`` and ``path``."""

    def __getitem__(self, row: int) -> Any: ...


@dataclass(frozen=True)
class Encoded:
    """``rows`` of ``images`` are used; ``labels`` (N,) are theirs. ``root``: files that the column names must lie in it; None: no files."""

    name: str
    images: Column
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    root: Path | None = None

    def decode(self, index: int, size: int, channels: int) -> NDArray[np.uint8]:
        row = int(self.rows[index])
        return folders.decode(self.stream(row), size, channels, f"row {row} of {self.name}")

    def stream(self, row: int) -> io.BytesIO:
        found = self.images[row]
        content = found.get("bytes") if isinstance(found, Mapping) else found
        path = found.get("path") if isinstance(found, Mapping) else None
        if content is None and path and self.root is not None:
            content = _content(Path(path), self.root, row)
        if not isinstance(content, bytes):
            raise BadDataError("task.data.image_column", f"row {row} of {self.name} has no image")
        return io.BytesIO(content)


def _content(path: Path, root: Path, row: int) -> bytes:
    if not os.path.realpath(path).startswith(os.path.realpath(root) + os.sep):
        raise BadDataError("task.data.image_column", f"row {row} names {path}, which is outside of {root}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadDataError("task.data.image_column", f"row {row}: {path} cannot be read: {error.strerror}") from error


@dataclass(frozen=True)
class EncodedImages:
    train: Encoded
    evaluation: Encoded
    test: Encoded | None
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class _Part:
    """A table as it was found. ``labels``: its column as values; ``names``: of the classes, where the file says them."""

    name: str
    images: Column
    labels: Sequence[Any]
    names: tuple[str, ...] | None
    root: Path | None = None
    images_there: int | None = None  # fewer than labels, where only some were read


def read_parquet(data: ParquetData) -> EncodedImages:
    given = {"path": data.path, "evaluation_path": data.evaluation_path, "test_path": data.test_path}
    return _assembled(data, [path and _parquet_part(data, field, path) for field, path in given.items()])


def training_rows(data: ParquetData) -> int:
    """How many there are, from a look at the labels and the first images only."""
    for field in ("evaluation_path", "test_path"):
        if (path := getattr(data, field)) is not None:
            _parquet_files(f"task.data.{field}", path)
    part = _parquet_part(data, "path", data.path, MAX_LOOKED_AT)
    _, labels = _classes(part)
    rows = np.arange(len(labels))
    found = Encoded(part.name, part.images, rows, labels)
    for row in range(min(MAX_LOOKED_AT, part.images_there or 0)):
        folders.check_header(found.stream(row), f"row {row} of {part.name}")
    return len(labels) if data.evaluation_path else int((~_held_out(labels, data.holdout)).sum())


def _parquet_part(data: ParquetData, field: str, path: str, most: int | None = None) -> _Part:
    """With ``most``: all labels, and at least so many images of the first file."""
    import pyarrow
    from pyarrow import parquet

    where = f"task.data.{field}"
    files = _parquet_files(where, path)
    try:
        schema = parquet.read_schema(files[0])
        for column, name in (("image_column", data.image_column), ("label_column", data.label_column)):
            if name not in schema.names:
                raise BadDataError(
                    f"task.data.{column}", f"{files[0]} has no column {name!r}; it has: {', '.join(schema.names[:50])}"
                )
        labels = parquet.read_table(files, columns=[data.label_column]).column(0)
        images: Any
        if most is None:
            images = parquet.read_table(files, columns=[data.image_column]).column(0)
        else:
            images = next(parquet.ParquetFile(files[0]).iter_batches(most, columns=[data.image_column])).column(0)
    except (OSError, pyarrow.ArrowException, StopIteration) as error:
        raise BadDataError(where, f"{path} cannot be read as parquet: {error}") from error
    names = _names_in(schema, data.label_column)
    return _Part(path, _Scalars(images), labels.to_pylist(), names, images_there=len(images))


class _Scalars:
    def __init__(self, column: Any) -> None:
        self._column = column

    def __getitem__(self, row: int) -> Any:
        return self._column[row].as_py()


def _parquet_files(where: str, path: str) -> list[str]:
    if os.path.isfile(path):
        return [path]
    found = sorted(str(file) for file in Path(path).rglob("*.parquet") if file.is_file())
    if not found:
        raise BadDataError(where, f"there is no Parquet file at {path}")
    return found


def _names_in(schema: Any, label_column: str) -> tuple[str, ...] | None:
    """Class names that the datasets library leaves in a file's metadata."""
    try:
        known = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label_column]["names"]
        return tuple(map(str, known))
    except (KeyError, TypeError, ValueError):
        return None


# --- Hugging Face -----------------------------------------------------------------------------------------------------


def read_huggingface(data: HuggingFaceData) -> EncodedImages:
    splits = _splits(data)
    wanted = (data.train_split, data.evaluation_split, data.test_split)
    fields = ("train_split", "evaluation_split", "test_split")
    for field, name in zip(fields, wanted, strict=True):
        if name is not None and name not in splits:
            raise BadDataError(f"task.data.{field}", f"there is no split {name!r}; there are: {', '.join(splits)}")
    return _assembled(data, [name and _split_part(data, name, splits[name]) for name in wanted])


def _splits(data: HuggingFaceData) -> dict[str, Any]:
    import datasets

    datasets.disable_progress_bars()
    local, path = is_folder(data.path), os.path.expanduser(data.path)
    if local and not os.path.isdir(path):
        raise BadDataError("task.data.path", f"there is no folder {path}")
    saved = any(os.path.isfile(os.path.join(path, name)) for name in ("dataset_dict.json", "state.json"))
    try:
        found = datasets.load_from_disk(path) if local and saved else datasets.load_dataset(path, data.name)
    except Exception as error:  # whatever the library raises for what it cannot load
        raise BadDataError(
            "task.data.path", f"{data.path} cannot be loaded: {type(error).__name__}: {first_line(error)}"
        ) from error
    return dict(found) if isinstance(found, dict) else {"train": found}


def _split_part(data: HuggingFaceData, split: str, found: Any) -> _Part:
    import datasets

    for column, name in (("image_column", data.image_column), ("label_column", data.label_column)):
        if name not in found.column_names:
            raise BadDataError(
                f"task.data.{column}",
                f"split {split!r} has no column {name!r}; it has: {', '.join(found.column_names)}",
            )
    if isinstance(found.features[data.image_column], datasets.Image):
        found = found.cast_column(data.image_column, datasets.Image(decode=False))  # we decode, and name what is broken
    label = found.features[data.label_column]
    names = tuple(label.names) if isinstance(label, datasets.ClassLabel) else None
    root = Path(os.path.expanduser(data.path)) if is_folder(data.path) else Path(datasets.config.HF_CACHE_HOME)
    images = _SplitColumn(found.select_columns([data.image_column]), data.image_column)
    return _Part(f"split {split!r}", images, found[data.label_column][:], names, root)


class _SplitColumn:
    def __init__(self, split: Any, name: str) -> None:
        self._split, self._name = split, name

    def __getitem__(self, row: int) -> Any:
        return self._split[row][self._name]


# --- labels and splits ------------------------------------------------------------------------------------------------


def _assembled(data: EncodedData, parts: Sequence[Any]) -> EncodedImages:
    first, *others = parts
    names, labels = _classes(first)
    train = Encoded(first.name, first.images, np.arange(len(labels)), labels, first.root)
    evaluation, test = (part and _same_classes(part, names) for part in others)
    if evaluation is None:
        mask = _held_out(labels, data.holdout)
        evaluation, train = _rows(train, mask), _rows(train, ~mask)
    return EncodedImages(train, evaluation, test, names)


def _rows(part: Encoded, mask: NDArray[np.bool_]) -> Encoded:
    return Encoded(part.name, part.images, part.rows[mask], part.labels[mask], part.root)


def _held_out(labels: NDArray[np.int64], holdout: float) -> NDArray[np.bool_]:
    size = round(len(labels) * holdout)
    if not 0 < size < len(labels):
        raise BadDataError("task.data.holdout", f"{holdout} of {len(labels)} images leaves a part without any")
    return stratified_holdout(labels, size)


def _classes(part: _Part) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """(class names, label of each row): numbers as they are, texts in the order of the alphabet."""
    _check_values(part)
    if isinstance(part.labels[0], str):
        names = tuple(sorted(set(part.labels)))
        if len(names) < 2:
            raise BadDataError("task.data.label_column", f"{part.name} has one class only, {names[0]!r}")
        codes = {name: code for code, name in enumerate(names)}
        return names, np.array([codes[label] for label in part.labels], dtype=np.int64)
    labels = np.array(part.labels, dtype=np.int64)
    names = part.names or tuple(str(label) for label in range(max(2, int(labels.max()) + 1)))
    check_labels("task.data.label_column", labels, len(names))
    return names, labels


def _same_classes(part: _Part, names: tuple[str, ...]) -> Encoded:
    _check_values(part)
    codes = {name: code for code, name in enumerate(names)}
    labels = [codes.get(label, -1) if isinstance(label, str) else int(label) for label in part.labels]
    if -1 in labels:
        row = labels.index(-1)
        raise BadDataError(
            "task.data.label_column",
            f"row {row} of {part.name}: class {part.labels[row]!r} is not in the training images",
        )
    found = np.array(labels, dtype=np.int64)
    check_labels("task.data.label_column", found, len(names))
    return Encoded(part.name, part.images, np.arange(len(found)), found, part.root)


def _check_values(part: _Part) -> None:
    if not len(part.labels):
        raise BadDataError("task.data.path", f"{part.name} has no rows")
    kind = str if isinstance(part.labels[0], str) else int
    for row, label in enumerate(part.labels):
        if not isinstance(label, kind):
            raise BadDataError(
                "task.data.label_column", f"row {row} of {part.name} has label {label!r}; labels are integers or texts"
            )
        if isinstance(label, int) and label > 1_000_000:
            raise BadDataError("task.data.label_column", f"row {row} of {part.name} has label {label}; too large")
