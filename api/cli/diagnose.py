"""The command that judges a run from what was recorded of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from api.cli.console import USAGE, HomeOption, JsonOption, fail, print_json, say, service
from api.cli.findings import STYLES, show_findings
from api.client import Document
from api.evidence import first_sentence
from api.home import Home

if TYPE_CHECKING:
    from workers.watch.record import Record

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
    if not run.startswith(MLFLOW) and not Path(run).is_dir():
        with service(home) as client:
            return client.diagnosis(run)
    from api.judging import judged  # brings NumPy, which no other command needs

    return judged(_recorded(run, tracking_uri, home))


def _recorded(run: str, tracking_uri: str | None, home: Path | None) -> Record:
    """Of a folder or from MLflow. Raises typer.Exit when there is no such run."""
    from api import judging

    try:
        if run.startswith(MLFLOW):
            return judging.of_mlflow(run.removeprefix(MLFLOW), _mlflow(tracking_uri, home))
        return judging.of_folder(run)
    except ValueError as error:
        raise fail(error) from error


def _mlflow(tracking_uri: str | None, home: Path | None) -> str:
    """Raises typer.Exit where nobody says which."""
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or _own_mlflow(home)
    if not uri:
        raise fail("which MLflow? Give --tracking-uri, or set MLFLOW_TRACKING_URI.", USAGE)
    return uri


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
