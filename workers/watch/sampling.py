"""A few of a tensor's many elements that stand for all of them."""

from __future__ import annotations

import functools
import math

from torch import Tensor

BLOCK = 16  # neighbours taken together: memory comes in lines


def sample(tensor: Tensor, most: int) -> Tensor:
    """A view of about ``most`` elements, evenly spaced in blocks over the tensor; all of it if it has no more.

    Also all of it when it does not lie in order in memory. The blocks move along the rows, so that they stay at no column.
    """
    count = tensor.numel()
    if count <= most or not tensor.is_contiguous():
        return tensor
    blocks, every = _every(count, tensor.shape[0], most)
    return tensor.as_strided((-(-blocks // every), BLOCK), (every * BLOCK, 1))


@functools.lru_cache(maxsize=4096)
def _every(count: int, rows: int, most: int) -> tuple[int, int]:
    """How many blocks there are, and how far apart those are that are taken."""
    blocks = count // BLOCK
    every = -(-blocks * BLOCK // most)
    in_a_row = max(1, count // rows // BLOCK)
    while math.gcd(every, in_a_row) != 1:
        every += 1
    return blocks, every
