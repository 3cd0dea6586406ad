"""Commands that post jobs and look at them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from api.cli.console import (
    FollowOption,
    HomeOption,
    JobArgument,
    JsonOption,
    duration,
    err,
    number,
    out,
    print_json,
    print_table,
    say,
    service,
)
from api.cli.follow import AT_WORK, show_to_the_end, summary
from api.cli.submission import read_job
from api.client import Document

CodeOption = Annotated[
    str | None,
    typer.Option(
        "--code",
        help="Folder, or git+https://host/repository@revision, with the job's code; instead of what the file says",
    ),
]


def submit(
    file: Annotated[Path, typer.Argument(help="Job file, YAML or JSON")],
    follow_: Annotated[bool, typer.Option("--follow", "-f", help="Show the job until it has ended")] = False,
    code: CodeOption = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Post a job; code that its file names by a relative path or a git address is uploaded before.

    With --follow: exit 0 when it succeeded, 1 when not, 4 when it was paused, 130 when Ctrl-C ended the following."""
    submission = read_job(file, code)
    with service(home) as client:
        job = submission.post(client)
        if not follow_:
            print_json(job) if as_json else say(f"{job['id']} is {job['status']}")
            return
        say(f"{job['id']} was accepted", "", err if as_json else out)
        raise show_to_the_end(client, job["id"], as_json)


def jobs(
    limit: Annotated[int, typer.Option(help="How many", min=1, max=100)] = 20,
    status: Annotated[str | None, typer.Option(help="Only jobs of this status")] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """List jobs, newest first."""
    with service(home) as client:
        page = client.list_jobs(limit=limit, status=status)
    if as_json:
        print_json(page)
        return
    columns = ("job", "name", "status", "step", "loss", "left", "gradients")
    print_table(columns, map(_cells, page["data"]))


def _cells(job: Document) -> tuple[object, ...]:
    progress = job["progress"] or {}
    return (
        job["id"],
        job["name"],
        job["status"],
        f"{progress['step']}/{progress['steps'] or '?'}" if progress else "",
        number(job["latest"].get("train/loss", "")),
        duration(progress["eta_seconds"]) if progress.get("eta_seconds") and job["status"] in AT_WORK else "",
        job["health"].get("verdict", ""),
    )


def show(job_id: JobArgument, as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Show one job: how far it is, or how it ended, and where its results are."""
    with service(home) as client:
        job = client.get_job(job_id)
        print_json(job) if as_json else summary(client, job)


def events(
    job_id: JobArgument, follow_: FollowOption = False, as_json: JsonOption = False, home: HomeOption = None
) -> None:
    """Print what happened to a job."""
    with service(home) as client:
        found = client.follow_events(job_id) if follow_ else _all_events(client, job_id)
        for event in found:
            if as_json:
                print_json(event)
            else:
                say(f"{event['created_at']}  {event['level']:7}  {event['type']:20}  {event['message']}")


def _all_events(client: Any, job_id: str) -> Any:
    after: str | None = None
    while True:
        page = client.events(job_id, after=after)
        yield from page["data"]
        if not page["has_more"]:
            return
        after = page["last_id"]


def logs(
    job_id: JobArgument,
    follow_: FollowOption = False,
    rank: Annotated[int | None, typer.Option(help="Only this worker", min=0)] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Print what the workers of a job printed."""
    with service(home) as client:
        found = client.follow_logs(job_id, rank) if follow_ else _all_logs(client, job_id, rank)
        for line in found:
            if as_json:
                print_json(line)
            else:
                say(f"{line['timestamp'] or ''} rank {line['rank']}: {line['text']}")


def _all_logs(client: Any, job_id: str, rank: int | None) -> Any:
    after: str | None = None
    while True:
        page = client.logs(job_id, rank=rank, after=after)
        yield from page["data"]
        if not page["has_more"]:
            return
        after = page["last_id"]


def metrics(
    job_id: JobArgument,
    keys: Annotated[str | None, typer.Option(help="Series, separated by commas (default: all)")] = None,
    points: Annotated[int, typer.Option(help="At most so many points a series", min=2, max=10000)] = 20,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Print the series of a job."""
    with service(home) as client:
        page = client.metrics(job_id, keys=keys, max_points=points)
    if as_json:
        print_json(page)
        return
    for series in page["data"]:
        say(series["key"], "bold")
        for point in series["points"]:
            say(f"  {point['step']:>8}  {number(point['value'], 6)}")
