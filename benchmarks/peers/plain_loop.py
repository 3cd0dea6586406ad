"""The peer of the step-time benchmark: the same model, data and optimizer in the loop that everybody writes.

Alone it is a bare PyTorch loop; under ``torchrun`` the same loop with DistributedDataParallel. No clipping, no statistics,
no logging, no checkpoints. Prints one JSON line: the seconds of every counted step.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from workers.spec import parse_spec
from workers.tasks import build_task


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("job", type=Path, help="job file in JSON")
    parser.add_argument("--warm-up", type=int, default=5)
    arguments = parser.parse_args()
    spec = parse_spec(json.loads(arguments.job.read_text()))
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))

    torch.set_num_threads(spec.workers.threads_per_worker)
    torch.manual_seed(spec.training.seed)
    task = build_task(spec.task, spec.training.seed)
    train = task.datasets().train
    model: nn.Module = task.model()
    if world_size > 1:
        dist.init_process_group("gloo")
        model = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    # The quickest of torch's implementations, which we use too: the bar is the loop, not the optimizer.
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.optimizer.learning_rate, weight_decay=0.0, fused=True)

    share = spec.training.batch_size // world_size
    steps = spec.training.length[1]
    batches = [
        train.batch(torch.randint(len(train), (share,)).tolist(), seed=0) for _ in range(8)
    ]  # read beforehand: the peer pays nothing for data
    seconds: list[float] = []
    for step in range(steps):
        started = time.perf_counter()
        loss_sum, count = task.loss(model, batches[step % len(batches)])
        (loss_sum / count).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=world_size == 1)
        seconds.append(time.perf_counter() - started)
    if rank == 0:
        json.dump({"seconds": seconds[arguments.warm_up :]}, sys.stdout)
    if world_size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
