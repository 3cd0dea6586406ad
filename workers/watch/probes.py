"""What is measured now and then, layer by layer: weights, gradients, updates, optimizer state, and what activations give.

A step that is probed goes ``begin``, ``begin_pass`` before every pass, ``before_update`` with its gradients, ``after_update``. Everything stays on
the device; nothing of the training is changed. Workers agree on the next probe through a number that rank 0 gives with what they agree on anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from workers.gradients import Layers
from workers.sharding import local
from workers.watch.activations import Activations
from workers.watch.gradient_probe import GradientProbe, Measured
from workers.watch.probe_rows import BINS, Names
from workers.watch.sampling import sample
from workers.watch.spending import Spending, Stopwatch, surely_probed

UPDATE_SAMPLE = 1 << 13  # of a tensor with more elements, evenly spaced ones stand for all
MOMENT_SAMPLE = 1 << 12  # they are there to be looked at, and no rule asks for them
MOMENTS = {
    "first": ("exp_avg", "momentum_buffer"),
    "second": ("exp_avg_sq", "square_avg", "sum"),  # Adam's, RMSprop's and Adadelta's, Adagrad's
}
SUMS = ("weight", "update", "zeros", "zero_rows", "nonfinite", "first", "second")


@dataclass
class _Weights:
    """As they are before the update."""

    norms: Tensor  # squared
    samples: list[Tensor]


@dataclass
class _Open:
    """What a step that is probed has measured but for its update."""

    owned: list[int]  # parameters that have a gradient
    gradients: Measured
    activations: Tensor  # (2, A)


class Prober:
    """Of one generation of a group. ``model`` is the plain one, with its names."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        spending: Spending,
        *,
        rank: int = 0,
        world_size: int = 1,
        control: dist.ProcessGroup | None = None,
        compiled: bool = False,
        watch: Stopwatch | None = None,
        counts: Callable[[nn.Module], bool] | None = None,
    ) -> None:
        """``control``: where numbers of the host are agreed. ``compiled``: no hook is set, because it would be compiled in. ``counts``: whether what
        an activation module gives now is of a training pass; None: always."""
        self._layers = Layers.of(model)
        self._optimizer, self._device, self._spending = optimizer, device, spending
        self._rank, self._world_size, self._control = rank, world_size, control
        self._rows, self._sharded = self._layers.rows()
        self._row = torch.tensor(self._rows, dtype=torch.int64, device=device)
        self._gradients = GradientProbe(model, self._layers, self._rows, device, sharded=self._sharded)
        self._watch = watch or Stopwatch(events=device.type == "cuda")
        self._unread = False
        self.activations = None if compiled else Activations(model, device, self._watch, counts)
        self.names = Names(self._layers.names, self.activations.names if self.activations else ())
        self._kept: list[Tensor] | None = None
        self._ratios: dict[tuple[int, ...], Tensor] = {}
        self._next = 0
        self._step = 0
        self._probing = False
        self._weights: _Weights | None = None
        self._open: _Open | None = None

    # --- when ---------------------------------------------------------------------------------------------------------

    def vote(self) -> float:
        """Rank 0's: the next step to probe after the one that is under way. Those of all are added up."""
        return float(self._spending.next_after(self._step)) if self._rank == 0 else 0.0

    def agree(self, step: float) -> None:
        self._next = int(step)

    def begin(self, step: int) -> None:
        """``step`` counts from 1."""
        self._read_cost()
        self._step = step
        budget = self._spending.budget
        self._probing = budget > 0 and (budget >= 1 or surely_probed(step) or step == self._next)
        if not self._probing:
            return
        self._spending.probes(step)
        if self.activations is not None:
            with self._watch:
                self.activations.begin()

    @property
    def probing(self) -> bool:
        """Whether the step that is under way is probed."""
        return self._probing

    def begin_pass(self, counts: bool) -> None:
        """``counts``: whether its samples are of the batch; those of a stand-in are not."""
        if self._probing and self.activations is not None:
            self.activations.begin_pass(counts)

    def abandon(self) -> None:
        """Of a step that is not brought to its end."""
        self._probing, self._weights, self._open = False, None, None
        if self.activations is not None:
            self.activations.end()

    def _read_cost(self) -> None:
        if self._unread:
            seconds = self._watch.read()
            if seconds is not None:
                self._spending.probe_took(seconds)
                self._unread = False

    # --- what ---------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def before_update(self, correction: Tensor) -> None:
        """With all gradients there, not clipped yet. ``correction``: what they are to be multiplied with, a scalar on the device.

        Collective when there are activations to be seen. A step that breaks off here is done again whole.
        """
        self.keep_weights()
        self.look_at_gradients(correction)

    @torch.no_grad()
    def keep_weights(self) -> None:
        """Before the update."""
        if not self._probing:
            return
        with self._watch:
            here = self._here(self._layers.parameters)
            self._weights = _Weights(self._norms(here).square(), self._weights_before(here))

    @torch.no_grad()
    def look_at_gradients(self, correction: Tensor) -> None:
        """Collective like ``before_update``, but it may come after the update, where gradients are there only then."""
        if not self._probing:
            return
        with self._watch:
            owned = [index for index, p in enumerate(self._layers.parameters) if p.grad is not None]
            self._open = _Open(owned, self._gradients.measure(owned, correction), self._activations())

    @torch.no_grad()
    def after_update(self) -> Tensor | None:
        """The row of this probe, on the device (see ``probe_rows``). None: this step is not probed.

        Collective when parameters are sharded.
        """
        if self._open is None or self._weights is None:
            return None
        with self._watch:
            row = self._row_of(self._open, self._weights)
        self._probing, self._weights, self._open, self._unread = False, None, None, True
        if self._device.type == "cpu":
            self._read_cost()
        return row

    def _activations(self) -> Tensor:
        if self.activations is None:
            return torch.zeros((2, 0), dtype=torch.float64, device=self._device)
        self.activations.end()
        return self.activations.shares(self._world_size, self._control)

    def _nothing(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=self._device)

    def _here(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return [local(tensor) for tensor in tensors] if self._sharded else tensors

    def _weights_before(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """In memory that is kept: new memory would take longer than the copy."""
        now = [sample(values, UPDATE_SAMPLE) for values in weights]
        if self._kept is None:
            self._kept = [torch.empty_like(values, memory_format=torch.contiguous_format) for values in now]
        if now:
            torch._foreach_copy_(self._kept, now)
        return self._kept

    def _row_of(self, opened: _Open, weights: _Weights) -> Tensor:
        count, owned = len(self._layers.names), opened.owned
        everyone = list(range(len(self._layers.parameters)))
        sums = self._nothing(len(SUMS), count * (1 + self._sharded))
        self._add(sums, "weight", everyone, weights.norms)
        self._add(sums, "update", everyone, self._updates(weights.samples))
        for name, values in opened.gradients.sums.items():
            self._add(sums, name, owned, values)
        measured = {}  # layers that have a moment
        for name, moments in self._moments().items():
            kept = list(moments)
            self._add(sums, name, kept, self._squares(list(moments.values())))
            measured[name] = self._layers_of(kept)
        largest, histograms = opened.gradients.largest, opened.gradients.histograms
        if self._sharded:
            sums, histograms = self._added_up(sums, histograms)
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        by = dict(zip(SUMS, sums, strict=True))
        having = self._gradients.having(owned)
        there, nan = having.elements > 0, torch.full_like(having.elements, torch.nan)
        statistics = torch.stack(
            [
                by["weight"].sqrt(),
                torch.where(by["weight"] > 0, (by["update"] / by["weight"]).sqrt(), nan),
                by["zeros"] / having.elements,
                by["zero_rows"] / having.units,
                torch.where(there, largest, nan),
                torch.where(there, by["nonfinite"], nan),
                torch.where(measured["first"], by["first"].sqrt(), nan),
                torch.where(measured["second"], by["second"].sqrt(), nan),
            ]
        )
        shown = histograms[:, :BINS]
        shares = shown / shown.sum(1, keepdim=True).clamp(min=1e-9)
        return torch.cat([statistics.flatten(), opened.activations.flatten(), shares.flatten()])

    def _add(self, sums: Tensor, name: str, indices: list[int], values: Tensor) -> None:
        if indices:
            row = (
                self._row if len(indices) == len(self._rows) else self._row[torch.tensor(indices, device=self._device)]
            )
            sums[SUMS.index(name)].index_add_(0, row, values)

    def _added_up(self, sums: Tensor, histograms: Tensor) -> tuple[Tensor, Tensor]:
        """The parts of all workers in one all-reduce."""
        count = len(self._layers.names)
        parts = torch.cat([sums[:, count:].flatten(), histograms[count:].flatten()])
        dist.all_reduce(parts)
        split = len(SUMS) * count
        return (
            sums[:, :count] + parts[:split].view(len(SUMS), count),
            histograms[:count] + parts[split:].view(count, BINS + 1),
        )

    def _updates(self, before: list[Tensor]) -> Tensor:
        """Squared norms of the update, (parameters,). ``before`` is used up."""
        now = self._here(self._layers.parameters)
        seen = [sample(values, UPDATE_SAMPLE) for values in now]
        if not seen:
            return self._nothing(0)
        torch._foreach_sub_(before, seen)
        return self._norms(before).square() * self._stands_for(now, seen)

    def _moments(self) -> dict[str, dict[int, Tensor]]:
        """For each of MOMENTS, by parameter: the first of its names under which the optimizer keeps one."""
        found: dict[str, dict[int, Tensor]] = {name: {} for name in MOMENTS}
        states = self._optimizer.state
        for index, parameter in enumerate(self._layers.parameters):
            state = states.get(parameter)
            if not state:
                continue
            for name, keys in MOMENTS.items():
                for key in keys:
                    moment = state.get(key)
                    if isinstance(moment, Tensor):
                        found[name][index] = moment
                        break
        return found

    def _squares(self, moments: list[Tensor]) -> Tensor:
        """Squared norms, (moments,)."""
        tensors = self._here(moments)
        seen = [sample(tensor, MOMENT_SAMPLE) for tensor in tensors]
        return self._norms(seen).square() * self._stands_for(tensors, seen)

    def _norms(self, tensors: Sequence[Tensor]) -> Tensor:
        """(n,) float64"""
        return torch.stack(torch._foreach_norm(list(tensors))).double() if tensors else self._nothing(0)

    def _stands_for(self, tensors: Sequence[Tensor], seen: list[Tensor]) -> Tensor:
        """The same at every probe, as a rule."""
        sizes = tuple([tensor.numel() for tensor in tensors] + [some.numel() for some in seen])
        found = self._ratios.get(sizes)
        if found is None:
            ratios = [tensor.numel() / max(1, some.numel()) for tensor, some in zip(tensors, seen, strict=True)]
            found = self._ratios[sizes] = torch.tensor(ratios, dtype=torch.float64, device=self._device)
        return found

    def _layers_of(self, indices: list[int]) -> Tensor:
        """(L,) bool: layers that have one of these parameters."""
        found = {self._layers.owner[index] for index in indices}
        return torch.tensor([layer in found for layer in range(len(self._layers.names))], device=self._device)
