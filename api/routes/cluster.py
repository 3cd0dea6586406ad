"""The cluster as the scheduler last saw it, and taking its nodes out of use."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from api import examples, schemas
from api.auth import Admin, Viewer
from api.changes import Cordon, parse
from api.dependencies import DocumentOrNothing, NodeId, Provided
from api.documented import protected, success
from api.responses import json_response
from service import nodes

router = APIRouter(prefix="/v1/cluster", tags=["service"])


@router.get("", summary="Look at the cluster", responses={**success(schemas.Cluster, examples.CLUSTER), **protected()})
def get_cluster(caller: Viewer, services: Provided) -> Response:
    """Machines with their processors, accelerators and memory, what jobs hold of them, and the queue. Nothing new is placed on a
    machine that is ``draining``, and what runs there moves away."""
    return json_response(schemas.Cluster.of(nodes.cluster_view(services.store)))


@router.post(
    "/nodes/{node_id}/cordon",
    summary="Take a node out of use",
    openapi_extra=examples.CORDON_BODY,
    responses={**success(schemas.Cluster, examples.CORDONED_CLUSTER), **protected(400, 404, 413, 415, 422)},
)
def cordon_node(caller: Admin, services: Provided, node_id: NodeId, document: DocumentOrNothing) -> Response:
    """Needs an admin key. Nothing new is placed on the node, and the workers there move to others without losing a step. Where there
    is no room for them, a job with a range of workers goes on with fewer, and one with a fixed number stays until there is. Once
    more only changes the reason."""
    reason = parse(Cordon, document).reason
    return json_response(
        schemas.Cluster.of(nodes.cordon_node(services.store, caller, node_id, cordoned=True, reason=reason))
    )


@router.post(
    "/nodes/{node_id}/uncordon",
    summary="Put a node back into use",
    responses={**success(schemas.Cluster, examples.CLUSTER), **protected(404)},
)
def uncordon_node(caller: Admin, services: Provided, node_id: NodeId) -> Response:
    """Needs an admin key. A node that is in use already stays as it is."""
    return json_response(
        schemas.Cluster.of(nodes.cordon_node(services.store, caller, node_id, cordoned=False, reason=None))
    )
