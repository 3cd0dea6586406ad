"""Records of runs that were written to disk: what a job folder holds of a run. What was not written is unknown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.gradient_files import GradientReader
from workers.jobfolder import FACTS, JobFolder
from workers.watch.facts_json import from_json, uncleared_in
from workers.watch.memory import EVALUATED
from workers.watch.probe_files import read_probes
from workers.watch.rank_files import read_ranks
from workers.watch.record import Checksums, Evaluations, Facts, Floats, Probes, Ranks, Record, Series, Steps, none
from workers.watch.told import Told

NAMES = (
    "train/loss",
    "train/learning_rate",
    "gradient/norm",
    "gradient/norm_clipped",
    "train/step_seconds",
    "train/data_wait_seconds",
)

# Norms of layers that a judgement takes up, 128 MiB as float64: of 25 layers every step of a run of 670,000, of 300 layers of 55,000.
MOST_NORMS = 1 << 24

Table = tuple[Steps, Floats]  # (S,) each


def from_folder(folder: JobFolder) -> Record:
    """Of a run with more norms than ``MOST_NORMS`` the steps are judged that have the largest of each stretch.

    Raises ValueError when nothing of a job is there.
    """
    series = {name: (each.steps, each.values) for name, each in folder.series().items()}
    if not series and folder.read_document("job.json") is None:
        raise ValueError(f"{folder.path} holds no job: neither job.json nor metrics/attempt-*.jsonl is there.")
    norms = GradientReader(folder.gradients_path)
    most = max(1, MOST_NORMS // max(1, len(norms.layers)))
    matrix = norms.read(norms.largest_of_each_stretch(norms.between(None, None), most))
    record = _record(series, matrix.layers, matrix.steps, matrix.norms, folder.read_document("job.json"))
    facts = folder.read_document(FACTS)
    ranks, checksums = read_ranks(folder.ranks_path) or (Ranks(), Checksums())
    told = Told(folder.path / "events")
    told.read()
    whole = replace(
        record,
        facts=record.facts if facts is None else _seen(facts, record.facts),
        probes=read_probes(folder.probes_path) or Probes(),
        ranks=ranks,
        checksums=checksums,
        uncleared=None if facts is None else uncleared_in(facts),
    )
    return living(whole, told.repairs)


def living(record: Record, repairs: Sequence[Mapping[str, Any]]) -> Record:
    """Without what ``repairs``, as they were told, have left behind: of a run that is judged while it trains neither is part of it."""
    origins = [0]
    for repair in repairs:
        act = repair["act"]
        if "origin" in repair:  # of a script, which goes on with the weights that it has
            origins.append(max(origins[-1], repair["origin"]))
            continue
        back = act["step"] if repair["state"] == "undone" else None
        back = back if repair.get("returned") is None else repair["returned"]
        if back is not None:  # what was before it came back
            record = record.without(back, repair["ended"])
            origins = [origin for origin in origins if origin < back or origin == 0]
        elif act["patches"] is not None:
            origins.append(act["step"])
        elif act["rewind"] is not None:
            record = record.without(act["rewind"], act["step"])
    if not repairs:
        return record
    last = int(record.series.steps[-1]) if len(record.series.steps) else 0
    longer = max(record.facts.total_steps or 0, last)  # it made up for what was lost
    record = replace(record, facts=replace(record.facts, total_steps=longer))
    return record.since(origins[-1]) if origins[-1] else record


def _seen(document: Mapping[str, Any], said: Facts) -> Facts:
    """What was seen counts; how long the run is to be, a script may not have known."""
    seen = from_json(document)
    return replace(
        seen, total_steps=seen.total_steps or said.total_steps, warmup_steps=max(seen.warmup_steps, said.warmup_steps)
    )


def _record(
    series: Mapping[str, Table],
    layers: tuple[str, ...],
    at: Steps,
    norms: NDArray[np.float32] | Floats,
    spec: Any,
) -> Record:
    steps, losses = series.get("train/loss", (np.zeros(0, dtype=np.int64), none(0)))
    known = {name: _on(steps, series.get(name)) for name in NAMES}
    if not layers and "gradient/norm" in series:  # the norm over all layers is better than none
        layers, at, norms = ("all layers",), series["gradient/norm"][0], series["gradient/norm"][1][:, None]
    _, here, there = np.intersect1d(steps, at, assume_unique=True, return_indices=True)
    if len(here) >= 20:  # Rules look at rows with everything; norms may have been kept of some steps only.
        rows, per_layer = here, norms[there].astype(np.float64)
    else:
        rows, per_layer = np.arange(len(steps)), none(len(steps), len(layers))
        per_layer[here] = norms[there]
    whole = known["gradient/norm"]
    with np.errstate(invalid="ignore", divide="ignore"):
        factors = np.where(whole > 0, known["gradient/norm_clipped"] / whole, 1.0)
    return Record(
        facts_of(spec),
        Series(
            layers, steps[rows], losses[rows], per_layer, known["train/learning_rate"][rows], factors[rows],
            known["train/step_seconds"][rows], known["train/data_wait_seconds"][rows],
        ),
        evaluations=_evaluations(series),
    )  # fmt: skip


def _on(steps: Steps, table: Table | None) -> Floats:
    found = none(len(steps))
    if table is not None:
        _, here, there = np.intersect1d(steps, table[0], assume_unique=True, return_indices=True)
        found[here] = table[1][there]
    return found


def _evaluations(series: Mapping[str, Table]) -> Evaluations:
    found = {name.removeprefix(EVALUATED): table for name, table in series.items() if name.startswith(EVALUATED)}
    if not found:
        return Evaluations()
    steps = np.unique(np.concatenate([table[0] for table in found.values()]))
    return Evaluations(steps, {name: _on(steps, table) for name, table in found.items()})


def facts_of(spec: Mapping[str, Any] | None) -> Facts:
    """What the job's specification alone says."""
    if spec is None:
        return Facts()
    optimizer, schedule = spec.get("optimizer") or {}, spec.get("schedule") or {}
    return Facts(
        total_steps=(spec.get("training") or {}).get("steps"),
        warmup_steps=schedule.get("warmup_steps") or 0,
        optimizer=optimizer.get("name"),
        learning_rate=optimizer.get("learning_rate"),
        weight_decay=optimizer.get("weight_decay"),
    )
