"""The job specification: what a user asks for, as one typed model.

The ground floor of the house: pydantic and the standard library only, so that the API, the scheduler, the client and
the workers can all import it in a few milliseconds.

Numbers are strict: ``"7"``, ``true`` and ``1.0`` are no integers, NaN and infinity are no numbers. A field whose feature
does not exist yet is refused with a message that says so; it is never accepted and ignored.
"""

from __future__ import annotations

import copy
import math
import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from workers.kinds.code import Code
from workers.problems import SpecError, problem_of
from workers.spec_base import Count, Fraction, MetadataKey, MetadataValue, Model, Name, PositiveInt, not_available
from workers.task_spec import Task

MOST_LEFT_OUT = 10_000  # samples: a list of more is a data set of its own


class Training(Model):
    epochs: PositiveInt | None = Field(None, description="passes over the training data; give epochs or steps")
    steps: PositiveInt | None = Field(None, description="optimizer steps; give epochs or steps")
    batch_size: PositiveInt = Field(128, description="samples of one optimizer step, over all workers together")
    accumulate: Annotated[int, Field(ge=1, le=65536)] = Field(
        1, description="microbatches into which each worker splits its share of the batch, to save memory"
    )
    microbatch: Literal["auto"] | None = Field(
        None,
        description="auto: when memory runs out, the microbatches of all workers are halved (accumulate is doubled) and the step is done again",
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16: autocast, weights stay fp32")
    clip_norm: Annotated[float, Field(gt=0)] | None = Field(None, description="largest global gradient norm")
    compile: bool = Field(
        False, description="compile the model with torch.compile: a slower first step, faster ones after it"
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    leave_out: Annotated[list[Count], Field(max_length=MOST_LEFT_OUT)] = Field(
        default_factory=list,
        description="training samples that are left out, by their index in the training set (`chainrule quarantine` lists those of an earlier job); "
        "others take their places in the batches",
    )

    @field_validator("precision", mode="before")
    @classmethod
    def _no_fp16(cls, value: Any) -> Any:
        if value == "fp16":
            raise not_available("precision 'fp16'", "use fp32 or bf16")
        return value

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise PydanticCustomError("length", "give epochs or steps, not both")
        return self

    @property
    def length(self) -> tuple[Literal["epochs", "steps"], int]:
        """How long to train; ten epochs when the job does not say."""
        return ("steps", self.steps) if self.steps is not None else ("epochs", self.epochs or 10)


OptimizerName = Literal[
    "sgd", "adam", "adamw", "nadam", "radam", "adamax", "rmsprop", "adagrad", "adadelta"
]  # torch.optim's, in lower case


class Optimizer(Model):
    name: OptimizerName = "adamw"
    learning_rate: Annotated[float, Field(ge=0, le=1e6)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0, le=1e6)] = Field(
        0.0, description="of parameters with two or more dimensions: weights, not biases and gains of norms"
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = Field(None, description="sgd and rmsprop")
    nesterov: bool | None = Field(None, description="sgd with momentum")
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] | None = Field(
        None, description="the adam family"
    )
    epsilon: Annotated[float, Field(gt=0, le=1)] | None = Field(None, description="all but sgd")

    USES: ClassVar[Mapping[str, frozenset[str]]] = {
        "sgd": frozenset({"momentum", "nesterov"}),
        "rmsprop": frozenset({"momentum", "epsilon"}),
        "adagrad": frozenset({"epsilon"}),
        "adadelta": frozenset({"epsilon"}),
        **dict.fromkeys(("adam", "adamw", "nadam", "radam", "adamax"), frozenset({"betas", "epsilon"})),
    }

    @model_validator(mode="after")
    def _fields_of_this_optimizer(self) -> Self:
        for field in ("momentum", "nesterov", "betas", "epsilon"):
            if getattr(self, field) is not None and field not in self.USES[self.name]:
                raise PydanticCustomError(
                    "optimizer_field",
                    "{field} is not a setting of {name}, which has {allowed}",
                    {"field": field, "name": self.name, "allowed": ", ".join(sorted(self.USES[self.name]))},
                )
        if self.nesterov and not self.momentum:
            raise PydanticCustomError("optimizer_field", "nesterov needs momentum above 0")
        return self


class Schedule(Model):
    """Learning rate over the run: a pure function of the step."""

    name: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: Count = Field(0, description="steps over which the rate climbs from 0 to learning_rate")
    final_factor: Fraction = Field(0.0, description="share of learning_rate at the last step (cosine, linear)")


WorkerCount = Annotated[int, Field(ge=1, le=4096)]
Priority = Annotated[int, Field(ge=-1000, le=1000)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)]


class Workers(Model):
    """A fixed ``count``, or an elastic number from ``min`` to ``max`` that follows the room in the cluster."""

    count: WorkerCount | None = Field(None, description="data-parallel workers; default 1, or give min and max")
    min: WorkerCount | None = Field(None, description="elastic: the job waits for so many")
    max: WorkerCount | None = Field(None, description="elastic: and takes up to so many while there is room")
    cpus: Annotated[float, Field(gt=0, le=1024)] = Field(1, description="processors reserved a worker")
    gpus: Annotated[float, Field(ge=0, le=16)] = Field(0, description="accelerators reserved a worker")
    memory: Annotated[int, Field(ge=1)] | None = Field(None, description="bytes reserved a worker")
    threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None, description="threads of a worker's tensor operations; default: cpus, at least 1"
    )
    peak_flops: Annotated[float, Field(gt=0, le=1e18)] | None = Field(
        None,
        description="FLOP/s that the device of a worker can do at most in the job's precision, for system/mfu; "
        "default: as its maker declares it, for accelerators that are known",
    )
    strategy: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="ddp: every worker holds the model; fsdp: it is split over the workers, with its gradients and the optimizer's state",
    )

    @model_validator(mode="after")
    def _count_or_range(self) -> Self:
        if self.count is not None and (self.min is not None or self.max is not None):
            raise PydanticCustomError("worker_range", "give count, or min and max, not both")
        if (self.min is None) != (self.max is None):
            raise PydanticCustomError("worker_range", "min and max belong together: give both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise PydanticCustomError(
                "worker_range", "min {min} is larger than max {max}", {"min": self.min, "max": self.max}
            )
        return self

    @property
    def fewest(self) -> int:
        return self.min or self.count or 1

    @property
    def most(self) -> int:
        return self.max or self.count or 1

    @property
    def elastic(self) -> bool:
        return self.fewest < self.most

    @property
    def threads_per_worker(self) -> int:
        return self.threads or max(1, math.floor(self.cpus))


OVERHEAD_BUDGET = 0.02  # of the steps' own time


class Gradients(Model):
    every_steps: PositiveInt = Field(1, description="record the norm of every layer's gradient at each so many steps")
    overhead_budget: Annotated[float, Field(ge=0, le=1)] = Field(
        OVERHEAD_BUDGET,
        description="what watching may cost, as a share of the steps' own time: as many probes (weight norms, update ratios, zero shares, "
        "activations, ...) are made as recording leaves room for; 0: none, 1: one at every step",
    )

    @field_validator("overhead_budget", mode="before")
    @classmethod
    def _of_earlier_versions(cls, value: Any) -> Any:
        """Their jobs say null."""
        return OVERHEAD_BUDGET if value is None else value


OnCritical = Literal["continue", "pause", "stop"]
Consent = Literal["live", "weights", "architecture", "data"]


_LIVE: list[Consent] = ["live"]


class RepairBudget(Model):
    repairs: Annotated[int, Field(ge=1, le=100)] = Field(
        8, description="changes that are tried, those taken back included"
    )
    extra_steps: Annotated[float, Field(ge=0, le=10)] = Field(
        1.0, description="how much longer the run may become to make up for steps that were lost, as a share of its own"
    )
    lr_floor: Annotated[float, Field(gt=0, le=1)] = Field(
        1e-3, description="the learning rate is never brought below this share of what the job's schedule gives"
    )


class Health(Model):
    mode: Literal["observe", "advise", "repair"] = Field(
        "advise",
        description="observe: record; advise: explain, and say what repair would do; neither changes the run. repair: change what allow names when "
        "the run fails",
    )
    allow: Annotated[list[Consent], Field(min_length=1, max_length=4)] = Field(
        default_factory=lambda: _LIVE.copy(),
        description="with mode repair, what may be changed; live: learning rate, clipping, moments, going back to earlier weights; weights: "
        "beginning anew with other first weights; architecture: beginning anew with normalisations, other activations, connections around layers; "
        "data: leaving out samples that are no numbers or far from all others, weighting the loss by class",
    )
    budget: RepairBudget = Field(default_factory=RepairBudget)
    preflight: bool = Field(
        False,
        description="try some 20 steps on one worker before the whole group is taken; what they show is on the job before resources are spent",
    )
    on_critical: OnCritical = Field(
        "continue",
        description="what becomes of the job when something critical is found (with mode repair: and nothing more can be tried): it goes on; it is "
        "paused, with a checkpoint, until somebody resumes it, which it is not stopped for a second time; or it ends as failed",
    )
    data_checks: bool = Field(
        True, description="look at the data before workers are taken: what is wrong or odd with it becomes findings"
    )

    @field_validator("allow", "budget", mode="before")
    @classmethod
    def _of_earlier_versions(cls, value: Any, info: ValidationInfo) -> Any:
        """Their jobs say null."""
        return cls.model_fields[str(info.field_name)].get_default(call_default_factory=True) if value is None else value

    @model_validator(mode="after")
    def _only_with_repair(self) -> Self:
        given = sorted({"allow", "budget"} & self.model_fields_set)
        default = Health.model_fields
        changed = [
            name for name in given if getattr(self, name) != default[name].get_default(call_default_factory=True)
        ]
        if self.mode != "repair" and changed:
            raise PydanticCustomError(
                "repair_mode",
                "{field} means something with mode repair only, not with {mode}",
                {"field": " and ".join(changed), "mode": self.mode},
            )
        return self


class Checkpoint(Model):
    every_steps: PositiveInt | None = Field(None, description="default: only at the end and when the job is stopped")
    keep_last: Annotated[int, Field(ge=1, le=1000)] = 2
    keep_best: Annotated[int, Field(ge=0, le=1000)] = Field(
        1, description="kept besides, by the metric of evaluation.best"
    )


class EarlyStopping(Model):
    patience: PositiveInt = Field(description="evaluations without improvement after which training ends")
    min_delta: Annotated[float, Field(ge=0)] = Field(0.0, description="smaller changes are no improvement")


class Evaluation(Model):
    every_steps: PositiveInt | None = Field(None, description="default: after every epoch; always after the last step")
    batch_size: PositiveInt | None = Field(None, description="samples at once, over all workers; default: training's")
    best: Annotated[str, StringConstraints(pattern=r"^eval/[a-z0-9_]+$", max_length=100)] = Field(
        "eval/loss", description="the metric that says which checkpoint is best and when to stop early"
    )
    mode: Literal["min", "max"] = Field("min", description="whether a smaller or a larger value of it is better")
    early_stopping: EarlyStopping | None = None


class Retry(Model):
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 3


class JobSpec(Model):
    """A training job. The published JSON Schema of this model is at ``/v1/schema``."""

    name: Name
    task: Task
    training: Training = Field(default_factory=Training)
    optimizer: Optimizer = Field(default_factory=Optimizer)
    schedule: Schedule = Field(default_factory=Schedule)
    workers: Workers = Field(default_factory=Workers)
    gradients: Gradients = Field(default_factory=Gradients)
    health: Health = Field(default_factory=Health)
    checkpoint: Checkpoint = Field(default_factory=Checkpoint)
    evaluation: Evaluation = Field(default_factory=Evaluation)
    retry: Retry = Field(default_factory=Retry)
    queue: Literal["default"] = "default"
    priority: Priority = 0
    deadline_seconds: Annotated[float, Field(gt=0, le=10**9)] | None = Field(
        None, description="the job is stopped, with a checkpoint, so many seconds after it was created"
    )
    metadata: Metadata = Field(default_factory=dict)

    @model_validator(mode="after")
    def _parts_of_this_kind(self) -> Self:
        unused = self.task.unused()
        given = [part for part in unused if part in self.model_fields_set]
        if given:
            raise PydanticCustomError(
                "unused_part",
                "{shown} means nothing for a task of kind {kind}, whose own code decides that; leave it out",
                {"parts": given, "shown": " and ".join(given), "kind": self.task.kind},
            )
        if "training" in unused and (self.workers.min is not None or self.workers.strategy != "ddp"):
            raise PydanticCustomError(
                "script_workers",
                "workers of a {kind} have a fixed count and no strategy: its own code decides how they train together",
                {"kind": self.task.kind},
            )
        return self

    @model_validator(mode="after")
    def _can_be_paused(self) -> Self:
        if self.health.on_critical == "pause" and self.task.kind == "script" and not self.task.resumable:
            raise PydanticCustomError(
                "script_pause",
                "health.on_critical pause needs task.resumable: true for a script, which would begin anew after a pause; "
                "say so where it goes on from its output folder, or take stop or continue",
            )
        return self

    @model_validator(mode="after")
    def _can_be_repaired(self) -> Self:
        if self.health.mode != "repair" or self.task.kind != "script":
            return self
        further = [consent for consent in self.health.allow if consent != "live"]
        if further:
            raise PydanticCustomError(
                "script_repair",
                "health.allow {given} is not possible for a script, whose own code makes its model and reads its data; allowed is live",
                {"given": " and ".join(further)},
            )
        if not self.task.observe:
            raise PydanticCustomError(
                "script_repair",
                "health.mode repair needs task.observe: true, not false: what is not watched cannot be repaired",
            )
        return self

    @model_validator(mode="after")
    def _can_be_tried(self) -> Self:
        if self.health.preflight and self.task.kind == "script":
            raise PydanticCustomError(
                "script_preflight",
                "health.preflight is not possible for a script, which would do for real whatever it does; leave it false",
            )
        return self

    @model_serializer(mode="wrap")
    def _without_unused_parts(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What means nothing for this kind is not shown, and a document that was written can be read again."""
        document: dict[str, Any] = write(self)
        for part in self.task.unused():
            document.pop(part, None)
        return document

    @model_validator(mode="after")
    def _share_for_everybody(self) -> Self:
        if "training" in self.task.unused():
            return self
        needed = self.workers.most * self.training.accumulate
        if self.training.batch_size < needed:
            raise PydanticCustomError(
                "batch_too_small",
                "training.batch_size {batch} is smaller than workers x training.accumulate = {needed}; "
                "each microbatch of each worker needs a sample",
                {"batch": self.training.batch_size, "needed": needed},
            )
        return self

    @model_validator(mode="after")
    def _best_is_measured(self) -> Self:
        measured = tuple(f"eval/{name}" for name in self.task.metrics())
        if self.evaluation.best not in measured:
            raise PydanticCustomError(
                "unknown_metric",
                "evaluation.best {best} is not measured by this task; allowed is {allowed}",
                {"best": self.evaluation.best, "allowed": ", ".join(measured)},
            )
        return self


def data_paths(spec: JobSpec) -> list[tuple[str, str]]:
    """Every file or folder that the job reads, as (path of the field, value)."""
    return spec.task.paths()


def code_of(spec: JobSpec) -> Code | None:
    """Code of the user's own that the job runs, for kinds that have any."""
    code = getattr(spec.task, "code", None)
    return code if isinstance(code, Code) else None


def read_from(folder: str, document: dict[str, Any], spec: JobSpec) -> dict[str, Any]:
    """A copy of ``document``, whose job is ``spec``, with its relative paths taken from ``folder``; ``~`` is the user's home."""
    moved = copy.deepcopy(document)
    for field, value in data_paths(spec):
        *parents, last = (int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", field))
        target: Any = moved
        for part in parents:
            target = target[part]
        target[last] = os.path.join(folder, os.path.expanduser(value))
    return moved


def parse_spec(document: object) -> JobSpec:
    """The job that ``document`` (parsed JSON or YAML) describes. Raises SpecError with every problem in it."""
    try:
        return JobSpec.model_validate(document)
    except ValidationError as error:
        raise SpecError(problem_of(details, document) for details in error.errors(include_url=False)) from None
