"""The command that judges a run from what was recorded of it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from api.cli.console import USAGE, HomeOption, JsonOption, fail, print_json, say, service
from api.cli.findings import STYLES, show_findings
from api.client import Document
from api.evidence import first_sentence
from api.home import Home
from workers.jobfolder import JobFolder
from workers.tracked_runs import restore
from workers.watch.diagnosis import diagnose as judge
from workers.watch.memory import EVALUATED
from workers.watch.record import Record
from workers.watch.stored import NAMES, from_folder
from workers.watch.watching import timeline

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
    found = _judged(run, tracking_uri, home)
    if as_json:
        print_json(found)
    else:
        say(f"{found['verdict']}: {first_sentence(found['sentence'])}", STYLES.get(found["verdict"], ""))
        show_findings(found["findings"])
        _show_timeline(found["timeline"])
    if found["verdict"] == "critical":
        raise typer.Exit(1)


def _judged(run: str, tracking_uri: str | None, home: Path | None) -> Document:
    """As GET /v1/jobs/{id}/diagnosis answers. Raises typer.Exit when there is no such run."""
    if run.startswith(MLFLOW):
        record = _tracked(run.removeprefix(MLFLOW), tracking_uri, home)
    elif Path(run).is_dir():
        try:
            record = from_folder(JobFolder.at(run))
        except ValueError as error:
            raise fail(error) from error
    else:
        with service(home) as client:
            return client.diagnosis(run)
    return judge(record).as_dict() | {"timeline": [asdict(entry) for entry in timeline(record)]}


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


def _show_timeline(told: Sequence[Document]) -> None:
    if told:
        say("")
        say("While it ran it would have been told:", "dim")
    for entry in told:
        finding = entry["finding"]
        say(f"  step {entry['step']:>8}  {entry['event']:8} {finding['code']} ({finding['severity']})")
