"""What watching a script costs it: GPT-like models on one thread, steps with and without the observer in turns within one process.

The observer sends to a recorder in another process, as in a job. Two modes: every step measured, and as a job has it, within its budget of 2 %.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import optimizer as optimizers

from benchmarks.measure import record
from workers.outbox import Outbox
from workers.scripts.observations import Hearer, Measured, Observations, Probed
from workers.scripts.recorder import ScriptRecorder
from workers.scripts.site.chainrule_aside import Aside
from workers.scripts.site.chainrule_layers import Part
from workers.scripts.site.chainrule_observer import Observer
from workers.watch.probe_rows import Names

VOCABULARY, LENGTH = 65, 64
# width, blocks, heads, samples a step: nanoGPT's recipe for a CPU (0.8 million parameters), and its "baby" network (10.7 million)
SIZES = {"0.8M": (128, 4, 4, 12), "10.7M": (384, 6, 6, 4)}
MODES = {"every step": 1.0, "budget 2 %": 0.02}
WARM_UP = 26  # steps: what is measured at the beginning is not budgeted


class Gpt(nn.Module):
    def __init__(self, width: int, blocks: int, heads: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, width), nn.Embedding(LENGTH, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(blocks)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)
        values = self.tokens(tokens) + self.places(torch.arange(LENGTH))
        for block in self.blocks:
            values = block(values, src_mask=mask, is_causal=True)
        found: torch.Tensor = self.head(self.norm(values))
        return found


def steps(size: str, address: str, budget: float, rounds: int, each: int) -> dict[str, Any]:
    """Median seconds of a step by round, observed and not."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    width, blocks, heads, samples = SIZES[size]
    model = Gpt(width, blocks, heads)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    # Half of the time it is switched off, which it does not know.
    observer = Observer(address, Part, Aside, measures=True, budget=budget / 2)
    observer.optimizers(optimizers)

    def step() -> float:
        began = time.perf_counter()
        tokens = torch.randint(0, VOCABULARY, (samples, LENGTH + 1))
        loss = nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return time.perf_counter() - began

    for _ in range(WARM_UP):
        step()
    with_it, without = [], []
    for _ in range(rounds):
        # Means: what the observer sends twice a second is in some steps only.
        paired: list[tuple[float, float]] = []
        for _ in range(each):
            observer.off = True
            alone = step()
            observer.off = False
            paired.append((step(), alone))
        with_it.append(statistics.fmean(pair[0] for pair in paired))
        without.append(statistics.fmean(pair[1] for pair in paired))
    observer.end()
    return {"ours": with_it, "theirs": without, "parameters": sum(p.numel() for p in model.parameters())}


class Heard(Hearer):
    """Keeps what it is told as a worker does."""

    def __init__(self) -> None:
        self._recorder: ScriptRecorder | None = None
        self.rows = self.probes = 0

    def take_layers(self, layers: tuple[str, ...], sharded: bool) -> None:
        self._recorder = ScriptRecorder(Outbox(), layers, steps=None, every_steps=1, told_through=lambda: 1 << 62)

    def take_rows(self, rows: Sequence[Measured]) -> None:
        assert self._recorder is not None
        self._recorder.take(rows)
        self.rows += len(rows)

    def take_end(self, overhead: float) -> None: ...

    def take_facts(self, facts: Mapping[str, Any], uncleared: float | None) -> None: ...

    def take_probe_names(self, layers: tuple[str, ...], activations: tuple[str, ...]) -> None:
        assert self._recorder is not None
        self._recorder.take_probe_names(Names(layers, activations))

    def take_probes(self, probes: Sequence[Probed]) -> None:
        assert self._recorder is not None
        self._recorder.take_probes(probes)
        self.probes += len(probes)

    def take_trouble(self, of: str, error: str) -> None:
        raise RuntimeError(f"{of}: {error}")


def measure(size: str, mode: str, rounds: int, each: int) -> dict[str, Any]:
    """In a process of its own, with the recorder here."""
    heard = Heard()
    observations = Observations(heard)
    child = [*("-m", "benchmarks.script_overhead", "--child", size, observations.address), str(MODES[mode])]
    run = subprocess.run([sys.executable, *child, str(rounds), str(each)], capture_output=True, text=True, check=True)
    observations.finish()
    found: dict[str, Any] = json.loads(run.stdout)
    ratios = [a / b for a, b in zip(found["ours"], found["theirs"], strict=True)]
    print(f"{size}, {mode}: {statistics.median(ratios):.4f}", flush=True)
    return found | {
        "median_ours": statistics.median(found["ours"]),
        "median_theirs": statistics.median(found["theirs"]),
        "ratio_by_round": ratios,
        "median_ratio": statistics.median(ratios),
        "measured_share": heard.rows / (WARM_UP + rounds * each),
        "probes": heard.probes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", nargs=5, metavar=("SIZE", "ADDRESS", "BUDGET", "ROUNDS", "STEPS"))
    given = parser.parse_args()
    if given.child:
        size, address, budget, rounds, each = given.child
        print(json.dumps(steps(size, address, float(budget), int(rounds), int(each))))
        return
    each = {"0.8M": 40, "10.7M": 5}
    bars = {f"{size}, {mode}": measure(size, mode, given.rounds, each[size]) for size in SIZES for mode in MODES}
    print(record("script_overhead", bars))
    for name, values in bars.items():
        print(f"{name}: {values['measured_share']:.0%} of the steps measured, {values['probes']} probes")


if __name__ == "__main__":
    main()
