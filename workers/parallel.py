"""Data parallelism: process group, and DDP or FSDP around models that stay plain single-device PyTorch.

A worker gives each model that it builds to ``prepare``. Whenever a group has formed it calls ``distribute``, trains with what that returns, and
gives it to ``dissolve`` when the group is over.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Literal, cast

import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import Store
from torch.nn.parallel import DistributedDataParallel

from workers import sharding
from workers.batch_norm import counted, set_world_size, synchronise_batch_norm

__all__ = ["counted", "dissolve", "distribute", "lockstep", "no_sync", "plain", "prepare"]

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


def prepare(model: nn.Module, device: torch.device) -> nn.Module:
    """A model just built, on its device and with batch norm over all workers (of which there may be more later)."""
    return synchronise_batch_norm(model.to(device))


def distribute(
    model: nn.Module,
    device: torch.device,
    world_size: int,
    strategy: Literal["ddp", "fsdp"],
    *,
    compiled: bool = False,
) -> nn.Module:
    """What the loop calls instead of ``model`` as long as this process group lives. All ranks hold the same weights already.

    ddp: a wrapper, or the model itself where it is alone; again and again for the same model. fsdp: the model itself, sharded in place; once, and
    before an optimizer gets its parameters.
    """
    set_world_size(model, world_size)
    if compiled:
        from workers.compilation import compile_in_place

        compile_in_place(sharding.compilable(model) if strategy == "fsdp" else [model])
    if world_size == 1:
        return model
    if strategy == "fsdp":
        return sharding.shard(model, device)
    # Said of every convolution over one channel, where a dimension of size 1 has no stride to speak of.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides", category=UserWarning)
    return DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        init_sync=False,
        gradient_as_bucket_view=True,
        # Batch norm's running statistics are computed from the same synchronised numbers on every rank.
        forward_sync_buffers=False,
    )


def dissolve(wrapped: nn.Module) -> None:
    """Leaves nothing of ``wrapped`` behind in the model inside, also after a backward pass that broke off. Not collective."""
    plain(wrapped).zero_grad(set_to_none=True)  # gradients are views into DDP's buckets
    if isinstance(wrapped, DistributedDataParallel):
        wrapped._remove_autograd_hooks()  # they would all-reduce in a group that is gone
        del wrapped.reducer, wrapped.logger  # the buckets; garbage collection is off while training


def plain(wrapped: nn.Module) -> nn.Module:
    """The model with its own parameter names: for its state and for statistics."""
    return cast(nn.Module, wrapped.module) if isinstance(wrapped, DistributedDataParallel) else wrapped


def no_sync(wrapped: nn.Module) -> AbstractContextManager[None]:
    """Gradients of the passes inside stay on each worker and are added up until the next pass outside."""
    if isinstance(wrapped, DistributedDataParallel):
        return cast(AbstractContextManager[None], wrapped.no_sync())
    return _unsynchronised(wrapped) if lockstep(wrapped) else nullcontext()


@contextmanager
def _unsynchronised(model: nn.Module) -> Iterator[None]:
    for module in sharding.shard_modules(model):
        module.set_requires_gradient_sync(False, recurse=False)
    try:
        yield
    finally:
        for module in sharding.shard_modules(model):
            module.set_requires_gradient_sync(True, recurse=False)


def lockstep(wrapped: nn.Module) -> bool:
    """Whether a forward pass communicates, so that all workers must make the same number of them."""
    return sharding.is_sharded(wrapped)
