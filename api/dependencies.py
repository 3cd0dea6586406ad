"""What handlers need: the services of this application, and the job that an address names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from anyio import CapacityLimiter, to_thread
from fastapi import Depends, Path
from starlette.requests import Request

from api.bodies import media_type, parse_document
from api.examples import JOB_ID as JOB_ID_EXAMPLE
from api.examples import NODE_ID as NODE_ID_EXAMPLE
from api.monitoring import Monitoring
from api.recorded_series import RecordedSeries
from api.streams import Streams
from service.database import Store
from service.errors import NotFound
from service.settings import Settings
from service.stored_files import StoredFiles
from workers.jobfolder import JobFolder

JOB_ID = re.compile(r"job-[A-Za-z0-9-]{1,60}", re.ASCII)
NODE_ID = re.compile(r"[A-Za-z0-9._-]{1,100}", re.ASCII)


@dataclass(frozen=True)
class Services:
    settings: Settings
    store: Store
    monitoring: Monitoring
    streams: Streams
    plans: CapacityLimiter  # each is a process that imports torch
    admissions: CapacityLimiter  # looking at data may take seconds: it must not take every thread
    series: RecordedSeries

    @property
    def files(self) -> StoredFiles:
        return StoredFiles(self.settings.storage)

    def folder(self, job_id: str) -> JobFolder:
        return JobFolder(self.settings.storage, job_id, self.settings.checkpoints)


async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


async def _job_id(job_id: Annotated[str, Path(description="id of the job", examples=[JOB_ID_EXAMPLE])]) -> str:
    """Text that cannot be an id never reaches the database or a path."""
    if not JOB_ID.fullmatch(job_id):
        raise NotFound("There is no such job.", param="job_id")
    return job_id


async def _node_id(node_id: Annotated[str, Path(description="id of the node", examples=[NODE_ID_EXAMPLE])]) -> str:
    if not NODE_ID.fullmatch(node_id):
        raise NotFound("There is no such node.", param="node_id")
    return node_id


async def _document(request: Request) -> object:
    kind, body = media_type(request), await request.body()
    return await to_thread.run_sync(parse_document, body, kind)


async def _document_or_nothing(request: Request) -> object:
    body = await request.body()
    return await _document(request) if body.strip() else {}


Provided = Annotated[Services, Depends(_services)]
JobId = Annotated[str, Depends(_job_id)]
NodeId = Annotated[str, Depends(_node_id)]
# The body, read and parsed. Behind the caller in a handler's parameters: whoever may not do it hears that first.
Document = Annotated[object, Depends(_document)]
DocumentOrNothing = Annotated[object, Depends(_document_or_nothing)]
