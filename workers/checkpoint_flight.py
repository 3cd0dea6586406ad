"""One checkpoint on its way, as one rank sees it: a thread copies and writes this rank's part, another publishes. Neither talks to other ranks."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from upath import UPath

from workers import storage, tensor_files
from workers.checkpoint_folders import (
    INDEX,
    MANIFEST,
    STATE,
    Manifest,
    Retention,
    prune,
    rejudge,
    stored,
    write_manifest,
)
from workers.staging import Piece, Staging
from workers.tensor_files import AbandonedError, Part

WRITER_NICENESS = 10  # above the training's: what is copied can wait

EXIT_SECONDS = 10.0  # for threads that hang in the storage

log = logging.getLogger(__name__)


_flights: weakref.WeakSet[Flight] = weakref.WeakSet()


@atexit.register
def _end_flights() -> None:
    """A thread that is inside of torch while the interpreter is taken down would take the process down with a fault."""
    deadline = time.monotonic() + EXIT_SECONDS
    for flight in list(_flights):
        flight.end(deadline)


class Flight:
    """The events are set by the threads. ``problem`` is what went wrong on this rank."""

    def __init__(self, manifest: Manifest, state: bytes, rank: int, started: float) -> None:
        self.manifest, self.started = manifest, started
        self.blocked_seconds = 0.0
        self.problem: Exception | None = None
        self.copied, self.written, self.published = threading.Event(), threading.Event(), threading.Event()
        self.part_bytes = 0
        self.seconds = 0.0  # until it was published
        self.rejudged: tuple[int, ...] = ()
        self._state, self._rank = state, rank
        self._abandoned = threading.Event()
        self._writer: threading.Thread | None = None
        self._publisher: threading.Thread | None = None
        _flights.add(self)

    # --- this rank's part ---------------------------------------------------------------------------------------------

    def write(self, pieces: Sequence[Piece], staging: Staging, after: threading.Thread | None) -> None:
        """Begins to, once ``after`` has ended."""
        ready = torch.cuda.current_stream().record_event() if any(piece.source.is_cuda for piece in pieces) else None
        self._writer = _start("write", self._write, pieces, staging, ready, after)

    def _write(
        self,
        pieces: Sequence[Piece],
        staging: Staging,
        ready: torch.cuda.Event | None,
        after: threading.Thread | None,
    ) -> None:
        try:
            try:
                copies = staging.copy(pieces, ready, self._abandoned.is_set)
            finally:
                self.copied.set()
            _lower_priority()
            if after is not None:
                after.join()
            folder = self.manifest.folder
            storage.make_folder(folder)
            # Of an earlier group of the same generation and step: what it names is about to change.
            storage.remove_file(folder / MANIFEST)
            part = tensor_files.write_part(_part_file(folder, self._rank), copies, self._abandoned.is_set)
            storage.write_whole(_part_index(folder, self._rank), part.to_json())
            self.part_bytes = part.file.bytes
            self.written.set()
        except AbandonedError:
            pass
        except Exception as error:  # whatever it is, all ranks must hear of it
            self.problem = error

    # --- the whole, on rank 0 -----------------------------------------------------------------------------------------

    def publish(self, retention: Retention, sick_from: int | None) -> None:
        """Begins to, unless it has. All parts are written. ``sick_from``: first bad step of what is critical."""
        if self._publisher is None:
            self._publisher = _start("publish", self._publish, retention, sick_from)

    def _publish(self, retention: Retention, sick_from: int | None) -> None:
        _lower_priority()
        folder = self.manifest.folder
        try:
            parts = [_read_part(folder, rank) for rank in range(self.manifest.world_size)]
            texts = {INDEX: tensor_files.index_of(parts), STATE: self._state}
            for name, content in texts.items():
                storage.write_whole(folder / name, content)
            storage.keep_names(folder.parent)
            files = [stored(name, content) for name, content in texts.items()]
            self.manifest = replace(self.manifest, files=(*(part.file for part in parts), *files))
            if self._abandoned.is_set():
                return
            write_manifest(self.manifest)
        except Exception as error:
            with contextlib.suppress(Exception):
                storage.remove_file(folder / MANIFEST)
            self.problem = error
            return
        self.seconds = time.perf_counter() - self.started
        self._tidy(retention, sick_from)
        self.published.set()  # last, so that nothing is tidied up while the next one is written

    def _tidy(self, retention: Retention, sick_from: int | None) -> None:
        """The checkpoint is complete: what cannot be removed does not matter to it."""
        folder = self.manifest.folder
        counted = {MANIFEST, *(file.path for file in self.manifest.files)}
        try:
            for name in set(storage.names_in(folder)) - counted:
                storage.remove_file(folder / name)
            if sick_from is not None:  # before retention looks for the last healthy one
                self.rejudged = tuple(rejudge(folder.parent, sick_from))
            prune(folder.parent, retention, self.manifest.key)
        except Exception:
            log.warning("old checkpoints in %s could not be judged again or removed", folder.parent, exc_info=True)

    # --- giving up ----------------------------------------------------------------------------------------------------

    def abandon(self) -> None:
        """Returns when nothing of model and optimizer is read any more. Threads that hang in the storage are left to themselves."""
        self._abandoned.set()
        self.copied.wait()

    def end(self, deadline: float) -> None:
        self._abandoned.set()
        for thread in (self._writer, self._publisher):
            if thread is not None:
                thread.join(max(0.0, deadline - time.monotonic()))

    def discard(self) -> threading.Thread:
        """Begins to remove what this rank has written. No rank is publishing."""
        self._abandoned.set()
        return _start("discard", self._discard)

    def _discard(self) -> None:
        assert self._writer is not None
        self._writer.join()
        for file in (_part_index(self.manifest.folder, self._rank), _part_file(self.manifest.folder, self._rank)):
            with contextlib.suppress(Exception):  # what stays is removed by retention
                storage.remove_file(file)


def text(error: Exception) -> str:
    return str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"


def _part_file(folder: UPath, rank: int) -> UPath:
    return folder / f"part-{rank:04d}.distcp"


def _part_index(folder: UPath, rank: int) -> UPath:
    return folder / f"part-{rank:04d}.json"


def _read_part(folder: UPath, rank: int) -> Part:
    """Raises OSError when the rank has written elsewhere than here."""
    part = Part.from_json(_part_index(folder, rank).read_bytes())
    size = (folder / part.file.path).stat().st_size
    if size != part.file.bytes:
        raise OSError(f"{part.file.path} has {size} bytes instead of {part.file.bytes}")
    return part


def _start(what: str, target: Callable[..., None], *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments, name=f"checkpoint-{what}", daemon=True)
    thread.start()
    return thread


def _lower_priority() -> None:
    """Of the calling thread, for good."""
    if sys.platform == "linux":  # where a thread has a niceness of its own
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + WRITER_NICENESS)
