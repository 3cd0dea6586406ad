"""A plan as a table, for the command line and the dashboard: the layout that was asked for, and others to compare it with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

PARTS = ("weights", "gradients", "optimizer", "activations", "buffers", "process", "total")
FITS = {None: "", True: "yes", False: "no"}


def rows(plan: Mapping[str, Any], size: Callable[[float], str]) -> Iterator[dict[str, Any]]:
    """``layout``, ``microbatch``, each of PARTS as ``size`` writes it, ``fits``."""
    for layout in (plan, *plan["layouts"]):
        accumulated = f", accumulate {layout['accumulate']}" if layout["accumulate"] > 1 else ""
        yield {
            "layout": f"{layout['strategy']} x {layout['workers']}{accumulated}",
            "microbatch": layout["microbatch"],
            **{part: size(layout["memory"][part]) for part in PARTS},
            "fits": FITS[layout["fits"]],
        }
