"""Metric series out of the lines that a job appends, parsed once however often they are asked for."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from workers.gradient_files import later_of_each

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

READ_BYTES = 4 << 20
ORDER, STEP, TIMESTAMP, FIRST_VALUE = range(4)  # columns of a table


@dataclass(frozen=True)
class Series:
    """One metric over the run, sorted by step; the three arrays have the same length."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    timestamps: NDArray[np.float64]  # seconds since the epoch


class SeriesReader:
    """A job's folder of metrics. It remembers what it has read: each ``read`` parses only the lines that were appended since the
    one before, so that watching a running job costs what is new in it. May be used by several threads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._offsets: dict[str, tuple[int, int]] = {}  # of each file: its inode, and up to where it was read
        self._tables: dict[tuple[str, ...], _Table] = {}  # lines that measure the same have the same columns
        self._lines = 0

    def read(self, keys: Collection[str] | None = None) -> dict[str, Series]:
        """Each series of all attempts (those of ``keys`` only, when given). A key without points is not in the result."""
        with self._lock:
            try:
                self._follow()
            except BaseException:
                self._forget()  # or what was taken before would be taken again
                raise
            wanted = {key for table in self._tables for key in table if keys is None or key in keys}
            return {key: self._series(key) for key in sorted(wanted)}

    @property
    def bytes_held(self) -> int:
        return sum(table.bytes_held for table in list(self._tables.values()))

    # --- lines that are new -------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        paths = sorted(self._folder.glob("attempt-*.jsonl"))
        if not self._only_grew(paths):
            self._forget()
        for path in paths:
            with path.open("rb") as stream:
                inode, offset = self._offsets.get(path.name, (path.stat().st_ino, 0))
                stream.seek(offset)
                rest = b""
                while content := stream.read(READ_BYTES):
                    whole, end, rest = (rest + content).rpartition(b"\n")  # a line is taken when its end is there
                    offset += len(whole) + len(end)
                    self._take(whole.split(b"\n"))
                self._offsets[path.name] = inode, offset

    def _only_grew(self, paths: Sequence[Path]) -> bool:
        """Writers only append; but a person may put a folder back from a copy."""
        seen = {path.name: path.stat() for path in paths}
        return all(
            name in seen and seen[name].st_ino == inode and seen[name].st_size >= offset
            for name, (inode, offset) in self._offsets.items()
        )

    def _take(self, lines: Sequence[bytes]) -> None:
        import numpy as np
        import orjson

        rows: dict[tuple[str, ...], list[list[float | str]]] = {}
        for line in lines:
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue  # torn by a kill
            self._lines += 1
            values = row["values"]
            rows.setdefault(tuple(values), []).append([self._lines, row["step"], row["timestamp"], *values.values()])
        for keys, found in rows.items():
            # NumPy reads the words for what is not finite (workers/jobfolder.py: encode) as Python's float() does.
            self._tables.setdefault(keys, _Table(FIRST_VALUE + len(keys))).extend(np.array(found, dtype=np.float64))

    # --- what they say ------------------------------------------------------------------------------------------------

    def _series(self, key: str) -> Series:
        import numpy as np

        found = [
            table.columns(ORDER, STEP, TIMESTAMP, FIRST_VALUE + keys.index(key))
            for keys, table in self._tables.items()
            if key in keys
        ]
        rows = found[0] if len(found) == 1 else np.concatenate(found, axis=1)
        if len(found) > 1:
            rows = rows[:, np.argsort(rows[0])]
        kept = later_of_each(rows[1].astype(np.int64))  # of a step that was done twice the later line counts
        _, steps, timestamps, values = rows[:, kept]
        return Series(steps.astype(np.int64), values, timestamps)


class _Table:
    """Rows of numbers, in a buffer that grows by doubling. Float64 holds steps up to 2**53."""

    def __init__(self, width: int) -> None:
        import numpy as np

        self._buffer = np.empty((64, width), dtype=np.float64)
        self._count = 0

    def extend(self, rows: NDArray[np.float64]) -> None:
        import numpy as np

        count = self._count + len(rows)
        if count > len(self._buffer):
            grown = np.empty((max(count, 2 * len(self._buffer)), self._buffer.shape[1]), dtype=np.float64)
            grown[: self._count] = self._buffer[: self._count]
            self._buffer = grown
        self._buffer[self._count : count] = rows
        self._count = count

    def columns(self, *which: int) -> NDArray[np.float64]:
        """(len(which), rows), a copy."""
        return self._buffer[: self._count, list(which)].T.copy()

    @property
    def bytes_held(self) -> int:
        return self._buffer.nbytes
