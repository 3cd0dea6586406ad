"""One small all-reduce a step: the loss over all workers, and what they decide together."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from enum import IntEnum

import torch
import torch.distributed as dist
from torch import Tensor


class Signal(IntEnum):
    """What a worker wants all of them to do after the step that is under way. The largest wins."""

    NONE = 0
    REGROUP = 1  # form the next group
    REPAIR = 2  # change something of the run, because it fails
    PAUSE = 3
    CRITICAL = 4  # something critical was found for which the job is to be stopped
    CANCEL = 5
    NONFINITE = 6


@dataclass(frozen=True)
class Votes:
    """Numbers of the host that are added up over the workers; what only one of them is to say, the others give 0 for."""

    checkpoint: tuple[float, float, float] = (0.0, 0.0, 0.0)  # writing, publishing, failed: see ``Saver.votes``
    next_probe: float = 0.0  # step
    next_norms: float = 0.0  # step at which each worker's own gradient is measured
    next_checksums: float = 0.0  # step
    next_snapshot: float = 0.0  # step after which each keeps what it has in the host's memory

    def numbers(self) -> list[float]:
        checkpoint, *others = astuple(self)
        return [*checkpoint, *others]

    @staticmethod
    def of(numbers: list[float]) -> Votes:
        writing, publishing, failed, *others = numbers
        return Votes((writing, publishing, failed), *others)


@dataclass(frozen=True)
class Agreed:
    """The same on every worker. ``votes``: sums over the workers of the votes that each gave."""

    loss_sum: Tensor  # () float64, on the device
    count: Tensor  # () float64, on the device
    signal: Signal
    votes: Votes
    table: Tensor  # sums of what each gave as ``table``


class Agreement:
    """``start`` before the backward pass, ``result`` after it: the numbers travel meanwhile.

    Sums and decisions go through one all-reduce on the CPU. On accelerators the sums stay on the device and the decisions go through
    a gloo group of their own (``control``), so that deciding never waits for the device.
    """

    def __init__(self, device: torch.device, world_size: int, control: dist.ProcessGroup | None) -> None:
        self._device, self._world_size, self._control = device, world_size, control
        self._sums = torch.zeros(2)  # and the table
        self._decisions = torch.zeros(len(Signal))
        self._works: list[dist.Work] = []

    def start(self, sums: Tensor, signal: Signal, votes: Votes, table: Tensor) -> None:
        """``sums``: (loss sum, count), ``table``: anything else that is to be added up, as large on all workers; float64 on the device."""
        decisions = torch.tensor([float(each is signal) for each in Signal] + votes.numbers(), dtype=torch.float64)
        sums = torch.cat([sums, table])
        if self._world_size == 1:
            self._sums, self._decisions = sums, decisions
        elif self._device.type == "cpu":
            both = torch.cat([sums, decisions])
            self._sums, self._decisions = both[: len(sums)], both[len(sums) :]
            self._send(both, None)
        else:
            self._sums, self._decisions = sums, decisions
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
        return Agreed(self._sums[0], self._sums[1], signal, Votes.of(decisions[len(Signal) :]), self._sums[2:])
