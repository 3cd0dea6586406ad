"""The cluster as the scheduler last saw it."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from api import examples, schemas
from api.auth import Viewer
from api.dependencies import Provided
from api.documented import protected, success
from api.responses import json_response
from service import jobs

router = APIRouter(prefix="/v1/cluster", tags=["service"])


@router.get("", summary="Look at the cluster", responses={**success(schemas.Cluster, examples.CLUSTER), **protected()})
def get_cluster(caller: Viewer, services: Provided) -> Response:
    """Machines with their processors, accelerators and memory, what jobs hold of them, and the queue."""
    return json_response(schemas.Cluster.of(jobs.cluster_view(services.store)))
