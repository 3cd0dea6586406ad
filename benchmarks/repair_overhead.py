"""What ``health.mode: repair`` costs a job that is well: it and ``observe`` in turns, each in a process of its own on one thread.

A run's figure is the time from its first step to its last, snapshots and all else between steps included. Both sides end with the same weights.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import compare, write

SIZES: dict[str, tuple[list[int], int, int]] = {  # hidden layers, batch, steps
    "0.8M": ([768, 768], 128, 2000),
    "12.9M": ([2048, 2048, 2048, 2048], 256, 250),
}


def job(size: str, mode: str) -> dict[str, Any]:
    hidden, batch, steps = SIZES[size]
    return {
        "name": f"well-{mode}",
        "task": {
            "kind": "image_classification",
            "data": {"source": "digits"},
            "model": {"architecture": "mlp", "hidden": hidden},
        },
        "training": {"steps": steps, "batch_size": batch},
        "optimizer": {"learning_rate": 1e-4},
        "workers": {"threads": 1},
        "evaluation": {"every_steps": 10**6},
        "health": {"mode": mode, "data_checks": False},
    }


def seconds(size: str, mode: str) -> tuple[float, str]:
    """Of the steps, and the digest of the weights that they end with."""
    with tempfile.TemporaryDirectory() as folder:
        path, output = Path(folder, "job.json"), Path(folder, "output")
        path.write_text(json.dumps(job(size, mode)))
        command = [sys.executable, "-m", "workers.train", str(path), "--output", str(output)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
        rows = [json.loads(line) for line in next(output.glob("metrics/*.jsonl")).read_text().splitlines()]
        events = [json.loads(line) for line in next(output.glob("events/*.jsonl")).read_text().splitlines()]
    times = [row["timestamp"] for row in rows if "train/loss" in row["values"]]
    (end,) = (event for event in events if event["type"] == "training.finished")
    if any(event["type"] == "repair.done" for event in events):
        raise RuntimeError("the job is not well: something was repaired")
    return times[-1] - times[0], end["data"]["parameters_sha256"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    found: dict[str, Any] = {}
    for size in SIZES:
        ours, theirs = [], []
        for number in range(given.rounds):
            order = ("repair", "observe") if number % 2 else ("observe", "repair")
            taken = {mode: seconds(size, mode) for mode in order}
            if len({digest for _, digest in taken.values()}) != 1:
                raise RuntimeError("the two sides have trained other models")
            ours.append(taken["repair"][0])
            theirs.append(taken["observe"][0])
        found[size] = compare(ours, theirs)
        ratios = found[size]["ratio_by_round"]
        print(
            f"{size}: {found[size]['median_ratio']:.4f} ({min(ratios):.4f} to {max(ratios):.4f}); "
            f"{statistics.median(theirs):.1f} s a run",
            flush=True,
        )
    print(write("repair_overhead", found))


if __name__ == "__main__":
    main()
