"""What was done to a job that failed: a part of its tab on health, with a button for undoing."""

from __future__ import annotations

from typing import Any

from nicegui import ui

from api import evidence
from api.dashboard.frame import Frame
from api.dashboard.gateway import Gateway
from api.repair_words import state_of

COLOURS = {"trial": "warning", "set_aside": "warning", "kept": "positive", "taken_back": "grey", "undone": "grey"}


class Repairs:
    def __init__(self, api: Gateway, frame: Frame, path: str) -> None:
        self._api, self._frame, self._path = api, frame, path
        self._shown: Any = None

    def build(self) -> None:
        self._title = ui.label("What was done about it").classes("text-subtitle1")
        self._cards = ui.column().classes("w-full gap-3")
        self._title.visible = False

    def show(self, found: dict[str, Any], running: bool) -> None:
        """``found``: the answer of ``GET .../repairs``."""
        shown = (found["repairs"], found["skipped_updates"], found["not_repaired"], running)
        if shown == self._shown:
            return  # a reader may be in the middle of it
        self._shown = shown
        self._title.visible = bool(found["repairs"] or found["not_repaired"] or found["skipped_updates"])
        self._cards.clear()
        newest = max((each["number"] for each in found["repairs"] if each["state"] in ("trial", "kept")), default=None)
        with self._cards:
            for each in found["repairs"]:
                self._card(each, may_undo=running and each["number"] == newest)
            if found["lost_steps"]:
                lost, saved = found["lost_worker_hours"], found["saved_worker_hours"]
                said = f"{found['lost_steps']:,} steps were lost to it: {lost:.3g} worker-hours."
                ui.label(said + (f" Since the repair {saved:.3g} were saved." if saved else "")).classes("quiet")
            if found["skipped_updates"]:
                ui.label(f"{found['skipped_updates']} updates were left out, because their gradient was no number.")
            for sentence in found["not_repaired"]:
                ui.label(sentence).classes("quiet")

    def _card(self, repair: dict[str, Any], *, may_undo: bool) -> None:
        with ui.card().props("flat bordered").classes("w-full q-pa-md gap-2"):
            with ui.row().classes("w-full items-center gap-2"):
                ui.badge(state_of(repair), color=COLOURS[repair["state"]])
                why = "As people asked" if repair["code"] == "asked" else f"For: {evidence.title(repair['code'])}"
                ui.label(why).classes("text-subtitle1 text-weight-medium")
                ui.label(f"repair {repair['number']}, after step {repair['step']:,}").classes("quiet")
                if may_undo:
                    undo = ui.button("Undo", on_click=lambda: self._undo(repair["number"]))
                    undo.props("flat dense no-caps").classes("q-ml-auto")
            ui.label(repair["words"][:1].upper() + repair["words"][1:] + ".")
            for title, values in (("Before", repair["before"]), ("After its trial", repair["after"])):
                if values:
                    said = ", ".join(f"{name} {_number(value)}" for name, value in values.items())
                    ui.label(f"{title}: {said}").classes("quiet")

    async def _undo(self, number: int) -> None:
        asked = await self._frame.ask(lambda: self._api.post(f"{self._path}/repairs/{number}/undo"))
        if asked is not None:
            ui.notify(f"Repair {number} is undone after the next step.")


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
