"""What is measured of the gradients at every step: one pass over them serves the statistics and clipping.

A layer is the module that owns the parameters (weight and bias together), in network order. Norms are L2.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn


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


class GradientMonitor:
    """Measures and clips. Nothing here waits for an accelerator, except ``digest``."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.layers = Layers.of(model)
        self._device = device
        self._owner = torch.tensor(self.layers.owner, dtype=torch.int64, device=device)

    def measure(self) -> Tensor:
        """Norm of each layer's gradient, (L,) float64 on the device. A layer without a gradient has norm 0."""
        owned = [
            (parameter.grad, index)
            for index, parameter in enumerate(self.layers.parameters)
            if parameter.grad is not None
        ]
        squares = torch.zeros(len(self.layers.names), dtype=torch.float64, device=self._device)
        if not owned:
            return squares
        norms = torch.stack(torch._foreach_norm([gradient for gradient, _ in owned])).double()
        owner = self._owner
        if len(owned) < len(self.layers.parameters):
            owner = owner[torch.tensor([index for _, index in owned], device=self._device)]
        return squares.index_add_(0, owner, norms.square()).sqrt_()

    def scale(self, factor: Tensor) -> None:
        """Multiplies every gradient by the scalar ``factor``; on the CPU, where looking costs nothing, only if it is not 1."""
        if factor.device.type == "cpu" and factor.item() == 1.0:
            return
        gradients = [parameter.grad for parameter in self.layers.parameters if parameter.grad is not None]
        torch._foreach_mul_(gradients, factor.to(gradients[0].dtype) if gradients else factor)


def clip_factor(norm: Tensor, limit: float | None) -> Tensor:
    """What gradients of global norm ``norm`` are multiplied with so that it becomes at most ``limit`` (Pascanu et al. 2013).

    The same formula as torch.nn.utils.clip_grad_norm_, whose 1e-6 keeps a norm of zero from dividing by it.
    """
    if limit is None:
        return torch.ones_like(norm)
    return (limit / (norm + 1e-6)).clamp(max=1.0)


class GradientDigest:
    """SHA-256 over the measured norms of all steps: equal on two workers only if they saw equal all-reduced gradients."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, norms: Tensor) -> None:
        self._hash.update(norms.cpu().numpy().tobytes())

    def hexdigest(self) -> str:
        return self._hash.hexdigest()
