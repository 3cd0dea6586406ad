"""What is told of a trial on one worker: by the controller and by a run without a service."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from workers.reports import Level, Outcome

REPORT = "preflight.json"  # in the job's folder


def report_of(outcome: Outcome, seconds: float) -> dict[str, Any]:
    """Of a trial that came to its end; its findings are marked as being of the trial."""
    health = outcome.detail["health"]
    findings = [{**each, "evidence": {**each["evidence"], "preflight": True}} for each in health["findings"]]
    return {
        "verdict": health["verdict"],
        "findings": findings,
        "steps": outcome.detail["steps"],
        "seconds": seconds,
        "untried": None,
    }


def untried(why: str) -> dict[str, Any]:
    return {"verdict": "unknown", "findings": [], "steps": 0, "seconds": None, "untried": why}


def tell(say: Callable[[Level, str, str, Mapping[str, Any]], None], report: Mapping[str, Any]) -> None:
    """``say``: as ``Reporter.event``."""
    if report["untried"] is not None:
        said = f"The trial on one worker was passed over: {report['untried']}."
        say("warning", "preflight.failed", said, {"problem": report["untried"]})
        return
    alarms = [finding for finding in report["findings"] if finding["severity"] != "note"]
    found = (
        f"{len(alarms)} finding{'' if len(alarms) == 1 else 's'}"
        if alarms
        else "nothing is wrong as far as can be seen"
    )
    said = f"{report['steps']} steps were tried on one worker in {report['seconds']:.1f} s: {found}."
    say("info", "preflight.done", said, {name: report[name] for name in ("verdict", "steps", "seconds")})
    for finding in report["findings"]:
        level: Level = "info" if finding["severity"] == "note" else "warning"
        say(level, "preflight.finding", f"{finding['code']}: {finding['explanation']}", finding)
