"""When memory runs out in a forward or backward pass: telling it from other errors, and what to do about it."""

from __future__ import annotations

import torch

from workers.spec import JobSpec

# What torch's allocator for the CPU says; it has no exception of its own.
CPU_ALLOCATOR = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in CPU_ALLOCATOR)


def advice(spec: JobSpec, accumulate: int) -> str:
    """What a user can do, in a sentence. ``accumulate``: microbatches a step when memory ran out."""
    training, workers = spec.training, spec.workers
    if accumulate * workers.most >= training.batch_size:
        ways = ["the microbatches are single samples already: take a smaller model or samples, or more memory a worker"]
    elif training.microbatch == "auto":
        ways = ["it ran out beside the passes of a step, where smaller microbatches do not help"]
    else:
        ways = [f"training.microbatch auto or training.accumulate above {accumulate} needs less at the same batch size"]
    if training.precision == "fp32":
        ways.append("training.precision bf16 halves most activations")
    if workers.strategy == "ddp" and workers.most > 1:
        ways.append("workers.strategy fsdp splits weights, gradients and optimizer over the workers")
    return "; ".join(ways)
