from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.downsampling import downsample

pytestmark = pytest.mark.unit


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.floats(width=32), min_size=0, max_size=400),
    st.integers(4, 60),
)
def test_bound_order_and_ends(values: list[float], max_points: int) -> None:
    kept = downsample(np.array(values, dtype=np.float64), max_points)
    assert len(kept) <= max_points
    assert list(kept) == sorted(set(kept))
    if values:
        assert (kept[0], kept[-1]) == (0, len(values) - 1)
    if len(values) <= max_points:
        assert len(kept) == len(values)
    finite = [value for value in values if math.isfinite(value)]
    if finite and max_points >= 8:  # room for two ends, a quarter of broken ones, and one stretch
        shown = [values[index] for index in kept if math.isfinite(values[index])]
        assert max(shown) == max(finite)
        assert min(shown) == min(finite)


def test_few_broken_points_all_stay() -> None:
    values = np.linspace(0, 1, 10_000)
    broken = [17, 5000, 9998]
    values[broken] = [np.nan, np.inf, -np.inf]
    assert set(broken) <= set(downsample(values, 100).tolist())


def test_a_series_that_is_broken_from_some_step_on_shows_where() -> None:
    values = np.linspace(1, 0, 10_000)
    values[4000:] = np.nan
    kept = downsample(values, 200)
    assert len(kept) <= 200
    assert 4000 in kept
    assert sum(index < 4000 for index in kept) > 100
