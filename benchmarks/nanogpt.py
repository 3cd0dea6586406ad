"""How long until a held-out loss of 1.88 on tinyshakespeare: a job of ours against nanoGPT's CPU recipe.

Both sides are one process that is started anew, with the same number of threads, and measure the loss over the whole held-out tenth every so many
steps; that time counts. Rounds alternate. A side that does not get there has the time of its whole run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import compare, write

GOAL = 1.88
TEXT = Path(__file__).parents[2] / "shared" / "data" / "tinyshakespeare" / "input.txt"


def job(text: Path, threads: int) -> dict[str, Any]:
    """Our best recipe: rotary positions, gated layers and RMS norms stand a rate several times as high, which ends at zero."""
    return {
        "name": "nanogpt",
        "task": {
            "kind": "language_model",
            "data": {"source": "text", "path": str(text)},
            "tokenizer": {"kind": "char"},
            "model": {"architecture": "llama", "layers": 4, "heads": 4, "width": 128},
            "block_size": 64,
        },
        "training": {"steps": 1000, "batch_size": 12, "clip_norm": 1.0},
        "optimizer": {"name": "adamw", "learning_rate": 4e-3, "betas": [0.9, 0.99], "weight_decay": 0.1},
        "schedule": {"name": "cosine", "warmup_steps": 100, "final_factor": 0.0},
        "evaluation": {"every_steps": 100, "batch_size": 96},
        "workers": {"count": 1, "threads": threads},
    }


Curve = list[dict[str, float]]  # step, seconds since the process began, loss


def ours(text: Path, threads: int) -> Curve:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(job(text, threads)))
        began = time.time()
        command = [sys.executable, "-m", "workers.train", str(path), "--output", f"{folder}/output"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        lines = (Path(folder) / "output/events/attempt-0001.jsonl").read_text().splitlines()
    evaluations = [row for row in map(json.loads, lines) if row["type"] == "evaluation"]
    return [
        {
            "step": row["data"]["step"],
            "seconds": row["timestamp"] - began,
            "loss": row["data"]["metrics"]["eval/loss"],
        }
        for row in evaluations
    ]


def theirs(text: Path, threads: int, seed: int) -> Curve:
    command = [sys.executable, "-m", "benchmarks.peers.nanogpt_loop", str(text), "--threads", str(threads)]
    run = subprocess.run([*command, "--seed", str(seed)], check=True, stdout=subprocess.PIPE, text=True)
    return [json.loads(line) for line in run.stdout.splitlines()]


def seconds_to_goal(curve: Curve) -> float:
    return next((point["seconds"] for point in curve if point["loss"] <= GOAL), curve[-1]["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path, nargs="?", default=TEXT, help="tinyshakespeare's input.txt")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    text, threads = arguments.text.resolve(), arguments.threads
    curves: dict[str, list[Curve]] = {"ours": [], "theirs": []}
    for round_ in range(arguments.rounds):
        for side in ("ours", "theirs") if round_ % 2 == 0 else ("theirs", "ours"):
            curves[side].append(ours(text, threads) if side == "ours" else theirs(text, threads, 1337 + round_))
    bar = compare(*([seconds_to_goal(curve) for curve in curves[side]] for side in ("ours", "theirs")))
    final = {side: [curve[-1]["loss"] for curve in found] for side, found in curves.items()}
    reached = {
        side: [any(point["loss"] <= GOAL for point in curve) for curve in found] for side, found in curves.items()
    }
    document = {"goal": GOAL, "threads": threads, "bar": bar, "reached": reached, "final_loss": final, "curves": curves}
    path = write("nanogpt", document)
    print(
        f"{path}: ours {bar['ours']} s {final['ours']}, theirs {bar['theirs']} s {final['theirs']}, ratio {bar['median_ratio']:.3f}"
    )


if __name__ == "__main__":
    main()
