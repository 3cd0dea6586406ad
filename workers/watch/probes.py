"""What is measured now and then, layer by layer: weights, gradients, updates, optimizer state, and what activations give.

A step that is probed goes ``begin``, ``begin_pass`` before every pass, ``before_update`` with its gradients, ``after_update``. Everything stays on
the device; nothing of the training is changed. Workers agree on the next probe through a number that rank 0 gives with what they agree on anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from workers.gradients import Layers, named
from workers.sharding import is_part, local
from workers.watch.activations import Activations
from workers.watch.probe_rows import BINS, LOWEST, Names
from workers.watch.sampling import sample
from workers.watch.spending import Spending, Stopwatch, surely_probed

# Of a tensor with more elements, evenly spaced ones stand for all: of updates and moments, and of histograms.
UPDATE_SAMPLE, HISTOGRAM_SAMPLE = 1 << 17, 1 << 12
FIRST_MOMENTS = ("exp_avg", "momentum_buffer")
SECOND_MOMENTS = ("exp_avg_sq", "square_avg", "sum")  # Adam's, RMSprop's and Adadelta's, Adagrad's
SUMS = ("weight", "update", "zeros", "zero_rows", "nonfinite", "first", "second")


@dataclass
class _Open:
    """What a step that is probed has measured before its update. ``sums``: by name, a number a parameter."""

    owned: list[int]  # parameters that have a gradient
    sums: dict[str, Tensor]
    largest: Tensor  # (L,)
    histograms: Tensor  # (rows, BINS + 1)
    weights: Tensor  # squared norms
    before: list[Tensor]  # samples of the weights
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
    ) -> None:
        """``control``: where numbers of the host are agreed. ``compiled``: no hook is set, because it would be compiled in."""
        self._layers = Layers.of(model)
        self._optimizer, self._device, self._spending = optimizer, device, spending
        self._rank, self._world_size, self._control = rank, world_size, control
        parts = [is_part(parameter) for parameter in self._layers.parameters]
        self._sharded = any(parts)
        count = len(self._layers.names)
        # As GradientMonitor: what each worker has whole counts once, and after it parts, which are added up.
        self._rows = [index + count * part for index, part in zip(self._layers.owner, parts, strict=True)]
        self._row = torch.tensor(self._rows, dtype=torch.int64, device=device)
        self._has_units = _with_rows(model, self._layers)
        self._watch = Stopwatch(events=device.type == "cuda")
        self._unread = False
        self.activations = None if compiled else Activations(model, device, self._watch)
        self.names = Names(self._layers.names, self.activations.names if self.activations else ())
        self._kept: list[Tensor] | None = None
        self._histogram_of: tuple[list[int], Tensor, Tensor] | None = None
        self._next = 0
        self._step = 0
        self._probing = False
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
        if self._probing and self.activations is not None:
            with self._watch:
                self.activations.begin()

    def begin_pass(self, counts: bool) -> None:
        """``counts``: whether its samples are of the batch; those of a stand-in are not."""
        if self._probing and self.activations is not None:
            self.activations.begin_pass(counts)

    def abandon(self) -> None:
        """Of a step that is not brought to its end."""
        self._probing, self._open = False, None
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
        if not self._probing:
            return
        with self._watch:
            owned = [index for index, p in enumerate(self._layers.parameters) if p.grad is not None]
            gradients = [self._gradient(index) for index in owned]
            weights = self._norms([local(parameter) for parameter in self._layers.parameters]).square()
            self._open = _Open(
                owned,
                *self._of_gradients(owned, gradients, correction),
                weights,
                self._weights_before(),
                self._activations(),
            )

    @torch.no_grad()
    def after_update(self) -> Tensor | None:
        """The row of this probe, on the device (see ``probe_rows``). None: this step is not probed.

        Collective when parameters are sharded.
        """
        if self._open is None:
            return None
        with self._watch:
            row = self._row_of(self._open)
        self._probing, self._open, self._unread = False, None, True
        if self._device.type == "cpu":
            self._read_cost()
        return row

    def _activations(self) -> Tensor:
        if self.activations is None:
            return torch.zeros((2, 0), dtype=torch.float64, device=self._device)
        self.activations.end()
        return self.activations.shares(self._world_size, self._control)

    def _parameter(self, index: int) -> Tensor:
        return self._layers.parameters[index]

    def _gradient(self, index: int) -> Tensor:
        """What of it lies here; of a sparse one the elements that it names."""
        gradient = self._parameter(index).grad
        assert gradient is not None
        return named(gradient) if gradient.is_sparse else local(gradient)

    def _of_gradients(
        self, owned: list[int], gradients: list[Tensor], correction: Tensor
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        zeros, zero_rows, largest, nonfinite = [], [], [], []
        for index, gradient in zip(owned, gradients, strict=True):
            rows, peak = self._peaks(gradient, self._has_units[index])
            sparse = getattr(self._parameter(index).grad, "is_sparse", False)
            unnamed = self._parameter(index).numel() - gradient.numel() if sparse else 0
            zeros.append(self._zeros(gradient) + unnamed)
            zero_rows.append(rows)
            largest.append(peak)
            nonfinite.append(self._nonfinite(gradient, peak))
        found = torch.full((len(self._layers.names),), -torch.inf, dtype=torch.float64, device=self._device)
        if owned:
            owner = torch.tensor([self._layers.owner[index] for index in owned], device=self._device)
            peaks = torch.stack(largest).double() * correction
            found.scatter_reduce_(0, owner, peaks.nan_to_num(nan=torch.inf, posinf=torch.inf), "amax")
        sums = {"zeros": zeros, "zero_rows": zero_rows, "nonfinite": nonfinite}
        stacked = {name: self._stacked(values) for name, values in sums.items()}
        return stacked, found, self._histograms(owned, gradients, correction)

    def _stacked(self, values: list[Tensor]) -> Tensor:
        """(n,) float64"""
        return torch.stack([value.double() for value in values]) if values else self._nothing(0)

    def _nothing(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=self._device)

    def _peaks(self, gradient: Tensor, has_units: bool) -> tuple[Tensor, Tensor]:
        """How many rows are exactly 0, and the largest absolute element; both scalars on the device."""
        none = torch.zeros((), device=self._device)
        if gradient.numel() == 0:
            return none, none
        if not has_units:
            low, high = torch.aminmax(gradient)
            return none, torch.maximum(high, -low)
        by_row = gradient.flatten(1)
        high, low = by_row.amax(1), by_row.amin(1)
        return ((high == 0) & (low == 0)).sum(), torch.maximum(high.amax(), -low.amin())

    def _zeros(self, gradient: Tensor) -> Tensor:
        if gradient.device.type == "cpu" and gradient.dtype == torch.float32:
            values = gradient.numpy()  # NumPy's counting is several times as fast there
            return torch.tensor(values.size - int(np.count_nonzero(values != 0)))
        return gradient.numel() - torch.count_nonzero(gradient)

    def _nonfinite(self, gradient: Tensor, peak: Tensor) -> Tensor:
        if self._device.type == "cpu" and bool(torch.isfinite(peak)):  # looking costs nothing there
            return torch.zeros(())
        return (~torch.isfinite(gradient)).sum()

    def _histograms(self, owned: list[int], gradients: list[Tensor], correction: Tensor) -> Tensor:
        """(layers that are whole, then those of parts; BINS + 1), numbers of elements; the last bin is of those that are 0."""
        count = len(self._layers.names) * (1 + self._sharded)
        empty = self._nothing(count * (BINS + 1))
        seen = [sample(gradient, HISTOGRAM_SAMPLE).reshape(-1).float() for gradient in gradients]
        if not sum(map(len, seen)):
            return empty.view(count, BINS + 1)
        rows, weights = self._histogram_places(owned, gradients, seen)
        values = torch.cat(seen) * correction.float()
        exponents = ((values.view(torch.int32) >> 23) & 255) - 127  # of float32, without its sign; -127: 0 or nearly
        bins = (exponents - LOWEST).clamp_(0, BINS - 1)
        bins = torch.where(values == 0, BINS, bins)
        return empty.index_add_(0, rows + bins, weights).view(count, BINS + 1)

    def _histogram_places(self, owned: list[int], gradients: list[Tensor], seen: list[Tensor]) -> tuple[Tensor, Tensor]:
        """For each element that was seen: where its layer's bins begin, and for how many elements it stands."""
        lengths = [len(values) for values in seen]
        known = self._histogram_of
        if known is not None and known[0] == owned + lengths:
            return known[1], known[2]
        rows = np.repeat([self._rows[index] * (BINS + 1) for index in owned], lengths)
        stands_for = [g.numel() / max(1, length) for g, length in zip(gradients, lengths, strict=True)]
        weights = np.repeat(np.array(stands_for, dtype=np.float64), lengths)
        places = torch.from_numpy(rows).to(self._device), torch.from_numpy(weights).to(self._device)
        self._histogram_of = (owned + lengths, *places)
        return places

    def _weights_before(self) -> list[Tensor]:
        """In memory that is kept: new memory would take longer than the copy."""
        now = [sample(local(parameter), UPDATE_SAMPLE) for parameter in self._layers.parameters]
        if self._kept is None:
            self._kept = [torch.empty_like(values, memory_format=torch.contiguous_format) for values in now]
        if now:
            torch._foreach_copy_(self._kept, now)
        return self._kept

    def _row_of(self, opened: _Open) -> Tensor:
        count, owned = len(self._layers.names), opened.owned
        everyone = list(range(len(self._layers.parameters)))
        sums = self._nothing(len(SUMS), count * (1 + self._sharded))
        self._add(sums, "weight", everyone, opened.weights)
        self._add(sums, "update", everyone, self._updates(opened.before))
        for name, values in opened.sums.items():
            self._add(sums, name, owned, values)
        measured = {}
        for name, keys in {"first": FIRST_MOMENTS, "second": SECOND_MOMENTS}.items():
            having, values = self._moments(keys)
            self._add(sums, name, having, values)
            measured[name] = self._over_layers(having, lambda index: 1.0)
        largest, histograms = opened.largest, opened.histograms
        if self._sharded:
            sums, histograms = self._added_up(sums, histograms)
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        by = dict(zip(SUMS, sums, strict=True))
        elements = self._over_layers(owned, lambda index: float(self._parameter(index).numel()))
        with_units = [index for index in owned if self._has_units[index]]
        units = self._over_layers(with_units, lambda index: float(self._parameter(index).shape[0]))
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

    def _moments(self, keys: tuple[str, ...]) -> tuple[list[int], Tensor]:
        """Squared norms of the first of ``keys`` that the optimizer keeps of each parameter."""
        having, tensors = [], []
        for index, parameter in enumerate(self._layers.parameters):
            state = self._optimizer.state.get(parameter, {})
            found = next((state[key] for key in keys if isinstance(state.get(key), Tensor)), None)
            if found is not None:
                having.append(index)
                tensors.append(local(found))
        return having, self._squares(tensors)

    def _squares(self, tensors: list[Tensor]) -> Tensor:
        """(n,) float64, of samples as if of all."""
        if not tensors:
            return self._nothing(0)
        seen = [sample(tensor, UPDATE_SAMPLE) for tensor in tensors]
        return self._norms(seen).square() * self._stands_for(tensors, seen)

    def _norms(self, tensors: list[Tensor]) -> Tensor:
        """(n,) float64"""
        return self._stacked(list(torch._foreach_norm(tensors))) if tensors else self._nothing(0)

    def _stands_for(self, tensors: list[Tensor], seen: list[Tensor]) -> Tensor:
        ratios = [all_.numel() / max(1, some.numel()) for all_, some in zip(tensors, seen, strict=True)]
        return torch.tensor(ratios, dtype=torch.float64, device=self._device)

    def _over_layers(self, indices: list[int], value: Callable[[int], float]) -> Tensor:
        """(L,): sums over these parameters, known to the host."""
        found = [0.0] * len(self._layers.names)
        for index in indices:
            found[self._layers.owner[index]] += value(index)
        return torch.tensor(found, dtype=torch.float64, device=self._device)


def _with_rows(model: nn.Module, layers: Layers) -> list[bool]:
    """Whether rows of a parameter are output units: weights of linear layers and convolutions that are nothing else besides.

    An embedding's are not, also when it is tied to the last layer, and a transposed convolution's are its inputs.
    """
    owners: dict[nn.Parameter, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter, []).append(module)

    def fits(module: nn.Module, parameter: nn.Parameter) -> bool:
        kind = isinstance(module, nn.Linear | _ConvNd) and not isinstance(module, _ConvTransposeNd)
        return kind and parameter is module.weight

    return [
        all(fits(module, parameter) for module in owners[parameter]) and _rows_are_whole(parameter)
        for parameter in layers.parameters
    ]


def _rows_are_whole(parameter: nn.Parameter) -> bool:
    """Sharded by rows, if at all."""
    return all(not place.is_shard() or place.dim == 0 for place in getattr(parameter, "placements", ()))
