"""Folders of image files, one folder a class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from workers.kinds.image_data import FolderData
from workers.sources.arrays import stratified_holdout
from workers.sources.problems import BadDataError

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"})
EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"})
FIELD = "task.data.path"
MAX_PIXELS = 100_000_000  # more is refused: a small file may decode to gigabytes


@dataclass(frozen=True)
class ImageFiles:
    paths: tuple[Path, ...]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class FolderImages:
    train: ImageFiles
    evaluation: ImageFiles
    class_names: tuple[str, ...]


def read_folder(data: FolderData) -> FolderImages:
    """The files by name only; nothing is decoded."""
    class_names, train = _scan("task.data.path", data.path, None)
    if data.evaluation_path is not None:
        _, evaluation = _scan("task.data.evaluation_path", data.evaluation_path, class_names)
        return FolderImages(train, evaluation, class_names)
    size = round(len(train.paths) * data.holdout)
    if not 0 < size < len(train.paths):
        raise BadDataError(
            "task.data.holdout", f"{data.holdout} of {len(train.paths)} images leaves a part without any"
        )
    held_out = stratified_holdout(train.labels, size)
    return FolderImages(_part(train, ~held_out), _part(train, held_out), class_names)


def _part(files: ImageFiles, mask: NDArray[np.bool_]) -> ImageFiles:
    return ImageFiles(tuple(path for path, taken in zip(files.paths, mask, strict=True) if taken), files.labels[mask])


def _scan(field: str, root: str, known: tuple[str, ...] | None) -> tuple[tuple[str, ...], ImageFiles]:
    top = Path(root)
    if not os.path.isdir(top):
        raise BadDataError(field, f"there is no folder {root}")
    folders = sorted(entry for entry in top.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    names = known or tuple(folder.name for folder in folders)
    if len(names) < 2:
        raise BadDataError(field, f"{root} must have a folder for each class, at least 2; it has {len(names)}")
    paths, labels = [], []
    for folder in folders:
        if folder.name not in names:
            raise BadDataError(field, f"class {folder.name!r} is not among the training classes: {', '.join(names)}")
        _stay_inside(field, top, [folder])  # before it is searched: a link may lead anywhere
        found = [file for file in sorted(folder.rglob("*")) if is_image(file) and not _hidden(file.relative_to(folder))]
        if not found and known is None:
            raise BadDataError(field, f"class folder {folder} has no image ({', '.join(sorted(EXTENSIONS))})")
        _stay_inside(field, top, found)
        paths += found
        labels += [names.index(folder.name)] * len(found)
    if not paths:
        raise BadDataError(field, f"there is no image in {root}")
    return names, ImageFiles(tuple(paths), np.array(labels, dtype=np.int64))


def is_image(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and path.is_file()


def _hidden(path: Path) -> bool:
    """Such as .ipynb_checkpoints, which holds copies."""
    return any(part.startswith(".") for part in path.parts)


def _stay_inside(field: str, top: Path, files: list[Path]) -> None:
    root = os.path.realpath(top) + os.sep
    for file in files:
        if file.is_symlink() and not os.path.realpath(file).startswith(root):
            raise BadDataError(field, f"{file} is a link to a place outside of {top}")


def decode(path: Path | BinaryIO, size: int, channels: int, name: str | None = None) -> NDArray[np.uint8]:
    """The image as (size, size, channels) uint8. Raises BadDataError that gives its ``name``, by default its path."""
    from PIL import Image

    name = name or str(path)
    with _named_problems(name, "decoded"), Image.open(path) as image:
        if image.width * image.height > MAX_PIXELS:
            raise BadDataError(
                FIELD, f"{name} has {image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are allowed"
            )
        _check_mode(image.mode, name)  # converting would cut values off, not scale them
        picture = image.convert("RGB" if channels == 3 else "L").resize((size, size), Image.Resampling.BILINEAR)
        pixels: NDArray[Any] = np.asarray(picture, dtype=np.uint8)
    return pixels.reshape(size, size, channels)


def check_header(path: Path | BinaryIO, name: str | None = None) -> None:
    """A quick look: format and structure, without decoding. Raises BadDataError that gives its name."""
    from PIL import Image

    name = name or str(path)
    with _named_problems(name, "read"), Image.open(path) as image:
        _check_mode(image.mode, name)
        image.verify()


def _check_mode(mode: str, name: str) -> None:
    if mode not in EIGHT_BIT_MODES:
        raise BadDataError(FIELD, f"{name} has pixels of mode {mode}; only 8 bits a channel are read")


@contextmanager
def _named_problems(name: str, what: str) -> Iterator[None]:
    """Whatever Pillow raises for bytes that are no image."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except BadDataError:
        raise
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadDataError(FIELD, f"image {name} cannot be {what}: {error}") from error
