"""On which machines standby workers wait."""

from __future__ import annotations

from typing import Any

import pytest

from workers.standby import next_node

pytestmark = pytest.mark.unit


def node(name: str, *, alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"NodeID": name, "Alive": alive, "Resources": resources}


CLUSTER = [node("head", memory=1e9), node("small", CPU=4), node("large", CPU=64), node("gpus", CPU=32, GPU=8)]


def test_machines_with_accelerators_come_first() -> None:
    """Ray's own choice would never be one of them."""
    assert next_node(CLUSTER, []) == "gpus"


def test_they_are_spread_over_all_that_can_hold_workers() -> None:
    waiting: list[str] = []
    for _ in range(6):
        chosen = next_node(CLUSTER, waiting)
        assert chosen is not None
        waiting.append(chosen)
    assert waiting == ["gpus", "large", "small"] * 2


def test_not_on_machines_that_are_gone_or_have_nothing_to_give() -> None:
    assert next_node([node("head"), node("lost", alive=False, CPU=4)], []) is None
