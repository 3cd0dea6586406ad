"""Commands that tell who worked for a job."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer

from api.cli.console import HomeOption, JobArgument, JsonOption, between, clock, print_json, print_table, say, service
from api.client import Document


def attempts(job_id: JobArgument, as_json: JsonOption = False, home: HomeOption = None) -> None:
    """List the starts of a job on the cluster, how they ended, and what was recovered meanwhile."""
    with service(home) as client:
        page = client.attempts(job_id)
    if as_json:
        print_json(page)
        return
    if not page["data"]:
        say(f"{job_id} has not been started yet", "dim")
        return
    columns = ("attempt", "status", "started (UTC)", "took", "workers", "recoveries", "why")
    print_table(columns, map(_attempt, page["data"]))
    recoveries = [row for attempt in page["data"] for row in _recoveries(attempt)]
    if recoveries:
        say("")
        print_table(("attempt", "lost at (UTC)", "ranks", "back after", "at step", "from", "cause"), recoveries)


def _attempt(attempt: Document) -> tuple[object, ...]:
    return (
        attempt["number"],
        attempt["status"],
        clock(attempt["started_at"]),
        between(attempt["started_at"], attempt["finished_at"]),
        attempt["workers"],
        len(attempt["recoveries"]),
        attempt["reason"]["message"] if attempt["reason"] else "",
    )


def _recoveries(attempt: Document) -> Iterator[tuple[object, ...]]:
    for each in attempt["recoveries"]:
        ranks = ", ".join(map(str, each["ranks"]))
        seconds = f"{each['seconds']:.1f} s"
        yield attempt["number"], clock(each["lost_at"]), ranks, seconds, each["step"], each["source"], each["cause"]


def workers(
    job_id: JobArgument,
    attempt: Annotated[int | None, typer.Option(help="Only those of this attempt", min=1)] = None,
    state: Annotated[str | None, typer.Option(help="Only those that are starting, running, done, lost or left")] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """List all workers that a job has had: who ran where, since when, and why it ended."""
    with service(home) as client:
        page = client.workers(job_id, attempt=attempt, state=state)
    if as_json:
        print_json(page)
        return
    if not page["data"]:
        say(f"{job_id} has no such workers" if attempt or state else f"{job_id} has had no workers yet", "dim")
        return
    columns = ("attempt", "rank", "state", "pid", "node", "device", "since (UTC)", "for", "why it ended")
    print_table(columns, map(_worker, page["data"]))


def _worker(worker: Document) -> tuple[object, ...]:
    at_work = worker["ended_at"] or worker["state"] in ("starting", "running")
    return (
        worker["attempt"],
        worker["rank"],
        worker["state"],
        worker["pid"],
        f"{worker['node']} {(worker['node_id'] or '')[:8]}",
        worker["device"],
        clock(worker["started_at"]),
        between(worker["started_at"], worker["ended_at"]) if at_work else "",
        worker["why"],
    )
