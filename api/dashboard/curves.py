"""The curves of a job, with marks where findings began."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from nicegui import ui
from nicegui.events import GenericEventArguments

from api.dashboard import figures
from api.dashboard.frame import GRID, Frame, chart
from api.dashboard.gateway import Gateway

POINTS = 500  # of a curve


@dataclass(frozen=True)
class Curve:
    title: str
    keys: dict[str, str]  # series -> its name in the legend
    logarithmic: bool = False  # always; a curve that explodes is so by itself
    where_known: bool = False  # without values there is no chart
    marked: bool = False  # with where findings began


CURVES = (
    Curve("Loss", {"train/loss": "train", "eval/loss": "evaluation"}, marked=True),
    Curve(
        "Gradient norm",
        {"gradient/norm": "before clipping", "gradient/norm_clipped": "after"},
        logarithmic=True,
        marked=True,
    ),
    Curve("Learning rate", {"train/learning_rate": "learning rate"}),
    Curve("Samples per second", {"train/samples_per_second": "samples per second"}),
    Curve("Tokens per second", {"train/tokens_per_second": "tokens per second"}, where_known=True),
    Curve("Model FLOP/s, all workers", {"system/model_flops_per_second": "forward and backward"}, where_known=True),
    Curve("Utilisation (MFU)", {"system/mfu": "share of the devices' peak"}, where_known=True),
    Curve("Accuracy", {"eval/accuracy": "evaluation"}),
)
ZOOM = """() => {
  const {start, end, startValue, endValue} = getElement(%d).chart.getOption().dataZoom[0];
  emit({start, end, startValue, endValue});
}"""
ZOOM_SECONDS = 0.2  # between two words of how far a viewer has zoomed
AROUND = 0.05  # of the run, on either side of a step that is looked at


class Curves:
    """The tab of one job."""

    def __init__(self, api: Gateway, frame: Frame, path: str) -> None:
        self._api, self._frame, self._path = api, frame, path
        self._marks: dict[str, Any] | None = None

    def build(self) -> None:
        with ui.row().classes("w-full items-center") as self._around:
            self._where = ui.label()
            ui.button("Show the whole run", icon="zoom_out_map", on_click=self.show_all).props("flat dense")
        self._around.visible = False
        self._charts, self._cards = [], []
        with ui.grid().classes("w-full gap-3").style(GRID):
            for curve in CURVES:
                with ui.card().props("flat bordered").classes("q-pa-xs") as card:
                    self._cards.append(card)
                    options = figures.line_chart(curve.title, list(curve.keys.values()), logarithmic=curve.logarithmic)
                    drawn = chart(options, self._frame.is_dark).style("height: 260px")
                    drawn.on(
                        "chart:datazoom",
                        partial(self._zoomed, drawn),
                        throttle=ZOOM_SECONDS,
                        js_handler=ZOOM % drawn.id,
                    )
                    self._charts.append(drawn)

    async def fill(self, job: dict[str, Any]) -> None:
        wanted = ",".join(key for curve in CURVES for key in curve.keys)
        found = await self._frame.ask(lambda: self._api.get(f"{self._path}/metrics", keys=wanted, max_points=POINTS))
        if found is None:
            return
        series = {each["key"]: each for each in found["data"]}
        for drawn, card, curve in zip(self._charts, self._cards, CURVES, strict=True):
            lines = [figures.points(series[key], logarithmic=curve.logarithmic) for key in curve.keys]
            if curve.where_known:
                card.set_visibility(any(lines))
            if lines == [each["data"] for each in drawn.options["series"]]:
                continue  # nothing new; the browser would draw it all again
            for each, line in zip(drawn.options["series"], lines, strict=True):
                each["data"] = line
            wide = curve.logarithmic or figures.needs_logarithms(lines)
            drawn.options["yAxis"]["type"] = "log" if wide else "value"
            drawn.update()

    def mark(self, health: dict[str, Any], repairs: dict[str, Any]) -> None:
        """Where findings began, and where something was repaired."""
        marks = figures.markers(health, repairs["repairs"])
        if marks == self._marks:
            return
        self._marks = marks
        for drawn, curve in zip(self._charts, CURVES, strict=True):
            if curve.marked:
                drawn.options["series"][0]["markLine"] = marks
                drawn.update()

    def look_at(self, step: int, steps: int) -> None:
        """Shows what was around ``step``, of about ``steps``."""
        reach = max(10, round(AROUND * steps))
        self._zoom({"startValue": max(1, step - reach), "endValue": step + reach})
        self._where.text = f"Around step {step:,}"
        self._around.visible = True

    def show_all(self) -> None:
        self._zoom({"start": 0, "end": 100})
        self._around.visible = False

    def _zoom(self, window: dict[str, int]) -> None:
        for drawn in self._charts:
            drawn.options["dataZoom"] = [{"type": "inside", **window}]
            drawn.update()

    @staticmethod
    def _zoomed(drawn: ui.echart, event: GenericEventArguments) -> None:
        """By the viewer, in the browser. What is drawn next must neither undo that nor move it to other steps, as shares of a growing run."""
        drawn.options["dataZoom"] = [{"type": "inside", **figures.window(event.args)}]
