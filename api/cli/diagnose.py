"""The command that judges a run from what was recorded of it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from api.cli.console import HomeOption, JsonOption, fail, print_json, say, service
from api.cli.findings import STYLES, show_findings
from api.evidence import first_sentence
from workers.jobfolder import JobFolder
from workers.watch.diagnosis import diagnose as judge
from workers.watch.record import Record
from workers.watch.stored import NAMES, from_documents, from_folder
from workers.watch.watching import Entry, timeline

POINTS = 10_000  # the API's most


def diagnose(
    run: Annotated[str, typer.Argument(help="Id of a job, or a job's folder")],
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Judge a run from what was recorded of it: verdict, findings with evidence, and when each would have been told. Exit 1 when critical."""
    record = _recorded(run, home)
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


def _show_timeline(told: list[Entry]) -> None:
    if told:
        say("")
        say("While it ran it would have been told:", "dim")
    for entry in told:
        say(f"  step {entry.step:>8}  {entry.event:8} {entry.finding.code} ({entry.finding.severity})")
