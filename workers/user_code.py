"""Code of the user's own on a worker: fetched, unpacked, with what it requires installed, and importable."""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from workers import requirements
from workers.bundles import BundleError, unpack
from workers.kinds.code import Code
from workers.sources.problems import BadCodeError, BadDataError

UNPACKED = re.compile(r"[0-9a-f]{64}")  # the bundle's digest


@dataclass(frozen=True)
class UserCode:
    """``search``: where its modules are looked for, first things first; the last may be what pip installed for it."""

    folder: Path
    search: tuple[Path, ...]

    def make_importable(self) -> None:
        """For the rest of this process, before everything else that is installed."""
        known = set(sys.path)
        sys.path[:0] = [str(path) for path in self.search if str(path) not in known]
        importlib.invalidate_caches()

    def place_of(self, error: BaseException) -> str:
        """'train.py line 3: ' for the last line of the code that ``error`` has passed; empty when it passed none."""
        if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_relative_to(self.folder):
            return f"{Path(error.filename).relative_to(self.folder)} line {error.lineno}: "
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            if Path(frame.filename).is_relative_to(self.folder):
                return f"{Path(frame.filename).relative_to(self.folder)} line {frame.lineno}: "
        return ""

    @contextlib.contextmanager
    def blamed(self, field: str, doing: str) -> Iterator[None]:
        """What the code raises meanwhile becomes a BadCodeError of ``field`` that names file and line. Problems with data stay what they are."""
        try:
            yield
        except (BadDataError, KeyboardInterrupt):
            raise
        except BaseException as error:  # sys.exit() too
            from workers.memory import is_out_of_memory  # with torch, which the code's own imports bring anyway

            if is_out_of_memory(error):
                raise
            said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise BadCodeError(field, f"{doing} failed: {self.place_of(error)}{said}") from error


def provide(code: Code, bundle: str | Path | None, place: Path) -> UserCode:
    """The code on this machine. ``bundle``: the file that ``code.file`` names; ``place``: a folder for what is made of it, which workers of the
    job may share. Raises BadCodeError."""
    return _made_of(_folder(code, Path(bundle) if bundle is not None else None, place), code, place)


def provided(code: Code, place: Path) -> UserCode:
    """What ``provide`` has made in ``place`` of a bundle that is not at hand any more. Raises BadCodeError."""
    found = [folder for folder in sorted(place.glob("*")) if folder.is_dir() and UNPACKED.fullmatch(folder.name)]
    if len(found) != 1:
        raise BadCodeError("task.code", f"the code is not unpacked in {place}; give its bundle")
    return _made_of(found[0].resolve(), code, place)


def _made_of(folder: Path, code: Code, place: Path) -> UserCode:
    inner = [folder / name for name in code.python_path]
    if missing := [str(path.relative_to(folder)) for path in inner if not path.is_dir()]:
        raise BadCodeError("task.code.python_path", f"the code has no folder {missing[0]}")
    packages = [requirements.install(code.requirements, place)] if code.requirements else []
    return UserCode(folder, (folder, *inner, *packages))


def _folder(code: Code, bundle: Path | None, place: Path) -> Path:
    if code.path is not None:
        if not Path(code.path).is_dir():
            raise BadCodeError("task.code.path", f"there is no folder {code.path} on this machine")
        return Path(code.path).resolve()
    if bundle is None:
        field = "file" if code.file is not None else "git"
        raise BadCodeError(f"task.code.{field}", "needs the service; without it, give the code's folder as path")
    try:
        return unpack(bundle, place).resolve()
    except BundleError as error:
        raise BadCodeError("task.code.file", f"the bundle {error}") from error
