"""Batch norm over the batches of all workers, so that their number does not change the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def synchronise_batch_norm(model: nn.Module) -> nn.Module:
    """Replaces each batch norm by one that can take its statistics over all workers; ``set_world_size`` says over how many.

    Parameters and buffers are the same objects under the same names.
    """
    for name, child in model.named_children():
        if isinstance(child, _BatchNorm) and not isinstance(child, SynchronisedBatchNorm):
            setattr(model, name, SynchronisedBatchNorm(child))
        else:
            synchronise_batch_norm(child)
    return model


def set_world_size(model: nn.Module, world_size: int) -> None:
    for module in model.modules():
        if isinstance(module, SynchronisedBatchNorm):
            module.world_size = world_size


@contextmanager
def counted(model: nn.Module, yes: bool) -> Iterator[None]:
    """Whether batch norm counts what runs through ``model`` inside. The stand-in of an empty share is not counted, though it
    joins the collectives."""
    norms = [] if yes else [module for module in model.modules() if isinstance(module, SynchronisedBatchNorm)]
    for norm in norms:
        norm.counted = False
    try:
        yield
    finally:
        for norm in norms:
            norm.counted = True


class SynchronisedBatchNorm(_BatchNorm):
    """Batch norm over the batches of all workers, on any device (torch's own SyncBatchNorm needs an accelerator).

    Statistics are sums over all samples, so workers may have different numbers of them (Ioffe and Szegedy 2015, algorithm 1,
    with the mini-batch being that of all workers). A batch of one sample, which torch refuses, has variance 0: the last batch
    of an epoch may be that small.
    """

    def __init__(self, original: _BatchNorm) -> None:
        nn.Module.__init__(self)
        for name in ("num_features", "eps", "momentum", "affine", "track_running_stats", "training"):
            setattr(self, name, getattr(original, name))
        self.world_size, self.counted = 1, True
        for name in ("weight", "bias"):
            self.register_parameter(name, getattr(original, name))
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(original, name))

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"batch norm needs at least 2 dimensions, got {input.dim()}")

    def forward(self, x: Tensor) -> Tensor:
        alone = self.world_size == 1 and x.numel() > x.shape[1]
        # Evaluation never communicates: workers may have different numbers of batches there.
        if alone or not self.training:
            return super().forward(x)
        self._check_input_dim(x)
        C = x.shape[1]
        shape = (1, C) + (1,) * (x.dim() - 2)
        wide = x.float()
        sums = self._sums(wide, [0, *range(2, x.dim())], shape)
        if self.world_size > 1:
            sums = _AllReduceSum.apply(sums * float(self.counted))  # type: ignore[no-untyped-call]  # torch has no types for it
        mean = sums[:C] / sums[-1]
        variance = (sums[C : 2 * C] / sums[-1] - mean.square()).clamp_min(0.0)
        if self.track_running_stats and self.running_mean is not None:
            self._update_running_statistics(mean.detach(), variance.detach(), sums[-1].detach())
        scale = torch.rsqrt(variance + self.eps).float()
        if self.affine:
            scale = scale * self.weight
        y = (wide - mean.float().view(shape)) * scale.view(shape)
        return (y + self.bias.view(shape) if self.affine else y).to(x.dtype)

    @staticmethod
    def _sums(x: Tensor, dimensions: list[int], shape: tuple[int, ...]) -> Tensor:
        """Sums of x and of its squares per channel and their number, (2 C + 1,) float64.

        Squares are taken about this worker's own mean, in fp32, and moved to zero in float64, so that channels with a mean far
        above their spread keep their variance.
        """
        sum_C = x.sum(dimensions, dtype=torch.float64)
        terms = float(x.numel() // x.shape[1])
        centre = (sum_C.detach() / terms).to(x.dtype)
        about_centre_C = (x - centre.view(shape)).square().sum(dimensions, dtype=torch.float64)
        centre = centre.double()
        square_sum_C = about_centre_C + 2 * centre * sum_C - terms * centre.square()
        return torch.cat([sum_C, square_sum_C, sum_C.new_full((1,), terms)])

    @torch.no_grad()
    def _update_running_statistics(self, mean: Tensor, variance: Tensor, total: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        unbiased = variance * (total / (total - 1.0).clamp_min(1.0))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)


class _AllReduceSum(torch.autograd.Function):
    """Sum over all workers, forwards and backwards: each worker's loss depends on every worker's statistics."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.clone()
        dist.all_reduce(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        y = gradients[0].clone()
        dist.all_reduce(y)
        return y
