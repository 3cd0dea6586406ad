"""The record of a script's run: the same series, norms and verdicts as of every other kind, from what its observer has sent."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from workers.recording import HostValues, Recorder, Row
from workers.reports import Reporter
from workers.scripts.observations import Measured, Probed
from workers.watch.findings import Judgement
from workers.watch.memory import StepValues
from workers.watch.probe_rows import Names, summary
from workers.watch.record import Facts, Probes, Record

PATIENCE_STEPS = 200  # before a flat loss counts, when nobody knows how long the run is


class ScriptRecorder(Recorder):
    """``take`` is called by the thread that listens, the rest by the one that looks after the script."""

    def __init__(
        self,
        reporter: Reporter,
        layers: tuple[str, ...],
        *,
        steps: int | None,
        every_steps: int,
        told_through: Callable[[], int],
    ) -> None:
        """``steps``: of the whole run; None: unknown."""
        super().__init__(
            reporter,
            layers,
            torch.device("cpu"),
            steps=steps or 0,
            every_steps=every_steps,
            warmup_steps=0 if steps else PATIENCE_STEPS,
            told_through=told_through,
        )
        self._guard = threading.RLock()
        self._loss = 0.0  # the newest that is known
        self._cost_share: float | None = None  # of probes, as the script's observer says
        self._uncleared: float | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        return self._layers

    def take_over(self, other: ScriptRecorder) -> None:
        """What does not hang on the layers, which have become more."""
        with other._guard, self._guard:
            self.facts, self._uncleared, self._cost_share = other.facts, other._uncleared, other._cost_share
            self._probes, self._pending_probes, self._loss = other._probes, other._pending_probes, other._loss

    def take_facts(self, facts: Facts, uncleared: float | None) -> None:
        with self._guard:
            self.facts, self._uncleared = facts, uncleared

    def take_probe_names(self, names: Names) -> None:
        with self._guard:
            self.probes_have(names)

    def take_probes(self, probes: Sequence[Probed]) -> None:
        """They are told with the rows of their steps."""
        with self._guard:
            for probe in probes:
                self._pending_probes[probe.step] = (torch.tensor(probe.row), probe.cost_share)
                self._cost_share = probe.cost_share

    def take(self, measured: Sequence[Measured]) -> None:
        found = []
        with self._guard:
            for each in measured:
                rate = math.nan if each.learning_rate is None else each.learning_rate
                host = HostValues(rate, 0, 0.0, 0.0)
                norm = float(np.sqrt(np.square(each.norms).sum()))
                self._loss = each.loss if each.loss is not None else self._loss
                row = np.concatenate([[self._loss, 1.0, norm, 1.0], each.norms])
                values = self._of_a_script(self._values(row, each.norms, each.seconds, host), each)
                wanted = each.step % self._every_steps == 0 or each.step == 1
                probe = self._packed_probe(each.step)
                if probe is not None:
                    values |= summary(self._probes.names, probe)
                found.append(Row(each.step, each.timestamp, values, each.norms.tolist() if wanted else None, probe))
                self._remember(each.step, StepValues(self._loss, rate, seconds=each.seconds or math.nan), each.norms)
                self.latest.update(values)
            self._keep(found)

    @staticmethod
    def _of_a_script(values: dict[str, float], measured: Measured) -> dict[str, float]:
        """Without what only our own loop knows: samples, epochs, clipping (a script's own has been done before it is measured)."""
        known = {"gradient/norm", "train/step_seconds"} if measured.seconds else {"gradient/norm"}
        known |= {"train/loss"} if measured.loss is not None else set()
        known |= {"train/learning_rate"} if measured.learning_rate is not None else set()
        known |= {"gradient/largest_layer_norm", "gradient/smallest_layer_norm", "gradient/first_to_last_ratio"}
        return {key: value for key, value in values.items() if key in known or key == "gradient/nonfinite_layers"}

    def judge(self, *, final: bool = False) -> Judgement:
        with self._guard:
            # Of a script whose length nobody knew; a few steps are too few to be judged as a whole run.
            if final and not self._steps and self._memory.steps >= PATIENCE_STEPS:
                self._steps, self._warmup_steps = self._memory.steps, 0
            return super().judge(final=final)

    def judge_when_due(self, *, repairing: bool = False) -> Judgement | None:
        with self._guard:
            return super().judge_when_due(repairing=repairing)

    def probes(self) -> Probes:
        return replace(self._probes.probes(), cost_share=self._cost_share)

    def record_of_run(self) -> Record:
        with self._guard:
            return replace(super().record_of_run(), uncleared=self._uncleared)
