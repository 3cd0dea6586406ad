"""Data parallelism: device, process group, DDP, and batch norm over all workers. Models stay plain single-device PyTorch."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import Store
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

PROCESS_GROUP_TIMEOUT_SECONDS = 60.0


def choose_device(local_rank: int, gpus: float) -> torch.device:
    """The device of a worker that was given ``gpus`` accelerators.

    Under Ray, CUDA_VISIBLE_DEVICES holds just this worker's devices, so its first one is the right one; under torchrun every worker
    sees all of them and ``local_rank`` chooses.
    """
    if gpus <= 0 or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def init_process_group(
    rank: int,
    world_size: int,
    store: Store | None,
    device: torch.device,
    timeout_seconds: float = PROCESS_GROUP_TIMEOUT_SECONDS,
) -> None:
    """Joins the group: nccl on CUDA, gloo elsewhere. ``store`` None: the MASTER_ADDR and MASTER_PORT of the environment.

    A peer that is killed is noticed at once; one that is frozen or cut off, only after ``timeout_seconds``.
    """
    timeout = timedelta(seconds=timeout_seconds)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if store is None:
        dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=timeout)
    else:
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)


def destroy_process_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def environment_rank() -> tuple[int, int, int]:
    """(rank, world size, local rank) as torchrun sets them; a process of its own without."""
    return tuple(int(os.environ.get(k, d)) for k, d in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")))  # type: ignore[return-value]


def wrap(model: nn.Module, device: torch.device, world_size: int) -> nn.Module:
    """``model`` on its device, ready for data-parallel training when there is more than one worker."""
    model = synchronise_batch_norm(model.to(device), world_size)
    if world_size == 1:
        return model
    # Said of every convolution over one channel, where a dimension of size 1 has no stride to speak of.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides", category=UserWarning)
    return DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        # Batch norm's running statistics are computed from the same synchronised numbers on every rank.
        forward_sync_buffers=False,
    )


def unwrap(model: nn.Module) -> nn.Module:
    return cast(nn.Module, model.module) if isinstance(model, DistributedDataParallel) else model


def synchronise_batch_norm(model: nn.Module, world_size: int) -> nn.Module:
    """Replaces each batch norm by one with statistics over all workers, so that their number does not change the model.

    Parameters and buffers are the same objects under the same names.
    """
    for name, child in model.named_children():
        if isinstance(child, _BatchNorm) and not isinstance(child, SynchronisedBatchNorm):
            setattr(model, name, SynchronisedBatchNorm(child, world_size))
        else:
            synchronise_batch_norm(child, world_size)
    return model


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

    def __init__(self, original: _BatchNorm, world_size: int) -> None:
        nn.Module.__init__(self)
        for name in ("num_features", "eps", "momentum", "affine", "track_running_stats", "training"):
            setattr(self, name, getattr(original, name))
        self.world_size, self.counted = world_size, True
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
