"""The peer of the first-step benchmark: what one submits to Ray Jobs to train the same model with Ray Train.

Rank 0 writes the wall-clock time at which its first optimizer step was done into the file that it is given.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


def train_loop(config: dict[str, Any]) -> None:
    import ray.train
    import ray.train.torch
    import torch

    from workers.spec import parse_spec
    from workers.tasks import build_task

    spec = parse_spec(config["spec"])
    torch.set_num_threads(spec.workers.threads_per_worker)
    torch.manual_seed(0)
    task = build_task(spec.task, 0)
    train = task.datasets().train
    model = ray.train.torch.prepare_model(task.model())
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.optimizer.learning_rate)
    share = spec.training.batch_size // spec.workers.fewest
    for step in range(spec.training.length[1]):
        loss_sum, count = task.loss(model, train.batch(list(range(share)), seed=0))
        optimizer.zero_grad()
        (loss_sum / count).backward()
        optimizer.step()
        if step == 0 and ray.train.get_context().get_world_rank() == 0:
            partial = config["stamp"] + ".partial"
            with open(partial, "w") as file:
                file.write(repr(time.time()))
            os.rename(partial, config["stamp"])


def main() -> None:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    job_file, stamp, storage = sys.argv[1:]
    with open(job_file) as file:
        spec = json.load(file)
    workers = spec["workers"]["count"]
    TorchTrainer(
        train_loop,
        train_loop_config={"spec": spec, "stamp": stamp},
        scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name="peer", storage_path=storage),
    ).fit()


if __name__ == "__main__":
    main()
