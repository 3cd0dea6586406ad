"""What is measured of a job's layers: the flow of gradients at every step, and the statistics of probed steps with histograms."""

from __future__ import annotations

from typing import Any, NamedTuple

from nicegui import ui

from api.dashboard import figures
from api.dashboard.frame import Frame, chart
from api.dashboard.gateway import Gateway
from api.evidence import cost
from workers.watch.probe_rows import ACTIVATION_STATISTICS

HISTOGRAM_STEPS = 200


class Statistic(NamedTuple):
    label: str
    scale: figures.Scale
    says: str


STATISTICS = {
    "update_ratios": Statistic(
        "Update ratio",
        "log",
        "How far a step moved a layer's weights, over their norm. About 1e-3 is usual; below 1e-5 a layer hardly learns, above 1e-2 it may be "
        "thrown about.",
    ),
    "zero_shares": Statistic(
        "Gradient elements that are 0", "share", "Share of the layer's gradient elements that are exactly 0."
    ),
    "zero_rows": Statistic(
        "Units without gradient",
        "share",
        "Share of output units whose whole gradient is 0: dead units, where it stays so. Above 0.85 a layer is dying.",
    ),
    "silent": Statistic(
        "Silent units",
        "share",
        "Share of an activation's units that gave 0 for every sample of the batch. Above 0.85 they are dying.",
    ),
    "saturated": Statistic(
        "Saturated outputs",
        "share",
        "Share of an activation's outputs where it is nearly flat, so that gradients do not pass. Below 0.5 is healthy.",
    ),
    "weight_norms": Statistic("Weight norm", "log", "L2 norm of the layer's weights."),
    "largest": Statistic(
        "Largest gradient element", "log", "Largest absolute element of the layer's gradient, before clipping."
    ),
    "nonfinite": Statistic(
        "Not finite", "count", "Gradient elements that are not a finite number; in a healthy run there is none."
    ),
    "first_moments": Statistic(
        "First moments", "log", "Norm of the optimizer's running mean, or momentum, of the layer's gradient."
    ),
    "second_moments": Statistic(
        "Second moments", "log", "Norm of the optimizer's running mean of the squared gradient."
    ),
}


class Flow:
    """The tab with the norm of each layer's gradient at each step."""

    def __init__(self, api: Gateway, frame: Frame, path: str) -> None:
        self._api, self._frame, self._path = api, frame, path
        self._layers = figures.MANY_LAYERS

    def build(self) -> None:
        ui.label(
            "The norm of each layer's gradient at each step. Backpropagation begins at the output, on top, and goes down to the input: "
            "colours that fade on the way down are gradients that vanish, colours that flare up are gradients that explode."
        ).classes("quiet")
        self._nothing = ui.label()
        self._map = HeatMap(self._frame)

    async def fill(self, job: dict[str, Any]) -> None:
        points = figures.flow_points(self._layers)
        matrix = await self._frame.ask(lambda: self._api.get(f"{self._path}/gradients", max_points=points))
        if matrix is None:
            return
        self._layers = len(matrix["layers"]) or self._layers
        if figures.flow_points(self._layers) > points and len(matrix["steps"]) == points:  # there is room for more
            return await self.fill(job)
        self._nothing.text = "" if matrix["steps"] else f"No gradients were recorded yet{why_nothing(job)}"
        self._nothing.visible = not matrix["steps"]
        self._map.show(matrix["layers"], matrix["steps"], matrix["norms"], "gradient norm")


class Statistics:
    """The tab with what is measured now and then."""

    def __init__(self, api: Gateway, frame: Frame, path: str) -> None:
        self._api, self._frame, self._path = api, frame, path
        self._columns = figures.MANY_LAYERS
        self._bars: ui.echart | None = None
        self._histograms: dict[str, Any] = {}

    def build(self) -> None:
        with ui.row().classes("w-full items-center"):
            options = {name: each.label for name, each in STATISTICS.items()}
            self._chosen = ui.select(options, value="update_ratios", label="statistic", on_change=self._again)
            self._chosen.props("dense outlined").style("min-width: 220px")
            self._cost = ui.label().classes("quiet").style("min-width: 0")
        self._says = ui.label().classes("quiet")
        self._nothing = ui.label()
        self._map = HeatMap(self._frame)
        with ui.column().classes("w-full") as self._histogram:
            with ui.row().classes("w-full items-center"):
                ui.label("Sizes of the gradient's elements").classes("text-subtitle1")
                self._layer = ui.select([], label="of layer", on_change=self._show_histogram)
                self._layer.props("dense outlined").style("min-width: 220px; max-width: 100%")
            self._all_zero = ui.label("At this step all elements of the layer's gradient were 0, or not finite.")
            self._box = ui.column().classes("w-full")
            with ui.row().classes("w-full items-center no-wrap q-px-sm"):  # the handle is wider than the line
                self._step = ui.slider(min=0, max=0, value=0, on_change=self._draw_histogram)
                self._step.props('aria-label="probed step"').classes("grow")
                self._step_label = ui.label().classes("shrink-0").style("min-width: 90px")
        self._histogram.visible = False
        self._job: dict[str, Any] = {}

    async def fill(self, job: dict[str, Any]) -> None:
        self._job = job
        name: str = self._chosen.value
        statistic = STATISTICS[name]
        points = figures.flow_points(self._columns)
        table = await self._frame.ask(lambda: self._api.get(f"{self._path}/probes", statistics=name, max_points=points))
        if table is None or name != self._chosen.value:
            return
        self._cost.text = cost(table["watching"])
        self._says.text = statistic.says
        columns = table["activations"] if name in ACTIVATION_STATISTICS else table["layers"]
        self._columns = len(columns) or self._columns
        rows = table["statistics"][name]
        known = any(isinstance(value, int | float) for row in rows for value in row)
        self._nothing.text = "" if known else _why_no(statistic, table, job)
        self._nothing.visible = not known
        self._map.show(columns if known else [], table["steps"], rows, statistic.label.lower(), statistic.scale)
        await self._fill_histogram(table["layers"])

    async def _again(self) -> None:
        if self._job:
            await self.fill(self._job)

    async def _fill_histogram(self, layers: list[str]) -> None:
        self._histogram.visible = bool(layers)
        if layers and layers != self._layer.options:
            self._layer.set_options(layers, value=self._layer.value if self._layer.value in layers else layers[0])
        elif layers:
            await self._show_histogram()

    async def _show_histogram(self) -> None:
        layer = self._layer.value
        found = await self._frame.ask(
            lambda: self._api.get(f"{self._path}/probes/histograms", layer=layer, max_points=HISTOGRAM_STEPS)
        )
        if found is None or layer != self._layer.value or not found["steps"]:
            return
        steps = self._histograms.get("steps", [])
        if (found["layer"], found["steps"]) == (self._histograms.get("layer"), steps):
            return
        was_last = self._step.value >= len(steps) - 1  # who looks at the newest goes on to
        self._histograms = found
        last = len(found["steps"]) - 1
        self._step.props(f"max={last}")
        at = last if was_last else min(int(self._step.value), last)
        if self._step.value != at:
            self._step.value = at  # which draws
        else:
            self._draw_histogram()

    def _draw_histogram(self) -> None:
        found = self._histograms
        at = min(int(self._step.value), len(found["steps"]) - 1) if found else 0
        if not found:
            return
        self._step_label.text = f"step {found['steps'][at]:,}"
        has_bars = any(found["shares"][at])
        self._all_zero.visible, self._box.visible = not has_bars, has_bars
        if not has_bars:
            return
        options = figures.histogram(found["shares"][at], found["lowest"])
        if self._bars is None:
            with self._box:
                self._bars = chart(options, self._frame.is_dark).classes("w-full").style("height: 260px")
        else:
            self._bars.options.update(options)
            self._bars.update()


class HeatMap:
    """A chart that is there once there is something to draw, and drawn again when that is new."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        self._box = ui.column().classes("w-full")
        self._chart: ui.echart | None = None
        self._shown: tuple[Any, ...] | None = None

    def show(
        self, layers: list[str], steps: list[int], rows: list[Any], name: str, scale: figures.Scale = "log"
    ) -> None:
        self._box.visible = bool(layers and steps)
        shown = (name, layers, steps, rows[-1] if rows else None)
        if not self._box.visible or shown == self._shown:
            return  # nothing new; the browser would draw it all again
        self._shown = shown
        options = figures.heat_map(layers, steps, rows, name, scale)
        height = f"height: {max(320, min(620, 24 * len(layers) + 90))}px"
        if self._chart is None:
            with self._box:
                self._chart = chart(options, self._frame.is_dark).classes("w-full").style(height)
        else:
            self._chart.style(height)
            self._chart.options.update(options)
            self._chart.update()


def why_nothing(job: dict[str, Any]) -> str:
    """The end of a sentence that says that there is nothing yet."""
    if job["finished_at"]:
        return "; the job ended before it made a step." if not job["progress"] else "."
    return ": the job has not begun to train." if not job["progress"] else "."


def _why_no(statistic: Statistic, table: dict[str, Any], job: dict[str, Any]) -> str:
    if table["steps"]:
        of = "activation modules" if statistic in (STATISTICS[name] for name in ACTIVATION_STATISTICS) else "layers"
        return f"{statistic.label} was measured nowhere: it does not apply to the {of} of this model."
    if (job["spec"].get("gradients") or {}).get("overhead_budget") == 0:
        return "Nothing is measured: gradients.overhead_budget of this job is 0."
    return f"No step was looked at closely yet{why_nothing(job)}"
