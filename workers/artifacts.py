"""Artifacts of a job: files in which its task shows what the model does, a folder for each step after which it was asked.

    artifacts/step-0000000100/samples.txt

A step's folder appears whole. When the step is done again (another attempt, a group that lost a worker) its files are replaced one by one.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

MOST_FILES = 64  # of one step
MOST_BYTES = 32 << 20  # of one file
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")  # safe as a file, in an address, a header and a terminal
STEP = re.compile(r"step-([0-9]{10})")
MEDIA_TYPES: Mapping[
    str, str
] = {  # not the machine's table: what a browser is told must not depend on where the API runs
    ".txt": "text/plain; charset=utf-8",
    ".csv": "text/csv; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".pdb": "chemical/x-pdb",
    ".cif": "chemical/x-mmcif",
}
OTHER_TYPE = "application/octet-stream"


class ArtifactError(ValueError):
    """A task gave files that cannot be kept."""


@dataclass(frozen=True)
class Artifact:
    step: int
    name: str
    bytes: int
    created_at: float  # seconds since the epoch

    @property
    def path(self) -> str:
        """Relative to the job's artifacts."""
        return f"{folder_name(self.step)}/{self.name}"

    @property
    def media_type(self) -> str:
        return MEDIA_TYPES.get(PurePosixPath(self.name).suffix, OTHER_TYPE)


def write(folder: Path, step: int, files: Mapping[str, bytes]) -> None:
    """Keeps ``files`` (name -> content) as those of ``step``. Raises ArtifactError, OSError; then what was there before still is."""
    check(files)
    target, partial = folder / folder_name(step), folder / f".{folder_name(step)}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # of a writer that was killed
    partial.mkdir(parents=True)
    try:
        for name, content in files.items():
            (partial / name).write_bytes(content)
        if target.exists():
            _replace(target, partial)
        else:
            partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check(files: Mapping[str, bytes]) -> None:
    """Raises ArtifactError that names the file and what is allowed."""
    if len(files) > MOST_FILES:
        raise ArtifactError(f"{len(files)} files for one step; at most {MOST_FILES} are allowed")
    for name, content in files.items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ArtifactError(
                f"file name {name!r}: letters, digits and . _ + - are allowed, at most 128, with a letter or a digit first; no folders"
            )
        if not isinstance(content, bytes):
            raise ArtifactError(f"{name}: the content must be bytes, not {type(content).__name__}")
        if len(content) > MOST_BYTES:
            raise ArtifactError(f"{name}: {len(content):,} bytes; at most {MOST_BYTES:,} are allowed")


def steps(folder: Path) -> list[int]:
    """Steps that have artifacts, in order."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return sorted(int(match[1]) for name in names if (match := STEP.fullmatch(name)))


def of_step(folder: Path, step: int) -> list[Artifact]:
    """By name; empty when there are none."""
    found = []
    try:
        for entry in os.scandir(folder / folder_name(step)):
            if NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                facts = entry.stat()
                found.append(Artifact(step, entry.name, facts.st_size, facts.st_mtime))
    except FileNotFoundError:
        return []
    return sorted(found, key=lambda artifact: artifact.name)


def every(folder: Path, *, newest_first: bool = False, step: int | None = None) -> Iterator[Artifact]:
    """All of them (those of one ``step`` only, when given), step by step; within a step by name. With the newest first both are backwards."""
    chosen = sorted(steps(folder), reverse=newest_first) if step is None else [step]
    for step in chosen:
        yield from sorted(of_step(folder, step), key=lambda artifact: artifact.name, reverse=newest_first)


def parse_path(path: str) -> tuple[int, str] | None:
    """(step, name) of an artifact's path; None for anything that can be none."""
    folder, _, name = path.partition("/")
    match = STEP.fullmatch(folder)
    return (int(match[1]), name) if match and NAME.fullmatch(name) else None


def folder_name(step: int) -> str:
    return f"step-{step:010d}"


def _replace(target: Path, partial: Path) -> None:
    names = os.listdir(partial)
    for name in names:
        (partial / name).replace(target / name)
    for name in set(os.listdir(target)) - set(names):
        (target / name).unlink()
