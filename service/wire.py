"""Plain values as JSON lines, for the pipes between the scheduler and its Ray driver.

Both ends are ours and of one version. JSON rather than pickle, so that nothing that comes from the cluster can run code here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter

from service.cluster import Capacity, Launch, Node, Resources
from workers.reports import GroupShape, Observation
from workers.spec import JobSpec

_OBSERVATION = TypeAdapter(Observation)


def encode(message: Mapping[str, Any]) -> bytes:
    """One line. NaN and infinity pass (Python's JSON on both ends); what is no JSON becomes its text."""
    return json.dumps(message, default=str).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(line)
    return message


def launch_document(launch: Launch) -> dict[str, Any]:
    return {
        "name": launch.name,
        "job_id": launch.job_id,
        "attempt": launch.attempt,
        "spec": launch.spec.model_dump_json(),
        "shape": shape_document(launch.shape),
        "folder": launch.folder,
        "mlflow_url": launch.mlflow_url,
        "experiment": launch.experiment,
        "checkpoints": launch.checkpoints,
        "bundle": launch.bundle,
        "healthy_from": launch.healthy_from,
    }


def launch_value(document: Mapping[str, Any]) -> Launch:
    spec, shape = JobSpec.model_validate_json(document["spec"]), shape_value(document["shape"])
    return Launch(**{**document, "spec": spec, "shape": shape})


def shape_document(shape: GroupShape) -> dict[str, Any]:
    return {"workers": shape.workers, "avoid": sorted(shape.avoid)}


def shape_value(document: Mapping[str, Any]) -> GroupShape:
    return GroupShape(document["workers"], frozenset(document["avoid"]))


def observation_document(observation: Observation | None) -> dict[str, Any] | None:
    return None if observation is None else asdict(observation)


def observation_value(document: Mapping[str, Any] | None) -> Observation | None:
    return None if document is None else _OBSERVATION.validate_python(document)


def capacity_value(document: Mapping[str, Any]) -> Capacity:
    """``nodes`` are those of ``workers.launcher.capacity``."""
    return Capacity(tuple(map(_node, document["nodes"])), document["cluster_id"])


def _node(node: Mapping[str, Any]) -> Node:
    total = Resources(node["cpus"], node["gpus"], int(node["memory"]))
    return Node(node["id"], node["address"], total, node["draining"])
