"""From the device to the reporter: what each step measured waits in a ring buffer and is copied out every few steps.

All workers measure the same numbers, and all keep them until the controller has them: when the one that tells is lost, another goes on telling
where it stopped.
"""

from __future__ import annotations

import math
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workers.flops import Rates
from workers.repair.usual import usual_norm
from workers.reports import Level, Progress, Reporter, mark_of
from workers.watch.diagnosis import diagnose
from workers.watch.facts_json import from_json, to_json
from workers.watch.findings import Finding, Judgement
from workers.watch.memory import RunMemory, StepValues
from workers.watch.probe_rows import Names, ProbeLog, pack, summary
from workers.watch.rank_rows import Heard, RankLog
from workers.watch.record import Checksums, Facts, Probes, Ranks, Record
from workers.watch.spending import Spending
from workers.watch.told import CLEARED, RAISED
from workers.watch.watching import Changes, Watch

ROWS = 64  # the ring's size
FLUSH_SECONDS = 0.5  # so that a person who watches sees steps as they happen
LOOK_SECONDS = 5.0  # between two looks at the record
LOOKS = 50  # in a run that is so short that it would be over before
LOOK_SHARE = 0.01  # of the time, at most, for looking
MUST_LOOK = (
    0.05,
    0.1,
    0.2,
    0.3,
    0.5,
)  # of a run that is to be repaired: however short it is, else what is found is found too late
NONFINITE_LIMIT = 25  # steps in a row with a loss that is no number; then the run cannot recover by itself
SCALARS = ("loss_sum", "count", "norm", "factor")


@dataclass(frozen=True)
class HostValues:
    """What the host knows of a step without asking the device."""

    learning_rate: float
    samples: int
    epoch: float
    data_wait_seconds: float
    workers: int = 1  # that made the step together


@dataclass(frozen=True)
class Row:
    """What was measured after a step. ``norms``: of each layer's gradient, where they are to be reported. ``probe``: a record of ``probe_rows``.

    ``ranks``: what was heard with it of an earlier step, a record of ``rank_rows``.
    """

    step: int
    timestamp: float
    values: Mapping[str, float]
    norms: list[float] | None = None
    probe: str | None = None
    ranks: str | None = None

    @property
    def mark(self) -> int:
        return mark_of(self.step, self.values) or 0


class Recorder:
    """``record`` never waits for the device; ``flush`` does, a few times a second."""

    def __init__(
        self,
        reporter: Reporter,
        layers: tuple[str, ...],
        device: torch.device,
        *,
        steps: int,
        every_steps: int,
        warmup_steps: int,
        told_through: Callable[[], int],
        terms: str | None = None,
        rates: Rates | None = None,
        spending: Spending | None = None,
    ) -> None:
        """``told_through``: the mark up to which the controller has everything. ``terms``: what the loss counts, if not samples.

        ``rates``: None where the FLOPs of a step are not known. ``spending``: what watching costs; it is told here how long steps and recording take.
        """
        self._told_through, self._terms, self._rates = told_through, terms, rates
        self._teller = False
        self._untold: deque[Row] = deque()
        self._reporter, self._layers, self._steps = reporter, layers, steps
        self._every_steps, self._warmup_steps = every_steps, warmup_steps
        self._ring = torch.zeros((ROWS, len(SCALARS) + len(layers)), dtype=torch.float64, device=device)
        self._pending: list[tuple[int, float, float, HostValues]] = []
        self._flushed_at = self._step_ended_at = time.perf_counter()
        self._memory = RunMemory(layers)
        self._spending = spending or Spending(0.0)
        self._probes = ProbeLog(Names(layers, ()))
        self._pending_probes: dict[int, tuple[Tensor, float | None]] = {}
        self._ranks = RankLog()
        self._watch = Watch()
        self._origin = 0  # the step after which what trains now began
        self._judge_failed = False
        self._told: list[Any] | None = None  # the newest verdict and its findings
        self._looked_at, self._looked_step, self._look_seconds = time.monotonic(), 0, 0.0
        self._seconds_per_step: float | None = None
        self.bad_steps = 0  # in a row, up to the last flush
        self.latest: dict[str, float] = {}
        self.facts: Facts | None = None

    def tell(self, yes: bool) -> None:
        """Whether this worker reports. One that begins to, reports what nobody has told yet."""
        begins, self._teller = yes and not self._teller, yes
        if begins:
            self._forget_told()
            self._report(self._untold)

    def probes_have(self, names: Names) -> None:
        """What the rows of probes are about; before the first of them."""
        if names != self._probes.names:
            self._probes = ProbeLog(names)

    def step_begins(self) -> None:
        """Called after anything that is not part of a step (evaluation, a checkpoint), so that steps are timed alone."""
        self._step_ended_at = time.perf_counter()

    def record(
        self,
        step: int,
        loss_sum: Tensor,
        count: Tensor,
        norms: Tensor,
        norm: Tensor,
        factor: Tensor,
        host: HostValues,
        probe: Tensor | None = None,
        heard: Heard | None = None,
    ) -> None:
        """``step`` counts from 1: optimizer steps done. ``probe``: a row of ``probe_rows``, when the step was probed. ``heard``: of the ranks."""
        now = time.perf_counter()
        row = self._ring[len(self._pending)]
        row[: len(SCALARS)] = torch.stack([loss_sum.double(), count.double(), norm, factor.double()])
        row[len(SCALARS) :] = norms
        self._pending.append((step, time.time(), now - self._step_ended_at, host))
        self._spending.step_took(now - self._step_ended_at)
        if probe is not None:
            self._pending_probes[step] = (probe, self._spending.share)
        if heard is not None:
            self._ranks.hear(step, heard)
        self._step_ended_at = now
        self._spending.recording_took(time.perf_counter() - now)
        if len(self._pending) == ROWS or now - self._flushed_at > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        if not self._pending:
            return
        rows = self._ring[: len(self._pending)].cpu().numpy().copy()
        heard = self._ranks.take()
        began = time.perf_counter()  # what the device still had to do would have been waited for in any case
        found = []
        for (step, timestamp, seconds, host), row in zip(self._pending, rows, strict=True):
            norms = row[len(SCALARS) :]
            values = self._values(row, norms, seconds, host)
            wanted = step % self._every_steps == 0 or step == 1
            probe = self._packed_probe(step)
            if probe is not None:
                values |= summary(self._probes.names, probe)
            ranks = heard.get(step)
            self._ranks.add(ranks, step, values["gradient/norm"])
            found.append(Row(step, timestamp, values, norms.tolist() if wanted else None, probe, ranks))
            factor = float(row[SCALARS.index("factor")])
            self._remember(
                step,
                StepValues(values["train/loss"], host.learning_rate, factor, seconds, host.data_wait_seconds),
                norms,
            )
            self.latest.update(values)
        found[-1] = replace(found[-1], values={**found[-1].values, **self._ranks.noise_when_due()})
        self.latest.update(found[-1].values)
        self._keep(found)
        self._report_progress(len(rows))
        self._pending.clear()
        self._flushed_at = time.perf_counter()
        self._spending.recording_took(self._flushed_at - began)

    def _packed_probe(self, step: int) -> str | None:
        if step not in self._pending_probes:
            return None
        row, cost_share = self._pending_probes.pop(step)
        packed = pack(self._probes.names, step, cost_share, row.cpu().numpy())
        self._probes.add(packed)
        return packed

    def _keep(self, rows: list[Row]) -> None:
        self._untold.extend(rows)
        if self._teller:
            self._report(rows)
        self._forget_told()

    def _forget_told(self) -> None:
        told = self._told_through()
        while self._untold and self._untold[0].mark <= told:
            self._untold.popleft()

    def _report(self, rows: Iterable[Row]) -> None:
        rows = list(rows)
        gradients = [(row.step, row.norms) for row in rows if row.norms is not None]
        if gradients:
            self._reporter.gradients(self._layers, gradients)
        probes = [(row.step, row.probe) for row in rows if row.probe is not None]
        if probes:
            self._reporter.probes(self._probes.names.layers, self._probes.names.activations, probes)
        ranks = [row.ranks for row in rows if row.ranks is not None]
        if ranks:
            self._reporter.ranks(ranks)
        for row in rows:
            self._reporter.metrics(row.step, row.values, row.timestamp)

    def _values(self, row: np.ndarray, norms: np.ndarray, seconds: float, host: HostValues) -> dict[str, float]:
        loss_sum, count, norm, factor = row[: len(SCALARS)].tolist()
        quarter = max(1, len(norms) // 4)
        last = float(np.median(norms[-quarter:])) if len(norms) else 0.0
        rates = {"samples": float(host.samples)} | ({self._terms: count} if self._terms else {})
        return {
            "train/loss": loss_sum / count if count else math.nan,
            "train/learning_rate": host.learning_rate,
            "train/epoch": host.epoch,
            "train/step_seconds": seconds,
            "train/data_wait_seconds": host.data_wait_seconds,
            **{f"train/{name}_per_second": value / seconds if seconds > 0 else 0.0 for name, value in rates.items()},
            **(self._rates.series(host.samples, seconds, host.workers) if self._rates is not None else {}),
            "gradient/norm": norm,
            "gradient/norm_clipped": norm * factor,
            "gradient/clipped": float(factor < 1.0),
            "gradient/largest_layer_norm": float(norms.max(initial=0.0)),
            "gradient/smallest_layer_norm": float(norms.min()) if len(norms) else 0.0,
            "gradient/first_to_last_ratio": float(np.median(norms[:quarter])) / last if last > 0 else 0.0,
            "gradient/nonfinite_layers": float(np.count_nonzero(~np.isfinite(norms))),
        }

    def _remember(self, step: int, measured: StepValues, norms: np.ndarray) -> None:
        self.bad_steps = 0 if math.isfinite(measured.loss) else self.bad_steps + 1
        self._memory.add(step, measured, norms)

    def _report_progress(self, steps: int) -> None:
        seconds = sum(seconds for _, _, seconds, _ in self._pending) / steps
        previous = self._seconds_per_step
        self._seconds_per_step = seconds if previous is None else 0.8 * previous + 0.2 * seconds
        step, _, _, host = self._pending[-1]
        per_second = host.samples / self._seconds_per_step if self._seconds_per_step > 0 else None
        left = (self._steps - step) * self._seconds_per_step
        if self._teller:
            self._reporter.progress(Progress(step, self._steps, host.epoch, per_second, left))

    def document(self) -> dict[str, Any]:
        """What a checkpoint or another worker needs: rows that nobody has told yet, the run's course, by which it is judged, and what was found.

        To be taken after ``flush``.
        """
        return {
            "memory": self._memory.document(),
            "untold": [asdict(row) for row in self._untold],
            "watch": self._watch.document(),
            "told": self._told,
            "probes": self._probes.document() | self._spending.document(),
            "ranks": self._ranks.document(),
            "facts": to_json(self.facts) if self.facts is not None else None,
        }

    def restore(self, document: Mapping[str, Any]) -> None:
        """Takes over what ``document`` gave; what this worker measured itself is no longer true."""
        self._pending.clear()
        self._pending_probes.clear()
        if "probes" in document:  # not in those of earlier versions
            self._probes.restore(document["probes"])
            self._spending.restore(document["probes"])
        if "ranks" in document:
            self._ranks.restore(document["ranks"])
        self._memory, self._watch, self._told = RunMemory(self._layers), Watch(), None
        if "memory" in document:
            self._memory.restore(document["memory"])
            self._watch.restore(document["watch"])
            self._told = document["told"]
        facts = document.get("facts")  # not in those of earlier versions
        self.facts = from_json(facts) if facts is not None else None
        self._untold = deque(Row(**row) for row in document["untold"])
        self._forget_told()
        if self._teller:
            self._report(self._untold)

    def begin_anew(self, after: int, through: int, steps: int, origin: int) -> None:
        """The run was changed: steps that it has left behind are not judged any more, and findings are looked for anew. ``steps``: its length now.
        ``origin``: the step after which its model began to be trained.

        To be taken after ``flush``.
        """
        for log in (self._memory, self._probes, self._ranks):
            log.forget(after, through)
        for finding in self._watch.forget():
            self._tell_finding(CLEARED, finding, through)
        self.runs(steps, origin)
        self.bad_steps, self._looked_step = 0, through
        if self.facts is not None and self.facts.total_steps is not None:
            self.facts = replace(self.facts, total_steps=steps)

    def forget_steps(self, steps: Sequence[int]) -> None:
        """What was measured in these says nothing of the run as it is now. To be taken after ``flush``."""
        for step in sorted(steps):
            for log in (self._memory, self._probes, self._ranks):
                log.forget(step - 1, step)

    def runs(self, steps: int, origin: int) -> None:
        """How long the run is, and after which step what trains now began, as repairs have it."""
        self._steps, self._origin = steps, origin

    def layers_are(self, layers: tuple[str, ...]) -> None:
        """Of another model, of which nothing is known yet."""
        self.facts = None
        if layers == self._layers:
            return
        self._layers = layers
        self._ring = torch.zeros((ROWS, len(SCALARS) + len(layers)), dtype=torch.float64, device=self._ring.device)
        self._memory, self._probes = RunMemory(layers), ProbeLog(Names(layers, ()))
        # Norms of other layers were told once, and cannot be told among those of these.
        self._untold = deque(replace(row, norms=None, probe=None) for row in self._untold)

    def usual_norm(self, before: int) -> float | None:
        """As ``workers.repair.usual`` has it, of the run so far."""
        return usual_norm(self._memory.series(), before)

    def loss_of(self, steps: range) -> float | None:
        """Median of the training loss of these; None: there are none, or it is not finite."""
        return self._memory.loss_of(steps)

    def tell_verdict_anew(self) -> None:
        """With the next look, also if it is the same: to somebody who does not know it yet."""
        self._told = None

    def probes(self) -> Probes:
        """Those of the run so far, thinned, up to the last flush."""
        return replace(self._probes.probes(), cost_share=self._spending.share)

    def ranks(self) -> Ranks:
        """Of the run so far, as long as it has had this number of ranks, up to the last flush."""
        return self._ranks.ranks()

    def checksums(self) -> Checksums:
        return self._ranks.checksums()

    def record_of_run(self) -> Record:
        """All that is known of the run, up to the last flush."""
        facts = self.facts or Facts()
        steps = self._steps or facts.total_steps
        warmup = max(self._warmup_steps, facts.warmup_steps)
        record = Record(
            replace(facts, total_steps=steps, warmup_steps=warmup),
            self._memory.series(),
            self.probes(),
            self._memory.evaluations(),
            self.ranks(),
            self.checksums(),
        )
        return record.since(self._origin) if self._origin else record

    def judgement(self) -> Judgement:
        """As if nobody had ever looked."""
        try:
            return diagnose(self.record_of_run())
        except Exception as error:
            return self._cannot_judge(error)

    def judge_when_due(self, *, repairing: bool = False) -> Judgement | None:
        """Often enough that a short run is seen while it lasts, seldom enough that nobody waits for it. ``repairing``: some looks are taken
        whatever they cost."""
        since, steps = time.monotonic() - self._looked_at, self._memory.steps - self._looked_step
        due = since > LOOK_SECONDS or (self._steps and steps >= self._steps / LOOKS)
        must = repairing and any(self._looked_step < part * self._steps <= self._memory.steps for part in MUST_LOOK)
        if steps and (must or (due and since * LOOK_SHARE >= self._look_seconds)):
            return self.judge()
        return None

    def judge(self, *, final: bool = False) -> Judgement:
        """Reports findings that are new or have passed, and the verdict when it changes; at the end of the run all that is seen then."""
        began = time.monotonic()
        try:
            changes = self._watch.look(self.record_of_run(), final=final)
        except Exception as error:
            changes = Changes(self._memory.steps, (), (), self._cannot_judge(error))
        judgement = changes.judgement
        for finding in changes.raised:
            self._tell_finding(RAISED, finding, self._memory.steps)
        for finding in changes.cleared:
            self._tell_finding(CLEARED, finding, self._memory.steps)
        told = [judgement.verdict, [[*finding.key, finding.severity] for finding in judgement.findings]]
        # A run that was resumed at its very end keeps its earlier verdict.
        if self._teller and self._memory.steps and (told != self._told or final):
            level: Level = "info" if judgement.verdict in ("healthy", "unknown") else "warning"
            self._reporter.event(level, "health.verdict", judgement.sentence, judgement.as_dict())
        self._told = told
        self._looked_at, self._looked_step = time.monotonic(), self._memory.steps
        self._look_seconds = self._looked_at - began
        self._spending.recording_took(self._look_seconds)
        return judgement

    def _cannot_judge(self, error: Exception) -> Judgement:
        """A rule that fails must not cost the run anything; it is told once, with where it failed."""
        said = f"The run could not be judged: {type(error).__name__}: {error}"[:500]
        if self._teller and not self._judge_failed:
            where = "".join(traceback.format_exception(error))[-4000:]
            self._reporter.event("warning", "health.failed", said, {"step": self._memory.steps, "traceback": where})
        self._judge_failed = True
        return Judgement("unknown", said)

    def _tell_finding(self, what: str, finding: Finding, step: int) -> None:
        if not self._teller:
            return
        passed = what == CLEARED
        level: Level = "info" if passed or finding.severity == "note" else "warning"
        where = f" in {finding.layer}" if finding.layer else ""
        where += f" on rank {finding.rank}" if finding.rank is not None else ""
        said = f"{finding.code}{where} has passed." if passed else f"{finding.code}{where}: {finding.explanation}"
        self._reporter.event(level, what, said, {"step": step, "finding": asdict(finding)})

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Values that are not of every step, such as an evaluation's."""
        self.latest.update(values)
        self._memory.evaluated(step, values)
        self._keep([Row(step, time.time(), values)])
