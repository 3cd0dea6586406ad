"""What a worker's own gradient is before it is added up with the others': seen where it leaves, in the buffers that travel.

Under accumulation earlier passes stay on the worker, so that what leaves after the last one is the gradient of the worker's whole part of the batch.
"""

# Annotations stay objects here: torch compares those of a hook with its own types.

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter
from torch.nn.parallel import DistributedDataParallel

from workers import sharding
from workers.gradients import named
from workers.watch.spending import Stopwatch


class OwnGradient:
    """Of one generation of a group. ``square``: squared norm of what this worker has given since ``begin``, float64 on the device.

    ``adds_up``: whether the group's gradients are sums now. DDP divides by the number of workers while it copies into its buffers, unless there is a
    hook: then they are added as they are, and the loss is to be scaled for that. FSDP takes the mean.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        """``model``: as ``parallel.distribute`` gave it. It has its hooks whether or not anything is measured, so that it computes the same."""
        self.square = torch.zeros((), dtype=torch.float64, device=device)
        self.adds_up = isinstance(model, DistributedDataParallel)
        self.watch = Stopwatch(events=device.type == "cuda")
        self._measuring = False
        if isinstance(model, DistributedDataParallel):
            model.register_comm_hook(None, self._all_reduce)
        for module in sharding.shard_modules(model):
            module.set_custom_reduce_scatter(_Watched(self))

    def begin(self, measuring: bool) -> None:
        self._measuring = measuring
        if measuring:
            self.square.zero_()

    def see(self, leaving: Tensor) -> None:
        """Measured on the stream on which it leaves, into memory that is kept: streams of their own do not wait for each other's allocations."""
        if not self._measuring:
            return
        with self.watch, torch.no_grad():
            values = named(leaving) if leaving.is_sparse else leaving
            self.square += torch.linalg.vector_norm(values).double().square()

    def _all_reduce(self, state: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        buffer = bucket.buffer()
        self.see(buffer)
        work = dist.all_reduce(buffer, async_op=True)
        assert work is not None
        future: torch.futures.Future[torch.Tensor] = work.get_future().then(_first)
        return future


def _first(future: torch.futures.Future[list[torch.Tensor]]) -> torch.Tensor:
    return future.value()[0]


class _Watched(ReduceScatter):
    """torch's own, which is looked at. What is padded to divide it among the workers is 0."""

    def __init__(self, own: OwnGradient) -> None:
        self._own = own

    def allocate(self, size: Sequence[int | torch.SymInt], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: dist.ReduceOp | dist.ReduceOp.RedOpType,
        async_op: bool = False,
    ) -> dist.Work | None:
        self._own.see(input_tensor)
        work: dist.Work | None = dist.reduce_scatter_single(
            output_tensor, input_tensor, op=op, group=group, async_op=async_op
        )
        return work
