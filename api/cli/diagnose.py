"""The command that judges a run from what was recorded of it."""

from __future__ import annotations

import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from api.cli.console import USAGE, HomeOption, JsonOption, fail, print_json, say, service
from api.cli.findings import STYLES, show_findings
from api.evidence import first_sentence
from api.home import Home
from workers.jobfolder import JobFolder
from workers.tracked_runs import restore
from workers.watch.diagnosis import diagnose as judge
from workers.watch.record import Record
from workers.watch.stored import EVALUATED, NAMES, from_documents, from_folder
from workers.watch.watching import Entry, timeline

POINTS = 10_000  # the API's most
MLFLOW = "mlflow:"


def diagnose(
    run: Annotated[str, typer.Argument(help="Id of a job, a job's folder, or mlflow:RUN_ID")],
    as_json: JsonOption = False,
    home: HomeOption = None,
    tracking_uri: Annotated[
        str | None, typer.Option(help="Of MLflow, for mlflow:RUN_ID [$MLFLOW_TRACKING_URI, else this installation's]")
    ] = None,
) -> None:
    """Judge a run from what was recorded of it: verdict, findings with evidence, and when each would have been told. Exit 1 when critical."""
    record = _tracked(run.removeprefix(MLFLOW), tracking_uri, home) if run.startswith(MLFLOW) else _recorded(run, home)
    judgement, told = judge(record), timeline(record)
    if as_json:
        print_json(judgement.as_dict() | {"timeline": [asdict(entry) for entry in told]})
    else:
        say(f"{judgement.verdict}: {first_sentence(judgement.sentence)}", STYLES.get(judgement.verdict, ""))
        show_findings(map(asdict, judgement.findings))
        _show_timeline(told)
    if judgement.verdict == "critical":
        raise typer.Exit(1)


def _recorded(run: str, home: Path | None) -> Record:
    """Raises typer.Exit when there is no such run."""
    if Path(run).is_dir():
        try:
            return from_folder(JobFolder.at(run))
        except ValueError as error:
            raise fail(error) from error
    with service(home) as client:
        job = client.get_job(run)
        known = {series["key"] for series in client.metrics(run, max_points=4)["data"]}
        wanted = [key for key in sorted(known) if key in NAMES or key.startswith("eval/")]
        page = client.metrics(run, keys=",".join(wanted), max_points=POINTS) if wanted else {"data": []}
        return from_documents(job, page, client.gradients(run, max_points=POINTS))


def _tracked(run_id: str, tracking_uri: str | None, home: Path | None) -> Record:
    """From MLflow alone. Raises typer.Exit when there is no such run."""
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or _own_mlflow(home)
    if not uri:
        raise fail("which MLflow? Give --tracking-uri, or set MLFLOW_TRACKING_URI.", USAGE)
    with tempfile.TemporaryDirectory() as folder:
        try:
            return from_folder(
                restore(run_id, uri, Path(folder), lambda key: key in NAMES or key.startswith(EVALUATED))
            )
        except ValueError as error:
            raise fail(error) from error


def _own_mlflow(home: Path | None) -> str | None:
    """That of the service which runs here, if one does."""
    running = Home(home).service()
    return running.mlflow_url if running is not None else None


def _show_timeline(told: list[Entry]) -> None:
    if told:
        say("")
        say("While it ran it would have been told:", "dim")
    for entry in told:
        say(f"  step {entry.step:>8}  {entry.event:8} {entry.finding.code} ({entry.finding.severity})")
