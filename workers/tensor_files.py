"""Named tensors in files, by torch's distributed checkpoint (DCP). Apart, because importing DCP takes 0.7 s, which only runs pay that
write or read a checkpoint."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save


def write(path: Path, tensors: Mapping[str, Tensor], world_size: int, group: dist.ProcessGroup | None) -> None:
    """All ranks call it; tensors that all of them have are written once. Raises OSError on every rank when any of them fails."""
    writer = FileSystemWriter(path, single_file_per_rank=True, sync_files=True)
    with _plainly():
        save(dict(tensors), storage_writer=writer, process_group=group, no_dist=world_size == 1)


def read(path: Path, device: torch.device) -> dict[str, Tensor]:
    """Every tensor, whole, on any number of ranks; scalars (step counters) stay on the CPU. Raises OSError.

    DCP's index is a pickle: the caller has made sure that it is the one that was written.
    """
    reader = FileSystemReader(path)
    with _plainly():
        tensors = {
            name: torch.empty(meta.size, dtype=meta.properties.dtype, device=device if meta.size else "cpu")
            for name, meta in reader.read_metadata().state_dict_metadata.items()
            if isinstance(meta, TensorStorageMetadata)
        }
        load(tensors, storage_reader=reader, no_dist=True)
    return tensors


@contextlib.contextmanager
def _plainly() -> Iterator[None]:
    """DCP's own exception is no Exception; and it warns when it works without a process group, which is what is meant here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        try:
            yield
        except CheckpointException as error:
            reasons = (f"rank {failed}: {reason[0]}" for failed, reason in error.failures.items())
            raise OSError("; ".join(reasons)) from error
