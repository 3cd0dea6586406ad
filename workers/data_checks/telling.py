"""What is told of a look at data: by the controller and by a run without a service."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from workers.reports import Level

REPORT = "data.json"  # in the job's folder


def tell(say: Callable[[Level, str, str, Mapping[str, Any]], None], report: Mapping[str, Any], seconds: float) -> None:
    """The events of a look: what there is, or why nothing was looked at, and each finding. ``say``: as ``Reporter.event``."""
    findings: Sequence[Mapping[str, Any]] = report["findings"]
    looked = bool(report["sentence"])
    said = [report["sentence"]] if looked else []
    if report["unchecked"]:
        said.append(f"The data was not checked{' completely' if looked else ''}: {report['unchecked']}.")
    elif not findings:
        said.append("Nothing is wrong with it as far as can be seen.")
    data: dict[str, Any] = {"summary": report["summary"], "seconds": seconds, "findings": len(findings)}
    if report["unchecked"]:
        data["unchecked"] = report["unchecked"]
    say("info", "data.checked" if looked else "data.unchecked", " ".join(said), data)
    for each in findings:
        level: Level = "info" if each["severity"] == "note" else "warning"
        say(level, "data.finding", f"{each['explanation']} {each['suggestion']}", each)


def unchecked(why: str) -> dict[str, Any]:
    return {"sentence": "", "summary": {}, "findings": [], "unchecked": why, "problem": None}
