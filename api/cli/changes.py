"""Commands that change what becomes of a job."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated

import typer

from api.cli.console import USAGE, HomeOption, JobArgument, JsonOption, err, fail, out, print_json, say, service
from api.cli.follow import show_to_the_end
from api.client import Document


class ResumeFrom(StrEnum):
    LATEST = "latest"
    HEALTHY = "healthy"


def pause(job_id: JobArgument, as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Finish the step, write a checkpoint, free everything; `resume` goes on from there."""
    with service(home) as client:
        _print(client.pause_job(job_id), as_json)


def resume(
    job_id: JobArgument,
    start: Annotated[
        ResumeFrom | None,
        typer.Option(
            "--from",
            help="Which checkpoint; default: the last healthy one after a pause for a critical finding, else the latest",
        ),
    ] = None,
    follow_: Annotated[bool, typer.Option("--follow", "-f", help="Show the job until it has ended")] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Let a paused job go on from its newest checkpoint, or its last healthy one. Exit codes with --follow as those of `submit`."""
    with service(home) as client:
        job = client.resume_job(job_id, start.value if start else None)
        if not follow_:
            _print(job, as_json)
            return
        say(f"{job['id']} was resumed", "", err if as_json else out)
        raise show_to_the_end(client, job_id, as_json)


def update(
    job_id: JobArgument,
    priority: Annotated[int | None, typer.Option(help="Higher starts first", min=-1000, max=1000)] = None,
    workers: Annotated[
        str | None, typer.Option(metavar="N | MIN:MAX", help="How many from now on: 2, or from 1 to 4 as 1:4")
    ] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Takes the place of all metadata; may be repeated")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of a job that runs: at the top of its schedule, from the next step on")
    ] = None,
    clip_norm: Annotated[float | None, typer.Option(help="Of a job that runs: largest global gradient norm")] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Change a job, also while it runs: its group grows or shrinks at the end of a step, without a restart.

    Learning rate and clipping are told as repairs: `repairs` lists them, `undo` takes one back."""
    size = _range(workers) if workers is not None else None
    pairs = _pairs(metadata) if metadata else None
    if all(given is None for given in (priority, size, pairs, learning_rate, clip_norm)):
        raise fail("nothing to change: give --priority, --workers, --metadata, --learning-rate or --clip-norm", USAGE)
    with service(home) as client:
        job = client.update_job(
            job_id,
            priority=priority,
            metadata=pairs,
            workers=size,
            learning_rate=learning_rate,
            clip_norm=clip_norm,
        )
    if as_json:
        print_json(job)
        return
    spec = job["spec"]["workers"]
    wanted = spec["count"] or (f"{spec['min']} to {spec['max']}" if spec["min"] else 1)
    say(f"{job['id']} is {job['status']}, priority {job['priority']}, workers {wanted}")


def cancel(job_id: JobArgument, as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Finish the step, write a checkpoint, end the job."""
    with service(home) as client:
        _print(client.cancel_job(job_id), as_json)


def kill(job_id: JobArgument, as_json: JsonOption = False, home: HomeOption = None) -> None:
    """End the job now; nothing is written."""
    with service(home) as client:
        _print(client.kill_job(job_id), as_json)


def _print(job: Document, as_json: bool) -> None:
    print_json(job) if as_json else say(f"{job['id']} is {job['status']}")


def _range(text: str) -> dict[str, int]:
    found = re.fullmatch(r"([0-9]{1,4})(?::([0-9]{1,4}))?", text, re.ASCII)
    if found is None:
        raise fail(f"--workers {text!r} is neither a number, such as 2, nor a range, such as 1:4", USAGE)
    least, most = found.groups()
    return {"count": int(least)} if most is None else {"min": int(least), "max": int(most)}


def _pairs(given: list[str]) -> dict[str, str]:
    for pair in given:
        if "=" not in pair:
            raise fail(f"--metadata {pair!r} must be KEY=VALUE", USAGE)
    return dict(pair.split("=", 1) for pair in given)
