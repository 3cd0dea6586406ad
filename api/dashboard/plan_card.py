"""What a job will take, beside the form that submits it."""

from __future__ import annotations

from typing import Any

from nicegui import ui

from api.dashboard import figures

PARTS = (
    ("weights", "Weights"), ("gradients", "Gradients"), ("optimizer", "Optimizer"), ("activations", "Activations"),
    ("buffers", "Buffers"), ("process", "Process"), ("total", "A worker in all"),
)  # fmt: skip
FITS = {None: "", True: "yes", False: "no"}


def show(plan: dict[str, Any]) -> None:
    """``plan`` as POST /v1/jobs?dry_run=true answers."""
    if not plan["computed"]:
        ui.label(plan["message"]).classes("text-warning")
        return
    with ui.card().props("flat bordered").classes("w-full"):
        ui.label(sentence(plan)).classes("text-body1")
        for line in plan["advice"]:
            ui.label(line).classes("text-negative" if plan["fits"] is False else "")
        columns = [("layout", "Layout"), ("microbatch", "Microbatch"), *PARTS, ("fits", "Fits")]
        described = [{"name": name, "label": label, "field": name, "align": "left"} for name, label in columns]
        rows = [_row(layout) for layout in (plan, *plan["layouts"])]
        ui.table(columns=described, rows=rows, row_key="layout").classes("w-full").props("flat dense")
        for line in plan["assumptions"]:
            ui.label(line).classes("text-grey text-caption")


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


def _row(layout: dict[str, Any]) -> dict[str, Any]:
    accumulated = f", accumulate {layout['accumulate']}" if layout["accumulate"] > 1 else ""
    return {
        "layout": f"{layout['strategy']} x {layout['workers']}{accumulated}",
        "microbatch": layout["microbatch"],
        "fits": FITS[layout["fits"]],
        **{name: figures.size(layout["memory"][name]) for name, _ in PARTS},
    }
