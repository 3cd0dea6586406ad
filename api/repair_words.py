"""What became of a repair, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def state_of(repair: Mapping[str, Any]) -> str:
    """Of one in the answer of ``GET .../repairs``."""
    compared = repair.get("against") is not None or repair.get("rival") is not None
    words = {
        "trial": "on trial",
        "set_aside": "it helped; another is compared with it",
        "kept": "kept",
        "taken_back": "taken back, it did no better" if compared else "taken back, it did not help",
        "undone": "undone",
    }
    if repair["state"] == "taken_back" and repair.get("score") is not None and not compared:
        return "taken back, another did better"
    return words[repair["state"]]
