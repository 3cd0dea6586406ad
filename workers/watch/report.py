"""What a run's findings look like outside: a page for people, and the tags by which runs are found. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from html import escape
from typing import Any

# MLflow 3 refuses values beyond 8,000 characters (MAX_TAG_VAL_LENGTH of mlflow/utils/validation.py), servers of version 2 beyond 5,000.
TAG_CHARACTERS = 5000
SHOWN_PAST = 50  # findings on the page
VALUE_CHARACTERS = 300  # of evidence on the page

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #1c2530; background: #fff }
h1 { font-size: 1.4em } h2 { font-size: 1.15em; margin-top: 2em } h3 { font-size: 1em; margin: 0 0 .3em }
section { border: 1px solid #d5dbe3; border-left-width: 5px; border-radius: 4px; padding: .8em 1em; margin: 1em 0 }
.critical { border-left-color: #c22f2f } .warning { border-left-color: #c98a00 } .note { border-left-color: #7b8794 }
.past { background: #f4f6f8 } .where { color: #5a6675 } p { margin: .4em 0 }
table { border-collapse: collapse; font-size: 13px } td, th { text-align: left; vertical-align: top; padding: .1em 1em .1em 0 }
"""


def tags(health: Mapping[str, Any]) -> dict[str, str]:
    """verdict, findings (codes with commas), first_bad_step and sentence; empty where there is none, so that an old one does not stay."""
    found = health.get("findings", ())
    alarms = [finding for finding in found if finding["severity"] != "note"]
    codes = list(dict.fromkeys(str(finding["code"]) for finding in found))
    while len(",".join(codes)) > TAG_CHARACTERS:
        codes.pop()
    return {
        "chainrule.verdict": str(health.get("verdict", "unknown")),
        "chainrule.findings": ",".join(codes),
        "chainrule.first_bad_step": str(alarms[0]["first_bad_step"]) if alarms else "",
        "chainrule.sentence": shortened(str(health.get("sentence", "")), TAG_CHARACTERS),
    }


def shortened(text: str, characters: int) -> str:
    return text if len(text) <= characters else f"{text[: characters - 3]}..."


def page(name: str, document: Mapping[str, Any], files: Iterable[tuple[str, str]]) -> str:
    """HTML without scripts and without anything from elsewhere. ``document``: of ``told.findings_document``.

    ``name`` is the job's; ``files`` are others of the run, with what is in them.
    """
    opened = [finding for finding in document["findings"] if finding["state"] == "open"]
    past = [finding for finding in document["findings"] if finding["state"] == "past"]
    left_out = document["left_out"] + max(0, len(past) - SHOWN_PAST)
    parts = [
        f"<h1>{escape(name)}: {escape(document['verdict'])}</h1>",
        f"<p>{escape(document['sentence'])}</p>",
        "<h2>Open findings</h2>" if opened else "<p>No finding is open.</p>",
        *map(_card, opened),
        "<h2>Past findings</h2>" if past else "",
        *map(_card, past[:SHOWN_PAST]),
        f"<p>{left_out} earlier ones are not shown.</p>" if left_out else "",
        "<h2>Where the numbers are</h2><table>",
        *(f"<tr><td><code>{escape(file)}</code></td><td>{escape(what)}</td></tr>" for file, what in files),
        "</table>",
    ]
    body = "\n".join(part for part in parts if part)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(name)}</title>'
        f"<style>{STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def _card(finding: Mapping[str, Any]) -> str:
    step = finding["first_bad_step"]
    where = [f"from step {step}" if step else "before the first step"]
    if finding.get("layer"):
        where.append(f"layer {finding['layer']}")
    if finding.get("rank") is not None:
        where.append(f"rank {finding['rank']}")
    where += [
        f"{word} {_time(finding[word]['at'])} in attempt {finding[word]['attempt']}"
        for word in ("raised", "cleared")
        if finding.get(word)
    ]
    rows = "".join(
        f"<tr><td>{escape(str(key))}</td><td>{escape(shortened(_text(value), VALUE_CHARACTERS))}</td></tr>"
        for key, value in (finding.get("evidence") or {}).items()
    )
    follows = ", ".join(map(str, finding.get("consequences") or ()))
    classes = f"{finding['severity']} {finding['state']}"
    return "\n".join(
        [
            f'<section class="{escape(classes)}"><h3>{escape(finding["code"])} ({escape(finding["severity"])})</h3>',
            f'<p class="where">{escape(", ".join(where))}</p>',
            f"<p>{escape(finding['explanation'])}</p>",
            f"<p>{escape(finding['suggestion'])}</p>",
            f"<p>Follows from it: {escape(follows)}</p>" if follows else "",
            f"<table>{rows}</table>" if rows else "",
            "</section>",
        ]
    )


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
