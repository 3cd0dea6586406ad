"""A few of a tensor's many elements that stand for all of them."""

from __future__ import annotations

import math

from torch import Tensor

BLOCK = 16  # neighbours taken together: memory comes in lines


def sample(tensor: Tensor, most: int) -> Tensor:
    """A view of about ``most`` elements, evenly spaced in blocks over the tensor; all of it if it has no more.

    Also all of it when it does not lie in order in memory. The blocks move along the rows, so that they stay at no column.
    """
    if tensor.numel() <= most or not tensor.is_contiguous():
        return tensor
    blocks = tensor.numel() // BLOCK
    every = -(-blocks * BLOCK // most)
    in_a_row = max(1, tensor.numel() // tensor.shape[0] // BLOCK)
    while math.gcd(every, in_a_row) != 1:
        every += 1
    return tensor.view(-1)[: blocks * BLOCK].view(blocks, BLOCK)[::every]
