"""Cross-entropy over a large vocabulary without its logits ever standing in memory whole."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

IGNORED = -100  # the label of what is not predicted
CHUNK_ELEMENTS = 1 << 24  # logits at once: 64 MiB in float32


def cross_entropy(
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    labels: Tensor,
    chunk_elements: int = CHUNK_ELEMENTS,
    *,
    vocabulary: int,
) -> Tensor:
    """(sum of the losses, number of right predictions, number of predictions) over the labels that are not IGNORED: (3,) float32.

    ``hidden`` (N, D) and ``labels`` (N,); ``head`` turns (n, D) into logits (n, ``vocabulary``). Rows are taken in chunks; the backward pass
    computes the logits of each anew (Chen et al. 2016, sublinear memory), unless all of them are one chunk.
    """
    rows = max(1, chunk_elements // vocabulary)
    if len(labels) <= rows:
        return _of_chunk(head, hidden, labels)
    parts = [
        checkpoint(_of_chunk, head, hidden[start : start + rows], labels[start : start + rows], use_reentrant=False)
        for start in range(0, len(labels), rows)
    ]
    return torch.stack(parts).sum(0)


def _of_chunk(head: Callable[[Tensor], Tensor], hidden: Tensor, labels: Tensor) -> Tensor:
    logits = head(hidden).float()
    loss = functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    counted = labels != IGNORED
    with torch.no_grad():
        right = ((logits.argmax(-1) == labels) & counted).sum()
    return torch.stack([loss, right.float(), counted.sum().float()])
