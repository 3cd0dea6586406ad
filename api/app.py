"""The REST application: what it is made of, and in which order a request passes through it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version

from anyio import CapacityLimiter
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from api import openapi
from api.auth import AuthenticationMiddleware, check_permissions
from api.dependencies import Services
from api.errors import ApiError, handle
from api.middleware import (
    LOOPBACK_NAMES,
    BodyLimitMiddleware,
    OriginMiddleware,
    RequestContextMiddleware,
    SameOriginSocketMiddleware,
)
from api.monitoring import Monitoring
from api.recorded_series import RecordedSeries
from api.routes import (
    artifacts,
    attempts,
    checkpoints,
    cluster,
    docs,
    events,
    files,
    health,
    jobs,
    logs,
    quarantine,
    repairs,
    schema,
    steps,
    telemetry,
    usage,
    watching,
)
from api.streams import StreamLimits, Streams
from api.uploads import FORM_BYTES
from service import findings
from service.database import Store, open_store
from service.errors import ServiceError
from service.jobs import cluster_view
from service.keys import ensure_admin_key
from service.settings import Settings

ROUTERS = tuple(
    module.router
    for module in (
        jobs,
        attempts,
        events,
        logs,
        telemetry,
        steps,
        watching,
        checkpoints,
        artifacts,
        files,
        cluster,
        usage,
        schema,
        health,
        repairs,
        quarantine,
        docs,
    )
)
ROUTES = tuple(route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute))
CONCURRENT_ADMISSIONS = 8
CONCURRENT_PLANS = 2


def create_app(settings: Settings, stream_limits: StreamLimits | None = None) -> FastAPI:
    """The application over the database and storage that ``settings`` name. Makes database and admin key at the first start.

    It serves any number of copies: all state is in the database and the storage. What it remembers of them can be read again.
    """
    store = open_store(settings.database_url)
    ensure_admin_key(
        store, settings.admin_key_file, settings.admin_key.get_secret_value() if settings.admin_key else None
    )
    monitoring = Monitoring(_Numbers(store))
    streams = Streams(monitoring, stream_limits or StreamLimits())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        store.close()

    app = FastAPI(
        title="Chainrule", version=version("chainrule"), lifespan=lifespan, redirect_slashes=False,
        docs_url=None, redoc_url=None, openapi_url=None,
    )  # fmt: skip
    admissions = CapacityLimiter(CONCURRENT_ADMISSIONS)
    app.state.services = Services(
        settings, store, monitoring, streams, CapacityLimiter(CONCURRENT_PLANS), admissions, RecordedSeries()
    )
    _add_routes(app)
    _add_middleware(app, settings, store, monitoring)
    openapi.install(app, ROUTES)
    return app


def _add_routes(app: FastAPI) -> None:
    check_permissions(ROUTERS)
    for router in ROUTERS:
        app.include_router(router)
    app.state.methods = _methods
    for error in (ApiError, ServiceError, RequestValidationError, HTTPException):
        app.add_exception_handler(error, handle)


def _add_middleware(app: FastAPI, settings: Settings, store: Store, monitoring: Monitoring) -> None:
    """Innermost first: what is added last sees a request first."""
    app.add_middleware(BodyLimitMiddleware, larger={"/v1/files": settings.max_file_bytes + FORM_BYTES})
    app.add_middleware(AuthenticationMiddleware, store=store)
    app.add_middleware(SameOriginSocketMiddleware)
    if settings.on_loopback:
        app.add_middleware(OriginMiddleware, hosts=LOOPBACK_NAMES | {settings.api_host})
    app.add_middleware(RequestContextMiddleware, monitoring=monitoring)


def _methods(path: str) -> list[str]:
    """What can be done with the address ``path``."""
    return sorted({method for route in ROUTES if route.path_regex.match(path) for method in route.methods or ()})


class _Numbers:
    """As monitoring asks for them."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def jobs_by_status(self) -> Mapping[str, int]:
        view = cluster_view(self._store)
        return {"queued": view.queued, "active": view.active}

    def jobs_by_verdict(self) -> Mapping[str, int]:
        return findings.verdicts(self._store)

    def findings_raised(self) -> Mapping[tuple[str, str], int]:
        return findings.raised(self._store)
