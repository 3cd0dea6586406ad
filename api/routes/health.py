"""For probes and operators: alive, ready, metrics."""

from __future__ import annotations

import time
from functools import cache, lru_cache

import httpx
from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from api import schemas
from api.auth import Viewer
from api.dependencies import Provided
from api.documented import errors, protected, success
from api.errors import ApiError, envelope
from api.responses import json_response
from service import jobs, nodes
from service.database import Store
from service.errors import ServiceError
from service.values import ClusterView

router = APIRouter(tags=["service"])

FINE = schemas.Check(ok=True, message=None)
READY = schemas.Readiness(ready=True, checks={"database": FINE, "scheduler": FINE, "cluster": FINE, "tracking": FINE})
TRACKING_SECONDS = 0.5


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
    """The database answers, a scheduler is at work, and the cluster is known. 503 says which of them is missing. Jobs train
    without MLflow (``tracking``), so that its absence is told, but is no reason for 503. Needs no key."""
    readiness = check(services.store, services.settings.mlflow_url)
    if readiness.ready:
        return json_response(readiness)
    missing = "; ".join(
        f"{part}: {c.message}" for part, c in readiness.checks.items() if not c.ok and part != "tracking"
    )
    error = ApiError(503, "not_ready", f"Not ready. {missing}")
    content = {**envelope(error), "checks": readiness.checks}
    return json_response(content, 503, {"retry-after": "2"})


def check(store: Store, mlflow_url: str | None) -> schemas.Readiness:
    """Messages name no addresses: everybody may read them."""
    tracking = {} if mlflow_url is None else {"tracking": _tracking(mlflow_url, int(time.monotonic()))}
    try:
        jobs.ping(store)
        view = nodes.cluster_view(store)
    except ServiceError as error:
        unknown = _missing("not known while the database is away")
        needed = {"database": _missing(error.message), "scheduler": unknown, "cluster": unknown}
    else:
        needed = {
            "database": FINE,
            "scheduler": FINE if view.scheduler_alive else _missing("no scheduler is at work"),
            "cluster": _cluster(view),
        }
    return schemas.Readiness.model_validate(
        {"ready": all(part.ok for part in needed.values()), "checks": {**needed, **tracking}}
    )


def _cluster(view: ClusterView) -> schemas.Check:
    if view.reachable and view.capacity.nodes:
        return FINE
    if view.updated_at is None:
        return _missing("the cluster has not been reached yet")
    if view.reachable:
        return _missing("the cluster has no machine")
    return _missing("the cluster does not answer; jobs wait until it does")


@lru_cache(maxsize=1)
def _tracking(url: str, second: int) -> schemas.Check:
    """Once a ``second``: everybody may ask, and a server that hangs keeps a thread waiting."""
    try:
        _http().get(f"{url}/health")
    except (httpx.HTTPError, httpx.InvalidURL):
        return _missing("MLflow does not answer; training goes on, and what it misses is sent later")
    return FINE


@cache
def _http() -> httpx.Client:
    return httpx.Client(timeout=TRACKING_SECONDS)


def _missing(message: str) -> schemas.Check:
    return schemas.Check(ok=False, message=message)


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
    """Requests by route and status, jobs by status and by verdict, findings raised by code and severity, open streams."""
    return Response(services.monitoring.render(), media_type=CONTENT_TYPE_LATEST)
