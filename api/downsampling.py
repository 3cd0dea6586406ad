"""Fewer points of a series, without losing what a reader looks for: its ends, its peaks, and where it stops being a number."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def downsample(values: NDArray[np.float64], max_points: int) -> NDArray[np.int64]:
    """Indices, ascending and at most ``max_points`` (4 or more), of the points to show.

    Kept are the first and the last point, the smallest and the largest of each of equal stretches (the part of M4 that
    shapes a line chart: Jugel et al., "M4: a visualization-oriented time series data aggregation", VLDB 2014), and
    non-finite points: all of them while they fill no more than a quarter of the room, else evenly spread ones.
    """
    count = len(values)
    if count <= max_points:
        return np.arange(count)
    finite = np.isfinite(values)
    broken = _spread(np.flatnonzero(~finite), max_points // 4)
    ends = np.array([0, count - 1])
    room = max_points - len(np.union1d(ends, broken))
    inner = np.flatnonzero(finite)
    inner = inner[(inner > 0) & (inner < count - 1)]
    extremes = inner if len(inner) <= room else _extremes(values, inner, room // 2)
    return np.union1d(np.union1d(ends, broken), extremes)


def _spread(indices: NDArray[np.int64], room: int) -> NDArray[np.int64]:
    """At most ``room`` of ``indices``, evenly, the first and the last among them."""
    if len(indices) <= room:
        return indices
    return indices[np.unique(np.linspace(0, len(indices) - 1, room).round().astype(np.int64))]


def _extremes(values: NDArray[np.float64], indices: NDArray[np.int64], buckets: int) -> NDArray[np.int64]:
    """Where the smallest and the largest value of each of ``buckets`` equal stretches of ``indices`` is."""
    kept = [
        bucket[position]
        for bucket in np.array_split(indices, max(buckets, 1))
        for position in (int(values[bucket].argmin()), int(values[bucket].argmax()))
    ]
    return np.unique(np.array(kept[: 2 * buckets], dtype=np.int64))
