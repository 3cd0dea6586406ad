"""Files in a local folder or in an object store, under one kind of path. No torch here: the API reads checkpoints too.

Addresses and credentials of object stores come from the environment (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``, ...), as fsspec and its drivers
read them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from upath import UPath

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # disk full, over quota, over the limit of a file's size
READ_BYTES = 8 * 2**20
UPLOAD_BYTES = 32 * 2**20  # a request; large, because each waits for the store's answer


def folder_at(url: str | os.PathLike[str]) -> UPath:
    """The folder that a path or a URL (``s3://bucket/prefix``) names, whether it exists or not."""
    path = UPath(url)
    if path.protocol in ("", "file", "local"):
        return UPath(path.path)
    return UPath(url, use_listings_cache=False)  # other processes write there too


def is_local(path: UPath) -> bool:
    return isinstance(path, Path)  # what UPath is for local paths


def local_path(path: UPath) -> Path:
    assert is_local(path)
    return Path(path.path)


def no_room(error: BaseException | None) -> bool:
    """Whether ``error``, or what caused it, says that the storage takes no more bytes."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            return True
        error = error.__cause__ or error.__context__
    return False


# --- reading ----------------------------------------------------------------------------------------------------------


def names_in(folder: UPath) -> list[str]:
    """Sorted names of what lies directly in ``folder``; nothing if it does not exist."""
    try:
        return sorted(child.name for child in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def chunks(file: UPath) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while chunk := stream.read(READ_BYTES):
            yield chunk


# --- writing ----------------------------------------------------------------------------------------------------------


def make_folder(folder: UPath) -> None:
    if is_local(folder):  # object stores have no folders to make
        folder.mkdir(parents=True, exist_ok=True)


def write_whole(file: UPath, content: bytes) -> None:
    """So that after a crash at any instant the file is whole, or as it was before."""
    if not is_local(file):
        file.write_bytes(content)  # one PUT
        return
    partial = file.with_name(file.name + ".partial")
    with writing(partial) as stream:
        stream.write(content)
    partial.rename(file)
    keep_names(file.parent)


@contextlib.contextmanager
def writing(file: UPath) -> Iterator[IO[bytes]]:
    """A stream into a new file, whose bytes are durable when the block ends. After an exception there is no file."""
    stream: Any = file.open("wb") if is_local(file) else file.open("wb", block_size=UPLOAD_BYTES)
    try:
        yield stream
        stream.flush()
        if is_local(file):
            os.fsync(stream.fileno())
        stream.close()
    except BaseException:
        with contextlib.suppress(Exception):  # the first exception is the one to be told
            _give_up(file, stream)
        raise


def _give_up(file: UPath, stream: Any) -> None:
    if is_local(file):
        with contextlib.suppress(OSError):
            stream.close()  # what is still in the buffer may fail again
        file.unlink(missing_ok=True)
    else:
        stream.discard()
        stream.closed = True


def keep_names(folder: UPath) -> None:
    """Makes the names of new files in a local ``folder`` durable."""
    if is_local(folder):
        descriptor = os.open(folder.path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_file(file: UPath) -> None:
    with contextlib.suppress(FileNotFoundError):
        file.unlink()


def remove_folder(folder: UPath) -> None:
    """With all that is in it; what cannot be removed stays."""
    if is_local(folder):
        shutil.rmtree(folder.path, ignore_errors=True)
    else:
        with contextlib.suppress(Exception):
            folder.fs.rm(folder.path, recursive=True)
