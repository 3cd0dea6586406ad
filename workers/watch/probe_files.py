"""The rows of a run's probes on disk.

    attempt-0001-part-000000.json     what the records are: {"layers", "activations", "statistics", "activation_statistics", "histogram"}
    attempt-0001-part-000000.rows     records of one size, one a probe, little-endian and without gaps

A record, with L layers and A activation modules, is

    step            int64               optimizer steps done, from 1
    cost_share      float64             what probing cost so far, over the steps' own time
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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.storage import folder_at, write_whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from workers.watch.probe_rows import Names
    from workers.watch.record import Probes


class ProbeWriter:
    """Appends rows; ``append`` returns when they are there for every reader."""

    def __init__(self, folder: Path, attempt: int) -> None:
        self._folder, self._attempt = folder, attempt
        parts = (path.stem for path in folder.glob(f"attempt-{attempt:04d}-part-*.json"))
        self._next_part = max((int(part.rpartition("-")[2]) + 1 for part in parts), default=0)
        self._part: Path | None = None  # its rows
        self._names: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())

    def append(self, layers: Sequence[str], activations: Sequence[str], rows: Sequence[str]) -> None:
        """``rows``: as ``probe_rows.pack`` gives them."""
        if not rows:
            return
        part = self._part_for(tuple(layers), tuple(activations))
        self._part = None  # a part that takes only half of this (a full disk) gets no more: its rows would be shifted
        with part.open("ab") as stream:
            stream.write(b"".join(map(base64.b64decode, rows)))
        self._part = part

    def _part_for(self, layers: tuple[str, ...], activations: tuple[str, ...]) -> Path:
        if self._part is not None and (layers, activations) == self._names:
            return self._part
        from workers.watch.probe_rows import ACTIVATION_STATISTICS, BINS, LOWEST, STATISTICS, WHOLE

        self._folder.mkdir(parents=True, exist_ok=True)
        part = self._folder / f"attempt-{self._attempt:04d}-part-{self._next_part:06d}.json"
        self._next_part += 1
        head = {
            "layers": layers,
            "activations": activations,
            "statistics": STATISTICS,
            "activation_statistics": ACTIVATION_STATISTICS,
            "histogram": {"lowest": LOWEST, "bins": BINS, "whole": WHOLE},
        }
        write_whole(folder_at(part), json.dumps(head).encode())
        self._names = (layers, activations)
        return part.with_suffix(".rows")


def read_records(folder: Path) -> tuple[Names, NDArray[Any]] | None:
    """All rows by step. Of a step that was done twice the later row counts. None: there are none.

    A model has the same layers at every step; parts with others than the last part's are passed over.
    """
    import numpy as np

    from workers.watch.probe_rows import Names, record_type

    parts = []
    for head in sorted(folder.glob("attempt-*.json")):
        document = json.loads(head.read_bytes())
        names = Names(tuple(document["layers"]), tuple(document["activations"]))
        rows = head.with_suffix(".rows")
        content = rows.read_bytes() if rows.exists() else b""
        kind = record_type(names)
        parts.append((names, np.frombuffer(content[: len(content) // kind.itemsize * kind.itemsize], dtype=kind)))
    parts = [part for part in parts if len(part[1])]
    if not parts:
        return None
    names = parts[-1][0]
    records = np.concatenate([records for own, records in parts if own == names])
    last = len(records) - 1 - np.unique(records["step"][::-1], return_index=True)[1]
    return names, records[last]


def read_probes(folder: Path) -> Probes | None:
    from workers.watch.probe_rows import probes_of

    found = read_records(folder)
    return None if found is None else probes_of(*found)
