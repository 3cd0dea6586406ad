"""What the project's jobs have cost."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from api import examples, health_schemas
from api.auth import Viewer
from api.dependencies import Provided
from api.documented import protected, success
from api.responses import json_response
from service import usage

router = APIRouter(prefix="/v1/usage", tags=["service"])


@router.get(
    "",
    summary="Show what the project's jobs have cost",
    responses={**success(health_schemas.Usage, examples.USAGE), **protected()},
)
def get_usage(caller: Viewer, services: Provided) -> Response:
    """Hours of workers that the jobs of the key's project have trained, how many of these went by after something had gone wrong, and how many
    were saved by repairs that were kept. Jobs that train now are included."""
    return json_response(health_schemas.Usage.of(usage.of_project(services.store, caller, services.folder)))
