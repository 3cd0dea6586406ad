"""What answers a finding that the training data is behind (consent ``data``): samples left out, classes weighted. Decided on rank 0.

Goes before the ladder of what may be done to the run: no rate and no clipping mends a sample that is no number.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workers.repair import class_weights
from workers.repair.acts import Act
from workers.repair.class_weights import inverse_frequency
from workers.repair.ladder import Situation
from workers.repair.quarantine import OF_SAMPLES, Blame, Blamed, said_of, why_too_many

DATA_ANSWERS = frozenset({"nonfinite_data", "class_imbalance"})  # findings that nothing else answers
LOOKS = 8  # at samples one by one, in one process


@dataclass(frozen=True)
class Answer:
    words: str
    leaves_out: list[int] | None = None
    class_weights: list[float] | None = None
    back: bool = False  # to the weights before it began: those since were trained on what is left out now
    trial: bool = False  # what is no number is wrong by itself; whether something else was at fault has to be seen

    def act(
        self,
        number: int,
        situation: Situation,
        before: str | None,
        back: int | None,
        instead_of: int | None,
        probation: int,
    ) -> Act:
        """``before``: what is done first, for people; ``back``: the step to whose weights the run goes."""
        words = self.words if before is None else f"{before}; {self.words}"
        return Act(
            number, situation.step, situation.finding["code"], "data", words, rewind=back, leaves_out=self.leaves_out,
            class_weights=self.class_weights, instead_of=instead_of, probation=probation if self.trial else 0,
        )  # fmt: skip


class DataAnswers:
    """Remembers what it has found, so that a finding that stays open is looked into once."""

    def __init__(self, samples: int, blame: Blame, class_counts: Sequence[int] | None = None) -> None:
        """``samples``: of the training set. ``class_counts`` (C,): of them in each class; None: the loss takes no weights of classes, or those that
        the job has given."""
        self._samples, self._blame, self._class_counts = samples, blame, class_counts
        self._known: dict[tuple[str, int], Blamed] = {}
        self._why: dict[str, str] = {}

    def answer(self, finding: Mapping[str, Any], out: Collection[int], tried: Collection[int]) -> Answer | None:
        """``out``: samples that are left out now; ``tried``: those that were once, which somebody took in again or which were not at fault."""
        if finding["code"] == "class_imbalance" and self._class_counts is not None:
            weights = inverse_frequency(self._class_counts)
            return Answer(class_weights.said_of(weights, self._class_counts), class_weights=weights)
        if finding["code"] not in OF_SAMPLES:
            return None
        found = self._looked(finding).without({*out, *tried})
        if not found.samples:
            return None
        too_many = why_too_many(len(found.samples), len(out), self._samples)
        if too_many is not None:
            self._why[finding["code"]] = too_many
            return None
        extreme = bool(found.extreme)
        return Answer(said_of(found), found.samples, back=extreme, trial=extreme and not found.nonfinite)

    def _looked(self, finding: Mapping[str, Any]) -> Blamed:
        key = (finding["code"], int(finding["first_bad_step"]))
        if key not in self._known:
            self._known[key] = self._blame(finding) if len(self._known) < LOOKS else Blamed()
        return self._known[key]

    def why_not(self, code: str) -> str | None:
        """A part of a sentence: why samples that were found to be at fault are not left out."""
        return self._why.get(code)


def why_not_about_data(answers: DataAnswers | None, code: str, allow: Collection[str]) -> str | None:
    """A part of a sentence; None: the data is not what such a finding is about, or nothing is known."""
    if "data" not in allow:
        return "health.allow would have to name data" if code in DATA_ANSWERS else None
    return answers.why_not(code) if answers is not None else None
