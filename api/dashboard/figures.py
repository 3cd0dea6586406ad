"""What the pages show, as plain values: words for numbers, and options of ECharts (https://echarts.apache.org/en/option.html)."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np

from api.evidence import title
from workers.watch.findings import key_of

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
EMPTY = -(2**15)  # among values
# (step, layer, value) of each cell, out of the values in whole parts of a unit. As a list of lists they would be ten times as long, and the
# page would take seconds to look through them: NiceGUI and Vue visit every list, but leave a Float32Array as it is.
CELLS = """(() => {
  const values = new Int16Array(Uint8Array.from(atob("%s"), c => c.charCodeAt(0)).buffer), layers = %d;
  const cells = new Float32Array(3 * values.length);
  values.forEach((value, i) => cells.set([Math.floor(i / layers), i %% layers, value === -32768 ? NaN : value / %d], 3 * i));
  return cells;
})()"""
CELL_TIP = """(cell) => {
  const layer = %s[cell.value[1]].replace(/[&<>]/g, c => `&#${c.charCodeAt(0)};`);
  const value = cell.value[2];
  return `${layer}<br>step ${cell.name}: ${%s}`;
}"""
TICK = """(value) => {
  const size = Math.abs(value);
  if (size && (size >= 1e5 || size < 1e-3)) return value.toExponential(2).replace(/\\.?0*e/, 'e').replace('e+', 'e');
  return value.toLocaleString('en', {maximumSignificantDigits: 6});
}"""  # of an axis: short, so that there is room for the curve
Scale = Literal["log", "share", "count"]
UNITS: dict[Scale, int] = {"log": 100, "share": 10_000, "count": 1}  # parts of one that a cell is sent in
TIPS: dict[Scale, str] = {
    "log": "value <= -12 ? '0' : (10 ** value).toExponential(1)",
    "share": "`${(100 * value).toFixed(1)} %`",
    "count": "value",
}
MOST_COUNT = 2**15 - 1  # what fits into a cell
EXPLODED = 1000
MARKERS = {"critical": "#e4572e", "warning": "#f2994a", "note": "#7f8ea3", "past": "#9aa3b2", "repair": "#2e9e6b"}


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
        "yAxis": {"type": "log" if logarithmic else "value", "scale": True, "axisLabel": {":formatter": TICK}},
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


def window(zoom: Mapping[str, float]) -> Document:
    """What is shown, for ``dataZoom``, of what the browser says is shown: ``start`` and ``end`` in percent of the run so far, ``startValue`` and
    ``endValue`` in steps. An edge of the run stays one as the run goes on; what lies between stays at its step."""
    left = {"start": 0} if zoom["start"] <= 0 else {"startValue": zoom["startValue"]}
    return left | ({"end": 100} if zoom["end"] >= 100 else {"endValue": zoom["endValue"]})


def needs_logarithms(lines: Sequence[Sequence[Sequence[float | None]]]) -> bool:
    """Whether one explosion would make a flat line of all the rest: curves above 0 that reach ``EXPLODED`` times their middle."""
    values = [value for line in lines for _, value in line if value is not None]
    return bool(values) and min(values) > 0 and max(values) > EXPLODED * float(np.median(values))


def heat_map(
    layers: Sequence[str], steps: Sequence[int], rows: Sequence[Sequence[Any]], name: str, scale: Scale = "log"
) -> Document:
    """Steps from left to right, layers from the output, on top, back to the input, as backpropagation goes through them.

    ``rows``: a row a step, a value a layer; None, words and what is not finite stay empty. ``scale``: the colour is the decimal logarithm,
    or the number; of a share from 0 to 1.
    """
    columns = [str(step) for step in steps]
    values = np.array(rows, dtype=np.float64).reshape(len(columns), len(layers))  # (S, L); reads words and None too
    is_finite = np.isfinite(values)
    known = np.where(is_finite, values, 1.0)
    drawn = np.log10(np.maximum(known, LEAST_NORM)) if scale == "log" else np.minimum(known, MOST_COUNT)
    shown = drawn[is_finite] if is_finite.any() else np.zeros(1)
    units = UNITS[scale]
    cells = np.where(is_finite, np.round(units * drawn), EMPTY).astype("<i2")
    lowest, highest = (
        (math.floor(shown.min()), math.ceil(shown.max())) if scale == "log" else (0, math.ceil(shown.max()))
    )
    longest = max((len(layer) for layer in layers), default=0)
    return {
        "animation": False,
        "grid": {"left": min(190, 24 + 7 * longest), "right": 100, "top": 16, "bottom": 50},
        "tooltip": {
            "position": "top",
            "confine": True,
            ":formatter": CELL_TIP % (json.dumps(list(layers)), TIPS[scale]),
        },
        "xAxis": {"type": "category", "data": columns, "name": "step", "nameLocation": "middle", "nameGap": 30},
        # The first category is drawn at the bottom: the input, so that the output is on top.
        "yAxis": {"type": "category", "data": list(layers), "axisLabel": {"width": 170, "overflow": "truncate"}},
        "visualMap": {
            "min": lowest,
            "max": max(highest, lowest + 1),
            "calculable": True,
            "right": 4,
            "top": "middle",
            "text": ["L2 norm" if name == "gradient norm" else "", ""],
            "precision": 2 if scale == "share" else 0,
            "formatter": "1e{value}" if scale == "log" else "{value}",
            "inRange": {"color": ["#1b2a6b", "#2f6fd0", "#3fb8a6", "#f4d35e", "#e4572e"]},
        },
        "series": [
            {
                "type": "heatmap",
                "name": name,
                "dimensions": ["step", "layer", "norm"],  # a flat array does not show how many belong together
                ":data": CELLS % (base64.b64encode(cells.tobytes()).decode(), max(1, len(layers)), units),
                "progressive": 10_000,
            }
        ],
    }


def histogram(shares: Sequence[float], lowest: int) -> Document:
    """Bars: shares of a layer's gradient elements by powers of two, as ``GET .../probes/histograms`` gives them for a step."""
    bins = [f"2^{lowest + index}" for index in range(len(shares))]
    return {
        "animation": False,
        "grid": {"left": 56, "right": 20, "top": 16, "bottom": 50},
        "tooltip": {"trigger": "axis", "confine": True, ":valueFormatter": "(value) => `${value.toFixed(2)} %`"},
        "xAxis": {"type": "category", "data": bins, "name": "absolute value", "nameLocation": "middle", "nameGap": 30},
        "yAxis": {"type": "value", "axisLabel": {"formatter": "{value} %"}},
        "series": [
            {
                "type": "bar",
                "name": "elements",
                "barCategoryGap": "5%",
                "color": COLOURS[0],
                "data": [round(100 * share, 4) for share in shares],
            }
        ],
    }


def markers(health: Mapping[str, Any], repairs: Sequence[Mapping[str, Any]] = ()) -> Document:
    """Where findings began, as vertical lines of a chart over steps: open ones in their severity's colour, past ones in grey; and where something
    was repaired. What was known before the first step has no place there."""
    at: dict[int, list[tuple[str, str]]] = {}
    open_ = set(map(key_of, health["findings"]))
    past = [each["finding"] for each in health["history"] if each["event"] == "raised"]
    past = [each for each in past if key_of(each) not in open_]
    for finding, colour in [
        *((each, MARKERS[each["severity"]]) for each in health["findings"]), *((each, MARKERS["past"]) for each in past)
    ]:  # fmt: skip
        told = at.setdefault(finding["first_bad_step"], [])
        if finding["first_bad_step"] > 0 and title(finding["code"]) not in [name for name, _ in told]:
            told.append((title(finding["code"]), colour))
    for repair in repairs:
        at.setdefault(repair["step"], []).append((f"Repair {repair['number']}", MARKERS["repair"]))
    lines = [
        {
            "xAxis": step,
            "name": ", ".join(name for name, _ in told),
            "lineStyle": {"color": told[0][1]},
            "label": {"color": told[0][1]},
        }
        for step, told in sorted(at.items())
        if told
    ]
    return {
        "symbol": "none",
        "silent": True,
        "animation": False,
        "lineStyle": {"type": "dashed", "width": 1.5},
        "label": {"formatter": "{b}", "position": "insideEndBottom", "fontSize": 11},
        "data": lines,
    }


def flow_points(layers: int) -> int:
    """Steps of the heat map, so that it has no more than ``FLOW_CELLS`` cells."""
    return max(20, min(400, FLOW_CELLS // max(1, layers)))


def usage_line(found: dict[str, Any]) -> str:
    """Of ``GET /v1/usage``; empty before anything has trained."""
    if not found["trained_worker_hours"]:
        return ""
    said = [f"{found['trained_worker_hours']:,.3g} worker-hours trained in {found['jobs']:,} jobs"]
    if found["lost_worker_hours"]:
        said.append(f"{found['lost_worker_hours']:,.3g} after something had gone wrong")
    if found["saved_worker_hours"]:
        said.append(f"{found['saved_worker_hours']:,.3g} saved by repairs")
    return " · ".join(said)
