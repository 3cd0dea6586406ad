"""The JSON Schema of a job file, for editors and generators."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from api.auth import Viewer
from api.documented import protected, success
from api.openapi import job_schema
from api.responses import json_response

router = APIRouter(prefix="/v1/schema", tags=["service"])


@router.get(
    "",
    summary="Get the JSON Schema of a job",
    responses={**success(dict[str, Any], {"title": "JobSpec", "type": "object"}), **protected()},
)
async def get_schema(caller: Viewer) -> Response:
    """What a job file may hold, as JSON Schema (2020-12). Point your editor's YAML plug-in at a copy of it."""
    return json_response(job_schema())
