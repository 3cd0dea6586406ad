"""What a run does about its training data (consent ``data``, or because people ask): samples that are left out, classes that are weighed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from workers.batches import seed_everything
from workers.membership import Work
from workers.repair.acts import Act
from workers.repair.blame import blamed
from workers.repair.class_weights import weights_now
from workers.repair.data_answers import DataAnswers
from workers.repair.quarantine import Blamed
from workers.repair.rebuilding import patched
from workers.repair.requests import Request
from workers.run_duties import RunDuties
from workers.sample_order import why_not_left_out
from workers.tasks.base import Weighing, Writing
from workers.watch.loss_call import constant_loss
from workers.watch.record import Facts, Series

AROUND = 2  # steps before and after the first one that went wrong, where no step is known to be no number
SUSPECT_STEPS = 64  # at most


class RunQuarantine(RunDuties):
    """Samples are told by their index in the training set, as ``dataset.batch`` takes them."""

    _answers: DataAnswers | None = None

    # --- on rank 0, which decides -------------------------------------------------------------------------------------

    def data_answers(self) -> DataAnswers | None:
        """None: nothing is done about the data, or the model is of a library that keeps the newest one it has built."""
        if self.rank > 0 or "data" not in self.spec.health.allow or isinstance(self.task, Writing):
            return None
        if self._answers is None:
            counts = self.task.class_counts() if isinstance(self.task, Weighing) else None
            self._answers = DataAnswers(self.plan.samples, self.look_for_samples, counts)
        return self._answers

    def look_for_samples(self, finding: Mapping[str, Any]) -> Blamed:
        """Must not cost the run anything but the time: what a task raises of a single sample is told."""
        self.link.at(Work.DATA, self.step)  # behind the others, which wait in the next step: it is not they that hang
        try:
            with torch.random.fork_rng(devices=[]):
                seed, suspects = self.spec.training.seed, self.suspects(finding)
                found = blamed(self.task, self.first_model, self.datasets.train, suspects, seed=seed)
        except Exception as error:
            said = f"Samples could not be looked at one by one: {type(error).__name__}: {error}"
            self.tell("repair.not_looked_at", said[:2000], {"step": self.step, "code": finding["code"]}, "warning")
            return Blamed()
        found = found.without(self.plan.left_out)
        what = f"{len(found.samples)} of them at fault" if found.samples else "none of them at fault"
        said = (
            f"Looked at {found.looked_at:,} of {self.plan.samples:,} samples one by one, for {finding['code']}: {what}."
        )
        data = {"step": self.step, "code": finding["code"], "looked_at": found.looked_at, "samples": found.samples}
        self.tell("repair.looked_at_samples", said, data)
        return found

    def first_model(self, seed: int) -> nn.Module:
        """As the run would begin with it, of another seed."""
        seed_everything(seed)
        model = patched(self.task.model(), self.repairs.patches, seed)
        return model.to("cpu" if self.sharded else self.context.device)

    def suspects(self, finding: Mapping[str, Any]) -> list[int]:
        """Samples of the steps that went wrong, the first ones first."""
        record = self.recorder.record_of_run()
        first = max(1, int(finding["first_bad_step"]))
        steps = [step + record.origin for step in _bad_steps(record.series)] or range(
            first - AROUND, first + AROUND + 1
        )
        wanted = [step for step in steps if 1 <= step <= self.step][:SUSPECT_STEPS]
        found: dict[int, None] = {}
        for step in wanted:
            found.update(dict.fromkeys(self.plan.step_indices(step - 1).tolist()))
        return list(found)

    def why_not_asked(self, request: Request) -> str | None:
        """What is wrong with samples that people name; None: nothing is."""
        out = self.plan.left_out
        if strange := [sample for sample in request.take_in or () if sample not in out]:
            return f"sample {strange[0]} is not left out"
        wanted = {*out, *(request.leave_out or ())} - {*(request.take_in or ())}
        return why_not_left_out(sorted(wanted), self.plan.samples, self.plan.batch_size)

    # --- on all ranks -------------------------------------------------------------------------------------------------

    def forget_left_out(self, act: Act) -> None:
        """What was known and recorded of samples that are left out now says nothing of the run without them. While the plan still has them."""
        if not act.leaves_out or act.verdict is not None:
            return
        record = self.recorder.record_of_run()
        steps = [step + record.origin for step in _bad_steps(record.series)]
        theirs = [step for step in steps if np.isin(self.plan.step_indices(step - 1), act.leaves_out).any()]
        self.recorder.forget_steps(theirs)
        if self.recorder.facts is not None:
            self.recorder.facts = _without_bad_rows(self.recorder.facts)

    def facts_of_weights(self, act: Act) -> None:
        """By which the loss is judged from now on: what the best constant answer gives is another loss with other weights."""
        if act.class_weights and self.recorder.facts is not None:
            smoothing = float(getattr(self.spec.task, "label_smoothing", 0.0))
            self.recorder.facts = _weighed(self.recorder.facts, weights_now(self.repairs.entries), smoothing)


def _weighed(facts: Facts, weights: Sequence[float] | None, smoothing: float) -> Facts:
    loss, given = facts.loss, tuple(weights or ())
    parts = tuple(count * weight for count, weight in zip(loss.class_counts, given, strict=False)) or loss.class_counts
    constant = constant_loss(loss, parts, smoothing) if loss.constant is not None else None
    return replace(facts, loss=replace(loss, weighted=bool(given), class_weights=given, constant=constant))


def _bad_steps(series: Series) -> list[int]:
    """Those whose loss or gradient was no number."""
    bad = ~np.isfinite(series.losses)
    if series.norms.size:
        bad |= ~np.isfinite(series.norms).all(axis=1)
    return [int(step) for step in series.steps[bad]]


def _without_bad_rows(facts: Facts) -> Facts:
    inputs, target = facts.inputs, facts.loss.target
    return replace(
        facts,
        inputs=replace(inputs, nonfinite_rows=()) if inputs is not None else None,
        loss=replace(facts.loss, target=replace(target, nonfinite_rows=()) if target is not None else None),
    )
