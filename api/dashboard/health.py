"""What the watching of a job has found: the verdict on top of its page, and a tab with every finding, what came and passed, and the facts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml
from nicegui import ui

from api import evidence
from api.dashboard import figures
from api.dashboard.frame import HEALTH_COLOURS, Frame
from api.dashboard.gateway import Gateway
from api.dashboard.repairs import Repairs

ICONS = {"healthy": "check_circle", "warning": "warning", "critical": "error"}
Look = Callable[[int], None]  # shows the curves around a step


class Verdict:
    """One sentence on top of the page; what there is to read is a click away."""

    def __init__(self, show_findings: Callable[[], object]) -> None:
        with ui.row().classes("w-full items-center no-wrap gap-2 q-pa-sm rounded-borders") as self._row:
            self._icon = ui.icon("help", size="sm")
            self._said = ui.label().classes("text-body1 grow").style("min-width: 0")
            self._more = ui.button(on_click=show_findings).props("flat dense no-caps").classes("shrink-0")
        self._row.visible = False

    def show(self, job: dict[str, Any]) -> None:
        health = job["health"]
        verdict = health.get("verdict")
        findings = health.get("findings", [])
        self._row.visible = verdict is not None
        if verdict is None:
            return
        colour = HEALTH_COLOURS.get(verdict, "grey")
        self._icon.props(f"name={ICONS.get(verdict, 'help')} color={colour}")
        said = evidence.first_sentence(health.get("sentence", "")) or "Nothing has been measured yet."
        self._said.text = said
        self._row.style(f"border-left: 4px solid var(--q-{colour}, grey)")
        self._more.text = f"{len(findings)} finding{'s' if len(findings) != 1 else ''}"
        self._more.visible = bool(findings)


class Health:
    """The tab of one job."""

    def __init__(self, api: Gateway, frame: Frame, path: str, job_id: str, look_at: Look) -> None:
        self._api, self._frame, self._path, self._job_id, self._look_at = api, frame, path, job_id, look_at
        self._shown: tuple[Any, ...] | None = None
        self._repairs = Repairs(api, frame, path)

    def build(self) -> None:
        self._sentence = ui.label().classes("text-body1")
        self._cards = ui.column().classes("w-full gap-3")
        self._repairs.build()
        self._history_title = ui.label("What came and passed").classes("text-subtitle1")
        self._history = ui.column().classes("w-full gap-0")
        self._cost = ui.label().classes("quiet")
        with ui.expansion("What was known before the first step", on_value_change=self._show_facts) as self._box:
            self._facts = ui.code("", language="yaml").classes("w-full")
        self._box.classes("w-full").props("dense")

    def show(self, health: dict[str, Any], repairs: dict[str, Any], running: bool) -> None:
        """The answers of ``GET .../health`` and ``GET .../repairs``; whether anything can still be changed."""
        self._repairs.show(repairs, running)
        self._cost.text = evidence.cost(health["watching"])
        shown = (health["verdict"], health["sentence"], health["findings"], health["history"])
        if shown == self._shown:
            return  # a reader may be in the middle of it
        self._shown = shown
        sentence = health["sentence"]
        for each in health["findings"]:  # whose own cards say the same
            sentence = sentence.replace(each["explanation"], "").strip()
        self._sentence.text = sentence or _count(health["findings"])
        self._cards.clear()
        with self._cards:
            for each in health["findings"]:
                self._card(each)
        self._history.clear()
        with self._history:
            for change in health["history"]:
                self._change(change)
        self._history_title.visible = bool(health["history"])

    def _card(self, finding: dict[str, Any]) -> None:
        with ui.card().props("flat bordered").classes("w-full q-pa-md gap-2"):
            with ui.row().classes("items-center gap-2"):
                ui.badge(finding["severity"], color=HEALTH_COLOURS[finding["severity"]])
                ui.label(evidence.title(finding["code"])).classes("text-subtitle1 text-weight-medium")
                self._where(finding)
            ui.label(finding["explanation"])
            lines = evidence.shown(finding)
            if lines:
                _evidence(lines)
            with ui.row().classes("no-wrap items-start gap-2"):
                ui.icon("build", size="xs").classes("q-mt-xs")
                ui.label(f"What helps: {finding['suggestion']}").style("min-width: 0")
            if finding["consequences"]:
                follows = ", ".join(evidence.title(each) for each in finding["consequences"])
                ui.label(f"Follows from it: {follows}").classes("quiet")

    def _where(self, finding: dict[str, Any]) -> None:
        if finding["first_bad_step"]:
            self._step("first at step", finding["first_bad_step"])
        else:
            ui.label("before the first step" if finding["layer"] else "in the data or the settings").classes("quiet")
        if finding["layer"]:
            ui.label(f"layer {finding['layer']}").classes("quiet").style("overflow-wrap: anywhere")
        if finding["rank"] is not None:
            ui.label(f"rank {finding['rank']}").classes("quiet")

    def _step(self, said: str, step: int) -> None:
        """A link to the curves: in this page for a click, and one that can be passed on."""
        link = ui.link(f"{said} {step:,}", f"/jobs/{self._job_id}?step={step}")
        link.on("click.prevent", lambda: self._look_at(step))

    def _change(self, change: dict[str, Any]) -> None:
        finding = change["finding"]
        with ui.row().classes("items-center gap-2"):
            ui.label(figures.moment(change["at"])).classes("quiet font-mono text-xs")
            ui.icon("check" if change["event"] == "cleared" else "flag", size="xs")
            ui.label(f"{evidence.title(finding['code'])} ({finding['severity']}) {change['event']}")
            if change["step"]:
                self._step("at step", change["step"])

    async def _show_facts(self, event: Any) -> None:
        if not event.value:
            return
        found = await self._frame.ask(lambda: self._api.get(f"{self._path}/health"))
        if found is not None:
            known = yaml.safe_dump(found["facts"], sort_keys=False, allow_unicode=True)
            nothing = (
                "# Nothing yet: facts are taken around the first forward pass, and in scripts as far as they show."
            )
            self._facts.set_content(known if found["facts"] else nothing)


def _count(findings: list[dict[str, Any]]) -> str:
    if len(findings) == 1:
        return "One finding is open."
    return f"{len(findings)} findings are open, the first cause first."


def _evidence(lines: list[evidence.Shown]) -> None:
    with ui.element("table").classes("text-body2").style("border-collapse: separate; border-spacing: 0 4px"):
        for line in lines:
            with ui.element("tr"):
                for text, classes in (
                    (line.label, "quiet q-pr-md"),
                    (line.value, "text-weight-medium q-pr-md"),
                    (f"healthy: {line.healthy}" if line.healthy else "", "quiet"),
                ):
                    wrap = "overflow-wrap: anywhere" if len(text) > 12 else "white-space: nowrap"
                    with ui.element("td").classes(classes).style(f"vertical-align: top; {wrap}"):
                        ui.label(text)
