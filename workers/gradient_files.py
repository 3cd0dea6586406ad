"""The norms of every layer's gradient on disk, row after row, so that a few of many steps are read without the others.

    attempt-0001-part-000000.json      {"layers": [...]}, in network order
    attempt-0001-part-000000.norms     float32, a row of norms for each step
    attempt-0001-part-000000.index     a record for each row: step (int64), norm over all layers (float64)

Numbers are little-endian. The index is appended after the rows: only rows that it names count, so that what a killed writer left half written
is passed over. Who writes on begins a part of their own. A heat map of a long run reads the index, which is small, and the rows that it chose there.

Jobs of earlier versions have Parquet parts instead: step, then one column a layer. They are read whole.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from workers.part_files import PartFiles, append

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_Number = TypeVar("_Number", bound="np.generic")

INDEX_RECORD = [("step", "<i8"), ("norm", "<f8")]
NORM = "<f4"
EXPORTED_ROWS = 10_000  # of a Parquet file


@dataclass(frozen=True)
class GradientMatrix:
    """Norms of the layers' gradients: ``norms[i, j]`` is that of ``layers[j]`` (network order) at ``steps[i]``."""

    layers: tuple[str, ...]
    steps: NDArray[np.int64]  # (S,)
    norms: NDArray[np.float32]  # (S, L)


# --- writing ----------------------------------------------------------------------------------------------------------


class GradientWriter:
    """Appends rows; ``append`` returns when they are there for every reader."""

    def __init__(self, folder: Path, attempt: int) -> None:
        self._parts = PartFiles(folder, attempt)

    def append(self, layers: Sequence[str], rows: Sequence[tuple[int, Sequence[float]]]) -> None:
        import numpy as np

        if not rows:
            return
        norms = np.array([norms for _, norms in rows], dtype=NORM)
        index = np.empty(len(rows), dtype=INDEX_RECORD)
        index["step"] = [step for step, _ in rows]
        index["norm"] = total_norms(norms)
        with self._parts.appending({"layers": tuple(layers)}) as part:
            append(part.with_suffix(".norms"), norms.tobytes())
            append(part.with_suffix(".index"), index.tobytes())


def total_norms(norms: NDArray[np.float32]) -> NDArray[np.float64]:
    """(S, L) -> (S,): the norm over all layers; not finite where one of them is not."""
    import numpy as np

    with np.errstate(invalid="ignore"):
        total: NDArray[np.float64] = np.sqrt(np.square(norms.astype(np.float64)).sum(axis=1))
    return total


# --- reading ----------------------------------------------------------------------------------------------------------


class GradientReader:
    """What a job's folder of gradients holds now. Of a step that was done twice the later row counts."""

    def __init__(self, folder: Path) -> None:
        import numpy as np

        found = [_part_at(path) for path in sorted((*folder.glob("attempt-*.json"), *folder.glob("attempt-*.parquet")))]
        found = [part for part in found if len(part.steps)]
        self.layers = found[-1].layers if found else ()
        # A model has the same layers at every step; what somebody else put there would have rows of another length.
        self._parts = [part for part in found if part.layers == self.layers]
        steps = _joined([part.steps for part in self._parts], np.int64)
        rows = [np.arange(len(part.steps)) for part in self._parts]
        owners = [np.full(len(part.steps), number) for number, part in enumerate(self._parts)]
        kept = later_of_each(steps)
        self.steps: NDArray[np.int64] = steps[kept]
        self.norms: NDArray[np.float64] = _joined([part.norms for part in self._parts], np.float64)[kept]
        self._rows, self._owners = _joined(rows, np.int64)[kept], _joined(owners, np.int64)[kept]

    def between(self, first_step: int | None, last_step: int | None) -> NDArray[np.int64]:
        """Positions in ``steps``; both ends belong to it."""
        import numpy as np

        first = 0 if first_step is None else int(np.searchsorted(self.steps, first_step, "left"))
        last = len(self.steps) if last_step is None else int(np.searchsorted(self.steps, last_step, "right"))
        return np.arange(first, max(first, last))

    def largest_of_each_stretch(self, positions: NDArray[np.int64], points: int) -> NDArray[np.int64]:
        """Of each of ``points`` equal stretches of ``positions`` the one with the largest norm, so that no spike is lost."""
        import numpy as np

        if len(positions) <= points:
            return positions
        norms = np.nan_to_num(self.norms[positions], nan=np.inf, posinf=np.inf)
        edges = np.linspace(0, len(positions), points + 1).astype(np.int64)
        largest = [start + int(np.argmax(norms[start:end])) for start, end in itertools.pairwise(edges.tolist())]
        return positions.take(largest)

    def read(self, positions: NDArray[np.int64]) -> GradientMatrix:
        """The rows at ``positions``, which ascend."""
        import numpy as np

        norms = np.empty((len(positions), len(self.layers)), dtype=np.float32)
        owners, rows = self._owners[positions], self._rows[positions]
        for number, part in enumerate(self._parts):
            mine = np.flatnonzero(owners == number)
            if len(mine):
                norms[mine] = part.read(rows[mine])
        return GradientMatrix(self.layers, self.steps[positions], norms)

    def export(self, folder: Path) -> Iterator[Path]:
        """Everything as Parquet for other programs, file after file: step, then one column a layer."""
        import numpy as np
        import pyarrow as arrow
        import pyarrow.parquet as parquet

        for number, start in enumerate(range(0, len(self.steps), EXPORTED_ROWS)):
            matrix = self.read(np.arange(start, min(start + EXPORTED_ROWS, len(self.steps))))
            columns = {"step": matrix.steps} | {layer: matrix.norms[:, j] for j, layer in enumerate(self.layers)}
            path = folder / f"part-{number:06d}.parquet"
            parquet.write_table(arrow.table(columns), path, compression="zstd")
            yield path


def later_of_each(steps: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions of the steps in ascending order; of equal ones the last. Almost always all, as they are."""
    import numpy as np

    if (np.diff(steps) > 0).all():
        return np.arange(len(steps))
    order = np.argsort(steps, kind="stable")
    is_last = np.append(np.diff(steps[order]) > 0, True)
    later: NDArray[np.int64] = order[is_last]
    return later


class _Part(Protocol):
    @property
    def layers(self) -> tuple[str, ...]: ...

    @property
    def steps(self) -> NDArray[np.int64]: ...

    @property
    def norms(self) -> NDArray[np.float64]: ...

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]: ...


class _RowsPart:
    def __init__(self, path: Path) -> None:
        import numpy as np

        self.layers: tuple[str, ...] = tuple(json.loads(path.read_bytes())["layers"])
        self._path = path.with_suffix(".norms")
        index = path.with_suffix(".index")
        records = np.fromfile(index, dtype=INDEX_RECORD) if index.exists() else np.empty(0, dtype=INDEX_RECORD)
        self.steps: NDArray[np.int64] = records["step"].astype(np.int64)
        self.norms: NDArray[np.float64] = records["norm"].astype(np.float64)

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Neighbouring rows with one call. Not mapped into memory: a folder that is removed meanwhile would end the process."""
        import numpy as np

        width = 4 * len(self.layers)
        runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
        with self._path.open("rb", buffering=max(512, width)) as stream:  # one row is read for one that is wanted
            read = []
            for run in runs:
                stream.seek(int(run[0]) * width)
                read.append(stream.read(len(run) * width))
        return np.frombuffer(b"".join(read), dtype=NORM).reshape(len(rows), len(self.layers))


class _ParquetPart:
    """As earlier versions wrote it."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as parquet

        self._table = parquet.read_table(path)
        self.layers: tuple[str, ...] = tuple(name for name in self._table.column_names if name != "step")
        self.steps: NDArray[np.int64] = self._table.column("step").to_numpy()

    @property
    def norms(self) -> NDArray[np.float64]:
        return total_norms(self._matrix)

    @cached_property
    def _matrix(self) -> NDArray[np.float32]:
        import numpy as np

        return np.column_stack([self._table.column(name).to_numpy() for name in self.layers])

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._matrix[rows]


def _part_at(path: Path) -> _Part:
    return _ParquetPart(path) if path.suffix == ".parquet" else _RowsPart(path)


def _joined(arrays: Sequence[NDArray[_Number]], kind: type[_Number]) -> NDArray[_Number]:
    import numpy as np

    return np.concatenate(arrays) if arrays else np.empty(0, dtype=kind)
