"""What all pages have in common: who looks at them, their head, and what they say when the API does not answer."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from nicegui import app, background_tasks, context, ui
from nicegui.translations import translations
from starlette.types import ASGIApp

from api.dashboard import figures
from api.dashboard.gateway import AwayError, Gateway, RefusedError

KEY, DARK = "key", "dark"
STATUS_COLOURS = {
    "queued": "grey",
    "starting": "blue-grey",
    "running": "primary",
    "recovering": "orange",
    "pausing": "blue-grey",
    "paused": "amber-8",
    "succeeded": "positive",
    "failed": "negative",
    "cancelled": "grey-7",
}
HEALTH_COLOURS = {"healthy": "positive", "note": "blue-grey", "warning": "orange", "critical": "negative"}
GRID = "grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr))"  # of charts, also in a narrow window
# NiceGUI's own box for a lost connection, with our words and where it is seen; it comes after a second, so that a hiccup does not flash.
AWAY = {
    "connection_lost": "The service does not answer just now.",
    "trying_to_reconnect": "Jobs go on training. This page goes on by itself as soon as the service is back.",
}
AWAY_CSS = """
#popup {bottom: auto; top: 64px; left: 50%; transform: translateX(-50%); margin: 0.5em; padding: 0.8em 3.5em; gap: 0.2em}
#popup, .body--dark #popup, .body--light #popup {background: #e65100; color: white; border: none}
#popup[aria-hidden="false"] {transition-delay: 1s}
"""


# A panel begins where its tabs do: in a narrow window there is no room to spare.
CSS = """
.nicegui-content {padding: 0}
.q-table th {font-weight: 600}
.q-tab-panel.nicegui-tab-panel {padding: 8px 0 0}
"""
# What stands behind; Quasar's own grey is hard to read on white.
QUIET_CSS = ".quiet {color: #5f6b7a} .body--dark .quiet {color: #a3acb9}"


def prepare_all_pages() -> None:
    """Colours, and what is said when the service is away, which must be in the page already when the process that made it has gone."""
    for language in ("en-US", "en-GB"):
        translations[language].update(AWAY)
    ui.add_css(AWAY_CSS + QUIET_CSS, shared=True)


def gateway(api: ASGIApp) -> Gateway | None:
    """With the key of whoever looks; None: nobody has signed in."""
    key = app.storage.user.get(KEY)
    return Gateway(api, key) if key else None


class Frame:
    """One page of one viewer. ``ask`` calls the API and shows what is wrong, and that it is over, in a banner."""

    def __init__(self, here: str) -> None:
        stored = app.storage.user
        dark = ui.dark_mode(value=stored.get(DARK))
        ui.colors(primary="#3f6ad8")
        ui.add_css(CSS)
        with ui.header().classes("items-center no-wrap q-px-md").style("background: #1c2333; column-gap: 8px"):
            ui.link("∂ Chainrule", "/").classes("text-h6 text-white no-underline")
            for name, target in (("Jobs", "/"), ("Submit", "/submit")):
                link = ui.link(name, target).classes("text-white no-underline q-ml-md")
                link.classes("text-weight-bold" if name == here else "")
            ui.space()
            with ui.element("a").props("href=/docs").classes("text-white no-underline q-mr-sm"):
                ui.label("API")

            def turn() -> None:
                stored[DARK] = not stored.get(DARK)
                dark.set_value(stored[DARK])
                ui.navigate.reload()  # the charts are drawn in the other colours

            ui.button(icon="dark_mode", on_click=turn).props("flat round dense color=white").tooltip("light or dark")

            def leave() -> None:
                stored.pop(KEY, None)
                ui.navigate.to("/sign-in")

            ui.button(icon="logout", on_click=leave).props("flat round dense color=white").tooltip("sign out")
        with ui.row().classes("w-full q-pa-sm items-center bg-orange-9 text-white") as self._banner:
            ui.icon("cloud_off")
            self._trouble = ui.label()
        self._banner.visible = False
        self.is_dark = bool(stored.get(DARK))

    @contextlib.contextmanager
    def content(self) -> Iterator[None]:
        with ui.column().classes("w-full q-pa-md gap-3").style("max-width: 1500px; margin: 0 auto"):
            yield

    async def ask(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """The answer, or None: the banner says why, and goes by itself when the next call succeeds."""
        try:
            answer = await call()
        except AwayError as error:
            self._say(f"The service does not answer just now ({error}). This page goes on by itself when it does.")
            return None
        except RefusedError as error:
            if error.status == 401:
                app.storage.user.pop(KEY, None)
                ui.navigate.to("/sign-in")
            self._say(str(error))
            return None
        self._banner.visible = False
        return answer

    def _say(self, text: str) -> None:
        self._trouble.text = text
        self._banner.visible = True


def keep_fresh(refresh: Callable[[], Awaitable[None]], every_seconds: float) -> None:
    """Also now: the first answers are there when the browser has loaded what it draws them with."""
    client = context.client

    async def first() -> None:
        with client:
            await refresh()

    background_tasks.create(first(), name="first look")
    ui.timer(every_seconds, refresh, immediate=False)


def chart(options: dict[str, Any], dark: bool) -> ui.echart:
    return ui.echart({**options, "backgroundColor": "transparent"}, theme=figures.DARK if dark else None)


async def confirmed(question: str, verb: str) -> bool:
    with ui.dialog() as dialog, ui.card():
        ui.label(question)
        with ui.row().classes("w-full justify-end"):
            ui.button("Back", on_click=lambda: dialog.submit(False)).props("flat")
            ui.button(verb, on_click=lambda: dialog.submit(True)).props("color=negative")
    return bool(await dialog)
