"""What watching costs a job: GPT-like models on one thread, watched steps and steps with clipping alone in turns within one process.

Watched: norms of every layer at every step, recorded and reported into an outbox, and judged as a job is while it runs; no probes, probes within the
budget of 2 % as jobs have them, or a probe at every step. A step of the other side clips by ``torch.nn.utils.clip_grad_norm_`` and records nothing.

Beside it the statistics with clipping against clipping alone, in turns on the same gradients, and where wandb is installed (pip install
wandb==0.31.0, which nothing else here needs) a model that is probed at every step against one under ``wandb.watch(log_freq=1)``, offline.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.measure import compare, write
from benchmarks.script_overhead import LENGTH, SIZES, VOCABULARY, Gpt
from workers import batches
from workers.gradients import GradientMonitor, clip_factor
from workers.outbox import Outbox
from workers.recording import HostValues, Recorder
from workers.watch.probes import Prober
from workers.watch.spending import Spending

CPU = torch.device("cpu")
STEPS = 2000  # of the run, as it is told to the recorder
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
            steps=STEPS,
            every_steps=1,
            warmup_steps=0,
            told_through=lambda: 1 << 62,
            spending=self.spending,
        )
        self.recorder.probes_have(self.prober.names)
        self.recorder.tell(True)
        self.step, self.probed = 0, 0
        self.wandb: Callable[[float], None] | None = None

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
        self.recorder.judge_when_due()
        return time.perf_counter() - began

    def by_wandb(self) -> float:
        """``alone``, with what wandb's hooks do and one call of ``log``."""
        assert self.wandb is not None
        began = time.perf_counter()
        loss = self.loss()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.wandb(loss.item())
        return time.perf_counter() - began

    def clipped(self, ours_first: bool) -> tuple[float, float]:
        """Seconds of our statistics with clipping, and of clipping alone. The second finds the gradients in the caches, so that they take turns."""
        self.loss().backward()
        taken = {ours: self._clips(ours) for ours in (ours_first, not ours_first)}
        self.optimizer.zero_grad(set_to_none=True)
        return taken[True], taken[False]

    def _clips(self, ours: bool) -> float:
        began = time.perf_counter()
        if ours:
            norms = self.monitor.measure()
            self.monitor.scale(clip_factor(norms.square().sum().sqrt(), CLIP))
        else:
            nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        return time.perf_counter() - began


def measure(size: str, mode: str, rounds: int, each: int) -> dict[str, Any]:
    pair = Pair(size, MODES[mode])
    for _ in range(WARM_UP):
        pair.watched()
    pair.alone()
    steps: list[Step] = []
    by_round = []
    for _ in range(rounds):
        several = [_step(pair, watched_first=number % 2 == 0) for number in range(each)]
        by_round.append(_ratio(several))
        steps += several
    found: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in pair.model.parameters()),
        "median_alone": statistics.median(step.alone for step in steps),
        "ratio": _ratio(steps),
        "ratio_by_round": by_round,
        "ratio_of_means": statistics.fmean(step.watched for step in steps)
        / statistics.fmean(step.alone for step in steps),
        "probed_share": statistics.fmean(step.probed for step in steps),
        "cost_share_measured_by_itself": pair.spending.share,
    }
    print(
        f"{size}, {mode}: {found['ratio']:.4f} ({min(by_round):.4f} to {max(by_round):.4f}; of means {found['ratio_of_means']:.4f}), "
        f"{found['probed_share']:.0%} of the steps probed, own measure {pair.spending.share or 0:.2%}, {found['median_alone'] * 1e3:.0f} ms a step",
        flush=True,
    )
    return found


class Step(NamedTuple):
    watched: float
    alone: float
    probed: bool


def _step(pair: Pair, *, watched_first: bool) -> Step:
    before = pair.probed
    first = (pair.watched if watched_first else pair.alone)()
    second = (pair.alone if watched_first else pair.watched)()
    watched, alone = (first, second) if watched_first else (second, first)
    return Step(watched, alone, pair.probed > before)


def _ratio(steps: list[Step]) -> float:
    """Of a watched step to one alone: the median difference of neighbours, of probed and of other steps apart, each with its share of the steps. On a
    machine with others on it a mean says what these did."""
    alone = statistics.median(step.alone for step in steps)
    kinds = [[step.watched - step.alone for step in steps if step.probed is probed] for probed in (False, True)]
    return 1 + sum(statistics.median(kind) * len(kind) for kind in kinds if kind) / len(steps) / alone


def against_wandb(size: str, rounds: int, each: int) -> dict[str, Any]:
    """What a logged step costs more than a step alone, medians of neighbours' differences: all that we measure at every step, and wandb's
    histograms of gradients."""
    import wandb  # type: ignore[import-not-found,unused-ignore]

    ours, theirs = Pair(size, 1.0), Pair(size, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        run = wandb.init(mode="offline", dir=folder, project="watch", settings=wandb.Settings(console="off"))
        run.watch(theirs.model, log="gradients", log_freq=1)
        theirs.wandb = lambda loss: run.log({"loss": loss})
        for _ in range(WARM_UP):
            ours.watched()
        theirs.by_wandb()
        extra_ours, extra_theirs = [], []
        for _ in range(rounds):
            steps = [(ours.watched(), theirs.by_wandb(), ours.alone()) for _ in range(each)]
            extra_ours.append([step[0] - step[2] for step in steps])
            extra_theirs.append([step[1] - step[2] for step in steps])
        run.finish()
    by_round = [statistics.median(b) / statistics.median(a) for a, b in zip(extra_ours, extra_theirs, strict=True)]
    a, b = (statistics.median(itertools.chain(*extra)) for extra in (extra_ours, extra_theirs))
    print(
        f"{size}: wandb.watch costs {b / a:.1f} times as much a step ({min(by_round):.1f} to {max(by_round):.1f}; "
        f"{a * 1e3:.2f} and {b * 1e3:.2f} ms)",
        flush=True,
    )
    return {"extra_ours": a, "extra_wandb": b, "wandb": wandb.__version__, "ratio": b / a, "ratio_by_round": by_round}


def clipping(size: str, rounds: int) -> dict[str, Any]:
    pair = Pair(size, 0.0)
    pair.clipped(True)
    found = compare(*zip(*(pair.clipped(number % 2 == 0) for number in range(rounds)), strict=True))
    print(f"{size}: statistics with clipping over clipping alone {found['median_ratio']:.3f}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(1)
    each = {"0.8M": 40, "10.7M": 30}
    bars = {f"{size}, {mode}": measure(size, mode, given.rounds, each[size]) for size in SIZES for mode in MODES}
    found: dict[str, Any] = {"bars": bars, "clipping": {size: clipping(size, 20 * given.rounds) for size in SIZES}}
    if importlib.util.find_spec("wandb") is not None:
        found["wandb"] = {size: against_wandb(size, given.rounds, each[size]) for size in SIZES}
    else:
        print("wandb is not installed: not compared with it")
    print(write("watch_overhead", found))


if __name__ == "__main__":
    main()
