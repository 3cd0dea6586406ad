"""The shapes of what is found and measured of a training, on the wire."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, Self

from pydantic import Field

from api.schemas import Number, Wire
from service import values
from service.values import JobEvent
from workers.watch.findings import Severity, Verdict
from workers.watch.told import BEFOREHAND, CLEARED


class Finding(Wire):
    """Something that is wrong with the data or the training: the first cause, with what follows from it folded under it."""

    code: str = Field(examples=["vanishing_gradient"])
    severity: Severity = Field(description="a note leaves the verdict as it is")
    first_bad_step: int = Field(description="0: known before the first step, or in the data")
    layer: str | None
    rank: int | None = Field(description="of the worker, where it is one worker's")
    evidence: dict[str, Any] = Field(description="what was measured, by name", examples=[{"ratio": 1.2e-8}])
    explanation: str = Field(description="what is seen, what it means for backpropagation, how to tell that it is over")
    suggestion: str = Field(description="what helps, the gentlest first")
    consequences: list[str] = Field(description="codes, some with a layer, of what else was seen and follows from it")

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        """Those of earlier versions, and of data, have fewer fields."""
        return cls(
            code=document["code"], severity=document["severity"], first_bad_step=document["first_bad_step"],
            layer=document.get("layer"), rank=document.get("rank"), evidence=dict(document.get("evidence") or {}),
            explanation=document["explanation"], suggestion=document["suggestion"],
            consequences=list(document.get("consequences") or ()),
        )  # fmt: skip


class FindingChange(Wire):
    """A finding that came, or passed."""

    event: Literal["raised", "cleared"]
    at: datetime
    step: int | None = Field(description="after which it was told; null: not known")
    sequence: int = Field(description="of the job's event that told it")
    finding: Finding

    @classmethod
    def of(cls, event: JobEvent) -> Self:
        document = event.data.get("finding", event.data)
        step = 0 if event.type in BEFOREHAND else event.data.get("step")
        return cls(
            event="cleared" if event.type == CLEARED else "raised", at=event.created_at, step=step,
            sequence=event.sequence, finding=Finding.of(document),
        )  # fmt: skip


class Watching(Wire):
    """What the watching costs, measured on itself."""

    share: Number | None = Field(description="of probes, over the steps' own time so far; null: not measured yet")
    budget: float | None = Field(description="gradients.overhead_budget of the job")
    probes: int = Field(description="steps that were looked at closely, as far as they are kept")
    last_probe_step: int | None


class JobHealth(Wire):
    """The verdict on a job, why, and since when."""

    object: Literal["job.health"] = "job.health"
    job_id: str
    verdict: Verdict
    sentence: str
    findings: list[Finding] = Field(description="open ones, the first cause first")
    history: list[FindingChange] = Field(description="what was raised and cleared, oldest first; the last 500")
    facts: dict[str, Any] | None = Field(
        description="what was known of model, loss, inputs and schedule before the first step; null: not known yet"
    )
    watching: Watching


class Repair(Wire):
    """Something that was changed of a job while it ran."""

    number: int
    state: Literal["trial", "set_aside", "kept", "taken_back", "undone"] = Field(
        description="trial: it is not seen yet whether it helped; set_aside: it helped, another is compared with it; taken_back: it did not help, "
        "or another did better, and does not hold any more"
    )
    step: int = Field(description="optimizer steps done when it was done")
    code: str = Field(
        description="of the finding that it answers; asked: people asked for it", examples=["lr_too_high"]
    )
    consent: str = Field(description="the value of health.allow that allows it")
    words: str = Field(description="what was done")
    rewind: int | None = Field(description="weights, buffers and moments became what they were after that step")
    rate: float = Field(description="times what the learning rate would be")
    learning_rate: float | None = Field(description="at the top of the schedule, where people asked for one")
    clip: float | None = Field(description="largest global norm of the gradient")
    leaves_out: list[int] | None = Field(None, description="training samples that are left out since, by their index")
    takes_in: list[int] | None = Field(None, description="those of them that are taken in again")
    class_weights: list[float] | None = Field(None, description="of the loss since, one a class")
    patches: list[dict[str, Any]] | None = Field(
        description="what is different in the model with which the run began anew; null: it did not"
    )
    instead_of: int | None = Field(description="the repair that it took the place of")
    against: int | None = Field(None, description="the repair, which helped, with which it is compared")
    rival: Number | None = Field(
        None,
        description="training loss of the run as it was, which has to be beaten; null: it is compared with no such run",
    )
    score: Number | None = Field(None, description="training loss in the second half of its trial")
    before: dict[str, Number] = Field(description="what the run showed when it was done")
    after: dict[str, Number] = Field(description="when its trial was over, or it was undone; empty until then")
    ended: int | None = Field(description="the step at which it was")
    finding: dict[str, Any] = Field(description="that it answers, as it was told; empty where people asked")

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        act = document["act"]
        known = {name: act[name] for name in cls.model_fields if name in act}
        known |= {name: document[name] for name in ("state", "before", "after", "ended", "finding")}
        return cls.model_validate(known | {"score": document.get("score")})


class JobRepairs(Wire):
    """What was done to a job that failed, and what may be done."""

    object: Literal["job.repairs"] = "job.repairs"
    job_id: str
    mode: str = Field(description="health.mode of the job")
    allow: list[str] = Field(description="what may be changed; empty unless mode is repair")
    repairs: list[Repair] = Field(description="oldest first")
    skipped_updates: int = Field(description="updates that were left out, because their gradient was no number")
    not_repaired: list[str] = Field(description="what was found and is not repaired, and why; sentences")
    lost_steps: int = Field(description="made after something had gone wrong, and before it had passed or was mended")
    lost_worker_hours: float = Field(description="that these took, over all workers")
    saved_worker_hours: float = Field(
        description="of the steps since the first repair that was kept, but for those that were lost"
    )


class Usage(Wire):
    """What the jobs of a project have cost, in hours of workers."""

    object: Literal["usage"] = "usage"
    project: str
    jobs: int = Field(description="that have trained")
    repaired_jobs: int = Field(description="of these, in which a repair that was kept has saved time")
    trained_worker_hours: float = Field(description="of all steps")
    lost_worker_hours: float = Field(
        description="of steps after something had gone wrong, until it passed or was mended"
    )
    saved_worker_hours: float = Field(description="of steps since the first repair that was kept, but for lost ones")
    lost_steps: int

    @classmethod
    def of(cls, found: values.Usage) -> Self:
        return cls(
            project=found.project,
            jobs=found.jobs,
            repaired_jobs=found.repaired_jobs,
            trained_worker_hours=found.trained_seconds / 3600,
            lost_worker_hours=found.lost_seconds / 3600,
            saved_worker_hours=found.saved_seconds / 3600,
            lost_steps=found.lost_steps,
        )


class Asked(Wire):
    """What people asked of a running job: it is taken up after a step, and told by an event."""

    object: Literal["job.request"] = "job.request"
    id: str
    job_id: str
    kind: Literal["undo", "steer"]
    number: int | None = Field(description="of the repair that is to be undone")


class LeftOut(Wire):
    """A training sample that a job leaves out."""

    sample: int = Field(description="its index in the training set")
    name: str | None = Field(description="its file or row; null: the source has none, or is not here")
    since_step: int = Field(description="optimizer steps done when it was left out; 0: from the start")
    repair: int | None = Field(description="that left it out; null: the job itself, by training.leave_out")


class Quarantine(Wire):
    """The samples that a job leaves out now."""

    object: Literal["job.quarantine"] = "job.quarantine"
    job_id: str
    samples: int | None = Field(description="in the training set; null: the job has not begun")
    left_out: list[LeftOut]


class DiagnosisEntry(Wire):
    """What would have been told after a step, had the run been watched by the rules of today."""

    step: int
    event: Literal["raised", "cleared"]
    finding: Finding


class Diagnosis(Wire):
    """A run judged anew from all that was recorded of it."""

    object: Literal["job.diagnosis"] = "job.diagnosis"
    job_id: str
    verdict: Verdict
    sentence: str
    findings: list[Finding] = Field(description="the first cause first")
    timeline: list[DiagnosisEntry]


class ProbeTable(Wire):
    """What was measured of every layer when a step was probed. Null: it does not apply, or is not a number."""

    object: Literal["probe_table"] = "probe_table"
    job_id: str
    layers: list[str] = Field(description="in network order; columns of the statistics of layers")
    activations: list[str] = Field(description="in network order; columns of silent and saturated")
    steps: list[int] = Field(description="that were probed")
    cost_shares: list[Number | None] = Field(description="what watching cost up to then, over the steps' own time")
    statistics: dict[str, list[list[Number | None]]] = Field(
        description="one matrix a statistic: a row a step, a number a layer or activation"
    )
    watching: Watching


class Histograms(Wire):
    """Sizes of the elements of a layer's gradient, those that are exactly 0 left out."""

    object: Literal["gradient_histograms"] = "gradient_histograms"
    job_id: str
    layer: str
    lowest: int = Field(
        description="bin i counts 2^(lowest+i) <= |g| < 2^(lowest+i+1); the first and the last also what lies beyond"
    )
    steps: list[int]
    shares: list[list[Number]] = Field(
        description="a row a step, a share of the elements a bin; all 0 where there were none"
    )
