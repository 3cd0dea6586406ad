"""One small all-reduce a step: the loss over all workers, and what they decide together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
import torch.distributed as dist
from torch import Tensor


class Signal(IntEnum):
    """What a worker wants all of them to do after the step that is under way. The largest wins."""

    NONE = 0
    REGROUP = 1  # form the next group
    PAUSE = 2
    CANCEL = 3
    NONFINITE = 4


@dataclass(frozen=True)
class Agreed:
    """The same on every worker. ``votes``: sums over the workers of the votes that each gave."""

    loss_sum: Tensor  # () float64, on the device
    count: Tensor  # () float64, on the device
    signal: Signal
    votes: tuple[float, ...]


class Agreement:
    """``start`` before the backward pass, ``result`` after it: the numbers travel meanwhile.

    Sums and decisions go through one all-reduce on the CPU. On accelerators the sums stay on the device and the decisions go through
    a gloo group of their own (``control``), so that deciding never waits for the device.
    """

    def __init__(self, device: torch.device, world_size: int, control: dist.ProcessGroup | None) -> None:
        self._device, self._world_size, self._control = device, world_size, control
        self._sums = torch.zeros(2)
        self._decisions = torch.zeros(len(Signal))
        self._works: list[dist.Work] = []

    def start(self, sums: Tensor, signal: Signal, votes: Sequence[float]) -> None:
        """``sums``: (loss sum, count), float64 on the device."""
        decisions = torch.tensor([float(each is signal) for each in Signal] + list(votes), dtype=torch.float64)
        if self._world_size == 1:
            self._sums, self._decisions = sums, decisions
        elif self._device.type == "cpu":
            both = torch.cat([sums, decisions])
            self._sums, self._decisions = both[:2], both[2:]
            self._send(both, None)
        else:
            self._sums, self._decisions = sums.clone(), decisions
            self._send(self._sums, None)
            self._send(self._decisions, self._control)

    def _send(self, tensor: Tensor, group: dist.ProcessGroup | None) -> None:
        work = dist.all_reduce(tensor, group=group, async_op=True)
        assert work is not None
        self._works.append(work)

    def result(self) -> Agreed:
        for work in self._works:
            work.wait()
        self._works.clear()
        decisions = self._decisions.tolist()
        signal = max(signal for signal in Signal if signal is Signal.NONE or decisions[signal] > 0)
        return Agreed(self._sums[0], self._sums[1], signal, tuple(decisions[len(Signal) :]))
