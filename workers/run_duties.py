"""What a run does now and then between its steps: evaluations, what the task shows, checkpoints, housekeeping."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import asdict

from torch import Tensor

from workers import parallel, storage
from workers.acting import sick_from
from workers.agreement import Agreed
from workers.checkpoint_folders import rejudge
from workers.checkpoints import CheckpointError, Failed, Saved
from workers.evaluation import evaluate
from workers.membership import Work
from workers.reports import Outcome, ReasonCode
from workers.run_state import RunState
from workers.tasks.base import Batch, Dataset
from workers.watch.facts import FirstPass
from workers.watch.findings import Judgement
from workers.watch.record import Facts
from workers.weights import finite

NOT_A_NUMBER = 3  # steps in a row, after which nobody waits for the next look
COLLECT_GARBAGE_EVERY = 500  # steps; on all ranks at once, so that no rank waits for another's collector


class RunDuties(RunState):
    """Each is called by all ranks after the same step."""

    def evaluate_when_due(self) -> Outcome | None:
        every = self.spec.evaluation.every_steps or self.plan.steps_per_epoch
        if self.datasets.evaluation is None or not (self.step % every == 0 or self.step == self.plan.steps):
            return None
        self.link.at(Work.EVALUATE, self.step)
        values = self.evaluated(self.datasets.evaluation)
        self.score.take({f"eval/{name}": value for name, value in values.items()})
        self.recorder.flush()
        self.recorder.scalars(self.step, self.score.metrics)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.tell("evaluation", f"Step {self.step}: {shown}.", {"step": self.step, "metrics": self.score.metrics})
        self.illustrate()
        return self.score.without_gain(self.step)

    def first_pass(self, batch: Batch) -> FirstPass | None:
        """Looks at the layers; None where that fails, which must not cost the run anything."""
        try:
            see = not self.spec.training.compile
            return FirstPass(parallel.plain(self.model), batch, self.optimizer, see_calls=see)
        except Exception as error:
            self.no_facts(error)
            return None

    def tell_facts(self, seen: FirstPass | None, loss_sum: Tensor, count: Tensor) -> None:
        """Once a run: later workers and attempts take them over with the recorder's document."""
        if seen is None:
            return
        try:
            seen.took(loss_sum, count, self.datasets.train)
            facts = seen.facts(
                self.spec,
                self.plan,
                world_size=self.world_size,
                begins_trained=getattr(getattr(self.spec.task, "model", None), "checkpoint", None) is not None,
                first=self.step - self.repairs.origin,
            )
        except Exception as error:
            self.no_facts(error)
            return
        self.recorder.facts = facts
        self.announce_facts(facts)

    def no_facts(self, error: Exception) -> None:
        self.recorder.facts = Facts()
        said = f"What is to be known before the first step could not be found out: {type(error).__name__}: {error}"
        self.tell("facts.unknown", said[:2000], {}, level="warning")

    def evaluated(self, dataset: Dataset) -> dict[str, float]:
        return evaluate(
            self.task,
            parallel.plain(self.model),
            dataset,
            batch_size=self.spec.evaluation.batch_size or self.spec.training.batch_size,
            rank=self.rank,
            world_size=self.world_size,
            device=self.context.device,
            bf16=self.bf16,
        )

    def test(self) -> dict[str, float]:
        """The finished model on samples that decided nothing: neither when to stop nor which checkpoint is best."""
        if self.datasets.test is None:
            return {}
        self.link.at(Work.EVALUATE, self.step)
        values = self.evaluated(self.datasets.test)
        metrics = {f"test/{name}": value for name, value in values.items()}
        self.recorder.scalars(self.step, metrics)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.tell("test", f"On the test samples: {shown}.", {"step": self.step, "metrics": metrics})
        return metrics

    def illustrate(self) -> None:
        """What the task shows of the model, into the job's artifacts."""
        self.link.at(Work.EVALUATE, self.step)
        self.illustrator.illustrate(
            parallel.plain(self.model),
            self.step,
            rank=self.rank,
            world_size=self.world_size,
            control=self.group.control,
        )

    def save_when_due(self, *, last: bool) -> Outcome | None:
        """Begins a checkpoint; the last one is complete when this returns. Raises CheckpointError when that one cannot be written."""
        every = self.spec.checkpoint.every_steps
        if not last and not (every and self.step % every == 0):
            return None
        self.link.at(Work.SAVE, self.step)
        outcome = self.settle()  # one at a time
        if outcome is not None:
            return outcome
        if not finite(parallel.plain(self.model)):
            self.tell(
                "checkpoint.skipped",
                f"No checkpoint of step {self.step}: its weights are not finite numbers. The older ones are kept.",
                {"step": self.step},
                level="warning",
            )
            return None
        document = self.document()
        judgement = self.recorder.judgement()
        self.saver.begin(
            self.step,
            parallel.plain(self.model),
            self.optimizer,
            document,
            self.score.finite_metrics(),
            judgement.verdict,
            sick_from([asdict(finding) for finding in judgement.findings]),
        )
        return self.settle(needed=True) if last else None

    def rejudge(self, judgement: Judgement) -> None:
        """At the end, with nothing in flight: no checkpoint is called healthy that was made after something critical had begun."""
        since = sick_from([*(asdict(finding) for finding in judgement.findings), *self.acting.found])
        if self.rank > 0 or since is None:
            return
        try:
            steps = rejudge(storage.folder_at(self.context.checkpoints), since)
        except OSError as error:
            self.tell(
                "checkpoint.not_judged", f"The verdicts of checkpoints could not be changed: {error}", {}, "warning"
            )
            return
        self.tell_rejudged(steps)

    def tell_rejudged(self, steps: Sequence[int]) -> None:
        if steps:
            named = ", ".join(map(str, steps))
            said = f"The checkpoints of step {named} are critical: what is known now had begun before they were saved."
            self.tell("checkpoint.rejudged", said, {"steps": list(steps)})

    def settle(self, *, needed: bool = False) -> Outcome | None:
        """Waits until nothing is being written any more."""
        return self.tell_of_checkpoint(self.saver.settle(self.group.control), needed=needed)

    def hear_of_checkpoint(self, agreed: Agreed) -> Outcome | None:
        return self.tell_of_checkpoint(self.saver.agreed(*agreed.votes.checkpoint))

    def tell_of_checkpoint(self, result: Saved | Failed | None, *, needed: bool = False) -> Outcome | None:
        """A full disk pauses the job; without any other checkpoint it goes on, unless that one was ``needed``."""
        if isinstance(result, Saved):
            self.tell(
                "checkpoint.saved",
                f"Checkpoint of step {result.step}: {result.bytes / 1e6:.1f} MB in {result.seconds:.2f} s, "
                f"of which training waited {result.blocked_seconds:.2f} s.",
                {
                    "step": result.step,
                    "path": result.path,
                    "bytes": result.bytes,
                    "seconds": result.seconds,
                    "blocked_seconds": result.blocked_seconds,
                    "metrics": dict(result.metrics),
                    "verdict": result.verdict,
                },
            )
            self.tell_rejudged(result.rejudged)
            return None
        if result is None:
            return None
        if result.storage_full:
            return Outcome(ReasonCode.STORAGE_FULL, f"paused, because there is no room: {result.problem}")
        if needed:
            raise CheckpointError(result.problem)
        self.tell("checkpoint.failed", result.problem, {"step": result.step}, level="warning")
        return None

    def look_after(self) -> None:
        """What keeps a long run steady, outside of the timed step."""
        if self.step % COLLECT_GARBAGE_EVERY == 0:
            gc.collect()
        if self.facts_due:
            self.share_facts()
        repairing = self.spec.health.mode == "repair"
        hurry = repairing and self.recorder.bad_steps >= NOT_A_NUMBER and self.wanted is None
        self.hear(self.recorder.judge() if hurry else self.recorder.judge_when_due(repairing=repairing))
        self.recorder.step_begins()

    def hear(self, judgement: Judgement | None) -> None:
        """What is critical may stop the run after the next step, on all ranks."""
        if judgement is not None:
            self.acting.hear([asdict(finding) for finding in judgement.findings])
