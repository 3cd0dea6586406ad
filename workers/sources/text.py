"""UTF-8 text files."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from workers.kinds.language import TextData
from workers.sources.problems import BadDataError

MAX_LINE = 64 << 20  # bytes; a file without line ends must not fill the memory of who looks at it
SUFFIXES = (".txt", ".md")


@dataclass(frozen=True)
class Texts:
    """The texts of each part, in order: one a file, the held-out part of a file one more."""

    train: tuple[str, ...]
    evaluation: tuple[str, ...]


def read_texts(data: TextData) -> Texts:
    """Without an ``evaluation_path`` the last ``holdout`` of all characters is held out, from one place to the end."""
    train = tuple(map(read_text, text_files("task.data.path", data.path)))
    if data.evaluation_path is not None:
        files = text_files("task.data.evaluation_path", data.evaluation_path)
        return Texts(train, tuple(map(read_text, files)))
    return split(train, data.holdout)


def split(texts: tuple[str, ...], holdout: float) -> Texts:
    left = math.floor(sum(map(len, texts)) * (1 - holdout))
    train, evaluation = [], []
    for text in texts:
        first, second = text[:left], text[left:]
        left -= len(first)
        train += [first] if first else []
        evaluation += [second] if second else []
    return Texts(tuple(train), tuple(evaluation))


def text_files(field: str, path: str) -> list[Path]:
    """The file, or those of the folder in the order of their names. Raises BadDataError when there is none."""
    top = Path(path)
    if top.is_file():
        return [top]
    if not top.is_dir():
        raise BadDataError(field, f"there is no file or folder {path}")
    root = os.path.realpath(top) + os.sep
    found = [
        file
        for file in sorted(top.rglob("*"))
        if file.suffix.lower() in SUFFIXES
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(top).parts)
    ]
    for file in found:
        if not os.path.realpath(file).startswith(root):
            raise BadDataError(field, f"{file} is a link to a place outside of {path}")
    if not found:
        raise BadDataError(field, f"there is no text file in {path} ({', '.join(SUFFIXES)})")
    return found


def read_text(path: Path) -> str:
    """Raises BadDataError that names file and byte where it is not UTF-8, or empty."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadDataError("task.data.path", f"{path} cannot be read: {error.strerror}") from error
    text = decoded(content, path)
    if not text.strip():
        raise BadDataError("task.data.path", f"{path} is empty")
    return text


def decoded(content: bytes, path: Path, offset: int = 0) -> str:
    """``offset``: where ``content`` begins in the file."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = offset + error.start
        raise BadDataError(
            "task.data.path",
            f"{path} is not UTF-8: byte 0x{content[error.start]:02x} at offset {byte}; save it as UTF-8",
        ) from error
    return text.removeprefix("\ufeff") if offset == 0 else text


def lines(stream: BinaryIO, path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of the lines of a file that are not blank."""
    offset, number = 0, 0
    while line := stream.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise BadDataError("task.data.path", f"line {number} of {path} is longer than {MAX_LINE:,} bytes")
        text = decoded(line, path, offset)
        if text.strip():
            yield number, text
        offset += len(line)
