"""The peer of the recovery benchmark: Ray Train's TorchTrainer with ``FailureConfig``, as its manual has it.

The same model, data and optimizer; a checkpoint of model and optimizer every few steps, which is what it starts again from. Each worker writes its
pid, rank 0 the time at which each of its steps was done. Trains until it is ended.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def train_loop(config: dict[str, Any]) -> None:
    import tempfile
    import time
    from pathlib import Path

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
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.optimizer.learning_rate, fused=True)
    rank, step = ray.train.get_context().get_world_rank(), 0
    restored = ray.train.get_checkpoint()
    if restored is not None:
        with restored.as_directory() as folder:
            state = torch.load(Path(folder) / "state.pt")
        model.module.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    share = spec.training.batch_size // spec.workers.fewest
    told = Path(config["folder"])
    with (told / "pids.jsonl").open("a") as file:
        file.write(json.dumps({"rank": rank, "pid": os.getpid()}) + "\n")
    while True:
        indices = torch.randint(len(train), (share,)).tolist()
        loss_sum, count = task.loss(model, train.batch(indices, seed=0))
        optimizer.zero_grad()
        (loss_sum / count).backward()
        optimizer.step()
        step += 1
        if rank == 0:
            with (told / "steps.jsonl").open("a") as file:
                file.write(json.dumps({"pid": os.getpid(), "step": step, "done_at": time.time()}) + "\n")
        if step % config["checkpoint_every"] == 0:
            if rank > 0:
                ray.train.report({"step": step})
                continue
            with tempfile.TemporaryDirectory() as folder:
                state = {"model": model.module.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                torch.save(state, Path(folder) / "state.pt")
                ray.train.report({"step": step}, checkpoint=ray.train.Checkpoint.from_directory(folder))


def main() -> None:
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    address, job_file, folder, every = sys.argv[1:]
    with open(job_file) as file:
        spec = json.load(file)
    ray.init(address=address, log_to_driver=False)
    TorchTrainer(
        train_loop,
        train_loop_config={"spec": spec, "folder": folder, "checkpoint_every": int(every)},
        scaling_config=ScalingConfig(num_workers=spec["workers"]["count"], resources_per_worker={"CPU": 1}),
        run_config=RunConfig(
            name="peer",
            storage_path=os.path.join(folder, "storage"),
            failure_config=FailureConfig(max_failures=-1),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    ).fit()


if __name__ == "__main__":
    main()
