"""What each rank had by itself, on disk.

    attempt-0001-part-000000.json     {"ranks": R, "fields": [...]}
    attempt-0001-part-000000.rows     records of one size, one a step, little-endian and without gaps

A record, with R ranks, is

    step         int64          optimizer steps done, from 1
    norms        float32 (R,)   norm of the gradient of the mean loss over the rank's own part of the batch, before the all-reduce;
                                NaN on all ranks in steps where it was not measured
    samples      float32 (R,)   in that part
    losses       float32 (R,)   mean loss of that part
    checksums    uint64 (R,)    of the parameters after the step; 0 where none was taken

Only whole records count: what a killed writer left half written is passed over, and who writes on begins a part of their own.
"""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.part_files import PartFiles, append

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from workers.watch.record import Checksums, Ranks


class RankWriter:
    """Appends rows; ``append`` returns when they are there for every reader."""

    def __init__(self, folder: Path, attempt: int) -> None:
        self._parts = PartFiles(folder, attempt)

    def append(self, rows: Sequence[str], after: int) -> int:
        """``rows``: as ``rank_rows.pack`` gives them; those of steps up to ``after`` are known. Returns the last step that is known now."""
        from workers.watch.rank_rows import FIELDS, ranks_in, step_of

        last, fresh = after, []
        for row in rows:
            if step_of(row) > last:
                last = step_of(row)
                fresh.append(row)
        for ranks, of_a_group in itertools.groupby(fresh, ranks_in):
            with self._parts.appending({"ranks": ranks, "fields": list(FIELDS)}) as part:
                append(part.with_suffix(".rows"), b"".join(map(base64.b64decode, of_a_group)))
        return last


def last_step(folder: Path) -> int:
    """-1 when there are no rows. Reads one record of each part: rows come in the order of their steps."""
    import numpy as np

    last = -1
    for head in folder.glob("attempt-*.json"):
        kind, rows = _kind(head), head.with_suffix(".rows")
        whole = rows.stat().st_size // kind.itemsize if rows.exists() else 0
        if whole:
            record = np.fromfile(rows, dtype=kind, count=1, offset=(whole - 1) * kind.itemsize)
            last = max(last, int(record["step"][0]))
    return last


def read_records(folder: Path) -> NDArray[Any] | None:
    """Rows by step, of the last group's number of ranks: ranks of another group were others. Of a step that was done twice the later row counts.

    None: there are none.
    """
    import numpy as np

    parts = []
    for head in sorted(folder.glob("attempt-*.json")):
        kind, rows = _kind(head), head.with_suffix(".rows")
        content = rows.read_bytes() if rows.exists() else b""
        parts.append(np.frombuffer(content[: len(content) // kind.itemsize * kind.itemsize], dtype=kind))
    parts = [part for part in parts if len(part)]
    if not parts:
        return None
    records = np.concatenate([part for part in parts if part.dtype == parts[-1].dtype])
    last = len(records) - 1 - np.unique(records["step"][::-1], return_index=True)[1]
    return records[last]


def read_ranks(folder: Path) -> tuple[Ranks, Checksums] | None:
    from workers.watch.rank_rows import checksums_of, ranks_of

    records = read_records(folder)
    return None if records is None else (ranks_of(records), checksums_of(records))


def _kind(head: Path) -> np.dtype[Any]:
    """How a row of a part lies on disk."""
    from workers.watch.rank_rows import record_type

    return record_type(json.loads(head.read_bytes())["ranks"])
