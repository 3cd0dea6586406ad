"""What a job's task showed of its model: of a chosen step, texts and pictures as they are, the rest to download."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from nicegui import ui

from api.dashboard import figures
from api.dashboard.frame import Frame
from api.dashboard.gateway import Gateway
from api.dashboard.mount import PATH

MOST_FILES = 1000  # of the newest steps
MOST_TEXT = 64 << 10  # bytes; a longer text is to be downloaded
LANGUAGES = {"application/json": "json", "text/plain": "text", "text/csv": "text"}
PICTURES = ("image/png", "image/jpeg")
NEWEST = "newest"


class Samples:
    """The tab of one job."""

    def __init__(self, api: Gateway, frame: Frame, path: str, job_id: str) -> None:
        self._api, self._frame, self._path, self._job_id = api, frame, path, job_id
        self._shown: tuple[Any, ...] | None = None  # the files on the page, as they were listed

    def build(self) -> None:
        with ui.row().classes("items-center"):
            ui.label("What the model did")
            self._chosen = ui.select([NEWEST], value=NEWEST, label="after step", on_change=self._again)
            self._chosen.props("dense outlined").style("min-width: 120px")
        self._nothing = ui.label("This job's task has shown nothing yet; it does after an evaluation, if at all.")
        self._nothing.classes("quiet")
        self._box = ui.column().classes("w-full gap-3")

    async def fill(self, job: dict[str, Any]) -> None:
        found = await self._frame.ask(lambda: self._api.get(f"{self._path}/artifacts", limit=MOST_FILES, order="desc"))
        if found is None:
            return
        by_step = _by_step(found["data"])
        options = [NEWEST, *map(str, by_step)]
        if options != self._chosen.options:
            self._chosen.set_options(options, value=self._chosen.value if self._chosen.value in options else NEWEST)
        self._nothing.visible = not by_step
        if not by_step:
            return
        chosen = self._chosen.value
        step = next(iter(by_step)) if chosen == NEWEST else int(chosen)
        files = sorted(by_step[step], key=lambda each: str(each["name"]))
        shown = tuple((each["id"], each["bytes"], each["created_at"]) for each in files)
        if shown == self._shown:
            return  # nothing new; a reader may be in the middle of it
        texts = {each["id"]: await self._text(each) for each in files}
        if self._chosen.value != chosen:
            return  # somebody chose another step meanwhile, which is on its way
        self._shown = shown
        self._box.clear()
        with self._box:
            ui.label(f"After step {step:,}").classes("text-subtitle1")
            for each in files:
                self._show(each, texts[each["id"]])

    async def _again(self) -> None:
        await self.fill({})

    async def _text(self, file: Mapping[str, Any]) -> str | None:
        if _kind(file) not in LANGUAGES or file["bytes"] > MOST_TEXT:
            return None
        text = await self._frame.ask(lambda: self._api.text(f"{self._path}/artifacts/files/{quote(str(file['path']))}"))
        return None if text is None else str(text)

    def _show(self, file: Mapping[str, Any], text: str | None) -> None:
        address = f"/files/{quote(self._job_id, safe='')}/artifacts/files/{quote(str(file['path']))}"
        with ui.card().props("flat bordered").classes("w-full q-pa-sm gap-1"):
            with ui.row().classes("items-center"):
                ui.link(str(file["name"]), address).props("download")
                ui.label(figures.size(file["bytes"])).classes("quiet")
            if text is not None:
                ui.code(text, language=LANGUAGES[_kind(file)]).classes("w-full").style(
                    "max-height: 480px; overflow: auto"
                )
            elif _kind(file) in PICTURES:
                # Not Quasar's image, which wants to know the ratio of its sides; the time is there for a step that is done again.
                source = f"{PATH}{address}?{quote(str(file['created_at']))}"
                ui.element("img").props(f'src="{source}" alt="{file["name"]}"').style("max-width: 100%")


def _kind(file: Mapping[str, Any]) -> str:
    return str(file["media_type"]).partition(";")[0]


def _by_step(files: Sequence[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {}
    for each in files:
        found.setdefault(int(each["step"]), []).append(each)
    return found
