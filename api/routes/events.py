"""What happened to a job: pages of events, or a live stream of them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from api import examples, schemas
from api.auth import Viewer
from api.dependencies import JobId, Provided, Services
from api.documented import of_job, success, with_stream
from api.errors import ApiError
from api.pagination import PLAIN_BOOLEAN, PLAIN_INTEGER, Cursor, Order, page
from api.pagination import Query as QueryModel
from api.responses import json_response
from api.streams import Chunk, FollowResponse, LastEventId, start_position, wants_stream
from service import jobs
from service.values import Caller

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["events and logs"])

STREAM_CHUNK = 500


class EventsQuery(QueryModel):
    after: Annotated[
        Cursor | None, Field(description="id or sequence number of the last event that you have", examples=["12"])
    ] = None
    limit: Annotated[int, Field(ge=1, le=1000, description="events of a page"), PLAIN_INTEGER] = 100
    order: Annotated[Order, Field(description="asc: oldest first")] = "asc"
    stream: Annotated[bool, Field(description="true: as server-sent events"), PLAIN_BOOLEAN] = False


@router.get(
    "/events",
    summary="Read or follow events",
    responses=with_stream(
        {**success(schemas.ListOf[schemas.Event], examples.listed(examples.EVENT)), **of_job(400, 429)},
        examples.EVENT_STREAM,
    ),
)
def read_events(
    request: Request,
    caller: Viewer,
    services: Provided,
    job_id: JobId,
    query: Annotated[EventsQuery, Query()],
    last_event_id: LastEventId = None,
) -> Response:
    """With ``Accept: text/event-stream`` (or ``?stream=true``) events arrive as they happen: ``event: job.event``, ``id:``
    the sequence number, ``data:`` the event. After the job's last event comes ``event: done``. Reconnect with
    ``Last-Event-ID: <sequence>`` (or ``?after=``) to go on without loss."""
    jobs.get_job(services.store, caller, job_id)
    after = _sequence(services, caller, job_id, start_position(request, query.after))
    if wants_stream(request, query.stream):
        return _follow(services, caller, job_id, after)
    found = jobs.list_events(
        services.store, caller, job_id, after_sequence=after, limit=query.limit + 1, order=query.order
    )
    events = [dict(schemas.Event.of(event)) for event in found[: query.limit]]
    return json_response(page(events, has_more=len(found) > query.limit))


def _follow(services: Services, caller: Caller, job_id: str, after: int) -> Response:
    def read(position: str) -> Chunk:
        job = jobs.get_job(services.store, caller, job_id)  # before its events: its last one comes with its last state
        found = jobs.list_events(
            services.store, caller, job_id, after_sequence=int(position), limit=STREAM_CHUNK, order="asc"
        )
        events = [(str(event.sequence), dict(schemas.Event.of(event))) for event in found]
        reason = schemas.Reason.of(job.reason) if job.reason else None
        complete = job.status.ended and len(found) < STREAM_CHUNK
        return Chunk(events, complete, {"id": job.id, "status": job.status, "reason": reason})

    return FollowResponse(services.streams, caller.key_id, "job.event", str(after), read)


def _sequence(services: Services, caller: Caller, job_id: str, after: str | None) -> int:
    """The sequence number that ``after`` means. One that has not been yet is refused: waiting for it would lose events."""
    if after is None:
        return 0
    digits = after.removeprefix(f"event-{job_id.removeprefix('job-')}-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 18):
        raise ApiError(
            400, "invalid_parameter", "after must be the id or the sequence number of an event.", param="after"
        )
    newest = jobs.list_events(services.store, caller, job_id, limit=1, order="desc")
    last = newest[0].sequence if newest else 0
    if int(digits) > last:
        raise ApiError(400, "invalid_parameter", f"after is beyond the newest event, {last}.", param="after")
    return int(digits)
