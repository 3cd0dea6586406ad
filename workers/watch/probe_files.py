"""The rows of a run's probes on disk.

    attempt-0001-part-000000.json     what the records are: {"layers", "activations", "statistics", "activation_statistics", "histogram"}
    attempt-0001-part-000000.rows     records of one size, one a probe, little-endian and without gaps

A record, with L layers and A activation modules, is

    step            int64               optimizer steps done, from 1
    cost_share      float64             what watching cost so far, over the steps' own time
    statistics      float32 (8, L)      in the order of "statistics"; NaN where one does not apply
    activations     float32 (2, A)      in the order of "activation_statistics"; NaN where one does not apply
    histograms      uint16 (L, 48)      of a layer's gradient elements that are not 0, by powers of two of their absolute value, in 65535ths

"histogram" has the bins: {"lowest": -40, "bins": 48, "whole": 65535}; bin i holds 2^(lowest+i) <= |g| < 2^(lowest+i+1), the first and the last
also what lies beyond. Only whole records count: what a killed writer left half written is passed over, and who writes on begins a part of their own.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.part_files import PartFiles, append

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from workers.watch.probe_rows import Names
    from workers.watch.record import Probes


class ProbeWriter:
    """Appends rows; ``append`` returns when they are there for every reader."""

    def __init__(self, folder: Path, attempt: int) -> None:
        self._parts = PartFiles(folder, attempt)

    def append(self, layers: Sequence[str], activations: Sequence[str], rows: Sequence[str]) -> None:
        """``rows``: as ``probe_rows.pack`` gives them."""
        if not rows:
            return
        from workers.watch.probe_rows import ACTIVATION_STATISTICS, BINS, LOWEST, STATISTICS, WHOLE

        head = {
            "layers": tuple(layers),
            "activations": tuple(activations),
            "statistics": STATISTICS,
            "activation_statistics": ACTIVATION_STATISTICS,
            "histogram": {"lowest": LOWEST, "bins": BINS, "whole": WHOLE},
        }
        with self._parts.appending(head) as part:
            append(part.with_suffix(".rows"), b"".join(map(base64.b64decode, rows)))


def last_step(folder: Path) -> int:
    """-1 when there are no rows. Reads one record of each part: rows come in the order of their steps."""
    import numpy as np

    last = -1
    for head in folder.glob("attempt-*.json"):
        rows, _, kind, whole = part_at(head)
        if whole:
            record = np.fromfile(rows, dtype=kind, count=1, offset=(whole - 1) * kind.itemsize)
            last = max(last, int(record["step"][0]))
    return last


def count_records(folder: Path) -> tuple[int, int]:
    """(rows that ``read_records`` would read, bytes of one); (0, 0) when there are none."""
    parts = _parts(folder)
    return sum(part.rows for part in parts), parts[-1].kind.itemsize if parts else 0


def read_records(folder: Path, positions: NDArray[np.int64] | None = None) -> tuple[Names, NDArray[Any]] | None:
    """All rows by step; with ``positions``, which ascend, those of the rows in the order in which they were written. Of a step that was
    done twice the later row counts. None: there are none.

    A model has the same layers at every step; parts with others than the last part's are passed over.
    """
    import numpy as np

    parts = _parts(folder)
    if not parts:
        return None
    read, first = [], 0
    for part in parts:
        wanted = (
            None if positions is None else positions[(positions >= first) & (positions < first + part.rows)] - first
        )
        read.append(part.read(wanted))
        first += part.rows
    records = np.concatenate(read)
    last = len(records) - 1 - np.unique(records["step"][::-1], return_index=True)[1]
    return parts[-1].names, records[last]


@dataclass(frozen=True)
class _Part:
    names: Names
    kind: np.dtype[Any]
    path: Path
    rows: int  # whole ones

    def read(self, wanted: NDArray[np.int64] | None) -> NDArray[Any]:
        import numpy as np

        if wanted is None or len(wanted) == self.rows:
            return np.fromfile(self.path, dtype=self.kind, count=self.rows)
        size = self.kind.itemsize
        with self.path.open("rb", buffering=0) as stream:
            content = bytearray()
            for row in wanted.tolist():
                stream.seek(row * size)
                content += stream.read(size)
        return np.frombuffer(bytes(content), dtype=self.kind)


def _parts(folder: Path) -> list[_Part]:
    """Those with rows that are about what the last one's are about."""
    parts = []
    for head in sorted(folder.glob("attempt-*.json")):
        names, kind = _kind(head)
        path = head.with_suffix(".rows")
        rows = path.stat().st_size // kind.itemsize if path.exists() else 0
        if rows:
            parts.append(_Part(names, kind, path, rows))
    return [part for part in parts if part.names == parts[-1].names]


def read_probes(folder: Path) -> Probes | None:
    from workers.watch.probe_rows import probes_of

    found = read_records(folder)
    return None if found is None else probes_of(*found)


def part_at(head: Path) -> tuple[Path, Names, np.dtype[Any], int]:
    """The rows of a part: where they lie, what they are about, how one lies there, and how many are whole."""
    (names, kind), rows = _kind(head), head.with_suffix(".rows")
    return rows, names, kind, rows.stat().st_size // kind.itemsize if rows.exists() else 0


def _kind(head: Path) -> tuple[Names, np.dtype[Any]]:
    """What the rows of a part are about, and how one lies on disk."""
    from workers.watch.probe_rows import Names, record_type

    document = json.loads(head.read_bytes())
    names = Names(tuple(document["layers"]), tuple(document["activations"]))
    return names, record_type(names)
