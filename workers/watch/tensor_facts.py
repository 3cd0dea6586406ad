"""What is to be known of a tensor of a batch: its range, its spread by feature, and which samples are no numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from workers.watch.record import TensorFacts

ROWS_NAMED = 20
LOOKED_AT = 1 << 20  # elements: logits of a large vocabulary must not be copied whole


@torch.no_grad()
def tensor_facts(tensor: Tensor) -> TensorFacts:
    """``tensor`` (B, ...). Figures are of the finite elements of the first samples, a million elements or one sample at least; features are
    channels of (B, C, H, W), else the last dimension."""
    tensor = tensor.detach()
    shape, rows = tuple(tensor.shape), len(tensor) if tensor.ndim else 1
    if tensor.ndim and tensor.numel() > LOOKED_AT:
        rows = max(1, rows * LOOKED_AT // tensor.numel())
        tensor = tensor[:rows]
    known = TensorFacts(str(tensor.dtype).removeprefix("torch."), shape, rows=rows)
    if not tensor.numel() or tensor.is_complex():
        return known
    values = tensor.to(torch.float64)
    finite = values.isfinite()
    bad = tuple((~finite).reshape(rows, -1).any(1).nonzero().flatten()[:ROWS_NAMED].tolist())
    good = values[finite]
    if not len(good):
        return TensorFacts(known.dtype, known.shape, nonfinite_rows=bad, rows=rows)
    sizes = good.abs()
    kept = values.where(finite, torch.nan)
    if kept.ndim < 2:
        kept = kept.reshape(-1, 1)
    features = kept.movedim(1 if kept.ndim == 4 else -1, -1).flatten(0, -2)
    means = features.nanmean(0)
    spreads = (features - means).square().nanmean(0).sqrt()
    return TensorFacts(
        dtype=known.dtype,
        shape=known.shape,
        least=float(good.min()),
        largest=float(good.max()),
        mean=float(good.mean()),
        std=float(good.std(correction=0)),
        percentile_99=float(sizes.kthvalue(max(1, round(0.99 * len(sizes)))).values),
        largest_feature_mean=float(means.abs().nan_to_num(0.0).max()),
        least_feature_std=float(spreads.nan_to_num(torch.inf).min()),
        largest_feature_std=float(spreads.nan_to_num(0.0).max()),
        nonfinite_rows=bad,
        rows=rows,
    )
