"""For probes and operators: alive, ready, metrics."""

from __future__ import annotations

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from api import schemas
from api.auth import Viewer
from api.dependencies import Provided
from api.documented import errors, protected, success
from api.errors import ApiError, envelope
from api.responses import json_response
from service import jobs
from service.database import Store
from service.errors import ServiceError

router = APIRouter(tags=["service"])

READY = schemas.Readiness(
    ready=True, checks={part: schemas.Check(ok=True, message=None) for part in ("database", "scheduler", "cluster")}
)


@router.get("/", include_in_schema=False)
async def index() -> Response:
    return RedirectResponse("/docs")


@router.get("/healthz", summary="Is the API alive?", responses=success(schemas.Alive, {"status": "ok"}))
async def healthz() -> Response:
    """Answers as long as the process does. Depends on nothing else; needs no key."""
    return json_response(schemas.Alive())


@router.get(
    "/readyz",
    summary="Is everything there that jobs need?",
    responses={**success(schemas.Readiness, READY.model_dump()), **errors(503)},
)
def readyz(services: Provided) -> Response:
    """The database answers, a scheduler is at work, and the cluster is known. 503 says which of them is missing. Needs no key."""
    readiness = check(services.store)
    if readiness.ready:
        return json_response(readiness)
    missing = "; ".join(f"{part}: {c.message}" for part, c in readiness.checks.items() if not c.ok)
    error = ApiError(503, "not_ready", f"Not ready. {missing}")
    content = {**envelope(error), "checks": readiness.checks}
    return json_response(content, 503, {"retry-after": "2"})


def check(store: Store) -> schemas.Readiness:
    """Messages name no addresses: everybody may read them."""
    try:
        jobs.ping(store)
        view = jobs.cluster_view(store)
    except ServiceError as error:
        unknown = schemas.Check(ok=False, message="not known while the database is away")
        database = schemas.Check(ok=False, message=error.message)
        return schemas.Readiness(ready=False, checks={"database": database, "scheduler": unknown, "cluster": unknown})
    known = view.reachable and bool(view.capacity.nodes)
    checks = {
        "database": schemas.Check(ok=True, message=None),
        "scheduler": schemas.Check(
            ok=view.scheduler_alive, message=None if view.scheduler_alive else "no scheduler is at work"
        ),
        "cluster": schemas.Check(ok=known, message=None if known else "the cluster has not been reached"),
    }
    return schemas.Readiness(ready=all(part.ok for part in checks.values()), checks=checks)


@router.get(
    "/metrics",
    summary="Numbers for Prometheus",
    response_class=PlainTextResponse,
    responses={
        200: {"description": "Prometheus' text format", "content": {"text/plain": {"schema": {"type": "string"}}}},
        **protected(),
    },
)
def metrics(caller: Viewer, services: Provided) -> Response:
    """Requests by route and status, jobs by status, open streams."""
    return Response(services.monitoring.render(), media_type=CONTENT_TYPE_LATEST)
