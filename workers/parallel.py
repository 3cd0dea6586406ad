"""Data parallelism: DDP or FSDP around models that stay plain single-device PyTorch.

A worker gives each model that it builds to ``prepare``. Whenever a group has formed it calls ``distribute``, trains with what that returns, and
gives it to ``dissolve`` when the group is over.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from workers import sharding
from workers.batch_norm import counted, set_world_size, synchronise_batch_norm

__all__ = ["counted", "dissolve", "distribute", "lockstep", "no_sync", "plain", "prepare"]


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
