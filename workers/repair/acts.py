"""What is done to a run that fails: as it is decided, agreed, kept and told. Standard library and pydantic only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from workers.spec import Consent

Verdict = Literal["kept", "taken_back", "undone"]
BY_PEOPLE = "asked"  # in place of a finding's code: somebody asked for it
State = Literal[
    "trial", "set_aside", "kept", "taken_back", "undone"
]  # set_aside: it helped, and another is compared with it


@dataclass(frozen=True)
class Act:
    """Takes hold after ``step`` optimizer steps, on all ranks at once. What it says of rate and clipping holds from then on."""

    number: int  # in the run, from 1 on
    step: int
    code: str  # of the finding that it answers
    consent: Consent
    words: str  # what is done, for people
    verdict: Verdict | None = None  # no change: the trial of ``instead_of`` is over, and that is what becomes of it
    rewind: int | None = (
        None  # weights, buffers and moments become what they were after that step; of a verdict: before what it is about
    )
    rate: float = 1.0  # times what the learning rate would be
    rate_at_least: float = 0.0
    learning_rate: float | None = None  # at the top of the job's schedule, from now on, whatever was done to it before
    rewarm: int = 0  # steps in which the rate climbs to that
    clip: float | None = None  # largest global norm of the gradient, where the job's own is not smaller
    decay: float = 1.0  # times what the weight decay would be
    forgets_moments: bool = False
    ends: bool = False  # the run, with the weights that did best in validation
    patches: list[dict[str, Any]] | None = (
        None  # the run begins anew, with a model that is changed so; None: it does not
    )
    leaves_out: list[int] | None = None  # samples of the training set, from now on
    takes_in: list[int] | None = None  # of those that were left out, again
    class_weights: list[float] | None = None  # of the loss, from now on
    instead_of: int | None = (
        None  # the act whose place it takes: what that had changed of rate and clipping is taken back
    )
    against: int | None = None  # the act that it is compared with, which helped
    score: float | None = None  # training loss at the end of the trial that is over with this
    plan: str | None = None  # by which the patches were made
    rival: float | None = (
        None  # training loss that a changed model has to beat: of the run as it was, at the same age or when it had failed
    )
    probation: int = 0  # steps after which it is seen whether it helped; 0: nobody asks
    request: str | None = None  # what people asked for

    @property
    def changes_data(self) -> bool:
        """Which samples are trained on, or how much they count."""
        return bool(self.leaves_out or self.takes_in or self.class_weights)

    def document(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def of(document: Mapping[str, Any]) -> Act:
        return Act(**document)


@dataclass
class Entry:
    """An act in the record of a run."""

    act: Act
    state: State
    finding: Mapping[str, Any]  # that it answers, as it was told
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)  # when its trial was over
    ended: int | None = None  # the step at which it was
    returned: int | None = None  # the step whose state was put back then
    score: float | None = None  # training loss at the end of its trial

    def document(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def of(document: Mapping[str, Any]) -> Entry:
        return Entry(**{**document, "act": Act.of(document["act"])})
