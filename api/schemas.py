"""The shapes on the wire, with the examples that /docs shows. ``of`` makes one from what a use-case returned."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Generic, Literal, Self, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field

from service import values
from service.cluster import Node, Resources
from service.plans import Planned
from service.values import Status
from workers.reports import REASONS, Level, ReasonCode, Whose

Number = Annotated[
    float | Literal["NaN", "Infinity", "-Infinity"], Field(description="non-finite values are these strings")
]
T = TypeVar("T")


class Wire(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


class ErrorBody(Wire):
    message: str = Field(description="one or more sentences for people")
    type: str = Field(description="family of errors", examples=["invalid_request_error"])
    param: str | None = Field(description="the field, parameter or header that is wrong")
    code: str = Field(description="what went wrong, for programs", examples=["invalid_request"])
    problems: list[Problem] | None = Field(None, description="every problem of a refused job")


class Problem(Wire):
    path: str
    message: str
    value: str | None = Field(description="what was given, shortened")


class Error(Wire):
    """Every error of every route has this shape."""

    error: ErrorBody


class ListOf(Wire, Generic[T]):
    object: Literal["list"] = "list"
    data: list[T]
    has_more: bool = Field(description="whether another page follows: ask for it with after=<last_id>")
    first_id: str | None
    last_id: str | None


class Reason(Wire):
    """Why a job, or an attempt, ended."""

    code: ReasonCode
    message: str
    whose: Whose = Field(description="whose matter it is")
    retryable: bool = Field(description="whether another attempt can help")

    @classmethod
    def of(cls, reason: values.Reason) -> Self:
        return cls(code=reason.code, message=reason.message, whose=reason.whose, retryable=reason.retryable)


WorkerState = Literal["starting", "running", "done", "lost", "left"]


class JobWorker(Wire):
    """A process that trains."""

    rank: int
    pid: int
    node: str = Field(description="address of the machine")
    node_id: str | None = Field(None, description="as in /v1/cluster")
    device: str = Field(examples=["cpu", "cuda:0"])
    state: WorkerState
    started_at: datetime
    ended_at: datetime | None = None
    why: str | None = Field(None, description="it ended")


class Progress(Wire):
    step: int = Field(description="optimizer steps done")
    steps: int = Field(description="optimizer steps of the whole run; 0: only the script knows")
    epoch: float
    eta_seconds: float | None
    samples_per_second: float | None


class Links(Wire):
    mlflow: str | None = Field(description="the run in MLflow")
    dashboard: str | None


class Job(Wire):
    id: str = Field(examples=["job-5f0c2a9be61d4873a0c4d7e2"])
    object: Literal["job"] = "job"
    name: str = Field(examples=["digits"])
    status: Status
    reason: Reason | None = Field(description="set when the job has ended, or is paused")
    waiting: str | None = Field(description="why it has not started yet", examples=["needs 4 cpus, 2 are free"])
    project: str
    priority: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    deadline_at: datetime | None
    attempt: int = Field(description="number of the newest attempt; 0 before the first")
    progress: Progress | None
    latest: dict[str, Number] = Field(description="newest value of each series", examples=[{"train/loss": 0.21}])
    health: dict[str, Any] = Field(description="verdict on data and gradients, with findings")
    workers: list[JobWorker] = Field(description="at work now; of a job that has ended, those that were to the end")
    recoveries: int = Field(description="how often workers were lost and replaced; /attempts tells of each")
    metadata: dict[str, str]
    spec: dict[str, Any] = Field(description="the job as accepted, defaults filled in")
    links: Links

    @classmethod
    def of(cls, job: values.Job) -> Self:
        return cls(
            id=job.id, name=job.name, status=job.status, reason=Reason.of(job.reason) if job.reason else None,
            waiting=job.waiting, project=job.project, priority=job.priority, created_at=job.created_at,
            started_at=job.started_at, finished_at=job.finished_at, deadline_at=job.deadline_at, attempt=job.attempt,
            progress=Progress.model_validate(job.progress) if job.progress else None,
            latest=cast(dict[str, Number], dict(job.latest)), health=dict(job.health),
            workers=[JobWorker.model_validate(worker) for worker in job.workers],
            recoveries=job.recoveries, metadata=dict(job.metadata), spec=dict(job.spec),
            links=Links(mlflow=job.links.get("mlflow"), dashboard=job.links.get("dashboard")),
        )  # fmt: skip


class PlanMemory(Wire):
    """Bytes of one worker at the moment when it needs most."""

    weights: int = Field(description="with the model's buffers, such as running means")
    gradients: int = Field(description="those that live at that moment")
    optimizer: int
    activations: int = Field(
        description="what the backward pass needs of the forward pass, the batch, intermediate results"
    )
    buffers: int = Field(description="of communication: weights that fsdp gathers, gradients on their way")
    process: int = Field(description="no tensors: Python, libraries, data in memory; on an accelerator its context")
    total: int


class PlanLayout(Wire):
    strategy: Literal["ddp", "fsdp"]
    workers: int
    accumulate: int
    microbatch: int = Field(description="samples that a worker computes at once")
    memory: PlanMemory
    fits: bool | None = Field(description="null: there is no limit to compare with")


class Plan(Wire):
    """What a job will take. Times and prices are estimates; ``assumptions`` says what they stand on."""

    object: Literal["plan"] = "plan"
    computed: bool = Field(
        description="false: the job is valid, and message says why there is no plan; the figures are null then"
    )
    message: str | None
    parameters: int | None = None
    trained_parameters: int | None = None
    samples: int | None = Field(None, description="in the training set")
    steps: int | None = None
    limit: int | None = Field(None, description="bytes that a worker has, as far as that is known")
    limit_name: str | None = Field(None, examples=["workers.memory", "the memory of one H100"])
    strategy: Literal["ddp", "fsdp"] | None = None
    workers: int | None = None
    accumulate: int | None = None
    microbatch: int | None = None
    memory: PlanMemory | None = None
    fits: bool | None = None
    layouts: list[PlanLayout] = Field([], description="the same job under other strategies and numbers of workers")
    flops_per_step: int | None = Field(None, description="forward and backward, of all workers")
    seconds_per_step: float | None = None
    seconds: float | None = Field(None, description="of all steps")
    price: float | None = Field(None, description="null: the service has no prices")
    currency: str | None = None
    advice: list[str] = []
    assumptions: list[str] = []

    @classmethod
    def of(cls, planned: Planned) -> Self:
        return cls.model_validate(
            {"computed": planned.plan is not None, "message": planned.message, **(planned.plan or {})}
        )


class Event(Wire):
    id: str
    object: Literal["job.event"] = "job.event"
    job_id: str
    sequence: int = Field(description="counts from 1 without holes within a job")
    created_at: datetime
    level: Level
    type: str = Field(examples=["job.status", "evaluation", "checkpoint.saved"])
    message: str
    data: dict[str, Any]

    @classmethod
    def of(cls, event: values.JobEvent) -> Self:
        return cls(
            id=event.id, job_id=event.job_id, sequence=event.sequence, created_at=event.created_at,
            level=event.level, type=event.type, message=event.message, data=dict(event.data),
        )  # fmt: skip


class Recovery(Wire):
    """Workers were lost, and training went on with others."""

    lost_at: datetime
    ranks: list[int]
    cause: str
    step: int = Field(description="optimizer steps done when training went on")
    source: Literal["memory", "checkpoint", "start"] = Field(
        description="where the state came from: a worker that lived, storage, or nowhere"
    )
    seconds: float = Field(description="from the loss to the next step")


class Attempt(Wire):
    id: str
    object: Literal["job.attempt"] = "job.attempt"
    job_id: str
    number: int
    status: Literal["starting", "running", "succeeded", "failed", "cancelled", "paused"]
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    reason: Reason | None
    detail: dict[str, Any] = Field(description="facts of its end, such as rank and traceback, or steps and seconds")
    workers: int = Field(description="worker processes that it has had")
    recoveries: list[Recovery] = Field(description="each time that workers were lost and replaced, the last 100")

    @classmethod
    def of(cls, attempt: values.Attempt) -> Self:
        reason = attempt.reason
        at_work: Literal["starting", "running"] = "running" if attempt.started_at else "starting"
        return cls(
            id=attempt.id, job_id=attempt.job_id, number=attempt.number, created_at=attempt.created_at,
            started_at=attempt.started_at, finished_at=attempt.finished_at,
            status=REASONS[reason.code].status if reason else at_work, reason=Reason.of(reason) if reason else None,
            detail=dict(reason.detail) if reason else {}, workers=len(attempt.workers),
            recoveries=[Recovery.model_validate(each) for each in attempt.recoveries],
        )  # fmt: skip


class Worker(JobWorker):
    id: str
    object: Literal["job.worker"] = "job.worker"
    job_id: str
    attempt: int = Field(description="number of its attempt")

    @classmethod
    def of(cls, attempt: values.Attempt, worker: Mapping[str, Any]) -> Self:
        identity = f"worker-{attempt.job_id.removeprefix('job-')}-{attempt.number}-{worker['rank']}-{worker['pid']}"
        return cls.model_validate({"id": identity, "job_id": attempt.job_id, "attempt": attempt.number, **worker})


class LogLine(Wire):
    id: str = Field(description="the position after this line")
    object: Literal["log.line"] = "log.line"
    attempt: int
    rank: int
    timestamp: str | None = Field(examples=["2026-11-23T19:00:00.123Z"])
    text: str


class Point(Wire):
    step: int
    value: Number
    timestamp: datetime


class Series(Wire):
    id: str = Field(description="the key")
    object: Literal["series"] = "series"
    key: str = Field(examples=["train/loss"])
    points: list[Point]


class GradientMatrix(Wire):
    """Norm of every layer's gradient at each recorded step."""

    object: Literal["gradient_matrix"] = "gradient_matrix"
    job_id: str
    layers: list[str] = Field(description="in network order", examples=[["features.0", "features.3", "head"]])
    steps: list[int] = Field(examples=[[0, 1]])
    norms: list[list[Number]] = Field(
        description="one row a step, one number a layer", examples=[[[0.71, 0.52, 0.9], [0.66, 0.5, 0.84]]]
    )


class RankSamples(Wire):
    """What one worker took of a step."""

    rank: int
    samples: int = Field(description="how many")
    microbatches: list[int] = Field(
        description="samples of each; where one is empty a stand-in ran that counts nothing"
    )
    indices: list[int] = Field(description="in the training set, in the order in which they were taken")
    names: list[str] | None = Field(description="of the same: files or rows; null: the source has none, or is not here")
    left_out: int = Field(description="samples that are not shown")


class JobStep(Wire):
    """A step that was made."""

    object: Literal["job.step"] = "job.step"
    job_id: str
    step: int
    epoch: int = Field(description="from 0")
    attempt: int
    recorded_at: datetime
    loss: Number = Field(description="mean over the step's samples of all workers")
    gradient_norm: Number | None = Field(description="over all layers, before clipping")
    learning_rate: Number | None
    samples: int = Field(description="over all workers")
    workers: int = Field(description="that made it together")
    accumulate: int = Field(description="microbatches of each")
    quarantined: list[int] = Field(description="samples that were left out then; others took their places")
    ranks: list[RankSamples]


class StoredFile(Wire):
    path: str = Field(examples=["model.safetensors"])
    bytes: int
    sha256: str


class Checkpoint(Wire):
    id: str = Field(examples=["ckpt-0000000100"])
    object: Literal["checkpoint"] = "checkpoint"
    job_id: str
    step: int
    created_at: datetime
    bytes: int
    metrics: dict[str, Number]
    verdict: str = Field(
        examples=["healthy"],
        description="when it was saved; critical as soon as something critical turns out to have begun before it",
    )
    files: list[StoredFile]


class File(Wire):
    """An uploaded file, in the shape that OpenAI's clients know."""

    id: str = Field(examples=["file-5f0c2a9be61d4873a0c4d7e2"])
    object: Literal["file"] = "file"
    bytes: int
    created_at: int = Field(description="in seconds since 1970, as OpenAI's clients expect it")
    filename: str = Field(examples=["my-task.zip"])
    purpose: str = Field(examples=["bundle"])
    status: Literal["processed"] = "processed"
    sha256: str

    @classmethod
    def of(cls, file: values.StoredFile) -> Self:
        return cls(
            id=file.id, bytes=file.bytes, created_at=int(file.created_at.timestamp()), filename=file.filename,
            purpose=file.purpose, sha256=file.sha256,
        )  # fmt: skip


class DeletedFile(Wire):
    id: str
    object: Literal["file"] = "file"
    deleted: bool


class ModelFile(Wire):
    id: str
    object: Literal["model.file"] = "model.file"
    path: str = Field(examples=["model.safetensors"])
    bytes: int


class Artifact(Wire):
    """A file in which a task showed what its model did."""

    id: str = Field(examples=["step-0000000100/samples.txt"])
    object: Literal["artifact"] = "artifact"
    job_id: str
    path: str = Field(description="as in .../artifacts/files/{path}", examples=["step-0000000100/samples.txt"])
    step: int = Field(description="optimizer steps done when the model did this")
    name: str = Field(examples=["samples.txt"])
    bytes: int
    media_type: str = Field(examples=["text/plain; charset=utf-8", "image/png"])
    created_at: datetime


class Amount(Wire):
    cpus: float
    gpus: float
    memory: int = Field(description="bytes")

    @classmethod
    def of(cls, resources: Resources) -> Self:
        return cls(cpus=resources.cpus, gpus=resources.gpus, memory=resources.memory)


class ClusterNode(Wire):
    id: str
    address: str
    total: Amount
    draining: bool = Field(description="nothing new is placed here, and what runs here moves away")
    cordoned: bool = Field(description="draining because an admin said so")
    reason: str | None = Field(description="that the admin gave")
    cordoned_at: datetime | None

    @classmethod
    def of(cls, node: Node, cordon: values.Cordon | None) -> Self:
        return cls(
            id=node.id, address=node.address, total=Amount.of(node.total), draining=node.draining, cordoned=cordon is not None,
            reason=cordon.reason if cordon else None, cordoned_at=cordon.since if cordon else None,
        )  # fmt: skip


class SchedulerState(Wire):
    alive: bool
    seen_at: datetime | None


class Cluster(Wire):
    object: Literal["cluster"] = "cluster"
    reachable: bool
    message: str | None = Field(description="why it is not reachable")
    updated_at: datetime | None = Field(description="when the scheduler last looked")
    nodes: list[ClusterNode]
    used: Amount = Field(description="reserved by jobs")
    scheduler: SchedulerState
    queued: int = Field(description="jobs that wait")
    active: int = Field(description="jobs that hold resources")

    @classmethod
    def of(cls, view: values.ClusterView) -> Self:
        cordons = {cordon.node_id: cordon for cordon in view.cordons}
        return cls(
            reachable=view.reachable, message=view.message, updated_at=view.updated_at,
            nodes=[ClusterNode.of(node, cordons.get(node.id)) for node in view.capacity.nodes], used=Amount.of(view.used),
            scheduler=SchedulerState(alive=view.scheduler_alive, seen_at=view.scheduler_seen_at),
            queued=view.queued, active=view.active,
        )  # fmt: skip


class Check(Wire):
    ok: bool
    message: str | None


class Readiness(Wire):
    object: Literal["readiness"] = "readiness"
    ready: bool
    checks: dict[Literal["database", "scheduler", "cluster", "tracking"], Check] = Field(
        description="tracking is MLflow, which readiness does not depend on"
    )


class Alive(Wire):
    status: Literal["ok"] = "ok"
