"""What gradients show beside their norms: zeros, rows of zeros, the largest element, elements that are not finite, histograms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from workers.gradients import Layers, named
from workers.sharding import local
from workers.watch.probe_rows import BINS, LOWEST
from workers.watch.sampling import sample

HISTOGRAM_SAMPLE = 1 << 10  # of a tensor with more elements, evenly spaced ones stand for all


@dataclass
class Measured:
    """Of what lies here. All on the device, float64."""

    sums: dict[str, Tensor]  # zeros, zero_rows, nonfinite: a number for each parameter that has a gradient
    largest: Tensor  # (L,), infinite where it is no number, minus infinity without a gradient
    histograms: Tensor  # (L, or 2 L when sharded: whole tensors', then parts'; BINS + 1); the last bin is of elements that are 0


class GradientProbe:
    """Nothing here communicates. ``rows``: for each parameter its row among whole tensors' and parts' layers."""

    def __init__(
        self, model: nn.Module, layers: Layers, rows: Sequence[int], device: torch.device, *, sharded: bool
    ) -> None:
        self._layers, self._rows, self._device = layers, rows, device
        self._count = len(layers.names) * (1 + sharded)
        self.has_units = _with_rows(model, layers)  # by parameter
        self._histogram_of: tuple[list[int], Tensor, Tensor] | None = None

    def measure(self, owned: list[int], correction: Tensor) -> Measured:
        """``owned``: parameters that have a gradient. ``correction``: what gradients are to be multiplied with."""
        gradients = [self._gradient(index) for index in owned]
        nonzero: list[int | Tensor] = []
        zero_rows: list[int | Tensor] = []
        highest: list[float | Tensor] = []
        for index, gradient in zip(owned, gradients, strict=True):  # one after the other: what was just read is near
            look = _on_host if gradient.device.type == "cpu" and gradient.dtype == torch.float32 else self._on_device
            count, rows, peak = look(gradient, self.has_units[index])
            nonzero.append(count)
            zero_rows.append(rows)
            highest.append(peak)
        largest = torch.full((len(self._layers.names),), -torch.inf, dtype=torch.float64, device=self._device)
        peaks = self._stacked(highest)
        if owned:
            owner = torch.tensor([self._layers.owner[index] for index in owned], device=self._device)
            shown = (peaks * correction).nan_to_num(nan=torch.inf, posinf=torch.inf)
            largest.scatter_reduce_(0, owner, shown, "amax")
        sums = {
            "zeros": self._zeros(owned, gradients, nonzero),
            "zero_rows": self._stacked(zero_rows),
            "nonfinite": self._nonfinite(gradients, peaks),
        }
        return Measured(sums, largest, self._histograms(owned, gradients, correction))

    def _gradient(self, index: int) -> Tensor:
        """What of it lies here; of a sparse one the elements that it names."""
        gradient = self._layers.parameters[index].grad
        assert gradient is not None
        return named(gradient) if gradient.is_sparse else local(gradient)

    def _stacked(self, values: Sequence[float | Tensor]) -> Tensor:
        """(n,) float64"""
        if any(isinstance(value, Tensor) for value in values):
            return torch.stack([torch.as_tensor(value, device=self._device).double() for value in values])
        return torch.tensor(values, dtype=torch.float64, device=self._device)

    def _nothing(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=self._device)

    def _on_device(self, gradient: Tensor, has_units: bool) -> tuple[Tensor, Tensor, Tensor]:
        """How many elements are not 0, how many rows of units are 0 throughout, and the largest absolute element; scalars, for which nobody waits."""
        none = torch.zeros((), dtype=torch.int64, device=self._device)
        if gradient.numel() == 0:
            return none, none, none
        nonzero = torch.count_nonzero(gradient)
        if not has_units:
            low, high = torch.aminmax(gradient)
            return nonzero, none, torch.maximum(high, -low)
        by_row = gradient.flatten(1)
        high, low = by_row.amax(1), by_row.amin(1)
        return nonzero, torch.count_nonzero((high == 0) & (low == 0)), torch.maximum(high.amax(), -low.amin())

    def _zeros(self, owned: list[int], gradients: list[Tensor], counted: list[int | Tensor]) -> Tensor:
        """Those that a sparse gradient does not name are 0 too."""
        sizes = [
            self._layers.parameters[index].numel() if self._is_sparse(index) else gradient.numel()
            for index, gradient in zip(owned, gradients, strict=True)
        ]
        return torch.tensor(sizes, dtype=torch.float64, device=self._device) - self._stacked(counted)

    def _is_sparse(self, index: int) -> bool:
        gradient = self._layers.parameters[index].grad
        return gradient is not None and gradient.is_sparse

    def _nonfinite(self, gradients: list[Tensor], peaks: Tensor) -> Tensor:
        if self._device.type == "cpu" and bool(torch.isfinite(peaks).all()):  # looking costs nothing there
            return torch.zeros_like(peaks)
        return self._stacked([torch.count_nonzero(~torch.isfinite(gradient)) for gradient in gradients])

    def _histograms(self, owned: list[int], gradients: list[Tensor], correction: Tensor) -> Tensor:
        """(count, BINS + 1), numbers of elements."""
        count = self._count
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


def _on_host(gradient: Tensor, has_units: bool) -> tuple[int, int, float]:
    """As ``_on_device``, by NumPy, which takes a fraction of the time there."""
    values = gradient.numpy()
    if not values.size:
        return 0, 0, 0.0
    nonzero = int(np.count_nonzero(values != 0))
    # Rows are looked at where there are zeros enough for one.
    zero_rows = has_units and values.size - nonzero >= math.prod(values.shape[1:])
    empty = int((~values.reshape(len(values), -1).any(axis=1)).sum()) if zero_rows else 0
    return nonzero, empty, float(max(values.max(), -values.min()))


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
        parameter in owners
        and all(fits(module, parameter) for module in owners[parameter])
        and _rows_are_whole(parameter)
        for parameter in layers.parameters
    ]


def _rows_are_whole(parameter: nn.Parameter) -> bool:
    """Sharded by rows, if at all."""
    return all(not place.is_shard() or place.dim == 0 for place in getattr(parameter, "placements", ()))
