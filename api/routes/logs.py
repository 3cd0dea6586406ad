"""What the workers of a job printed: pages of lines, or a live stream of them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from api import examples, schemas
from api.auth import Viewer
from api.dependencies import JobId, Provided
from api.documented import of_job, success, with_stream
from api.logs import Line, Position, read_lines
from api.pagination import PLAIN_BOOLEAN, PLAIN_INTEGER, page
from api.pagination import Query as QueryModel
from api.responses import json_response
from api.streams import Chunk, FollowResponse, LastEventId, start_position, wants_stream
from service import jobs

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["events and logs"])

STREAM_CHUNK = 200
Filter = Annotated[int, Field(ge=0, lt=10**6), PLAIN_INTEGER]


class LogsQuery(QueryModel):
    after: Annotated[str, Field(min_length=1, max_length=20_000)] | None = Field(
        None, description="id of the last line that you have"
    )
    limit: Annotated[int, Field(ge=1, le=1000, description="lines of a page"), PLAIN_INTEGER] = 100
    rank: Annotated[Filter | None, Field(description="only this worker")] = None
    attempt: Annotated[Filter | None, Field(description="only this attempt")] = None
    stream: Annotated[bool, Field(description="true: as server-sent events"), PLAIN_BOOLEAN] = False


@router.get(
    "/logs",
    summary="Read or follow logs",
    responses=with_stream(
        {**success(schemas.ListOf[schemas.LogLine], examples.listed(examples.LOG_LINE)), **of_job(400, 429)},
        examples.LOG_STREAM,
    ),
)
def read_logs(
    request: Request,
    caller: Viewer,
    services: Provided,
    job_id: JobId,
    query: Annotated[LogsQuery, Query()],
    last_event_id: LastEventId = None,
) -> Response:
    """Lines of all workers, merged by time, oldest first. With ``Accept: text/event-stream`` (or ``?stream=true``) new lines
    arrive as events ``log`` as they are written, until ``done``; resume with ``Last-Event-ID``."""
    job = jobs.get_job(services.store, caller, job_id)
    folder = services.folder(job.id)
    start = start_position(request, query.after) or str(Position())
    Position.parse(start, "after")  # junk is refused before a stream begins

    def read(position: str) -> Chunk:
        now = jobs.get_job(services.store, caller, job_id)  # before the lines: after the end none is added
        lines = read_lines(
            folder, Position.parse(position, "after"), STREAM_CHUNK, attempt=query.attempt, rank=query.rank
        )
        complete = now.status.ended and len(lines) < STREAM_CHUNK
        return Chunk([(line.position, _line(line)) for line in lines], complete, {"id": now.id, "status": now.status})

    if wants_stream(request, query.stream):
        return FollowResponse(services.streams, caller.key_id, "log", start, read)
    lines = read_lines(folder, Position.parse(start, "after"), query.limit + 1, attempt=query.attempt, rank=query.rank)
    return json_response(page([_line(line) for line in lines[: query.limit]], has_more=len(lines) > query.limit))


def _line(line: Line) -> dict[str, Any]:
    model = schemas.LogLine(
        id=line.position, attempt=line.attempt, rank=line.rank, timestamp=line.timestamp, text=line.text
    )
    return dict(model)
