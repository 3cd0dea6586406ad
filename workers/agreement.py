"""One small all-reduce a step: the loss over all workers, and what they decide together."""

from __future__ import annotations

from enum import IntEnum

import torch
import torch.distributed as dist
from torch import Tensor

VOTES = 3  # on the checkpoint in flight


class Signal(IntEnum):
    """What a worker wants all of them to do after the step that is under way. The largest wins."""

    NONE = 0
    STOP = 1
    NONFINITE = 2


class Agreement:
    """``start`` before the backward pass, ``result`` after it: the numbers travel meanwhile.

    Sums and signals go through one all-reduce on the CPU. On accelerators the sums stay on the device and the signals go through a
    gloo group of their own, so that deciding never waits for the device.
    """

    def __init__(self, device: torch.device, world_size: int) -> None:
        self._device, self._world_size = device, world_size
        self.group: dist.ProcessGroup | None = None  # for control and objects, always on the CPU
        if world_size > 1 and device.type != "cpu":
            self.group = dist.new_group(backend="gloo")
        self._sums = torch.zeros(2)
        self._signals = torch.zeros(len(Signal) + VOTES)
        self._works: list[dist.Work] = []

    def start(self, sums: Tensor, signal: Signal, checkpoint: tuple[float, float, float]) -> None:
        """``sums``: (loss sum, count), float64 on the device. ``checkpoint``: this rank's votes on the one in flight."""
        signals = [float(each is signal) for each in Signal]
        votes = torch.tensor([*signals, *checkpoint], dtype=torch.float64)
        if self._world_size == 1:
            self._sums, self._signals = sums, votes
        elif self._device.type == "cpu":
            both = torch.cat([sums, votes])
            self._sums, self._signals = both[:2], both[2:]
            self._send(both, None)
        else:
            self._sums, self._signals = sums.clone(), votes
            self._send(self._sums, None)
            self._send(self._signals, self.group)

    def _send(self, tensor: Tensor, group: dist.ProcessGroup | None) -> None:
        work = dist.all_reduce(tensor, group=group, async_op=True)
        assert work is not None
        self._works.append(work)

    def result(self) -> tuple[Tensor, Tensor, Signal, list[float]]:
        """(loss sum, count, signal, sums of the votes on the checkpoint) over all workers, the same on each."""
        for work in self._works:
            work.wait()
        self._works.clear()
        agreed = max(signal for signal in Signal if signal is Signal.NONE or self._signals[signal].item() > 0)
        return self._sums[0], self._sums[1], agreed, self._signals[len(Signal) :].tolist()
