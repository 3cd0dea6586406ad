"""What a checkpoint every 50 steps costs the training, against the save that everybody writes.

One process with one thread trains a model of 25 million parameters with AdamW (300 MB of state). Stretches of 50 steps alternate: with a
checkpoint of ours at their beginning, with a synchronous ``torch.save`` and fsync of the same state, and without any. A round is one stretch of each,
in changing order; the first round, which imports and allocates, is not counted.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from benchmarks.measure import compare, record
from workers.checkpoint_folders import Retention
from workers.checkpoint_saver import Saver
from workers.checkpoints import Saved

WIDTH, BATCH = 2560, 128


class Training:
    """The loop, with room for a checkpoint at a step boundary and for what follows from it in the steps after."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        sizes = [1024, WIDTH, WIDTH, WIDTH, WIDTH, 1024]
        layers = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
        self.model = nn.Sequential(*layers)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.batch = torch.randn(BATCH, sizes[0])
        self.folder = folder
        keep = Retention(keep_last=1, keep_best=0, best="eval/loss", mode="min")
        self.saver = Saver(folder / "ours", rank=0, world_size=1, generation=1, retention=keep)
        self.step = 0
        self.saved: list[Saved] = []
        self.synchronous_seconds: list[float] = []

    def run(self, steps: int) -> None:
        for _ in range(steps):
            votes = self.saver.votes()
            self.model(self.batch).square().mean().backward()
            self.saver.before_update()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
            result = self.saver.agreed(*votes)
            if result is not None:
                assert isinstance(result, Saved), result
                self.saved.append(result)

    def begin_checkpoint(self) -> None:
        self.saver.begin(self.step, self.model, self.optimizer, {}, {}, "unknown")

    def save_synchronously(self) -> None:
        started = time.perf_counter()
        with (self.folder / "theirs.pt").open("wb") as stream:
            torch.save({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        self.synchronous_seconds.append(time.perf_counter() - started)


def stretch(training: Training, begin: Callable[[], None], steps: int) -> float:
    """Seconds of ``steps`` steps with what ``begin`` does before them, and what it leaves to be done during them."""
    started = time.perf_counter()
    begin()
    training.run(steps)
    while (
        training.saver.in_flight is not None
    ):  # only where the disk is slower than all these steps: then that counts too
        training.run(1)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=50)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        training = Training(Path(folder))
        training.run(3)
        sides = {
            "ours": training.begin_checkpoint,
            "theirs": training.save_synchronously,
            "none": lambda: None,
        }
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for round_ in range(arguments.rounds + 1):
            for side in sorted(sides, key=lambda side: (list(sides).index(side) + round_) % len(sides)):  # called here
                taken = stretch(training, sides[side], arguments.steps)
                if round_:
                    seconds[side].append(taken)
        blocked = [saved.blocked_seconds for saved in training.saved[1:]]
    every = f"{arguments.steps} steps with a"
    record(
        "checkpoint_stall",
        {
            "time blocked by a checkpoint, against torch.save and fsync": compare(
                blocked, training.synchronous_seconds[1:]
            ),
            f"{every} checkpoint, against none": compare(seconds["ours"], seconds["none"]),
            f"{every} torch.save and fsync, against none": compare(seconds["theirs"], seconds["none"]),
        },
    )


if __name__ == "__main__":
    main()
