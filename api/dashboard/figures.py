"""What the pages show, as plain values: words for numbers, and options of ECharts (https://echarts.apache.org/en/option.html)."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

Document = dict[str, Any]
COLOURS = ("#4f7cff", "#f2994a", "#27ae60", "#bb6bd9")
_AXIS = {"axisLabel": {"color": "#b8bfcc"}, "splitLine": {"lineStyle": {"color": "#39404f"}}}
DARK: Document = {  # a theme of ECharts
    "textStyle": {"color": "#b8bfcc"},
    "title": {"textStyle": {"color": "#e3e7ee"}},
    "legend": {"textStyle": {"color": "#b8bfcc"}},
    "valueAxis": _AXIS,
    "logAxis": _AXIS,
    "categoryAxis": _AXIS,
    "visualMap": {"textStyle": {"color": "#b8bfcc"}},
}
LEAST_NORM = 1e-12  # shown for a gradient of zero, which has no logarithm
FLOW_CELLS = 20_000  # that a browser draws in half a second
MANY_LAYERS = 300  # taken for granted until it is known how many there are
EMPTY = -(2**15)  # among logarithms
# (step, layer, logarithm) of each cell, out of the logarithms in hundredths. As a list of lists they would be ten times as long, and the
# page would take seconds to look through them: NiceGUI and Vue visit every list, but leave a Float32Array as it is.
CELLS = """(() => {
  const logs = new Int16Array(Uint8Array.from(atob("%s"), c => c.charCodeAt(0)).buffer), layers = %d;
  const cells = new Float32Array(3 * logs.length);
  logs.forEach((log, i) => cells.set([Math.floor(i / layers), i %% layers, log === -32768 ? NaN : log / 100], 3 * i));
  return cells;
})()"""
CELL_TIP = """(cell) => {
  const layer = %s[cell.value[1]].replace(/[&<>]/g, c => `&#${c.charCodeAt(0)};`);
  return `${layer}<br>step ${cell.name}: ${(10 ** cell.value[2]).toExponential(1)}`;
}"""


# --- words ------------------------------------------------------------------------------------------------------------


def number(value: Any, digits: int = 4) -> str:
    """Four significant digits; the API's words for what is not finite stay."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return f"{value:.{digits}g}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def moment(text: str | None) -> str:
    """Of RFC 3339, to the second, in UTC."""
    return "-" if text is None else datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def progress(job: Mapping[str, Any]) -> str:
    done = job["progress"]
    if not done:
        return "-"
    of = f"{done['steps']:,}" if done["steps"] else "?"  # which only a script knows
    return f"{done['step']:,} / {of}"


def job_row(job: Mapping[str, Any]) -> Document:
    """One line of the table of jobs."""
    done = job["progress"] or {}
    return {
        "id": job["id"],
        "name": job["name"],
        "status": job["status"],
        "progress": progress(job),
        "share": done["step"] / done["steps"] if done.get("steps") else 0.0,
        "eta": duration(done.get("eta_seconds")) if job["status"] == "running" else "-",
        "loss": number(job["latest"].get("train/loss")),
        "health": job["health"].get("verdict") or "-",
        "workers": len(job["workers"]),
        "created": moment(job["created_at"]),
        "ended": job["finished_at"] is not None,
    }


def matches(row: Mapping[str, Any], text: str, status: str | None) -> bool:
    found = text.lower().strip()
    return (not status or row["status"] == status) and (found in row["name"].lower() or found in row["id"].lower())


# --- charts -----------------------------------------------------------------------------------------------------------


def finite(value: Any) -> float | None:
    """None, a gap in the line, for the API's words."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def line_chart(title: str, names: Sequence[str], *, logarithmic: bool = False) -> Document:
    return {
        "title": {"text": title, "textStyle": {"fontSize": 14, "fontWeight": 500}, "left": 8, "top": 4},
        "animation": False,
        "grid": {"left": 64, "right": 20, "top": 44, "bottom": 34},
        "tooltip": {"trigger": "axis"},
        "legend": {"show": len(names) > 1, "top": 4, "right": 12},
        "xAxis": {"type": "value", "min": "dataMin", "max": "dataMax", "splitLine": {"show": False}},
        "yAxis": {"type": "log" if logarithmic else "value", "scale": True},
        "dataZoom": [{"type": "inside"}],
        "series": [
            {
                "name": name,
                "type": "line",
                "showSymbol": False,
                "lineStyle": {"width": 1.6},
                "color": colour,
                "data": [],
            }
            for name, colour in zip(names, COLOURS, strict=False)
        ],
    }


def points(series: Mapping[str, Any], *, logarithmic: bool = False) -> list[list[float | None]]:
    """(step, value) of a series of the API; on a logarithmic axis what is not above zero is a gap."""
    found = []
    for point in series["points"]:
        value = finite(point["value"])
        found.append([point["step"], None if logarithmic and value is not None and value <= 0 else value])
    return found


def gradient_flow(matrix: Mapping[str, Any]) -> Document:
    """A heat map: steps from left to right, layers from the output, on top, back to the input, as backpropagation goes through them.

    The colour is the decimal logarithm of the L2 norm of a layer's gradient; what is not finite stays empty.
    """
    layers, steps = list(matrix["layers"]), [str(step) for step in matrix["steps"]]
    norms = np.array(matrix["norms"], dtype=np.float64).reshape(len(steps), len(layers))  # (S, L); reads words too
    is_finite = np.isfinite(norms)
    logs = np.log10(np.where(is_finite, np.maximum(norms, LEAST_NORM), 1.0))
    shown = logs[is_finite] if is_finite.any() else np.zeros(1)
    lowest, highest = math.floor(shown.min()), math.ceil(shown.max())
    hundredths = np.where(is_finite, np.round(100 * logs), EMPTY).astype("<i2")
    longest = max((len(layer) for layer in layers), default=0)
    return {
        "animation": False,
        "grid": {"left": min(190, 24 + 7 * longest), "right": 100, "top": 16, "bottom": 50},
        "tooltip": {"position": "top", ":formatter": CELL_TIP % json.dumps(layers)},
        "xAxis": {"type": "category", "data": steps, "name": "step", "nameLocation": "middle", "nameGap": 30},
        # The first category is drawn at the bottom: the input, so that the output is on top.
        "yAxis": {"type": "category", "data": layers, "axisLabel": {"width": 170, "overflow": "truncate"}},
        "visualMap": {
            "min": lowest,
            "max": max(highest, lowest + 1),
            "calculable": True,
            "right": 4,
            "top": "middle",
            "text": ["L2 norm", ""],
            "precision": 0,
            "formatter": "1e{value}",
            "inRange": {"color": ["#1b2a6b", "#2f6fd0", "#3fb8a6", "#f4d35e", "#e4572e"]},
        },
        "series": [
            {
                "type": "heatmap",
                "name": "gradient norm",
                "dimensions": ["step", "layer", "norm"],  # a flat array does not show how many belong together
                ":data": CELLS % (base64.b64encode(hundredths.tobytes()).decode(), max(1, len(layers))),
                "progressive": 10_000,
            }
        ],
    }


def flow_points(layers: int) -> int:
    """Steps of the heat map, so that it has no more than ``FLOW_CELLS`` cells."""
    return max(20, min(400, FLOW_CELLS // max(1, layers)))
