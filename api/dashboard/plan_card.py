"""What a job will take, beside the form that submits it."""

from __future__ import annotations

from typing import Any

from nicegui import ui

from api import plan_table
from api.dashboard import figures

LABELS = {"total": "A worker in all"}  # others are the column's own name


def show(plan: dict[str, Any]) -> None:
    """``plan`` as POST /v1/jobs?dry_run=true answers."""
    if not plan["computed"]:
        ui.label(plan["message"]).classes("text-warning")
        return
    with ui.card().props("flat bordered").classes("w-full"):
        ui.label(sentence(plan)).classes("text-body1")
        for line in plan["advice"]:
            ui.label(line).classes("text-negative" if plan["fits"] is False else "")
        rows = list(plan_table.rows(plan, figures.size))
        columns = [
            {"name": name, "label": LABELS.get(name, name.capitalize()), "field": name, "align": "left"}
            for name in rows[0]
        ]
        ui.table(columns=columns, rows=rows, row_key="layout").classes("w-full").props("flat dense")
        for line in plan["assumptions"]:
            ui.label(line).classes("quiet text-caption")


def sentence(plan: dict[str, Any]) -> str:
    parts = [
        f"{plan['parameters']:,} parameters",
        f"{plan['steps']:,} steps",
        f"{figures.number(plan['flops_per_step'] / 1e9)} GFLOP a step",
        f"about {figures.duration(plan['seconds'])}" if plan["seconds"] is not None else None,
        f"about {figures.number(plan['price'])} {plan['currency']}" if plan["price"] is not None else None,
        f"{figures.size(plan['memory']['total'])} a worker",
    ]
    return " · ".join(part for part in parts if part)
