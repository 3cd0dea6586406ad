"""What training measured: metric series, and the norm of every layer's gradient at every step."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query
from numpy.typing import NDArray
from pydantic import Field
from starlette.responses import Response

from api import examples, schemas
from api.auth import Viewer
from api.dependencies import JobId, Provided
from api.documented import of_job, success
from api.downsampling import downsample
from api.errors import ApiError
from api.pagination import PLAIN_INTEGER, StepsQuery, page
from api.pagination import Query as QueryModel
from api.responses import arrays_response, nonfinite
from service import jobs
from workers.gradient_files import GradientMatrix
from workers.metric_series import Series

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["telemetry"])

MAX_KEYS = 100


class MetricsQuery(QueryModel):
    keys: Annotated[str, Field(max_length=10_000, pattern=r"^[A-Za-z0-9_./,-]+$")] | None = Field(
        None, description="series, separated by commas; default: all", examples=["train/loss,eval/accuracy"]
    )
    max_points: Annotated[int, Field(ge=4, le=10_000, description="most points of a series"), PLAIN_INTEGER] = 1000


class GradientsQuery(StepsQuery):
    max_points: Annotated[int, Field(ge=2, le=10_000, description="most steps"), PLAIN_INTEGER] = 1000


@router.get(
    "/metrics",
    summary="Read metric series",
    responses={**success(schemas.ListOf[schemas.Series], examples.listed(examples.SERIES)), **of_job(400)},
)
def read_metrics(
    caller: Viewer, services: Provided, job_id: JobId, query: Annotated[MetricsQuery, Query()]
) -> Response:
    """One item a series: losses, learning rate, throughput, gradient norms, evaluations, system load. A long series is
    thinned to ``max_points``; first and last point, peaks and non-finite values stay. A key that has no values yet has no points."""
    keys = _keys(query.keys)
    job = jobs.get_job(services.store, caller, job_id)
    series = services.series.read(services.folder(job.id), keys)
    names = keys if keys is not None else sorted(series)
    return arrays_response(page([_series(name, series.get(name), query.max_points) for name in names]))


@router.get(
    "/gradients",
    summary="Read layer x step gradient norms",
    responses={**success(schemas.GradientMatrix, examples.GRADIENTS), **of_job(400)},
)
def read_gradients(
    caller: Viewer, services: Provided, job_id: JobId, query: Annotated[GradientsQuery, Query()]
) -> Response:
    """The L2 norm of each layer's gradient, before clipping: one row a step, one column a layer, in network order. More
    steps than ``max_points`` are thinned evenly; of each stretch the step with the largest norm stays."""
    query.check()
    job = jobs.get_job(services.store, caller, job_id)
    matrix = services.folder(job.id).gradient_matrix(query.first_step, query.last_step, query.max_points)
    return arrays_response(_matrix(job.id, matrix))


def _keys(text: str | None) -> list[str] | None:
    if text is None:
        return None
    keys = list(dict.fromkeys(filter(None, text.split(","))))
    if not 1 <= len(keys) <= MAX_KEYS:
        raise ApiError(400, "invalid_parameter", f"keys must name 1 to {MAX_KEYS} series.", param="keys")
    return keys


def _series(key: str, series: Series | None, max_points: int) -> dict[str, Any]:
    points: list[dict[str, Any]] = []
    if series is not None:
        kept = downsample(series.values, max_points)
        moments = np.datetime_as_string(
            (series.timestamps[kept] * 1000).round().astype("datetime64[ms]"), timezone="UTC"
        )
        points = [
            {"step": step, "value": value, "timestamp": moment}
            for step, value, moment in zip(
                series.steps[kept].tolist(), _numbers(series.values[kept]), moments.tolist(), strict=True
            )
        ]
    return {"id": key, "object": "series", "key": key, "points": points}


def _matrix(job_id: str, matrix: GradientMatrix) -> dict[str, Any]:
    return {
        "object": "gradient_matrix",
        "job_id": job_id,
        "layers": list(matrix.layers),
        "steps": matrix.steps.tolist(),
        "norms": [row if np.isfinite(row).all() else _numbers(row) for row in np.ascontiguousarray(matrix.norms)],
    }


def _numbers(values: NDArray[Any]) -> list[Any]:
    """Elements of a float array; each non-finite one as its word."""
    return [value if np.isfinite(value) else nonfinite(float(value)) for value in values]
