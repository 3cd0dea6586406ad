"""What was done to a job that failed, and undoing it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from api.cli.console import HomeOption, JobArgument, JsonOption, print_json, say, service
from api.client import Document
from api.repair_words import state_of

STYLES = {"kept": "green", "trial": "yellow", "set_aside": "yellow", "taken_back": "dim", "undone": "dim"}


def repairs(job_id: JobArgument, as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Show what was changed of a job while it trained: what it answers, what was done, and what the run showed before and after."""
    with service(home) as client:
        found = client.repairs(job_id)
    print_json(found) if as_json else show_repairs(found)


def show_repairs(found: Document) -> None:
    if not found["repairs"]:
        allowed = ", ".join(found["allow"])
        may = (
            f"; it may change: {allowed}" if allowed else "; nothing is changed by itself unless health.mode is repair"
        )
        say(f"Nothing was changed (health.mode {found['mode']}{may}).")
    for each in found["repairs"]:
        say(f"{each['number']}. after step {each['step']}, {state_of(each)}", STYLES[each["state"]])
        say(f"   {each['code']}: {each['words']}")
        if each["before"] or each["after"]:
            say(f"   {_shown(each['before'])} before; {_shown(each['after']) or 'not judged yet'} after", "dim")
    if found["lost_steps"]:
        saved = f"; {_hours(found['saved_worker_hours'])} were saved" if found["saved_worker_hours"] else ""
        say(
            f"{found['lost_steps']} steps were lost to it, {_hours(found['lost_worker_hours'])} of workers' time{saved}.",
            "dim",
        )
    if found["skipped_updates"]:
        say(f"{found['skipped_updates']} updates were left out, because their gradient was no number.")
    for sentence in found["not_repaired"]:
        say(sentence, "yellow")


def undo(
    job_id: JobArgument,
    number: Annotated[int, typer.Argument(min=1, help="Of the repair, as `repairs` shows it")],
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Bring weights, moments, rate and clipping of a running job back to what they were before a repair, after its next step."""
    with service(home) as client:
        asked = client.undo_repair(job_id, number)
    print_json(asked) if as_json else say(f"asked {job_id} to undo repair {number}; an event tells when it is done")


def _shown(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_number(value)}" for name, value in values.items())


def _hours(hours: float) -> str:
    return (
        f"{hours:.1f} hours"
        if hours >= 1
        else f"{hours * 60:.1f} minutes"
        if hours * 60 >= 1
        else f"{hours * 3600:.0f} seconds"
    )


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
