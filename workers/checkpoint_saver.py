"""Writing checkpoints beside the training: what has become of one is agreed by votes that travel with the training's own messages."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from workers import storage
from workers.checkpoint_flight import Flight, text
from workers.checkpoint_folders import Manifest, Retention, folder_of
from workers.checkpoints import Failed, Saved, tensors_of
from workers.staging import Staging, pieces_of

STORAGE_FULL_VOTE = 4096.0  # so that the sum also says whether any rank found the storage full; exact in float32
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.002, 0.1  # between the votes while all wait


class Saver:
    """One worker's side of writing checkpoints in one generation of the group; at most one is in flight.

    ``generation``: larger than that of every group that has written to ``root`` before. A checkpoint that failed leaves nothing in storage that
    counts.
    """

    def __init__(
        self, root: str | os.PathLike[str], *, rank: int, world_size: int, generation: int, retention: Retention
    ) -> None:
        self._root = storage.folder_at(root)
        self._rank, self._world_size, self._generation, self._retention = rank, world_size, generation, retention
        self._staging = Staging()
        self._flight: Flight | None = None
        self._sick_from: int | None = None
        self._voted: Flight | None = None  # whom the last votes were about
        self._discarding: threading.Thread | None = None

    @property
    def in_flight(self) -> int | None:
        """Step of the checkpoint that is being written. The same on all ranks: it changes in begin, agreed and settle."""
        return self._flight.manifest.step if self._flight else None

    def begin(
        self,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        document: Mapping[str, Any],
        metrics: Mapping[str, float],
        verdict: str,
        sick_from: int | None = None,
    ) -> None:
        """All ranks, after the same step, with nothing in flight. Does not communicate. ``sick_from``: see ``checkpoint_folders.rejudge``.

        At once only what the next forward and backward pass may change is copied (buffers, values); weights and optimizer state are read by a
        thread until ``before_update`` returns.
        """
        assert self._flight is None, f"the checkpoint of step {self.in_flight} is still in flight"
        started, self._sick_from = time.perf_counter(), sick_from
        tensors, values = tensors_of(model, optimizer)
        buffers = {f"model.{name}" for name, _ in model.named_buffers()}
        pieces = pieces_of(tensors, buffers, self._rank, self._world_size)
        frozen = [replace(piece, source=piece.source.clone()) if piece.name in buffers else piece for piece in pieces]
        state = json.dumps({"step": step, "optimizer_values": values, **document}).encode() if self._rank == 0 else b""
        folder = folder_of(self._root, step, self._generation)
        manifest = Manifest(folder, step, self._generation, time.time(), self._world_size, dict(metrics), verdict, ())
        self._flight = Flight(manifest, state, self._rank, started)
        self._flight.write(frozen, self._staging, after=self._discarding)
        self._flight.blocked_seconds = time.perf_counter() - started

    def before_update(self) -> None:
        """Right before ``optimizer.step()``: returns when nothing of the model and the optimizer is read any more."""
        flight = self._flight
        if flight is not None and not flight.copied.is_set():
            started = time.perf_counter()
            flight.copied.wait()
            flight.blocked_seconds += time.perf_counter() - started

    def votes(self) -> tuple[float, float, float]:
        """(1 while this rank's part is not written, 1 on rank 0 until the checkpoint is published, more than 0 if it failed here). Never waits."""
        flight = self._voted = self._flight
        if flight is None:
            return 0.0, 0.0, 0.0
        if flight.problem is not None:
            return 0.0, 0.0, STORAGE_FULL_VOTE if storage.no_room(flight.problem) else 1.0
        publishing = self._rank == 0 and not flight.published.is_set()
        return float(not flight.written.is_set()), float(publishing), 0.0

    def agreed(self, writing: float, publishing: float, failed: float) -> Saved | Failed | None:
        """What has become of the checkpoint, once that is known. Takes the sums of all ranks' last votes; all ranks call it after the same step."""
        flight = self._flight
        if flight is None or flight is not self._voted:
            return None  # it began after the votes were given
        if failed > 0:
            return self._failed(flight, storage_full=failed >= STORAGE_FULL_VOTE)
        if writing > 0:
            return None
        if publishing == 0:
            return self._saved(flight)
        if self._rank == 0:
            flight.publish(self._retention, self._sick_from)
        return None

    def settle(self, group: dist.ProcessGroup | None) -> Saved | Failed | None:
        """Waits until what is in flight is published or has failed. All ranks call it; it communicates over ``group`` (None: the default one)."""
        started, pause = time.perf_counter(), FIRST_PAUSE_SECONDS
        result = None
        # By votes again, not by waiting in one collective: writing may take longer than a collective is given.
        while self._flight is not None and (result := self.agreed(*self._sums(group))) is None:
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        if isinstance(result, Saved):
            return replace(result, blocked_seconds=result.blocked_seconds + time.perf_counter() - started)
        if isinstance(result, Failed):
            return replace(result, problem=self._problem_of_all(result, group))
        return None

    def abandon(self) -> None:
        """The group is broken: what is in flight is not published, unless all of it is written and its manifest on its way this very moment.

        Returns when nothing of model and optimizer is read any more. Does not communicate.
        """
        if self._flight is not None:
            self._flight.abandon()
            self._flight = None

    # --- how it ends --------------------------------------------------------------------------------------------------

    def _sums(self, group: dist.ProcessGroup | None) -> list[float]:
        sums = torch.tensor(self.votes(), dtype=torch.float64)
        if self._world_size > 1:
            dist.all_reduce(sums, group=group)
        return sums.tolist()

    def _problem_of_all(self, failed: Failed, group: dist.ProcessGroup | None) -> str:
        """That of the first rank that has one, for all."""
        if self._world_size == 1:
            return failed.problem
        problems: list[str | None] = [None] * self._world_size
        dist.all_gather_object(problems, failed.problem if failed.here else None, group=group)
        return next(filter(None, problems), failed.problem)

    def _saved(self, flight: Flight) -> Saved:
        self._flight = None
        manifest = flight.manifest
        size = manifest.bytes if self._rank == 0 else flight.part_bytes
        return Saved(
            manifest.step,
            str(manifest.folder),
            size,
            flight.seconds or time.perf_counter() - flight.started,
            flight.blocked_seconds,
            manifest.metrics,
            manifest.verdict,
            flight.rejudged,
        )

    def _failed(self, flight: Flight, storage_full: bool) -> Failed:
        """All ranks give up together and none is publishing, so each can remove what it wrote."""
        self._flight = None
        self._discarding = flight.discard()
        if flight.problem is not None:
            problem = text(flight.problem)
        else:
            problem = "another worker " + ("found no room left" if storage_full else "could not write its part")
        step, folder = flight.manifest.step, flight.manifest.folder
        sentence = f"The checkpoint of step {step} could not be written to {folder}: {problem}."
        return Failed(step, sentence, storage_full, here=flight.problem is not None)
