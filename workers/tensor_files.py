"""Named tensors in files, in the format of torch's distributed checkpoint (DCP), so that everything that reads that reads these.

Each rank writes its own part without asking the others; later one of them makes DCP's index of what all have written. DCP itself is only imported
for the index and for reading: that takes 0.7 s, which only runs pay that need it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import pickle
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import IO, Any, cast

import torch
from torch import Tensor
from upath import UPath

from workers import storage
from workers.checkpoint_folders import INDEX, StoredFile
from workers.staging import Piece

WRITE_BYTES = 8 * 2**20  # at once: small enough to stay in the processor's cache between being written and being hashed
DCP_VERSION = "1.0.0"


class AbandonedError(Exception):
    """Nobody wants the file any more."""


@dataclass(frozen=True)
class Entry:
    """A tensor, or a box of one, in a part's file."""

    name: str
    dtype: str
    size: Sequence[int]  # of the whole tensor
    offsets: Sequence[int]  # where the box lies in it
    sizes: Sequence[int]  # of the box
    start: int  # byte of the file
    length: int  # bytes


@dataclass(frozen=True)
class Part:
    """What one rank has written."""

    file: StoredFile
    entries: Sequence[Entry]

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @staticmethod
    def from_json(content: bytes) -> Part:
        document = json.loads(content)
        return Part(StoredFile(**document["file"]), [Entry(**entry) for entry in document["entries"]])


# --- writing ----------------------------------------------------------------------------------------------------------


def write_part(file: UPath, pieces: Iterable[tuple[Piece, Tensor]], abandoned: Callable[[], bool]) -> Part:
    """Writes the pieces' copies (on the CPU, contiguous) durably. Raises OSError, what the object store's driver raises, and AbandonedError."""
    entries = []
    with storage.writing(file) as raw:
        stream = _HashingStream(raw, abandoned)
        for piece, copy in pieces:
            start = stream.tell()
            torch.save(
                copy, cast(IO[bytes], stream)
            )  # a piece at a time, as DCP does: its reader looks for each where the index says
            stream.raise_problem()
            dtype = str(copy.dtype).removeprefix("torch.")
            length = stream.tell() - start
            entries.append(Entry(piece.name, dtype, piece.size, piece.offsets, tuple(copy.shape), start, length))
    return Part(StoredFile(file.name, stream.tell(), stream.sha256()), entries)


class _HashingStream:
    """Hashes while it writes, so that no byte is read again.

    ``torch.save`` turns exceptions of the stream into others, so the first one is kept for ``raise_problem`` and the rest of the bytes dropped.
    """

    def __init__(self, raw: IO[bytes], abandoned: Callable[[], bool]) -> None:
        self._raw, self._abandoned = raw, abandoned
        self._digest, self._position = hashlib.sha256(), 0
        self._problem: Exception | None = None

    def write(self, data: bytes | memoryview) -> int:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), WRITE_BYTES):
            self._write(view[start : start + WRITE_BYTES])
        return len(view)

    def _write(self, data: memoryview) -> None:
        if self._problem is not None:
            return
        if self._abandoned():
            self._problem = AbandonedError()
            return
        try:
            self._raw.write(data)
        except Exception as error:
            self._problem = error
        self._digest.update(data)
        self._position += len(data)

    def flush(self) -> None:
        """The file is flushed once, at its end."""

    def tell(self) -> int:
        return self._position

    def raise_problem(self) -> None:
        if self._problem is not None:
            raise self._problem

    def sha256(self) -> str:
        return self._digest.hexdigest()


# --- the index --------------------------------------------------------------------------------------------------------


def index_of(parts: Iterable[Part]) -> bytes:
    """DCP's index of all parts together. Raises ValueError when they do not cover every tensor just once."""
    from torch.distributed.checkpoint import metadata as dcp
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    tensors: dict[str, dcp.TensorStorageMetadata] = {}
    places: dict[dcp.MetadataIndex, _StorageInfo] = {}
    for part in parts:
        for entry in part.entries:
            properties = dcp.TensorProperties(dtype=getattr(torch, entry.dtype))
            whole = dcp.TensorStorageMetadata(properties, torch.Size(entry.size), [])
            chunk = dcp.ChunkStorageMetadata(torch.Size(entry.offsets), torch.Size(entry.sizes))
            tensors.setdefault(entry.name, whole).chunks.append(chunk)
            index = dcp.MetadataIndex(entry.name, chunk.offsets)
            if index in places:
                raise ValueError(f"{entry.name} at {tuple(entry.offsets)} was written twice")
            places[index] = _StorageInfo(part.file.path, entry.start, entry.length)
    for name, tensor in tensors.items():
        if sum(math.prod(chunk.sizes) for chunk in tensor.chunks) != math.prod(tensor.size):
            raise ValueError(f"{name} is not whole")
    names = {name: (name,) for name in tensors}  # how DCP's own tools find the way back from flat names
    return pickle.dumps(dcp.Metadata({**tensors}, names, places, dcp.StorageMeta(), DCP_VERSION))


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    size: torch.Size
    dtype: torch.dtype


def kinds(folder: UPath) -> dict[str, Kind]:
    """Size and type of every tensor. The index is a pickle: the caller has made sure that it is the one that was written."""
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    with (folder / INDEX).open("rb") as stream:
        found = pickle.load(stream).state_dict_metadata
    return {
        name: Kind(of.size, of.properties.dtype) for name, of in found.items() if isinstance(of, TensorStorageMetadata)
    }


def read(folder: UPath, targets: Mapping[str, Tensor]) -> None:
    """Fills ``targets``, tensors or DTensors of the saved sizes, without any communication. ``folder`` is local. Raises OSError."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    with _plainly():
        load(dict(targets), storage_reader=FileSystemReader(str(folder)), no_dist=True)


@contextlib.contextmanager
def _plainly() -> Iterator[None]:
    """DCP's own exception is no Exception; and it warns when it works without a process group, which is what is meant here."""
    from torch.distributed.checkpoint.api import CheckpointException

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        try:
            yield
        except CheckpointException as error:
            reasons: Any = error.failures
            raise OSError("; ".join(f"rank {failed}: {reason[0]}" for failed, reason in reasons.items())) from error
