"""What the watching of a job finds and measures: its health, the probes of every layer, histograms of a layer's gradient."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query
from numpy.typing import NDArray
from pydantic import Field
from starlette.responses import Response

from api import examples, health_schemas
from api.auth import Viewer
from api.dependencies import JobId, Provided
from api.documented import of_job, success
from api.errors import ApiError
from api.judging import judged
from api.pagination import PLAIN_BOOLEAN, PLAIN_INTEGER, StepsQuery
from api.pagination import Query as QueryModel
from api.responses import arrays_response, json_response, nonfinite, wire
from service import findings, jobs
from service.values import Job
from workers.jobfolder import FACTS, JobFolder
from workers.problems import shorten
from workers.spec_base import PRINTABLE
from workers.watch.probe_reader import ProbeReader, evenly
from workers.watch.probe_rows import ACTIVATION_STATISTICS, BINS, LOWEST, STATISTICS
from workers.watch.record import Facts, Record, Series, no_steps, none
from workers.watch.stored import from_folder

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["health"])

ALL = (*STATISTICS, *ACTIVATION_STATISTICS)
MOST_NUMBERS = 1_000_000  # of one answer
Names = Annotated[str, Field(max_length=10_000, pattern=PRINTABLE)]
Layer = Annotated[str, Field(min_length=1, max_length=1000, pattern=PRINTABLE)]


class HealthQuery(QueryModel):
    facts: Annotated[
        bool, Field(description="false: without facts, which are large for a large model"), PLAIN_BOOLEAN
    ] = True


class Between(StepsQuery):
    max_points: Annotated[int, Field(ge=2, le=10_000, description="most steps"), PLAIN_INTEGER] = 100


class ProbesQuery(Between):
    statistics: Names | None = Field(
        None, description=f"separated by commas, of {', '.join(ALL)}; default: all", examples=["update_ratios,silent"]
    )
    layers: Names | None = Field(
        None,
        description="layers and activation modules, separated by commas; default: all",
        examples=["features.0,head"],
    )


class HistogramsQuery(Between):
    layer: Annotated[Layer, Field(description="one of those that probes have", examples=["features.0"])]


@router.get(
    "/health",
    summary="Read the verdict and its findings",
    responses={**success(health_schemas.JobHealth, examples.HEALTH), **of_job(400)},
)
def read_health(caller: Viewer, services: Provided, job_id: JobId, query: Annotated[HealthQuery, Query()]) -> Response:
    """The verdict on data and training, every open finding with its evidence and what helps, what was raised and cleared
    before, the facts that were known before the first step, and what the watching costs. Symptom first, cause second: what
    follows from a finding is folded under it."""
    job = jobs.get_job(services.store, caller, job_id)
    told = findings.history(services.store, caller, job_id)
    folder = services.folder(job.id)
    health = health_schemas.JobHealth(
        job_id=job.id,
        verdict=job.health.get("verdict", "unknown"),
        sentence=job.health.get("sentence") or "Nothing has been measured yet.",
        findings=[health_schemas.Finding.of(each) for each in job.health.get("findings", ())],
        history=[health_schemas.FindingChange.of(event) for event in told],
        facts=folder.read_document(FACTS) if query.facts else None,
        watching=_watching(job, folder, ProbeReader(folder.probes_path)),
    )
    return json_response(health)


@router.get(
    "/diagnosis",
    summary="Judge a run anew from what was recorded of it",
    responses={**success(health_schemas.Diagnosis, examples.DIAGNOSIS), **of_job()},
)
def read_diagnosis(caller: Viewer, services: Provided, job_id: JobId) -> Response:
    """By the rules of today, from facts, series, probes and what each rank had by itself; with what would have been told while the
    run was going on. All recorded steps are looked at; of a run with more than 16.8 million norms (steps times layers) as
    many as have that many norms: of each stretch the step with the largest. The verdict that was given while it ran stays as it is."""
    job = jobs.get_job(services.store, caller, job_id)
    try:
        record = from_folder(services.folder(job.id))
    except ValueError:  # nothing has been recorded yet
        record = Record(Facts(), Series.of((), no_steps(), none(0), none(0, 0)))
    return json_response(health_schemas.Diagnosis.model_validate({"job_id": job.id, **judged(record)}))


@router.get(
    "/probes",
    summary="Read what was measured of every layer now and then",
    responses={**success(health_schemas.ProbeTable, examples.PROBES), **of_job(400)},
)
def read_probes(caller: Viewer, services: Provided, job_id: JobId, query: Annotated[ProbesQuery, Query()]) -> Response:
    """Steps are looked at closely as often as the job's budget pays for it. One matrix a statistic: a row a step, a column a layer
    or, for ``silent`` and ``saturated``, an activation module. More steps than ``max_points``, or than make a million numbers,
    are thinned evenly; the first and the last stay."""
    query.check()
    job = jobs.get_job(services.store, caller, job_id)
    folder = services.folder(job.id)
    reader = ProbeReader(folder.probes_path)
    wanted = _statistics(query.statistics)
    layers, activations = _columns(reader, query.layers)
    columns = sum(len(layers) if name in STATISTICS else len(activations) for name in wanted)
    most = max(2, min(query.max_points, MOST_NUMBERS // max(1, columns)))
    table = reader.table(evenly(reader.between(query.first_step, query.last_step), most))
    matrices = {
        name: _rows(
            table.layers[:, STATISTICS.index(name)][:, layers]
            if name in STATISTICS
            else table.activations[:, ACTIVATION_STATISTICS.index(name)][:, activations]
        )
        for name in wanted
    }
    return arrays_response(
        {
            "object": "probe_table",
            "job_id": job.id,
            "layers": [reader.names.layers[column] for column in layers],
            "activations": [reader.names.activations[column] for column in activations],
            "steps": table.steps.tolist(),
            "cost_shares": table.cost_shares,
            "statistics": matrices,
            "watching": wire(_watching(job, folder, reader)),
        }
    )


@router.get(
    "/probes/histograms",
    summary="Read how large the elements of a layer's gradient were",
    responses={**success(health_schemas.Histograms, examples.HISTOGRAMS), **of_job(400)},
)
def read_histograms(
    caller: Viewer, services: Provided, job_id: JobId, query: Annotated[HistogramsQuery, Query()]
) -> Response:
    """Of each probed step: the share of the layer's gradient elements, before clipping and those that are exactly 0 left out,
    by powers of two of their absolute value."""
    query.check()
    job = jobs.get_job(services.store, caller, job_id)
    reader = ProbeReader(services.folder(job.id).probes_path)
    steps, shares = np.zeros(0, dtype=np.int64), np.zeros((0, BINS), dtype=np.float32)
    if len(reader):
        if query.layer not in reader.names.layers:
            raise _unknown("layer", query.layer, reader.names.layers)
        positions = evenly(reader.between(query.first_step, query.last_step), query.max_points)
        steps, shares = reader.histograms(positions, reader.names.layers.index(query.layer))
    return arrays_response(
        {
            "object": "gradient_histograms",
            "job_id": job.id,
            "layer": query.layer,
            "lowest": LOWEST,
            "steps": steps.tolist(),
            "shares": np.round(shares, 6),
        }
    )


def _watching(job: Job, folder: JobFolder, reader: ProbeReader) -> health_schemas.Watching:
    last = folder.last_probe_step()
    return health_schemas.Watching(
        share=job.latest.get("watch/cost_share"),
        budget=(job.spec.get("gradients") or {}).get("overhead_budget"),
        probes=len(reader),
        last_probe_step=None if last < 0 else last,
    )


def _statistics(text: str | None) -> list[str]:
    wanted = list(ALL) if text is None else list(dict.fromkeys(filter(None, text.split(","))))
    for name in wanted:
        if name not in ALL:
            raise _unknown("statistics", name, ALL)
    if not wanted:
        raise ApiError(400, "invalid_parameter", "statistics must name at least one.", param="statistics")
    return wanted


def _columns(reader: ProbeReader, text: str | None) -> tuple[list[int], list[int]]:
    """Of layers and of activation modules. While nothing was probed no name is known, and none is wrong."""
    names = reader.names
    if text is None or not len(reader):
        return list(range(len(names.layers))), list(range(len(names.activations)))
    wanted = list(dict.fromkeys(filter(None, text.split(","))))
    for name in wanted:
        if name not in names.layers and name not in names.activations:
            raise _unknown("layers", name, (*names.layers, *names.activations))
    return (
        [names.layers.index(name) for name in wanted if name in names.layers],
        [names.activations.index(name) for name in wanted if name in names.activations],
    )


def _unknown(param: str, name: str, known: tuple[str, ...]) -> ApiError:
    shown = ", ".join(known[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
    return ApiError(400, "invalid_parameter", f"{param}: there is no {shorten(name)}; there are {shown}.", param=param)


def _rows(matrix: NDArray[np.float32]) -> list[Any]:
    """In its own few digits. NaN becomes null by itself, and infinity would."""
    return [
        [nonfinite(float(value)) if np.isinf(value) else value for value in row] if np.isinf(row).any() else row
        for row in np.ascontiguousarray(matrix)
    ]
