"""Samples that a job leaves out."""

from __future__ import annotations

from typing import Annotated

import typer

from api.cli.console import HomeOption, JobArgument, JsonOption, print_json, say, service
from api.client import Document

SAMPLE = "SAMPLE"


def quarantine(
    job_id: JobArgument,
    leave_out: Annotated[
        list[str] | None,
        typer.Option(metavar=SAMPLE, help="Index in the training set, or a name as `step` shows it; may be repeated"),
    ] = None,
    take_in: Annotated[
        list[str] | None, typer.Option(metavar=SAMPLE, help="One that is left out, again; may be repeated")
    ] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Show the samples that a job leaves out; or leave out more, or take some in again, from its next step on."""
    with service(home) as client:
        if leave_out or take_in:
            asked = client.change_quarantine(job_id, leave_out=_samples(leave_out), take_in=_samples(take_in))
            print_json(asked) if as_json else say(f"asked {job_id}; an event tells when it is done")
            return
        found = client.quarantine(job_id)
    print_json(found) if as_json else _show(found)


def _show(found: Document) -> None:
    if not found["left_out"]:
        say("No sample is left out.")
        return
    of = f" of {found['samples']:,}" if found["samples"] is not None else ""
    say(f"{len(found['left_out'])}{of} training samples are left out.")
    for each in found["left_out"]:
        name = f", {each['name']}" if each["name"] is not None else ""
        since = f"since step {each['since_step']}, repair {each['repair']}" if each["repair"] else "from the start"
        say(f"{each['sample']}{name}: {since}")


def _samples(given: list[str] | None) -> list[int | str]:
    """Digits are an index."""
    return [int(each) if each.isascii() and each.isdecimal() else each for each in given or ()]
