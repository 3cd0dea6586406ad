"""Labelled images: in arrays, in folders, in columns."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.data_checks import duplicates, labels
from workers.data_checks.duplicates import Contents
from workers.data_checks.report import NAMED, Clock, Report, counted, empty_samples, finding, listed, looked_at, sampled
from workers.kinds.hub import is_folder
from workers.kinds.image_data import DigitsData, FolderData, HuggingFaceData, NpzData, ParquetData
from workers.kinds.images import ImageClassificationTask
from workers.sources import arrays, encoded, folders
from workers.sources.problems import BadDataError
from workers.watch.findings import Finding

BLANK = 0.1  # share of images without any content from which on it is a warning
OTHER_SCALE = 20.0  # ratio of deviations of two parts that no drift explains
HASHING = 0.4  # share of the time for comparing files, before they are decoded
AT_ONCE = 4096  # images


@dataclass
class Part:
    labels: NDArray[np.int64]
    contents: Contents
    blank: list[int]  # rows
    seen: int  # images whose pixels were looked at


@dataclass(frozen=True)
class Files:
    """Encoded images of a part, from whatever source."""

    labels: NDArray[np.int64]
    name: Callable[[int], str]
    content: Callable[[int], bytes]
    decode: Callable[[int], NDArray[np.uint8]]


def check(task: ImageClassificationTask, clock: Clock, used: int | None) -> Report:
    """``used``: samples that the run trains on, epoch after epoch; None: at least all. Raises BadDataError for what cannot be used."""
    data = task.data
    if isinstance(data, HuggingFaceData) and not is_folder(data.path):
        return Report(unchecked="the data set is fetched by the workers")
    if isinstance(data, FolderData | ParquetData | HuggingFaceData):
        names, files = _files(data)
        return _check_files(task, names, files, clock, used)
    if isinstance(data, DigitsData):
        images = arrays.read_digits(data)
    else:
        images = arrays.read_npz(data) if isinstance(data, NpzData) else arrays.read_idx(data)
    return _check_arrays(task, images, clock)


# --- in memory --------------------------------------------------------------------------------------------------------


def _check_arrays(task: ImageClassificationTask, images: arrays.ImageArrays, clock: Clock) -> Report:
    arrays_of = {"training": images.train, "evaluation": images.evaluation, "test": images.test}
    there = {part: found for part, found in arrays_of.items() if found is not None}
    parts = {}
    for part in reversed(list(there)):  # what is held out first: it is smaller, and all of it is compared
        found = there[part]
        name = duplicates.namer(part, "image", found.rows)
        contents = duplicates.contents_of(found.pixels, name, sampled(len(found.pixels), clock))
        parts[part] = Part(found.labels, contents, _blank_rows(found.pixels), len(found.pixels))
    parts = {part: parts[part] for part in there}
    others = {part: found.pixels for part, found in there.items() if part != "training"}
    findings = _other_scale(images.train.pixels, others)
    report = _report(task, parts, images.class_names, images.train.pixels.shape[1:], findings)
    return replace(report, unchecked=duplicates.partly([part.contents for part in parts.values()], "images"))


def _blank_rows(pixels: NDArray[Any]) -> list[int]:
    found: list[int] = []
    for start in range(0, len(pixels), AT_ONCE):
        flat = pixels[start : start + AT_ONCE].reshape(len(pixels[start : start + AT_ONCE]), -1)
        found += (start + np.flatnonzero(flat.min(axis=1) == flat.max(axis=1))).tolist()
    return found


def _other_scale(train: NDArray[Any], held_out: Mapping[str, NDArray[Any]]) -> list[Finding]:
    """Such as 0-255 in one part and 0-1 in the other; integers are all in 0-255."""
    if train.dtype == np.uint8:
        return []
    found, ours = [], _spread(train)
    for part, pixels in held_out.items():
        theirs = _spread(pixels)
        if min(ours, theirs) == 0 or max(ours, theirs) / min(ours, theirs) < OTHER_SCALE:
            continue
        found.append(
            finding(
                "split_mismatch",
                "warning",
                {"part": part, "training_deviation": ours, "deviation": theirs},
                f"Training pixels have a standard deviation of {ours:.3g}, those of the {part} of {theirs:.3g}: they are on "
                f"different scales. "
                "Pixels are standardised with the training part's figures, so the model is asked about pictures unlike any that it "
                "was taught with.",
                "Write both parts with the same scale, 0-255 as uint8 or 0-1 as floats.",
            )
        )
    return found


def _spread(pixels: NDArray[Any]) -> float:
    return float(pixels[:: -(-len(pixels) // AT_ONCE)].std(dtype=np.float64))


# --- files ------------------------------------------------------------------------------------------------------------


def _files(data: FolderData | ParquetData | HuggingFaceData) -> tuple[tuple[str, ...], dict[str, Files]]:
    if isinstance(data, FolderData):
        found = folders.read_folder(data)
        parts = {"training": found.train, "evaluation": found.evaluation}
        return found.class_names, {part: _of_folder(files, data) for part, files in parts.items()}
    images = encoded.read_parquet(data) if isinstance(data, ParquetData) else encoded.read_huggingface(data)
    columns = {"training": images.train, "evaluation": images.evaluation, "test": images.test}
    return images.class_names, {p: _of_column(column, data) for p, column in columns.items() if column is not None}


def _of_folder(files: folders.ImageFiles, data: FolderData) -> Files:
    paths = files.paths

    def decode(row: int) -> NDArray[np.uint8]:
        return folders.decode(paths[row], data.image_size, data.channels)

    return Files(files.labels, lambda row: str(paths[row]), lambda row: _bytes_of(paths[row]), decode)


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadDataError("task.data.path", f"image {path} cannot be read: {error.strerror}") from error


def _of_column(column: encoded.Encoded, data: ParquetData | HuggingFaceData) -> Files:
    def stream(row: int) -> io.BytesIO:
        return column.stream(int(column.rows[row]))

    return Files(
        column.labels,
        lambda row: f"row {int(column.rows[row])} of {column.name}",
        lambda row: stream(row).getvalue(),
        lambda row: column.decode(row, data.image_size, data.channels),
    )


def _check_files(
    task: ImageClassificationTask, names: tuple[str, ...], files: Mapping[str, Files], clock: Clock, used: int | None
) -> Report:
    parts: dict[str, Part] = {}
    broken: dict[str, dict[int, str]] = {part: {} for part in files}
    hashing = clock.share(HASHING)
    for part in reversed(list(files)):
        found = files[part]
        parts[part] = Part(found.labels, Contents(len(found.labels), found.name), [], 0)
        for row in sampled(len(found.labels), hashing):
            try:
                parts[part].contents.add(row, found.content(row))
            except BadDataError as error:
                broken[part][row] = error.message
    parts = {part: parts[part] for part in files}
    order = [(part, row) for part in files for row in range(len(files[part].labels))]
    seen, shape = 0, None
    for index in sampled(len(order), clock):
        part, row = order[index]
        seen += 1
        try:
            pixels = files[part].decode(row)
        except BadDataError as error:
            broken[part][row] = error.message
            continue
        shape = pixels.shape
        parts[part].seen += 1
        if pixels.min() == pixels.max():
            parts[part].blank.append(row)
    certain = used is None or used >= len(files["training"].labels)
    undecodable = _undecodable(broken, seen, len(order), certain=certain)
    report = _report(task, parts, names, shape or (), undecodable)
    return replace(report, unchecked=looked_at(seen, len(order), "images"))


def _undecodable(broken: Mapping[str, Mapping[int, str]], seen: int, total: int, *, certain: bool) -> list[Finding]:
    """Raises BadDataError where the run is bound to meet one of them, and would end there."""
    said = [messages[row] for messages in broken.values() for row in sorted(messages)]
    if not said:
        return []
    what = f"{len(said):,} of {seen:,} images{'' if seen >= total else ' looked at'}"
    held_out = any(messages for part, messages in broken.items() if part != "training")
    if certain or held_out or len(said) >= seen:
        few = "; ".join(said[:NAMED]) + (f"; and {len(said) - NAMED:,} more" if len(said) > NAMED else "")
        raise BadDataError("task.data.path", f"{what} cannot be used: {few}. Remove or replace them")
    return [
        finding(
            "undecodable_samples",
            "critical",
            {"count": len(said), "looked_at": seen, "examples": said[:NAMED]},
            f"{what} cannot be decoded: {listed(said)}. Training ends as soon as it comes across one of them.",
            "Remove these files, or write them anew.",
        )
    ]


# --- what all of them have in common ----------------------------------------------------------------------------------


def _report(
    task: ImageClassificationTask,
    parts: Mapping[str, Part],
    names: tuple[str, ...],
    shape: tuple[int, ...],
    findings: list[Finding],
) -> Report:
    train, held_out = parts["training"], {part: found for part, found in parts.items() if part != "training"}
    counts = {part: len(found.labels) for part, found in parts.items()}
    others = {part: found.contents for part, found in held_out.items()}
    distinct = train.contents.without(train.blank)  # of these it is said already that they are alike
    weighted = task.class_weights is not None
    findings = [
        *findings,
        *labels.classes(train.labels, {p: found.labels for p, found in held_out.items()}, names, weighted=weighted),
        *chain.from_iterable(_blank(part, found) for part, found in parts.items()),
        *duplicates.overlaps(train.contents, others, "images"),
        *duplicates.contradictions(distinct, train.labels.tolist(), names, "images"),
        *duplicates.repeats(distinct, "images"),
        *labels.few_to_evaluate({part: counts[part] for part in held_out}, "images"),
    ]
    summary = {
        "samples": counts,
        "shape": list(shape),
        "classes": len(names),
        "class_counts": {part: labels.class_counts(found.labels, names) for part, found in parts.items()},
    }
    size = " x ".join(map(str, shape))
    said = ", ".join(f"{count:,} for {part}" for part, count in counts.items())
    return Report(
        f"Images: {said}; {counted(len(names), 'class', 'classes')}{f'; {size}' if size else ''}.", summary, findings
    )


def _blank(part: str, images: Part) -> list[Finding]:
    return empty_samples(
        part,
        [images.contents.name(row) for row in sorted(images.blank)],
        images.seen,
        "images",
        BLANK,
        lack="have one value everywhere",
        meaning="There is nothing to see in them: their labels cannot be told from their pixels, so they only teach how frequent labels are.",
        suggestion="Remove them, or look at how they were written: blank images often come from a failed export.",
    )
