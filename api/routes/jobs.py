"""Jobs: submit, list, look, change, pause, resume, cancel, kill."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Header, Query
from starlette.requests import Request
from starlette.responses import Response

from api import examples, schemas
from api.auth import Member, Viewer
from api.bodies import digest, media_type, parse_document
from api.changes import JobChange, Resume, parse
from api.dependencies import Document, DocumentOrNothing, JobId, Provided, Services
from api.documented import of_job, protected, success
from api.errors import of_a_parameter
from api.pagination import CreateQuery, JobsQuery, page
from api.responses import json_response
from service import admission, files, jobs, plans, repairs
from service.errors import Conflict
from service.values import Caller, Job

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="any text of your choice: the same key and body give the same job, however often they are sent",
        examples=["nightly-2026-11-23"],
    ),
]


@router.post(
    "",
    status_code=201,
    summary="Submit a job",
    openapi_extra=examples.JOB_BODY,
    responses={
        **success(
            schemas.Job, examples.QUEUED_JOB, status=201, description="The job, queued. Location has its address."
        ),
        **success(schemas.Plan, examples.PLAN, description="Of a dry run: what the job will take."),
        **protected(400, 409, 413, 415, 422),
    },
)
async def create_job(
    request: Request,
    caller: Member,
    services: Provided,
    query: Annotated[CreateQuery, Query()],
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Checks the job and queues it. Every problem is reported at once, each with its path; nothing is kept of a job that
    is refused. The body is a job file as JSON or YAML; its JSON Schema is at /v1/schema.

    With ``dry_run`` nothing is queued: the answer is a plan with parameters, memory by part, FLOPs, time, price and advice. It
    takes some seconds."""
    kind = media_type(request)
    body = await request.body()
    if query.dry_run:
        planned = await to_thread.run_sync(partial(_plan, services, caller, body, kind), limiter=services.plans)
        return json_response(schemas.Plan.of(planned))
    create = partial(_create, services, caller, body, kind, idempotency_key)
    job = await to_thread.run_sync(create, limiter=services.admissions)
    return json_response(schemas.Job.of(job), 201, {"location": f"/v1/jobs/{job.id}"})


def _create(services: Services, caller: Caller, body: bytes, kind: str, idempotency_key: str | None) -> Job:
    document = parse_document(body, kind)
    capacity = jobs.cluster_view(services.store).capacity
    return jobs.create_job(
        services.store,
        caller,
        document,
        idempotency_key=idempotency_key,
        digest=digest(document),
        admit=lambda spec: admission.check(
            spec, services.settings, capacity, files.bundle_of(services.store, caller, services.files, spec)
        ),
    )


def _plan(services: Services, caller: Caller, body: bytes, kind: str) -> plans.Planned:
    spec = jobs.checked(parse_document(body, kind))
    bundle = files.bundle_of(services.store, caller, services.files, spec)
    admission.check(spec, services.settings, jobs.cluster_view(services.store).capacity, bundle)
    return plans.plan(spec, services.settings, bundle)


@router.get(
    "",
    summary="List jobs",
    responses={**success(schemas.ListOf[schemas.Job], examples.listed(examples.RUNNING_JOB)), **protected(400)},
)
def list_jobs(caller: Viewer, services: Provided, query: Annotated[JobsQuery, Query()]) -> Response:
    """Jobs of the key's project, newest first. For the next page give ``after=<last_id>`` while ``has_more`` is true."""
    with of_a_parameter():
        found = jobs.list_jobs(services.store, caller, **query.model_dump())
    return json_response(page([dict(schemas.Job.of(job)) for job in found.data], has_more=found.has_more))


@router.get("/{job_id}", summary="Get a job", responses={**success(schemas.Job, examples.RUNNING_JOB), **of_job()})
def get_job(caller: Viewer, services: Provided, job_id: JobId) -> Response:
    """State, progress, newest metrics, verdict on the gradients, and the spec."""
    return json_response(schemas.Job.of(jobs.get_job(services.store, caller, job_id)))


@router.post(
    "/{job_id}/cancel",
    summary="Cancel a job",
    responses={**success(schemas.Job, examples.CANCELLING_JOB), **of_job()},
)
def cancel_job(caller: Member, services: Provided, job_id: JobId) -> Response:
    """Finishes the step, writes a checkpoint and ends. Answers at once: follow the events to see it end. After the end
    this changes nothing and answers with the final state."""
    return json_response(schemas.Job.of(jobs.cancel_job(services.store, caller, job_id)))


@router.post(
    "/{job_id}/kill",
    summary="Kill a job",
    responses={**success(schemas.Job, examples.CANCELLING_JOB), **of_job()},
)
def kill_job(caller: Member, services: Provided, job_id: JobId) -> Response:
    """Ends the job now; nothing more is written. After the end this changes nothing."""
    return json_response(schemas.Job.of(jobs.kill_job(services.store, caller, job_id)))


@router.patch(
    "/{job_id}",
    summary="Change a job",
    openapi_extra=examples.CHANGE_BODY,
    responses={**success(schemas.Job, examples.RUNNING_JOB), **of_job(400, 409, 413, 415, 422)},
)
def update_job(caller: Member, services: Provided, job_id: JobId, document: Document) -> Response:
    """Changes priority, metadata or the number of workers, also while the job runs: its group then grows or shrinks at the
    end of a step, without a restart, with the same samples in the same order. The job's ``spec`` says it from then on. A job
    that has ended takes metadata only.

    Of a job that runs, learning rate and clipping too: asked here, done after a step by all workers alike, and listed among
    its repairs, where it can be undone; the ``spec`` stays as it was submitted."""
    change = parse(JobChange, document)
    workers = change.workers.range() if change.workers else None
    if change.steers:  # first: it is refused of a job that does not run
        repairs.steer(
            services.store,
            caller,
            job_id,
            services.folder(job_id).requests_path,
            learning_rate=change.optimizer.learning_rate if change.optimizer else None,
            clip_norm=change.training.clip_norm if change.training else None,
        )
    job = jobs.update_job(
        services.store, caller, job_id, priority=change.priority, metadata=change.metadata, workers=workers
    )
    return json_response(schemas.Job.of(job))


@router.post(
    "/{job_id}/pause",
    summary="Pause a job",
    responses={**success(schemas.Job, examples.PAUSING_JOB), **of_job(409)},
)
def pause_job(caller: Member, services: Provided, job_id: JobId) -> Response:
    """Finishes the step, writes a checkpoint and frees everything that the job holds. Answers at once; the job is ``pausing``
    and then ``paused``. One that waits in the queue leaves it; a paused one stays as it is. 409 when it has ended."""
    return json_response(schemas.Job.of(jobs.pause_job(services.store, caller, job_id)))


@router.post(
    "/{job_id}/resume",
    summary="Resume a job",
    openapi_extra=examples.RESUME_BODY,
    responses={**success(schemas.Job, examples.QUEUED_AGAIN_JOB), **of_job(400, 409, 413, 415, 422)},
)
def resume_job(caller: Member, services: Provided, job_id: JobId, document: DocumentOrNothing) -> Response:
    """Queues a paused job again; it goes on from its newest checkpoint as if it had never stopped, on another number of workers
    if it was changed meanwhile. With ``from: healthy``, and without being told so after a pause for a critical finding, it goes on from the last
    checkpoint that is healthy. A job that is not paused stays as it is. 409 when it has ended, or has no healthy checkpoint."""
    start = parse(Resume, document).start
    if start == "healthy":
        _must_have_a_healthy_checkpoint(services, jobs.get_job(services.store, caller, job_id))
    return json_response(schemas.Job.of(jobs.resume_job(services.store, caller, job_id, start)))


def _must_have_a_healthy_checkpoint(services: Services, job: Job) -> None:
    found = services.folder(job.id).checkpoints()
    if not any(checkpoint.verdict == "healthy" for checkpoint in found):
        known = "; ".join(f"step {each.step} is {each.verdict}" for each in found) or "it has none at all"
        raise Conflict(f"{job.id} has no healthy checkpoint ({known}); resume it from latest", param="from")
