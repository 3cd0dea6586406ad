"""Some of the probes of a run, read from disk without the others: a long run has thousands of rows, of which a page shows a hundred.

See ``probe_files`` for how they lie there. Rows of one writer come in the order of their steps, so that a step is found by halving.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from workers.watch.probe_files import part_at
from workers.watch.probe_rows import ACTIVATION_STATISTICS, BINS, STATISTICS, WHOLE, Names

Shares = NDArray[np.float32]


@dataclass(frozen=True)
class ProbeTable:
    """P probes of L layers and A activation modules."""

    steps: NDArray[np.int64]  # (P,)
    cost_shares: NDArray[np.float64]  # (P,) what watching cost up to then, over the steps' own time; NaN: not known yet
    layers: NDArray[np.float32]  # (P, statistics, L), NaN where one does not apply
    activations: NDArray[np.float32]  # (P, activation statistics, A)


@dataclass(frozen=True)
class _Part:
    path: Path
    names: Names
    kind: np.dtype[Any]
    count: int


class ProbeReader:
    """What a job's folder of probes holds now. Of a model that was changed, the rows of the last one."""

    def __init__(self, folder: Path) -> None:
        found = [_Part(*part_at(head)) for head in sorted(folder.glob("attempt-*.json"))]
        found = [part for part in found if part.count]
        self.names = found[-1].names if found else Names((), ())
        self._parts = [part for part in found if part.names == self.names]

    def __len__(self) -> int:
        return sum(part.count for part in self._parts)

    def between(self, first_step: int | None, last_step: int | None) -> NDArray[np.int64]:
        """Positions of rows, of all parts after each other; both ends belong to it."""
        positions, start = [], 0
        for part in self._parts:
            with _opened(part) as file:
                first = 0 if first_step is None else _rows_before(part, file, first_step)
                last = part.count if last_step is None else _rows_before(part, file, last_step + 1)
            positions.append(np.arange(start + first, start + max(first, last)))
            start += part.count
        return np.concatenate(positions) if positions else np.zeros(0, dtype=np.int64)

    def table(self, positions: NDArray[np.int64]) -> ProbeTable:
        """The rows at ``positions``, which ascend; of a step that was done twice the later one."""
        layers, activations = len(self.names.layers), len(self.names.activations)
        wanted = (len(positions), len(STATISTICS), layers), (len(positions), len(ACTIVATION_STATISTICS), activations)
        steps, costs = np.zeros(len(positions), dtype=np.int64), np.full(len(positions), np.nan)
        of_layers, of_activations = (np.full(shape, np.nan, dtype=np.float32) for shape in wanted)
        for row, content, kind in self._rows(positions, ("step", "cost_share", "statistics", "activations")):
            record = np.frombuffer(content, dtype=kind, count=1)[0]
            steps[row], costs[row] = record["step"], record["cost_share"]
            of_layers[row], of_activations[row] = record["statistics"], record["activations"]
        kept = _last_of_each(steps)
        return ProbeTable(steps[kept], costs[kept], of_layers[kept], of_activations[kept])

    def histograms(self, positions: NDArray[np.int64], layer: int) -> tuple[NDArray[np.int64], Shares]:
        """Steps (P,), and shares (P, BINS) of the layer's gradient elements that are not 0; a row of zeros where there were none."""
        steps, counts = np.zeros(len(positions), dtype=np.int64), np.zeros((len(positions), BINS), dtype="<u2")
        for row, content, _ in self._rows(positions, ("step",)):
            steps[row] = np.frombuffer(content, dtype="<i8", count=1)[0]
        size = counts.itemsize * BINS
        for part, file, row, number in self._each(positions):
            fields = part.kind.fields
            assert fields is not None
            at = number * part.kind.itemsize + fields["histograms"][1] + layer * size
            counts[row] = np.frombuffer(os.pread(file.fileno(), size, at), dtype="<u2")
        kept = _last_of_each(steps)
        return steps[kept], (counts[kept] / np.float32(WHOLE)).astype(np.float32)

    def _rows(self, positions: NDArray[np.int64], fields: Sequence[str]) -> Iterator[tuple[int, bytes, np.dtype[Any]]]:
        """(row, content, type) of the first ``fields`` of each record; the histograms behind them are most of it."""
        for part, file, row, number in self._each(positions):
            kind = np.dtype([(name, part.kind[name]) for name in fields])
            yield row, os.pread(file.fileno(), kind.itemsize, number * part.kind.itemsize), kind

    def _each(self, positions: NDArray[np.int64]) -> Iterator[tuple[_Part, BinaryIO, int, int]]:
        """(part, its file, row among ``positions``, number within the part)."""
        start = 0
        for part in self._parts:
            mine = np.flatnonzero((positions >= start) & (positions < start + part.count))
            if len(mine):
                with _opened(part) as file:
                    for row in mine.tolist():
                        yield part, file, row, int(positions[row]) - start
            start += part.count


def evenly(positions: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most ``most`` (2 or more) of them, the first and the last among them. Probes lie closer where a run begins, and so do these."""
    if len(positions) <= most:
        return positions
    return positions.take(np.linspace(0, len(positions) - 1, most).round().astype(np.int64))


def _opened(part: _Part) -> BinaryIO:
    return part.path.open("rb", buffering=0)


def _rows_before(part: _Part, file: BinaryIO, step: int) -> int:
    """How many rows of a part have an earlier step."""
    low, high = 0, part.count
    while low < high:
        middle = (low + high) // 2
        at = np.frombuffer(os.pread(file.fileno(), 8, middle * part.kind.itemsize), dtype="<i8")
        low, high = (middle + 1, high) if int(at[0]) < step else (low, middle)
    return low


def _last_of_each(steps: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions, by step."""
    return len(steps) - 1 - np.unique(steps[::-1], return_index=True)[1]
