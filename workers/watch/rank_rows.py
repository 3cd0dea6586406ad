"""What the workers told each other of a step, as it travels, is kept and is judged. NumPy, and tensors that are waited for when they are read.

A row is a table of float64, (R, 4), for each rank ``FIELDS``. On its way and on disk it is a record, whose size says how many ranks there were.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from workers.watch.rank_rules import NoiseScale, noise_scale
from workers.watch.record import Checksums, Facts, Floats, Ranks, Record, Series, none

if TYPE_CHECKING:
    from torch import Tensor

FIELDS = ("norms", "samples", "losses", "checksums")  # of ``Ranks`` and ``Checksums``; a checksum of 0: not taken
KEPT_ROWS = 4096  # for judging
FIRST_ROWS = 64  # of these, always kept
PASSED_ON_BYTES = 1 << 16  # in a checkpoint, half of it the first rows, half the latest
NOISE_EVERY = 50  # readings between two values of the series


@dataclass(frozen=True)
class Heard:
    """``table``: ``FIELDS`` of each rank at ``step``, (R, 4) float64 on the device."""

    step: int
    table: Tensor


def record_type(ranks: int) -> np.dtype[Any]:
    """Of one row on disk, little-endian."""
    return np.dtype(
        [
            ("step", "<i8"),
            ("norms", "<f4", (ranks,)),
            ("samples", "<f4", (ranks,)),
            ("losses", "<f4", (ranks,)),
            ("checksums", "<u8", (ranks,)),
        ]
    )


def pack(step: int, table: Floats) -> str:
    """As text, which JSON takes: a record in base 64."""
    record = np.zeros(1, dtype=record_type(len(table)))
    record["step"] = step
    with np.errstate(over="ignore"):  # beyond float32: infinite
        for column, name in enumerate(FIELDS):
            record[name] = table[:, column]
    return base64.b64encode(record.tobytes()).decode()


def ranks_in(row: str) -> int:
    """Of how many ranks a packed row is."""
    record, without = len(base64.b64decode(row)), record_type(0).itemsize
    return (record - without) // (record_type(1).itemsize - without)


def step_of(row: str) -> int:
    return int(np.frombuffer(base64.b64decode(row)[:8], dtype="<i8")[0])


def unpack(ranks: int, rows: Sequence[str]) -> NDArray[Any]:
    """(Q,) records."""
    return np.frombuffer(b"".join(map(base64.b64decode, rows)), dtype=record_type(ranks))


def ranks_of(records: NDArray[Any]) -> Ranks:
    norms, samples, losses = (records[name].astype(np.float64) for name in FIELDS[:3])
    return Ranks(records["step"].astype(np.int64), norms, samples, losses)


def checksums_of(records: NDArray[Any]) -> Checksums:
    taken = records["checksums"].all(axis=1)
    return Checksums(
        records["step"][taken].astype(np.int64), np.ascontiguousarray(records["checksums"][taken], dtype=np.uint64)
    )


class RankLog:
    """The rows of a run so far, thinned: the first and the latest are all there, so that first bad steps are exact.

    All are of one number of ranks: when the group becomes another, it begins anew, because its ranks are others.
    """

    def __init__(self) -> None:
        self._ranks = 0
        self._records: list[NDArray[Any]] = []  # (1,) each
        self._whole: list[float] = []  # norm of the whole batch's gradient at these steps
        self._readings = 0  # since the noise was told
        self._waiting: dict[int, Heard] = {}
        self._norm_before = (0, np.nan)  # step, norm of the whole batch's gradient
        self._forgotten = (
            0,
            0,
        )  # steps after the first, up to the second: what is heard of them later is not kept either

    def hear(self, with_step: int, heard: Heard) -> None:
        """What came with the row of ``with_step``; waits on the device until it is taken."""
        self._waiting[with_step] = heard

    def take(self) -> dict[int, str]:
        """What waited, packed, by the step that it came with. Waits for the device, once."""
        waiting, self._waiting = self._waiting, {}
        if not waiting:
            return {}
        import torch

        values = torch.cat([each.table.flatten() for each in waiting.values()]).cpu().numpy()
        ends = np.cumsum([each.table.numel() for each in waiting.values()])[:-1]
        parts = [part.reshape(-1, len(FIELDS)) for part in np.split(values, ends)]
        return {at: pack(each.step, part) for (at, each), part in zip(waiting.items(), parts, strict=True)}

    def add(self, row: str | None, step: int, norm: float) -> None:
        """Row after row of a run: what was heard in ``step``, and the norm of the whole batch's gradient in it."""
        before, self._norm_before = self._norm_before, (step, norm)
        if row is not None:
            self._add(row, before[1] if step_of(row) == before[0] else np.nan)

    def _add(self, row: str, whole_norm: float) -> None:
        ranks = ranks_in(row)
        if ranks != self._ranks:
            self._ranks, self._records, self._whole, self._readings = ranks, [], [], 0
        record = unpack(ranks, [row])
        if self._forgotten[0] < record["step"][0] <= self._forgotten[1]:
            return
        while self._records and self._records[-1]["step"][0] >= record["step"][0]:  # done again
            self._records.pop()
            self._whole.pop()
        self._records.append(record)
        self._whole.append(whole_norm)
        self._readings += not np.isnan(record["norms"]).all()
        if len(self._records) > KEPT_ROWS:
            self._records, self._whole = _thinned(self._records), _thinned(self._whole)

    def forget(self, after: int, through: int) -> None:
        self._forgotten = (after, through)
        kept = [index for index, record in enumerate(self._records) if not after < record["step"][0] <= through]
        self._records, self._whole = [self._records[index] for index in kept], [self._whole[index] for index in kept]

    def ranks(self) -> Ranks:
        return ranks_of(self._joined())

    def checksums(self) -> Checksums:
        return checksums_of(self._joined())

    def noise_scale(self) -> NoiseScale | None:
        """Of the latest rows."""
        ranks = self.ranks()
        whole = np.array(self._whole, dtype=np.float64)[:, None]
        series = Series.of(("all layers",), ranks.steps, none(len(whole)), whole)
        return noise_scale(Record(Facts(), series, ranks=ranks))

    def noise_when_due(self) -> dict[str, float]:
        """Values of series after ``NOISE_EVERY`` further readings of norms; none as long as there are too few."""
        if self._readings < NOISE_EVERY:
            return {}
        self._readings = 0
        scale = self.noise_scale()
        return {} if scale is None else {"gradient/noise_scale": scale.critical_batch}

    def document(self) -> dict[str, Any]:
        kept, most = self._records, max(16, PASSED_ON_BYTES // record_type(self._ranks).itemsize)
        if len(kept) > most:
            kept = kept[: most // 2] + kept[-most // 2 :]
        rows = np.concatenate(kept).tobytes() if kept else b""
        return {"ranks": self._ranks, "rows": base64.b64encode(zlib.compress(rows)).decode()}

    def restore(self, document: Mapping[str, Any]) -> None:
        self._waiting, self._norm_before, self._forgotten = {}, (0, np.nan), (0, 0)
        self._ranks = document["ranks"]
        content = zlib.decompress(base64.b64decode(document["rows"]))
        self._records = list(np.frombuffer(content, dtype=record_type(self._ranks)).reshape(-1, 1))
        self._whole, self._readings = [np.nan] * len(self._records), 0

    def _joined(self) -> NDArray[Any]:
        return np.concatenate(self._records) if self._records else np.zeros(0, dtype=record_type(self._ranks))


def _thinned(rows: list[Any]) -> list[Any]:
    """Every other of those that are neither among the first nor among the latest half."""
    half = KEPT_ROWS // 2
    return rows[:FIRST_ROWS] + rows[FIRST_ROWS:-half:2] + rows[-half:]
