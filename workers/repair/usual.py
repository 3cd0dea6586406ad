"""What was usual in a run before it failed."""

from __future__ import annotations

import numpy as np

from workers.watch.record import Series

FEW = 5  # steps say what is usual


def usual_norm(series: Series, before: int) -> float | None:
    """Median of the gradient's global norm in the steps before that one, or in the first ones. None: there are none that are finite."""
    norms = np.sqrt(np.square(series.norms).sum(1))
    early = norms[series.steps < before]
    found = early if len(early) >= FEW else norms[:FEW]
    found = found[np.isfinite(found)]
    return float(np.median(found)) if len(found) else None
