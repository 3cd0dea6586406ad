"""What each worker measures of its own part of a step, and the checksums of its parameters: how they come together.

A worker's numbers of a step travel with the all-reduce of the step after it (``workers/agreement.py``), so that nobody waits for them and no message
is added. Losses are of every step, because they are there anyway. When norms and checksums are measured rank 0 says in the same way, by what that
costs there: own norms are of every step where they are cheap.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from workers import parallel
from workers.own_gradients import OwnGradient
from workers.watch.rank_rows import FIELDS, Heard
from workers.watch.spending import Stopwatch, surely_probed

NORMS_SHARE, NORMS_SPARSEST = 0.25, 10  # of the budget: 0.5 % of a step by default; steps between two
CHECKSUMS_SHARE, CHECKSUMS_SPARSEST = 0.1, 500
CHEAP_SECONDS = 1e-4  # per step: small models have norms of every step
FIRST_STEPS = 20  # always measured
REMEMBERED = 9  # timings, of which the least counts


class RankWatch:
    """Of one generation of a group. Alone there is nothing to compare: nothing is measured."""

    def __init__(self, model: nn.Module, device: torch.device, *, budget: float, rank: int, world_size: int) -> None:
        """``model``: as ``parallel.distribute`` gave it. ``budget``: of all probes; 0: nothing is measured, 1: everything at every step."""
        self._rank, self._world_size, self._device = rank, world_size, device
        self._budget = budget if world_size > 1 else 0.0
        self._own = OwnGradient(model, device)
        plain = parallel.plain(model)
        # Parts have no copies to compare them with.
        self._parameters: Sequence[Tensor] = () if parallel.lockstep(model) else list(plain.parameters())
        self._weights = 1 + 2 * torch.arange(len(self._parameters), dtype=torch.int64, device=device)  # odd
        self._checking = Stopwatch(events=device.type == "cuda")
        self._norms_took: deque[float] = deque(maxlen=REMEMBERED)
        self._check_took: deque[float] = deque(maxlen=REMEMBERED)
        self._steps_took: deque[float] = deque(maxlen=REMEMBERED)
        self._began_at: float | None = None
        self._step = self._checked = self._next_norms = self._next_check = 0
        self._measures = self._checks = False
        self._pending: tuple[int, Tensor] | None = None
        self._sent: int | None = None

    @property
    def gradient_divisor(self) -> int:
        """What the group divides the sum of its workers' gradients by."""
        return 1 if self._own.adds_up else self._world_size

    # --- when ---------------------------------------------------------------------------------------------------------

    def votes(self) -> tuple[float, float]:
        """Rank 0's: the next steps for norms and for checksums. Those of all are added up."""
        if self._rank > 0 or self._budget == 0:
            return 0.0, 0.0
        norms = self._interval(self._norms_took, NORMS_SHARE, NORMS_SPARSEST, CHEAP_SECONDS)
        checks = self._interval(self._check_took, CHECKSUMS_SHARE, CHECKSUMS_SPARSEST, 0.0)
        return float(self._step + norms), float(max(self._step + 1, self._checked + checks))

    def agree(self, next_norms: float, next_check: float) -> None:
        self._next_norms, self._next_check = int(next_norms), int(next_check)

    def _interval(self, costs: deque[float], share: float, sparsest: int, cheap: float) -> int:
        if self._budget >= 1 or not costs or not self._steps_took:
            return 1
        cost, step = min(costs), min(self._steps_took)  # not what else the machine did meanwhile
        return max(1, min(sparsest, math.ceil(cost / max(cheap, self._budget * share * step, 1e-9))))

    def begin(self, step: int) -> None:
        """``step`` counts from 1."""
        self._step = step
        if self._budget == 0:
            return
        now = time.perf_counter()
        if self._began_at is not None:
            self._steps_took.append(now - self._began_at)
        self._began_at = now
        for watch, costs in ((self._own.watch, self._norms_took), (self._checking, self._check_took)):
            took = watch.read()
            if took:
                costs.append(took)
        every = self._budget >= 1
        self._checks = bool(self._parameters) and (every or surely_probed(step) or step == self._next_check)
        self._measures = every or self._checks or step <= FIRST_STEPS or step >= self._next_norms
        if self._checks:
            self._checked = step
        self._own.begin(self._measures)

    # --- what ---------------------------------------------------------------------------------------------------------

    def row(self) -> Tensor:
        """(R x 4,) float64 on the device: this worker's numbers of the step before, in their place among zeros; empty when there are none.

        The same size on all workers.
        """
        pending, self._pending = self._pending, None
        self._sent = None
        table = torch.zeros((self._world_size, len(FIELDS)), dtype=torch.float64, device=self._device)
        if pending is None:
            return table[:0].flatten()
        self._sent, table[self._rank] = pending
        return table.flatten()

    def heard(self, sums: Tensor) -> Heard | None:
        """What came of ``row`` when all had given theirs."""
        return None if self._sent is None else Heard(self._sent, sums.view(self._world_size, len(FIELDS)))

    @torch.no_grad()
    def after_backward(self, totals: Tensor, samples: int, scale: float) -> None:
        """``totals``: loss sum and count of this worker's part; ``scale``: what its loss sum was multiplied with for the backward pass."""
        if self._budget == 0:
            return
        loss_sum, count = totals[0], totals[1]
        if self._measures:
            # A part without samples, whose stand-in counts nothing, has no gradient either.
            norm = torch.where(count > 0, self._own.square.sqrt() / (scale * count), torch.zeros_like(count))
        else:
            norm = torch.full_like(count, math.nan)
        here = torch.full_like(count, float(samples))
        self._pending = self._step, torch.stack([norm, here, loss_sum / count, torch.zeros_like(count)])

    @torch.no_grad()
    def after_update(self) -> None:
        if self._checks and self._pending is not None:
            with self._checking:
                self._pending[1][3] = checksum(self._parameters, self._weights)


def checksum(parameters: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Of the bits of all parameters, each multiplied with an odd number of its own: () float64, a whole number from 1 to 2^52.

    One bit that is another makes another checksum: sums of bit patterns are exact, and modulo 2^52 no bit of a pattern falls out.
    """
    total = (torch.stack([_sum_of_bits(parameter) for parameter in parameters]) * weights).sum()
    return ((total & ((1 << 52) - 1)) + 1).double()


def _sum_of_bits(tensor: Tensor) -> Tensor:
    """() int64. Two neighbours of 32 bits are added up as one number of 64, which is many times faster; their high halves are folded in."""
    flat = tensor.reshape(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    if flat.element_size() == 4 and flat.storage_offset() % 2 == 0 and flat.numel() > 1:
        even = flat.numel() // 2 * 2
        total = flat[:even].view(torch.int64).sum()
        if even < flat.numel():
            total = total + flat[even:].view(torch.int32).sum(dtype=torch.int64)
        return _folded(total)
    if flat.element_size() == 8:
        return _folded(flat.view(torch.int64).sum())
    kind = {4: torch.int32, 2: torch.int16, 1: torch.uint8}[flat.element_size()]
    return flat.view(kind).sum(dtype=torch.int64)


def _folded(total: Tensor) -> Tensor:
    """The upper half counts too below 2^52: a flipped bit there changes it by a power of two that must not be lost."""
    return total + (total >> 32) * 3
