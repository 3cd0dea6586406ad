"""Bundles of code for uploads: from a folder, or from a revision of a git repository."""

from __future__ import annotations

import os
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workers.bundles import LEFT_OUT, MAX_BYTES, MAX_ENTRIES

GIT_SECONDS = 600
EPOCH = (1980, 1, 1, 0, 0, 0)  # of every entry: the same files make the same bundle


class PackingError(ValueError):
    """A folder or repository that cannot be made a bundle; ``str()`` is for people."""


@contextmanager
def packed(folder: Path, name: str | None = None) -> Iterator[Path]:
    """A temporary zip of what is in ``folder``, without caches, environments and results (``LEFT_OUT``). Raises PackingError."""
    if not folder.is_dir():
        raise PackingError(f"{folder} is no folder")
    with tempfile.TemporaryDirectory(prefix="chainrule-") as place:
        bundle = Path(place) / f"{name or folder.resolve().name or 'code'}.zip"
        with zipfile.ZipFile(bundle, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in _files(folder):
                info = zipfile.ZipInfo(file.relative_to(folder).as_posix(), EPOCH)
                info.compress_type = zipfile.ZIP_DEFLATED
                info.external_attr = (0o100755 if os.access(file, os.X_OK) else 0o100644) << 16
                archive.writestr(info, file.read_bytes())
        yield bundle


@contextmanager
def cloned(url: str) -> Iterator[tuple[Path, str]]:
    """(folder, name) of what ``git+https://host/repository@revision`` has at that revision. Raises PackingError."""
    address, revision = split_git_url(url)
    with tempfile.TemporaryDirectory(prefix="chainrule-") as place:
        folder = Path(place) / "repository"
        _git("clone", "--quiet", "--no-checkout", "--", address, str(folder))
        if revision is not None:
            _git("-C", str(folder), "checkout", "--quiet", "--detach", revision)
        else:
            _git("-C", str(folder), "checkout", "--quiet")
        commit = _git("-C", str(folder), "rev-parse", "HEAD").strip()
        repository = address.rstrip("/").rpartition("/")[2].removesuffix(".git") or "repository"
        yield folder, f"{repository}-{commit[:12]}"


def split_git_url(url: str) -> tuple[str, str | None]:
    """Address and revision; git's own words for it. The user's name in an address has an @ too, but no / comes after a revision's."""
    address, at, revision = url.removeprefix("git+").rpartition("@")
    if not at or "/" not in address.partition("://")[2]:
        return url.removeprefix("git+"), None
    if not revision or revision.startswith("-"):
        raise PackingError(f"{url!r} has no revision after its @")
    return address, revision


def _git(*arguments: str) -> str:
    environment = os.environ | {"GIT_TERMINAL_PROMPT": "0"}
    try:
        run = subprocess.run(
            ["git", *arguments],
            capture_output=True,
            text=True,
            timeout=GIT_SECONDS,
            check=False,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError as error:
        raise PackingError("there is no program git, which fetches code from git addresses") from error
    except subprocess.TimeoutExpired as error:
        raise PackingError(f"git did not come to an end in {GIT_SECONDS} s") from error
    if run.returncode != 0:
        said = run.stderr.strip().splitlines()
        raise PackingError(f"git: {said[-1] if said else f'exit code {run.returncode}'}")
    return run.stdout


def _files(folder: Path) -> Iterator[Path]:
    """In order of names. Links to files within the folder count as files; raises PackingError for others, and for too much."""
    count = size = 0
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in LEFT_OUT)
        if linked := [name for name in folders if os.path.islink(os.path.join(parent, name))]:
            raise PackingError(f"{os.path.join(parent, linked[0])} is a link to a folder, which a bundle cannot have")
        for file in sorted(Path(parent) / name for name in names if not name.endswith(".pyc")):
            if not file.is_file() or not file.resolve().is_relative_to(folder.resolve()):
                raise PackingError(f"{file} is no file of this folder (a link out of it, a socket or a pipe)")
            count, size = count + 1, size + file.stat().st_size
            if count > MAX_ENTRIES or size > MAX_BYTES:
                raise PackingError(
                    f"{folder} has more than {MAX_ENTRIES} files or {MAX_BYTES >> 20} MiB; name a smaller folder as the code, and "
                    "read data by a path of its own"
                )
            yield file
    if not count:
        raise PackingError(f"{folder} has no files")
