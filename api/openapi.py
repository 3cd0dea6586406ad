"""The OpenAPI document and the JSON Schema of a job."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from api.auth import needs_key
from api.changes import Cordon, JobChange, QuarantineChange, Resume
from workers.spec import JobSpec

DESCRIPTION = """\
Submit training jobs, follow them live, read metrics and the gradient of every layer at every step, cancel.

Every request below /v1 needs a key in the header `Authorization: Bearer <key>`. The key that was made at the first start is in the file \
`admin.key` of the service's home.

Errors have one shape: `{"error": {"message", "type", "param", "code"}}`. Every response has an `x-request-id`. Times are RFC 3339 in UTC, \
durations seconds, sizes bytes; numbers that are not finite are the strings "NaN", "Infinity", "-Infinity". Lists come in pages: \
ask with `after=<last_id>` while `has_more` is true.

A first job, with curl alone:

    export KEY=$(cat ~/.chainrule/admin.key) URL=http://127.0.0.1:8400
    curl -s -H "Authorization: Bearer $KEY" -H "Content-Type: application/json" $URL/v1/jobs -d \\
      '{"name": "digits", "task": {"kind": "image_classification", "data": {"source": "digits"}}, "workers": {"count": 2}}'
    curl -sN -H "Authorization: Bearer $KEY" "$URL/v1/jobs/<id>/events?stream=true"
    curl -s -H "Authorization: Bearer $KEY" "$URL/v1/jobs/<id>/metrics?keys=train/loss,eval/accuracy"
    curl -s -H "Authorization: Bearer $KEY" "$URL/v1/jobs/<id>/gradients?max_points=100"
    curl -s -H "Authorization: Bearer $KEY" -X POST $URL/v1/jobs/<id>/cancel
"""

TAGS = [
    {"name": "jobs", "description": "Submit, look at, cancel and kill training jobs."},
    {"name": "events and logs", "description": "What happened and what workers printed, as pages or live."},
    {"name": "telemetry", "description": "Metric series and gradient norms."},
    {
        "name": "health",
        "description": "What the watching of backpropagation finds, and what it measures layer by layer.",
    },
    {"name": "files", "description": "Checkpoints, the finished model, and what it showed on the way."},
    {"name": "service", "description": "The cluster, the schema of a job, probes."},
]

_LATER = "Unavailable"  # kinds that are refused with a message have a class in the spec, and no place in its schema


@cache
def job_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a job file."""
    schema = _without_later(JobSpec.model_json_schema())
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "/v1/schema", **schema}


def install(app: FastAPI, routes: Sequence[APIRoute]) -> None:
    """Makes ``app.openapi`` give the document, built once. ``routes``: all that it describes."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _build(app, routes)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _build(app: FastAPI, routes: Sequence[APIRoute]) -> dict[str, Any]:
    document = get_openapi(
        title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes, tags=TAGS,
    )  # fmt: skip
    components = document["components"]
    schemas = components["schemas"]
    # A prefix keeps the parts of the spec apart from shapes of the same name: Checkpoint is both.
    spec = _without_later(JobSpec.model_json_schema(ref_template="#/components/schemas/JobSpec.{model}"))
    schemas.update({f"JobSpec.{name}": part for name, part in spec.pop("$defs").items()})
    schemas["JobSpec"] = spec
    for body in (JobChange, QuarantineChange, Cordon, Resume):
        shape = body.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(shape.pop("$defs", {}))
        schemas[body.__name__] = shape
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer", "description": "an API key"}}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            _drop_default_validation_error(operation)
            if needs_key(path):
                operation["security"] = [{"key": []}]
    for route in routes:
        if route.include_in_schema:
            _restore_examples(document, route)
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    return document


def _restore_examples(document: dict[str, Any], route: APIRoute) -> None:
    """FastAPI leaves every null out of the document, also out of examples, whose nulls mean something."""
    for method in route.methods or ():
        described = document["paths"][route.path_format][method.lower()]["responses"]
        for status, response in route.responses.items():
            if int(status) >= 400:  # JSON, also where the route itself gives another type
                error = {"schema": {"$ref": "#/components/schemas/Error"}, **response["content"]["application/json"]}
                described[str(status)]["content"] = {"application/json": error}
            for kind, media in response.get("content", {}).items():
                if "example" in media:
                    described[str(status)]["content"][kind]["example"] = media["example"]


def _drop_default_validation_error(operation: dict[str, Any]) -> None:
    """FastAPI documents its own 422 for every route with parameters; here those errors are 400 in our envelope."""
    described = operation["responses"].get("422", {})
    if "HTTPValidationError" in str(described):
        del operation["responses"]["422"]


def _without_later(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without the members of its unions that only refuse: they would match what other members describe."""

    def clean(node: Any) -> Any:
        if isinstance(node, list):
            return [clean(item) for item in node if not _refers_to_later(item)]
        if isinstance(node, dict):
            return {key: clean(value) for key, value in node.items() if not key.startswith(_LATER)}
        return node

    cleaned: dict[str, Any] = clean(schema)
    return cleaned


def _refers_to_later(node: Any) -> bool:
    name = str(node.get("$ref", "")).rpartition("/")[2] if isinstance(node, dict) else ""
    return name.removeprefix("JobSpec.").startswith(_LATER)
