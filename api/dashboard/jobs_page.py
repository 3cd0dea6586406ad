"""All jobs: a live table with search, filter and cancel."""

from __future__ import annotations

import json
from typing import Any

from nicegui import ui

from api.dashboard import figures
from api.dashboard.frame import HEALTH_COLOURS, STATUS_COLOURS, Frame, confirmed, keep_fresh
from api.dashboard.gateway import Gateway

EVERY_SECONDS = 1.5
USAGE_SECONDS = 30.0
PAGE = 100  # jobs of one question, newest first
COLUMNS = (
    ("name", "Job"),
    ("status", "Status"),
    ("progress", "Steps"),
    ("eta", "Left"),
    ("loss", "Loss"),
    ("health", "Health"),
    ("workers", "Workers"),
    ("created", "Submitted (UTC)"),
    ("actions", ""),
)


def show(api: Gateway) -> None:
    frame = Frame("Jobs")
    with frame.content():
        with ui.row().classes("w-full items-center"):
            text = ui.input(placeholder="search by name or id").props("dense outlined clearable").classes("w-72")
            status = ui.select({"": "all", **{name: name for name in STATUS_COLOURS}}, value="").props("dense outlined")
            ui.space()
            cluster = ui.label().classes("quiet")
            ui.button("Submit a job", icon="add", on_click=lambda: ui.navigate.to("/submit"))
        columns = [{"name": name, "label": label, "field": name, "align": "left"} for name, label in COLUMNS]
        table = ui.table(columns=columns, rows=[], row_key="id", pagination=25).classes("w-full").props("flat bordered")
        table.add_slot("body-cell-name", NAME_CELL)
        table.add_slot("body-cell-status", _badge("status", STATUS_COLOURS))
        table.add_slot("body-cell-progress", PROGRESS_CELL)
        table.add_slot("body-cell-health", _badge("health", HEALTH_COLOURS))
        table.add_slot("body-cell-actions", CANCEL_CELL)
        table.add_slot("no-data", "<div class='q-pa-md quiet'>There are no such jobs.</div>")
        spent = ui.label().classes("quiet")

    async def refresh() -> None:
        found = await frame.ask(lambda: api.get("/v1/jobs", limit=PAGE, status=status.value or None))
        seen = await frame.ask(lambda: api.get("/v1/cluster")) if found is not None else None
        if found is None or seen is None:
            return
        rows = [figures.job_row(job) for job in found["data"]]
        table.rows = [row for row in rows if figures.matches(row, text.value or "", status.value)]
        table.update()
        cluster.text = cluster_line(seen)

    async def count() -> None:
        found = await frame.ask(lambda: api.get("/v1/usage"))
        if found is not None:
            spent.text = figures.usage_line(found)

    async def cancel(event: Any) -> None:
        row = event.args
        if await confirmed(
            f"Cancel {row['name']} ({row['id']})? It finishes its step and writes a checkpoint.", "Cancel it"
        ):
            await frame.ask(lambda: api.post(f"/v1/jobs/{row['id']}/cancel"))
            await refresh()

    table.on("cancel", cancel)
    text.on_value_change(refresh)
    status.on_value_change(refresh)
    keep_fresh(refresh, EVERY_SECONDS)
    keep_fresh(count, USAGE_SECONDS)


def cluster_line(cluster: dict[str, Any]) -> str:
    if not cluster["reachable"]:
        return f"cluster not reachable: {cluster['message']}"
    total, used = sum(node["total"]["cpus"] for node in cluster["nodes"]), cluster["used"]["cpus"]
    gpus = sum(node["total"]["gpus"] for node in cluster["nodes"])
    also = f", {cluster['used']['gpus']:g} of {gpus:g} GPUs" if gpus else ""
    return f"{used:g} of {total:g} CPUs{also} in use · {cluster['active']} active · {cluster['queued']} queued"


def _badge(field: str, colours: dict[str, str]) -> str:
    """A cell of the table, in Vue's words."""
    return f"""<q-td :props="props"><span v-if="props.row.{field} === '-'">-</span>
<q-badge v-else :color='({json.dumps(colours)})[props.row.{field}] || "grey"' :label="props.row.{field}" /></q-td>"""


NAME_CELL = """<q-td :props="props"><a :href="'/dashboard/jobs/' + props.row.id" class="text-primary text-weight-medium"
style="text-decoration: none">{{ props.row.name }}</a><div class="text-caption quiet">{{ props.row.id }}</div></q-td>"""
PROGRESS_CELL = """<q-td :props="props" style="min-width: 140px">{{ props.row.progress }}
<q-linear-progress :value="props.row.share" rounded instant-feedback size="4px" /></q-td>"""
CANCEL_CELL = """<q-td :props="props" auto-width><q-btn v-if="!props.row.ended" flat dense round icon="cancel" color="negative"
:aria-label="'cancel ' + props.row.name" @click="() => $parent.$emit('cancel', props.row)" /></q-td>"""
