"""Step time with everything on, against the loops that everybody writes.

Our side is a job in the running service: Ray, statistics of every layer at every step, tracking in MLflow, job folder. The peer is
``benchmarks/peers/plain_loop.py``: alone for one worker, under torchrun with DDP for two. Rounds alternate; the service is up, idle, while the
peer runs. A side's figure of a round is the median over its steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.measure import compare, record
from benchmarks.stack import Stack, run_json, stack

WARM_UP = 50  # steps; by then MLflow is imported and new standbys wait: the figure is that of the steady run


def job(model: dict[str, Any], workers: int, steps: int, batch_size: int) -> dict[str, Any]:
    return {
        "name": "step-time",
        "task": {"kind": "image_classification", "data": {"source": "digits"}, "model": model},
        "training": {"steps": steps, "batch_size": batch_size},
        "optimizer": {"name": "adamw", "learning_rate": 1e-4},
        "workers": {"count": workers, "threads": 1},
        "evaluation": {"every_steps": 10**6},
    }


# 12.9 and 11.2 million parameters
MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "mlp": ({"architecture": "mlp", "hidden": [2048, 2048, 2048, 2048]}, 256),
    "resnet": (
        {
            "architecture": "resnet",
            "config": {
                "embedding_size": 64,
                "hidden_sizes": [64, 128, 256, 512],
                "depths": [2, 2, 2, 2],
                "layer_type": "basic",
                "downsample_in_first_stage": False,
            },
        },
        32,
    ),
}


def ours(running: Stack, spec: dict[str, Any]) -> float:
    posted = running.client.create_job(spec)
    running.finish(posted["id"])
    series = running.client.metrics(posted["id"], keys="train/step_seconds", max_points=10000)["data"][0]
    return statistics.median(float(point["value"]) for point in series["points"] if point["step"] > WARM_UP)


def theirs(folder: Path, spec: dict[str, Any]) -> float:
    path = folder / "peer.json"
    path.write_text(json.dumps(spec))
    loop = ("benchmarks.peers.plain_loop", str(path), "--warm-up", str(WARM_UP))
    workers = spec["workers"]["count"]
    launcher = ("-m",) if workers == 1 else ("-m", "torch.distributed.run", "--nproc-per-node", str(workers), "-m")
    seconds: list[float] = run_json(sys.executable, *launcher, *loop)["seconds"]
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=110)
    parser.add_argument("--model", choices=MODELS, action="append")
    arguments = parser.parse_args()
    bars = {}
    with stack() as running:
        for name in arguments.model or MODELS:
            model, batch_size = MODELS[name]
            for workers, peer in ((1, "bare PyTorch loop"), (2, "torchrun DDP")):
                spec = job(model, workers, arguments.steps, batch_size)
                pairs = []
                for round_ in range(arguments.rounds):
                    sides = [lambda: ours(running, spec), lambda: theirs(running.folder, spec)]  # noqa: B023  # called in this round
                    if round_ % 2:
                        pairs.append((sides[0](), sides[1]()))
                    else:
                        second = sides[1]()
                        pairs.append((sides[0](), second))
                bars[f"{name}, {workers} worker{'s' if workers > 1 else ''} against {peer}"] = compare(
                    [a for a, _ in pairs], [b for _, b in pairs]
                )
    record("step_time", bars)


if __name__ == "__main__":
    main()
