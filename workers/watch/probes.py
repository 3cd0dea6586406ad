"""What is measured now and then, layer by layer: weights, gradients, updates, optimizer state, and what activations give.

A step that is probed goes ``begin``, ``begin_pass`` before every pass, ``before_update`` with its gradients, ``after_update``. Everything stays on
the device; nothing of the training is changed. Workers agree on the next probe through a number that rank 0 gives with what they agree on anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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

UPDATE_SAMPLE = 1 << 14  # of a tensor with more elements, evenly spaced ones stand for all: of updates and moments
FIRST_MOMENTS = ("exp_avg", "momentum_buffer")
SECOND_MOMENTS = ("exp_avg_sq", "square_avg", "sum")  # Adam's, RMSprop's and Adadelta's, Adagrad's
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
            norms = self._norms([local(parameter) for parameter in self._layers.parameters]).square()
            self._weights = _Weights(norms, self._weights_before())

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

    def _weights_before(self) -> list[Tensor]:
        """In memory that is kept: new memory would take longer than the copy."""
        now = [sample(local(parameter), UPDATE_SAMPLE) for parameter in self._layers.parameters]
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
        measured = {}
        for name, keys in {"first": FIRST_MOMENTS, "second": SECOND_MOMENTS}.items():
            having, values = self._moments(keys, weights.samples)
            self._add(sums, name, having, values)
            measured[name] = self._over_layers(having, lambda index: 1.0)
        largest, histograms = opened.gradients.largest, opened.gradients.histograms
        if self._sharded:
            sums, histograms = self._added_up(sums, histograms)
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        by = dict(zip(SUMS, sums, strict=True))
        elements = self._over_layers(owned, lambda index: float(self._layers.parameters[index].numel()))
        with_units = [index for index in owned if self._gradients.has_units[index]]
        units = self._over_layers(with_units, lambda index: float(self._layers.parameters[index].shape[0]))
        nan = torch.full_like(elements, torch.nan)
        statistics = torch.stack(
            [
                by["weight"].sqrt(),
                torch.where(by["weight"] > 0, (by["update"] / by["weight"]).sqrt(), nan),
                by["zeros"] / elements,
                by["zero_rows"] / units,
                torch.where(elements > 0, largest, nan),
                torch.where(elements > 0, by["nonfinite"], nan),
                torch.where(measured["first"] > 0, by["first"].sqrt(), nan),
                torch.where(measured["second"] > 0, by["second"].sqrt(), nan),
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
        now = [local(parameter) for parameter in self._layers.parameters]
        seen = [sample(values, UPDATE_SAMPLE) for values in now]
        if not seen:
            return self._nothing(0)
        torch._foreach_sub_(before, seen)
        return self._norms(before).square() * self._stands_for(now, seen)

    def _moments(self, keys: tuple[str, ...], room: list[Tensor]) -> tuple[list[int], Tensor]:
        """Squared norms of the first of ``keys`` that the optimizer keeps of each parameter. ``room``: for its samples, written over."""
        having, tensors = [], []
        for index, parameter in enumerate(self._layers.parameters):
            state = self._optimizer.state.get(parameter)
            found = _first_of(state, keys) if state else None
            if found is not None:
                having.append(index)
                tensors.append(local(found))
        if not having:
            return having, self._nothing(0)
        seen = [sample(tensor, UPDATE_SAMPLE) for tensor in tensors]
        # A norm of what lies apart in memory takes longer than a copy of it.
        apart = [
            place
            for place, index in enumerate(having)
            if not seen[place].is_contiguous() and room[index].shape == seen[place].shape
        ]
        if apart:
            places = [room[having[place]] for place in apart]
            torch._foreach_copy_(places, [seen[place] for place in apart])
            for place, copied in zip(apart, places, strict=True):
                seen[place] = copied
        return having, self._norms(seen).square() * self._stands_for(tensors, seen)

    def _norms(self, tensors: list[Tensor]) -> Tensor:
        """(n,) float64"""
        return torch.stack(torch._foreach_norm(tensors)).double() if tensors else self._nothing(0)

    def _stands_for(self, tensors: list[Tensor], seen: list[Tensor]) -> Tensor:
        ratios = [all_.numel() / max(1, some.numel()) for all_, some in zip(tensors, seen, strict=True)]
        return torch.tensor(ratios, dtype=torch.float64, device=self._device)

    def _over_layers(self, indices: list[int], value: Callable[[int], float]) -> Tensor:
        """(L,): sums over these parameters, known to the host."""
        found = [0.0] * len(self._layers.names)
        for index in indices:
            found[self._layers.owner[index]] += value(index)
        return torch.tensor(found, dtype=torch.float64, device=self._device)


def _first_of(state: Mapping[str, object], keys: tuple[str, ...]) -> Tensor | None:
    for key in keys:
        found = state.get(key)
        if isinstance(found, Tensor):
            return found
    return None
