"""Training without Ray, MLflow and the service: one process, or several under torchrun."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from workers import process_group
from workers.acting import Acting, accept, accepted
from workers.data_checks.run import check, to_be_checked
from workers.data_checks.telling import REPORT, tell
from workers.gradient_files import GradientWriter
from workers.jobfile import JobFileError, read_job_file
from workers.jobfolder import JobFolder, append_lines, encode
from workers.membership import Alone
from workers.preflight import telling as preflight
from workers.preflight.run import probe
from workers.problems import SpecError
from workers.reports import Level, Outcome, Progress, ReasonCode, Reporter
from workers.sources.problems import BadDataError
from workers.spec import JobSpec, code_of, parse_spec, read_from
from workers.train import RunContext, train
from workers.user_code import provide
from workers.watch.probe_files import ProbeWriter
from workers.watch.rank_files import RankWriter


class FolderReporter:
    """Prints what a person wants to see and writes the same files as the service does."""

    def __init__(self, folder: JobFolder) -> None:
        self._folder = folder
        self._gradients = GradientWriter(folder.gradients_path, 1)
        self._probes = ProbeWriter(folder.probes_path, 1)
        self._ranks = RankWriter(folder.ranks_path, 1)
        self._events = 0
        self._loss = float("nan")
        self._printed_at = 0.0

    def metrics(self, step: int, values: Mapping[str, float], timestamp: float) -> None:
        row = {"step": step, "timestamp": timestamp, "values": {key: encode(value) for key, value in values.items()}}
        append_lines(self._folder.metrics_path(1), [row])
        self._loss = values.get("train/loss", self._loss)

    def gradients(self, layers: Sequence[str], rows: Sequence[tuple[int, Sequence[float]]]) -> None:
        self._gradients.append(layers, rows)

    def probes(self, layers: Sequence[str], activations: Sequence[str], rows: Sequence[tuple[int, str]]) -> None:
        self._probes.append(layers, activations, [row for _, row in rows])

    def ranks(self, rows: Sequence[str]) -> None:
        self._ranks.append(rows, after=-1)

    def progress(self, progress: Progress) -> None:
        if time.monotonic() - self._printed_at < 2.0:
            return
        self._printed_at = time.monotonic()
        print(
            f"step {progress.step}/{progress.steps or '?'}  loss {self._loss:.4g}  "
            f"{progress.samples_per_second or 0:.0f} samples/s  {progress.eta_seconds or 0:.0f} s left",
            flush=True,
        )

    def event(self, level: Level, type: str, message: str, data: Mapping[str, Any] | None = None) -> None:
        self._events += 1
        row = {"sequence": self._events, "timestamp": time.time(), "level": level, "type": type}
        append_lines(
            self._folder.events_path(1), [row | {"message": message, "data": dict(data or {}), "source": None}]
        )
        print(message, flush=True)


class SilentReporter:
    """For the ranks that have nothing to say."""

    def metrics(self, step: int, values: Mapping[str, float], timestamp: float) -> None: ...

    def gradients(self, layers: Sequence[str], rows: Sequence[tuple[int, Sequence[float]]]) -> None: ...

    def probes(self, layers: Sequence[str], activations: Sequence[str], rows: Sequence[tuple[int, str]]) -> None: ...

    def ranks(self, rows: Sequence[str]) -> None: ...

    def progress(self, progress: Progress) -> None: ...

    def event(self, level: Level, type: str, message: str, data: Mapping[str, Any] | None = None) -> None: ...


def main(arguments: Sequence[str] | None = None) -> int:
    """0: trained to the end; 1: did not succeed; 2: the job file cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m workers.train", description="Train one job file, without the service."
    )
    parser.add_argument("job", type=Path, help="job file, YAML or JSON")
    parser.add_argument(
        "--output", type=Path, help="folder for checkpoints, metrics and the model (default: outputs/<name>)"
    )
    given = parser.parse_args(arguments)
    try:
        document = read_job_file(given.job)
        spec = parse_spec(document)
        assert isinstance(document, dict)
        spec = parse_spec(read_from(str(given.job.resolve().parent), document, spec))
    except (JobFileError, SpecError) as error:
        for problem in getattr(error, "problems", [error]):
            print(f"error: {problem}", file=sys.stderr)
        return 2
    rank, world_size, local_rank = process_group.environment_rank()
    folder = JobFolder.at(given.output or Path("outputs") / _folder_name(spec))
    if rank == 0:
        folder.create(spec.model_dump_json())
    context = RunContext(
        device=process_group.choose_device(local_rank, spec.workers.gpus),
        reporter=FolderReporter(folder) if rank == 0 else SilentReporter(),
        link=Alone(rank, world_size),
        checkpoints=folder.checkpoints_root,
        model_folder=folder.model_path,
        artifacts_folder=folder.artifacts_path,
        accepted=accepted(folder),
    )
    try:
        if (code := code_of(spec)) is not None:
            context = replace(context, code=provide(code, None, folder.code_path))
        stopped = _check_data(spec, folder, context.reporter) if rank == 0 and to_be_checked(spec) else None
        if stopped is None and world_size == 1 and spec.health.preflight:
            stopped = _try(spec, folder, context)
        if stopped is not None:
            accept(folder, stopped)
            print(f"{stopped.code}: {stopped.message}")
            return 1
        outcome = train(spec, context)
    except BadDataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if rank == 0:
        accept(folder, outcome)
        metrics = ", ".join(
            f"{key} {value:.4g}"
            for key, value in outcome.detail["metrics"].items()
            if key.startswith(("eval/", "test/"))
        )
        print(f"{outcome.code}: {outcome.message}. {metrics}. Everything is in {folder.path}.")
    return 0 if outcome.code in (ReasonCode.COMPLETED, ReasonCode.EARLY_STOPPED) else 1


def _check_data(spec: JobSpec, folder: JobFolder, reporter: Reporter) -> Outcome | None:
    """An Outcome when what was found stops the job."""
    began = time.monotonic()
    found = check(spec).document()
    if found["problem"] is not None:
        raise BadDataError(*found["problem"])
    folder.write_document(REPORT, found)
    tell(reporter.event, found, time.monotonic() - began)
    return Acting(spec.health.on_critical, accepted(folder)).stops(found["findings"], "before the first step")


def _try(spec: JobSpec, folder: JobFolder, context: RunContext) -> Outcome | None:
    """Some steps before the training; under torchrun there are none, because the group is taken already. An Outcome when what they show stops the
    job."""
    began = time.monotonic()
    quiet = replace(context, reporter=SilentReporter(), link=Alone(0, 1))
    found = preflight.report_of(probe(spec, quiet), time.monotonic() - began)
    folder.write_document(preflight.REPORT, found)
    preflight.tell(context.reporter.event, found)
    return Acting(spec.health.on_critical, context.accepted).stops(found["findings"], "before its training began")


def _folder_name(spec: JobSpec) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in spec.name)
