"""What one probe gives, as it travels, is kept and is judged. NumPy only.

A row is one array of float64: the statistics of ``STATISTICS`` (8, L), those of ``ACTIVATION_STATISTICS`` (2, A), then histograms (L, BINS).
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.watch.record import Floats, Probes

# Fields of ``Probes``.
STATISTICS = (
    "weight_norms",
    "update_ratios",
    "zero_shares",
    "zero_rows",
    "largest",
    "nonfinite",
    "first_moments",
    "second_moments",
)
ACTIVATION_STATISTICS = ("silent", "saturated")
LOWEST, BINS = (
    -40,
    48,
)  # bin i holds elements with 2^(LOWEST+i) <= |g| < 2^(LOWEST+i+1), the first and last also what lies beyond
WHOLE = 65535  # of a histogram: shares of the elements that are not 0 are kept as integers
KEPT_ROWS = 256  # for judging
FIRST_ROWS = 16  # of these, always kept
PASSED_ON = 32  # rows in a checkpoint: half of them the first, half the latest


@dataclass(frozen=True)
class Names:
    layers: tuple[str, ...]
    activations: tuple[str, ...]


def record_type(names: Names) -> np.dtype[Any]:
    """Of one row on disk, little-endian."""
    layers, activations = len(names.layers), len(names.activations)
    return np.dtype(
        [
            ("step", "<i8"),
            ("cost_share", "<f8"),
            ("statistics", "<f4", (len(STATISTICS), layers)),
            ("activations", "<f4", (len(ACTIVATION_STATISTICS), activations)),
            ("histograms", "<u2", (layers, BINS)),
        ]
    )


def pack(names: Names, step: int, cost_share: float | None, row: Floats) -> str:
    """As text, which JSON takes: a record in base 64."""
    layers, activations = len(names.layers), len(names.activations)
    statistics, active, histograms = np.split(
        row, np.cumsum([len(STATISTICS) * layers, len(ACTIVATION_STATISTICS) * activations])
    )
    record = np.zeros(1, dtype=record_type(names))
    record["step"], record["cost_share"] = step, np.nan if cost_share is None else cost_share
    with np.errstate(over="ignore"):  # beyond float32: infinite
        record["statistics"] = statistics.reshape(1, len(STATISTICS), layers)
        record["activations"] = active.reshape(1, len(ACTIVATION_STATISTICS), activations)
    record["histograms"] = np.rint(np.nan_to_num(histograms) * WHOLE).reshape(1, layers, BINS)
    return base64.b64encode(record.tobytes()).decode()


def unpack(names: Names, rows: Sequence[str]) -> NDArray[Any]:
    """(P,) records."""
    return np.frombuffer(b"".join(map(base64.b64decode, rows)), dtype=record_type(names))


def probes_of(names: Names, records: NDArray[Any]) -> Probes:
    statistics = records["statistics"].astype(np.float64)
    active = records["activations"].astype(np.float64)
    arrays = {name: statistics[:, index] for index, name in enumerate(STATISTICS)}
    arrays |= {name: active[:, index] for index, name in enumerate(ACTIVATION_STATISTICS)}
    costs = records["cost_share"][np.isfinite(records["cost_share"])]
    return Probes(
        layers=names.layers,
        activations=names.activations,
        steps=records["step"].astype(np.int64),
        cost_share=float(costs[-1]) if len(costs) else None,
        **arrays,
    )


def summary(names: Names, row: str) -> dict[str, float]:
    """Series of the run: the middle or the worst over layers. What was measured nowhere is not in it."""
    probes = probes_of(names, unpack(names, [row]))
    found = {
        "probe/update_ratio_median": _over(np.median, probes.update_ratios),
        "probe/update_ratio_max": _over(np.max, probes.update_ratios),
        "probe/weight_norm": float(np.sqrt(np.square(probes.weight_norms).sum())),
        "probe/zero_share_max": _over(np.max, probes.zero_shares),
        "probe/zero_rows_max": _over(np.max, probes.zero_rows),
        "probe/largest_gradient": _over(np.max, probes.largest),
        "probe/nonfinite_elements": _over(np.sum, probes.nonfinite),
        "probe/silent_max": _over(np.max, probes.silent),
        "probe/saturated_max": _over(np.max, probes.saturated),
        "watch/cost_share": probes.cost_share,
    }
    return {name: value for name, value in found.items() if value is not None}


def _over(reduce: Any, values: Floats) -> float | None:
    measured = values[~np.isnan(values)]
    return float(reduce(measured)) if len(measured) else None


class ProbeLog:
    """The rows of a run so far, thinned: judging needs their course, not each of them."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self._records: list[NDArray[Any]] = []  # (1,) each

    def add(self, row: str) -> None:
        self._records.append(unpack(self.names, [row]))
        if len(self._records) > KEPT_ROWS:
            self._records = self._records[:FIRST_ROWS] + self._records[FIRST_ROWS::2]

    def forget(self, after: int, through: int) -> None:
        self._records = [record for record in self._records if not after < record["step"][0] <= through]

    def probes(self) -> Probes:
        return probes_of(self.names, _joined(self.names, self._records))

    def document(self) -> dict[str, Any]:
        kept = self._records
        if len(kept) > PASSED_ON:
            kept = kept[: PASSED_ON // 2] + kept[-PASSED_ON // 2 :]
        records = zlib.compress(_joined(self.names, kept).tobytes())
        return {
            "layers": self.names.layers,
            "activations": self.names.activations,
            "rows": base64.b64encode(records).decode(),
        }

    def restore(self, document: Mapping[str, Any]) -> None:
        """Rows of a model with other layers are passed over."""
        same = Names(tuple(document["layers"]), tuple(document["activations"])) == self.names
        content = zlib.decompress(base64.b64decode(document["rows"])) if same else b""
        self._records = list(np.frombuffer(content, dtype=record_type(self.names)).reshape(-1, 1))


def _joined(names: Names, records: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate(records) if records else np.zeros(0, dtype=record_type(names))
