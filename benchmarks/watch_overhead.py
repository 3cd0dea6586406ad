"""What watching costs a job: GPT-like models on one thread, watched steps and steps with clipping alone in turns within one process.

Watched: norms of every layer at every step, recorded and reported into an outbox; no probes, probes within the budget of 2 % as jobs have them, or a
probe at every step. A step of the other side clips by ``torch.nn.utils.clip_grad_norm_`` and records nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import write
from benchmarks.script_overhead import LENGTH, SIZES, VOCABULARY, Gpt
from workers import batches
from workers.gradients import GradientMonitor, clip_factor
from workers.outbox import Outbox
from workers.recording import HostValues, Recorder
from workers.watch.probes import Prober
from workers.watch.spending import Spending

CPU = torch.device("cpu")
MODES = {"every step recorded, no probes": 0.0, "probes within 2 %": 0.02, "probes at every step": 1.0}
WARM_UP = 22  # steps: the first probes are made whatever they cost
CLIP = 1.0


class Pair:
    """A model that is trained by both sides in turns."""

    def __init__(self, size: str, budget: float) -> None:
        batches.seed_everything(0)
        width, blocks, heads, self.samples = SIZES[size]
        self.model = Gpt(width, blocks, heads)
        for block in self.model.blocks:
            block.activation = nn.GELU()  # a module, as in most code, so that it is seen
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.spending = Spending(budget)
        self.monitor = GradientMonitor(self.model, CPU)
        self.prober = Prober(self.model, self.optimizer, CPU, self.spending)
        self.outbox = Outbox()
        self.recorder = Recorder(
            self.outbox,
            self.monitor.layers.names,
            CPU,
            steps=1 << 30,
            every_steps=1,
            warmup_steps=0,
            told_through=lambda: 1 << 62,
            spending=self.spending,
        )
        self.recorder.probes_have(self.prober.names)
        self.recorder.tell(True)
        self.step, self.probed = 0, 0

    def loss(self) -> Tensor:
        tokens = torch.randint(0, VOCABULARY, (self.samples, LENGTH + 1))
        return nn.functional.cross_entropy(self.model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    def alone(self) -> float:
        began = time.perf_counter()
        self.loss().backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - began

    def watched(self) -> float:
        self.recorder.step_begins()
        began = time.perf_counter()
        self.step += 1
        self.prober.begin(self.step)
        self.prober.begin_pass(True)
        loss = self.loss()
        loss.backward()
        self.prober.agree(self.prober.vote())
        norms = self.monitor.measure()
        norm = norms.square().sum().sqrt()
        factor = clip_factor(norm, CLIP)
        self.prober.before_update(torch.ones((), dtype=torch.float64))
        self.monitor.scale(factor)
        self.optimizer.step()
        probe = self.prober.after_update()
        self.optimizer.zero_grad(set_to_none=True)
        self.probed += probe is not None
        count = torch.tensor(float(self.samples))
        self.recorder.record(
            self.step,
            loss.detach() * count,
            count,
            norms,
            norm,
            factor,
            HostValues(1e-4, self.samples, 0.0, 0.0),
            probe,
        )
        return time.perf_counter() - began


def measure(size: str, mode: str, rounds: int, each: int) -> dict[str, Any]:
    pair = Pair(size, MODES[mode])
    for _ in range(WARM_UP):
        pair.watched()
    pair.alone()
    probed_before = pair.probed
    watched, alone = [], []
    for _ in range(rounds):
        # Means: not every step is probed, and what was recorded is handed over twice a second.
        steps = [(pair.watched(), pair.alone()) for _ in range(each)]
        watched.append(statistics.fmean(pair[0] for pair in steps))
        alone.append(statistics.fmean(pair[1] for pair in steps))
    ratios = [a / b for a, b in zip(watched, alone, strict=True)]
    found: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in pair.model.parameters()),
        "watched": watched,
        "alone": alone,
        "median_watched": statistics.median(watched),
        "median_alone": statistics.median(alone),
        "ratio_by_round": ratios,
        "median_ratio": statistics.median(ratios),
        "probed_share": (pair.probed - probed_before) / (rounds * each),
        "cost_share_measured_by_itself": pair.spending.share,
    }
    print(
        f"{size}, {mode}: {found['median_ratio']:.4f} ({min(ratios):.4f} to {max(ratios):.4f}), {found['probed_share']:.0%} of the steps probed, "
        f"own measure {pair.spending.share or 0:.2%}, {found['median_alone'] * 1e3:.0f} ms a step",
        flush=True,
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(1)
    each = {"0.8M": 40, "10.7M": 10}
    bars = {f"{size}, {mode}": measure(size, mode, given.rounds, each[size]) for size in SIZES for mode in MODES}
    print(write("watch_overhead", {"bars": bars}))


if __name__ == "__main__":
    main()
