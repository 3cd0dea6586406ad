"""What was found in a job: the verdict with all its findings, and findings that come and pass, as they do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import typer

from api import evidence
from api.cli.console import FollowOption, HomeOption, JobArgument, JsonOption, clock, print_json, say, service
from api.client import Document
from workers.watch.told import CHANGES, CLEARED

STYLES = {"healthy": "green", "warning": "yellow", "critical": "red"}


def health(
    job_id: JobArgument, follow_: FollowOption = False, as_json: JsonOption = False, home: HomeOption = None
) -> None:
    """Show the verdict on a job, its findings with evidence and what helps, and what the watching costs. Exit 1 when critical.

    With --follow: findings as they come and pass, until the job has ended."""
    with service(home) as client:
        found = client.health(job_id)
        print_json(found) if as_json else show_health(found)
        if follow_:
            seen = found["history"][-1]["sequence"] if found["history"] else None
            for event in client.follow_events(job_id, None if seen is None else str(seen)):
                if event["type"] in CHANGES:
                    print_json(event) if as_json else say_change(event)
            found = client.health(job_id, facts=False)
    if found["verdict"] == "critical":
        raise typer.Exit(1)


def show_health(health: Document) -> None:
    say(f"{health['verdict']}: {evidence.first_sentence(health['sentence'])}", STYLES.get(health["verdict"], ""))
    show_findings(health["findings"])
    if health["history"]:
        say("")
        say("What came and passed:", "dim")
    for change in health["history"]:
        step = "" if change["step"] is None else f"step {change['step']}"
        finding = change["finding"]
        say(f"  {clock(change['at'])}  {step:>10}  {change['event']:8} {finding['code']} ({finding['severity']})")
    say("")
    say(evidence.cost(health["watching"]), "dim")


def show_findings(findings: Iterable[Mapping[str, Any]]) -> None:
    """Each with where it is, what it means, its evidence beside what is healthy, and what helps."""
    for finding in findings:
        say("")
        say(f"{finding['code']} ({finding['severity']}), {_where(finding)}", "bold")
        say(f"  {finding['explanation']}")
        for line in evidence.shown(finding):
            healthy = f"  (healthy: {line.healthy})" if line.healthy else ""
            say(f"  {line.label + ':':40} {line.value}{healthy}", "dim")
        say(f"  What helps: {finding['suggestion']}")
        if finding["consequences"]:
            say(f"  Follows from it: {', '.join(finding['consequences'])}", "dim")


def say_change(event: Document, **where: Any) -> None:
    """A finding that was raised, in two lines, or that has passed, in one. ``where``: the console."""
    data = event["data"]
    finding, step = data.get("finding", data), data.get("step")
    at = f"step {step}: " if step else ""
    if event["type"] == CLEARED:
        say(f"{at}{finding['code']} has passed", "green", **where)
        return
    style = STYLES.get(finding["severity"], "dim")
    said = evidence.first_sentence(finding["explanation"])
    say(f"{at}{finding['code']} ({finding['severity']}), {_where(finding)}: {said}", style, **where)
    say(f"  What helps: {finding['suggestion']}", style, **where)


def _where(finding: Mapping[str, Any]) -> str:
    step, layer, rank = finding["first_bad_step"], finding.get("layer"), finding.get("rank")
    parts = [f"first at step {step}" if step else "before the first step", f"layer {layer}" if layer else None]
    return ", ".join(filter(None, [*parts, None if rank is None else f"rank {rank}"]))
