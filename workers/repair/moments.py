"""The memory of an optimizer."""

from __future__ import annotations

import torch
from torch import Tensor

from workers.sharding import local


@torch.no_grad()
def forget_moments(optimizer: torch.optim.Optimizer) -> None:
    """As if it had not made a step yet: sums, means and counters are 0, in place."""
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor):
                local(value).zero_()
