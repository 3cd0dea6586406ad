"""What gradients show beside their norms: zeros, rows of zeros, the largest element, elements that are not finite, histograms."""

from __future__ import annotations

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
_NONE = torch.zeros(0)


@dataclass
class Measured:
    """Of what lies here. All on the device, float64."""

    sums: dict[str, Tensor]  # zeros, zero_rows, nonfinite: a number for each parameter that has a gradient
    largest: Tensor  # (L,), infinite where it is no number, minus infinity without a gradient
    histograms: Tensor  # (L, or 2 L when sharded: whole tensors', then parts'; BINS + 1); the last bin is of elements that are 0


@dataclass(frozen=True)
class Having:
    """What is known of the parameters that have a gradient, mostly the same ones step after step. All on the device but for the first."""

    indices: list[int]
    layers: Tensor  # (n,) int64
    sizes: Tensor  # (n,) float64, elements that lie here
    elements: Tensor  # (L,) float64, elements of a layer, over all workers
    units: Tensor  # (L,) float64, of those whose rows are output units


class GradientProbe:
    """Nothing here communicates. ``rows``: for each parameter its row among whole tensors' and parts' layers."""

    def __init__(
        self, model: nn.Module, layers: Layers, rows: Sequence[int], device: torch.device, *, sharded: bool
    ) -> None:
        self._layers, self._rows, self._device = layers, rows, device
        self._count = len(layers.names) * (1 + sharded)
        self.has_units = _with_rows(model, layers)  # by parameter
        self._having: Having | None = None
        self._histogram_of: tuple[list[int], Tensor, Tensor] | None = None

    def having(self, owned: list[int]) -> Having:
        """``owned``: parameters that have a gradient."""
        known = self._having
        if known is not None and known.indices == owned:
            return known
        parameters, (elements, units) = self._layers.parameters, np.zeros((2, len(self._layers.names)))
        for index in owned:
            elements[self._layers.owner[index]] += parameters[index].numel()
            if self.has_units[index]:
                units[self._layers.owner[index]] += parameters[index].shape[0]
        self._having = Having(
            owned,
            torch.tensor([self._layers.owner[index] for index in owned], dtype=torch.int64, device=self._device),
            torch.tensor(
                [local(parameters[index]).numel() for index in owned], dtype=torch.float64, device=self._device
            ),
            torch.from_numpy(elements).to(self._device),
            torch.from_numpy(units).to(self._device),
        )
        return self._having

    def measure(self, owned: list[int], correction: Tensor) -> Measured:
        """``owned``: parameters that have a gradient. ``correction``: what gradients are to be multiplied with."""
        having = self.having(owned)
        gradients = [self._gradient(index) for index in owned]
        if self._device.type == "cpu" and all(gradient.dtype == torch.float32 for gradient in gradients):
            nonzero, zero_rows, peaks, seen = self._on_host(owned, gradients)
        else:
            looks = [self._on_device(gradient, self.has_units[i]) for i, gradient in zip(owned, gradients, strict=True)]
            nonzero, zero_rows, peaks = (self._stacked([look[place] for look in looks]) for place in range(3))
            seen = [sample(gradient, HISTOGRAM_SAMPLE).reshape(-1).float() for gradient in gradients]
        largest = torch.full((len(self._layers.names),), -torch.inf, dtype=torch.float64, device=self._device)
        if owned:
            shown = (peaks * correction).nan_to_num(nan=torch.inf, posinf=torch.inf)
            largest.scatter_reduce_(0, having.layers, shown, "amax")
        sums = {
            "zeros": having.sizes - nonzero,  # those that a sparse gradient does not name are 0 too
            "zero_rows": zero_rows,
            "nonfinite": self._nonfinite(gradients, peaks),
        }
        return Measured(sums, largest, self._histograms(owned, gradients, seen, correction))

    def _gradient(self, index: int) -> Tensor:
        """What of it lies here; of a sparse one the elements that it names."""
        gradient = self._layers.parameters[index].grad
        assert gradient is not None
        return named(gradient) if gradient.is_sparse else local(gradient)

    def _stacked(self, values: Sequence[Tensor]) -> Tensor:
        """(n,) float64"""
        return torch.stack([value.double() for value in values]) if values else self._nothing(0)

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

    def _on_host(self, owned: list[int], gradients: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """As ``_on_device`` for all of them, by NumPy, which takes a fraction of the time there, and what histograms are made of.

        Small ones are laid side by side: to ask for each alone takes longer than to look.
        """
        small = [place for place, gradient in enumerate(gradients) if 0 < gradient.numel() <= HISTOGRAM_SAMPLE]
        found = np.zeros((3, len(gradients)))
        seen: list[Tensor] = [_NONE] * len(gradients)
        if small:
            together = torch.cat([gradients[place].reshape(-1) for place in small])
            sizes = [gradients[place].numel() for place in small]
            values, begins = together.numpy(), np.cumsum([0, *sizes[:-1]])
            found[0, small] = np.add.reduceat(values != 0, begins, dtype=np.int64)
            found[2, small] = np.maximum.reduceat(np.abs(values), begins)
            for place, part in zip(small, together.split(sizes), strict=True):
                seen[place] = part
        for place, gradient in enumerate(gradients):  # one after the other: what was just read is near
            size = gradient.numel()
            if size > HISTOGRAM_SAMPLE:
                values = gradient.numpy()
                found[0, place] = np.count_nonzero(values != 0)
                found[2, place] = max(np.maximum.reduce(values, axis=None), -np.minimum.reduce(values, axis=None))
                seen[place] = sample(gradient, HISTOGRAM_SAMPLE).reshape(-1)
            # Rows are looked at where there are zeros enough for one.
            if size and self.has_units[owned[place]] and size // len(gradient) <= size - found[0, place]:
                rows = gradient.numpy().reshape(len(gradient), -1)
                found[1, place] = np.count_nonzero(~rows.any(axis=1))
        nonzero, zero_rows, peaks = torch.from_numpy(found)
        return nonzero, zero_rows, peaks, seen

    def _nonfinite(self, gradients: list[Tensor], peaks: Tensor) -> Tensor:
        if self._device.type == "cpu" and np.isfinite(peaks.numpy()).all():  # looking costs nothing there
            return torch.zeros_like(peaks)
        return self._stacked([torch.count_nonzero(~torch.isfinite(gradient)) for gradient in gradients])

    def _histograms(self, owned: list[int], gradients: list[Tensor], seen: list[Tensor], correction: Tensor) -> Tensor:
        """(count, BINS + 1), numbers of elements. ``seen``: of each gradient those that stand for all, (n,) float32."""
        count = self._count
        empty = self._nothing(count * (BINS + 1))
        if not any(map(len, seen)):
            return empty.view(count, BINS + 1)
        rows, weights = self._histogram_places(owned, gradients, seen)
        values = torch.cat(seen) * correction.float()
        exponents = (
            values.view(torch.int32) >> 23
        ) & 255  # of float32, without its sign, and more by 127; 0: 0 or nearly
        bins = exponents.sub_(127 + LOWEST).clamp_(0, BINS - 1)
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
