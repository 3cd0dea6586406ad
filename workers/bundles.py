"""Bundles of code: zip and tar files from strangers. They are read with bounds, unpacked once, and made from folders.

Nothing is written outside the target folder, and nothing but plain files and folders is written at all. Bounds hold while reading: what an
archive says of its own sizes is not believed. Standard library only: the API looks into bundles too.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import secrets
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

# Folders that are no part of anybody's code: caches, environments, results.
LEFT_OUT = frozenset(
    {".git", ".hg", ".svn", "__pycache__", ".venv", "venv", "node_modules", ".mypy_cache", ".ruff_cache", ".pytest_cache",
     ".ipynb_checkpoints", ".chainrule", "outputs", "mlruns"}
)  # fmt: skip
MAX_ENTRIES = 20_000
MAX_BYTES = 1 << 30  # unpacked
MAX_ZIP_DIRECTORY_BYTES = 8 << 20  # zipfile holds all of it in memory
MAX_TAR_HEADER_BYTES = 1 << 20  # so does tarfile with long names
MAX_NAME = 1000
CHUNK_BYTES = 1 << 20
BROKEN = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError),
    *(NotImplementedError, UnicodeError, OverflowError),
)  # what the readers raise for archives that are damaged, or made by means that they do not know


class BundleError(ValueError):
    """An archive that is not taken; the message names the entry."""


class Readable(Protocol):
    def read(self, size: int = ..., /) -> bytes: ...


@dataclass(frozen=True)
class Entry:
    """A file or a folder. ``stream`` may be read until the next entry is asked for."""

    name: str  # relative, without "." and ".."
    stream: Readable | None  # None: a folder
    executable: bool = False


def sha256_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# --- reading ----------------------------------------------------------------------------------------------------------


def unpack(archive: Path, into: Path) -> Path:
    """The folder ``into/<SHA-256 of the archive>`` with what is in the archive.

    Any number of processes may ask at once: the folder appears with all that is in it. Raises BundleError.
    """
    target = into / sha256_of(archive)
    if target.is_dir():
        return target
    partial = into / f"{target.name}.{secrets.token_hex(6)}.partial"
    try:
        partial.mkdir(parents=True)
        for entry in entries(archive):
            _write(entry, partial / entry.name)
        try:
            partial.rename(target)
        except OSError:
            if not target.is_dir():  # else somebody else was quicker
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def check(archive: Path) -> None:
    """Reads all of it. Raises BundleError for what ``unpack`` would not take."""
    for entry in entries(archive):
        if entry.stream is not None:
            while entry.stream.read(CHUNK_BYTES):
                pass


def read_texts(archive: Path, wanted: Callable[[str], bool], max_bytes: int = 1 << 20) -> dict[str, bytes]:
    """The beginning, up to ``max_bytes``, of each file whose name is ``wanted``; b"" for all others. Raises BundleError."""
    return {
        entry.name: entry.stream.read(max_bytes) if wanted(entry.name) else b""
        for entry in entries(archive)
        if entry.stream is not None
    }


def entries(archive: Path) -> Iterator[Entry]:
    """What is in a zip or a tar (also compressed), in its order. Raises BundleError for the first thing that is not taken."""
    files, folders = set[str](), set[str]()
    try:
        with archive.open("rb") as stream:
            found = _zip_entries(stream) if stream.read(4).startswith(b"PK") else _tar_entries(archive)
            for entry in found:
                if len(files) + len(folders) >= MAX_ENTRIES:
                    raise BundleError(f"has more than {MAX_ENTRIES} entries")
                above = [str(parent) for parent in PurePosixPath(entry.name).parents][:-1]
                if entry.name in files or not files.isdisjoint(above) or (entry.stream and entry.name in folders):
                    raise BundleError(f"entry {shown(entry.name)} is there twice, or is a file and a folder")
                folders.update(above)
                (files if entry.stream else folders).add(entry.name)
                yield entry
    except BROKEN as error:
        raise _broken(error) from error
    if not files:
        raise BundleError("is empty")


def shown(name: str) -> str:
    return ascii(name if len(name) <= 100 else f"{name[:100]}...")


def _write(entry: Entry, path: Path) -> None:
    if entry.stream is None:
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        while content := entry.stream.read(CHUNK_BYTES):
            file.write(content)
    if entry.executable:
        path.chmod(0o755)


def _zip_entries(stream: IO[bytes]) -> Iterator[Entry]:
    _check_zip_directory(stream)
    budget = _Budget()
    with zipfile.ZipFile(stream) as archive:
        for info in archive.infolist():
            name, mode = _safe_name(info.filename), info.external_attr >> 16
            if info.flag_bits & 1:
                raise BundleError(f"entry {shown(info.filename)} is encrypted")
            if mode and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_IFMT(mode) == 0):
                raise _no_file(info.filename)
            if name is None:
                continue
            if info.is_dir():
                yield Entry(name, None)
                continue
            with archive.open(info) as content:
                yield Entry(name, _Bounded(content, budget), bool(mode & 0o100))


def _check_zip_directory(stream: IO[bytes]) -> None:
    """zipfile reads the whole directory into memory, and as much as the archive's last record tells it to."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - 65557 - 20))
    tail = stream.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) < at + 22:
        raise BundleError("is no readable zip file: its end is missing")
    if tail[max(0, at - 20) : at].startswith(b"PK\x06\x07"):
        raise BundleError(
            "is a zip64 file, for archives that are larger than a bundle may be; use a plain zip, or a tar"
        )
    if int.from_bytes(tail[at + 12 : at + 16], "little") > MAX_ZIP_DIRECTORY_BYTES:
        raise BundleError(f"has more than {MAX_ENTRIES} entries")
    stream.seek(0)


class _PlainTarInfo(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _PlainTarInfo:
        found = super().frombuf(buf, encoding, errors)
        if not (found.isfile() or found.isdir()) and found.size > MAX_TAR_HEADER_BYTES:
            raise BundleError(f"has a header of {found.size} bytes; at most {MAX_TAR_HEADER_BYTES} are read")
        return found


def _tar_entries(path: Path) -> Iterator[Entry]:
    with _decompressed(path) as stream:
        bounded: Any = _Bounded(stream, _Budget(MAX_ENTRIES * 2048))  # its headers are counted too
        with tarfile.open(fileobj=bounded, mode="r|", tarinfo=_PlainTarInfo) as archive:
            for info in archive:
                name = _safe_name(info.name)
                if info.issparse() or not (info.isfile() or info.isdir()):
                    raise _no_file(info.name)
                if name is None:
                    continue
                content = None if info.isdir() else archive.extractfile(info)
                yield Entry(name, _Bounded(content, _Budget()) if content else None, bool(info.mode & 0o100))


@contextmanager
def _decompressed(path: Path) -> Iterator[IO[bytes]]:
    with path.open("rb") as stream:
        magic = stream.read(6)
    opener: Any
    if magic.startswith(b"\x1f\x8b"):
        opener = gzip.open
    elif magic.startswith(b"BZh"):
        opener = bz2.open
    elif magic.startswith(b"\xfd7zXZ\x00"):
        opener = lzma.open
    elif magic.startswith(b"\x28\xb5\x2f\xfd"):
        opener = _zstd_opener()
    else:
        opener = open
    with opener(path, "rb") as found:
        yield found


def _zstd_opener() -> Any:
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]  # since Python 3.14
    except ImportError:
        raise BundleError("is compressed with zstd, which this Python cannot read; use zip or tar.gz") from None
    return zstd.open


def _safe_name(name: str) -> str | None:
    """None: the top folder itself."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or (path.parts and path.parts[0].endswith(":")):
        raise BundleError(f"entry {shown(name)} leads out of the bundle; names must be relative, without '..'")
    if "\\" in name or not name.isprintable():
        raise BundleError(f"entry {shown(name)} has a backslash or a control character in its name")
    if len(name) > MAX_NAME or any(len(part.encode()) > 255 for part in path.parts):
        raise BundleError(f"entry {shown(name)} has a name that is too long")
    return str(path) if path.parts else None


def _broken(error: BaseException) -> BundleError:
    return BundleError(f"is no readable zip or tar file: {str(error) or type(error).__name__}")


def _no_file(name: str) -> BundleError:
    return BundleError(
        f"entry {shown(name)} is neither a file nor a folder; links and devices are not taken (pack what they lead to, "
        "as `tar --dereference --hard-dereference` does)"
    )


class _Budget:
    def __init__(self, more: int = 0) -> None:
        self.left = MAX_BYTES + more

    def spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise BundleError(f"is larger than {MAX_BYTES >> 20} MiB when unpacked")


class _Bounded:
    """Reads ``stream`` while the budget lasts."""

    def __init__(self, stream: Readable, budget: _Budget) -> None:
        self._stream, self._budget = stream, budget

    def read(self, size: int = CHUNK_BYTES, /) -> bytes:
        try:
            content = self._stream.read(min(size, CHUNK_BYTES) if size >= 0 else CHUNK_BYTES)
        except BROKEN as error:
            raise _broken(error) from error
        self._budget.spend(len(content))
        return content
