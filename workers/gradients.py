"""What is measured of the gradients at every step: one pass over them serves the statistics and clipping.

A layer is the module that owns the parameters (weight and bias together), in network order. Norms are L2.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from workers.sharding import is_part, local


@dataclass(frozen=True)
class Layers:
    """The trainable parameters of a model by layer. ``owner[i]`` is the layer of parameter i."""

    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    owner: tuple[int, ...]

    @staticmethod
    def of(model: nn.Module) -> Layers:
        names: dict[str, int] = {}
        parameters, owner = [], []
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            layer = name.rpartition(".")[0] or name
            owner.append(names.setdefault(layer, len(names)))
            parameters.append(parameter)
        return Layers(tuple(names), tuple(parameters), tuple(owner))

    def rows(self) -> tuple[list[int], bool]:
        """For each parameter the row that its figures are added to: its layer's (L of them) where each worker has it whole, which counts once, and
        L more where each has a part, which is added up over workers. And whether there are parts."""
        parts = [is_part(parameter) for parameter in self.parameters]
        rows = [index + len(self.names) * part for index, part in zip(self.owner, parts, strict=True)]
        return rows, any(parts)


class GradientMonitor:
    """Measures and clips. Nothing here waits for an accelerator, except ``digest``.

    Of sharded gradients every worker measures the part that it has; one all-reduce of a number a layer adds these up.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.layers = Layers.of(model)
        self._device = device
        rows, self._sharded = self.layers.rows()
        self._row = torch.tensor(rows, dtype=torch.int64, device=device)

    @torch.no_grad()
    def measure(self) -> Tensor:
        """Norm of each layer's gradient, (L,) float64 on the device. A layer without a gradient has norm 0.

        Collective when gradients are sharded.
        """
        owned = [
            (parameter.grad, index)
            for index, parameter in enumerate(self.layers.parameters)
            if parameter.grad is not None
        ]
        count = len(self.layers.names)
        squares = torch.zeros(count * (1 + self._sharded), dtype=torch.float64, device=self._device)
        if owned:
            norms = torch.stack(torch._foreach_norm(self._here([gradient for gradient, _ in owned]))).double()
            row = self._row
            if len(owned) < len(self.layers.parameters):
                row = row[torch.tensor([index for _, index in owned], device=self._device)]
            squares.index_add_(0, row, norms.square())
        if self._sharded:
            dist.all_reduce(squares[count:])
            squares = squares[:count] + squares[count:]
        return squares.sqrt_()

    @torch.no_grad()
    def scale(self, factor: Tensor) -> None:
        """Multiplies every gradient by the scalar ``factor``; on the CPU, where looking costs nothing, only if it is not 1."""
        if factor.device.type == "cpu" and factor.item() == 1.0:
            return
        gradients = [parameter.grad for parameter in self.layers.parameters if parameter.grad is not None]
        if gradients:
            # Of a sparse one all that is named, also twice: a multiple of the sum is the sum of multiples.
            parts = [gradient._values() if gradient.is_sparse else gradient for gradient in gradients]
            torch._foreach_mul_([local(part) for part in parts] if self._sharded else parts, factor.to(parts[0].dtype))

    def _here(self, gradients: list[Tensor]) -> list[Tensor]:
        """What of them lies here; of a sparse one the elements that it names."""
        here = [local(gradient) for gradient in gradients] if self._sharded else gradients
        return [named(gradient) if gradient.is_sparse else gradient for gradient in here]


def named(sparse: Tensor) -> Tensor:
    """The elements that a sparse gradient names, each once."""
    return sparse.coalesce().values()


def clip_factor(norm: Tensor, limit: float | None) -> Tensor:
    """What gradients of global norm ``norm`` are multiplied with so that it becomes at most ``limit`` (Pascanu et al. 2013).

    The same formula as torch.nn.utils.clip_grad_norm_, whose 1e-6 keeps a norm of zero from dividing by it.
    """
    if limit is None:
        return torch.ones_like(norm)
    return (limit / (norm + 1e-6)).clamp(max=1.0)


class GradientDigest:
    """SHA-256 over the measured norms of all steps: equal on two workers only if they saw equal all-reduced gradients.

    A chain, each link the digest of the one before and a step's norms, so that another worker can go on with it.
    """

    def __init__(self, so_far: str = "") -> None:
        self._digest = so_far

    def add(self, norms: Tensor) -> None:
        self._digest = hashlib.sha256(self._digest.encode() + norms.cpu().numpy().tobytes()).hexdigest()

    def hexdigest(self) -> str:
        return self._digest
