"""What became of a repair, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

WORDS = {
    "trial": "on trial",
    "set_aside": "it helped; another is compared with it",
    "kept": "kept",
    "taken_back": "taken back, it did not help",
    "undone": "undone",
}


def state_of(repair: Mapping[str, Any], repairs: Sequence[Mapping[str, Any]]) -> str:
    """Of one in the answer of ``GET .../repairs``, whose ``repairs`` are all of them."""
    if repair["state"] == "taken_back":
        if any(each.get("against") == repair["number"] for each in repairs):
            return "taken back, another did better"
        beaten = repair.get("rival") is not None and repair.get("score") is not None
        if repair.get("against") is not None or beaten:
            return "taken back, it did no better"
    return WORDS[repair["state"]]
