"""What a job's actors and placement group are called in Ray, and how they are found, ended and mourned by name."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import ray
from ray.exceptions import RayActorError
from ray.util.placement_group import PlacementGroup, get_placement_group

NAMESPACE = "chainrule"
CONTROL_LABELS = {"chainrule.io/role": "control"}  # of a node on which nothing of a job is ever placed
NOT_CONTROL = {key: f"!{value}" for key, value in CONTROL_LABELS.items()}


def controller_name(attempt: str) -> str:
    return f"controller/{attempt}"


def group_name(attempt: str) -> str:
    return f"group/{attempt}"


def extra_group_name(attempt: str, number: int) -> str:
    return f"group/{attempt}/{number}"


def worker_name(attempt: str, number: int) -> str:
    return f"worker/{attempt}/{number}"


def devices_name(group: str, bundle: int) -> str:
    """Of what holds the accelerators of one worker's room."""
    return f"devices/{group}/{bundle}"


def attempt_of(name: str) -> str | None:
    """The attempt to which a named actor or placement group belongs; None for names that are not ours."""
    kind, _, rest = name.partition("/")
    return rest.partition("/")[0] if kind in ("controller", "group", "worker") and rest else None


def actors_of(attempt: str | None, kinds: Sequence[str] = ("worker",)) -> list[str]:
    """Names of the living actors of ``attempt`` (of all attempts: None)."""
    named = ray.util.list_named_actors(all_namespaces=True)
    ours = (entry["name"] for entry in named if entry["namespace"] == NAMESPACE)
    return [n for n in ours if n.partition("/")[0] in kinds and attempt in (None, attempt_of(n))]


def kill_actor(name: str) -> None:
    with contextlib.suppress(ValueError):  # gone already
        ray.kill(ray.get_actor(name, namespace=NAMESPACE), no_restart=True)


def find_placement_group(name: str) -> PlacementGroup | None:
    try:
        return get_placement_group(name)
    except ValueError:
        return None


def cause_of_death(error: RayActorError) -> str:
    """One line of what Ray knows; its messages run over many lines."""
    text = str(error)
    if (
        "OUT_OF_MEMORY" in text or "running low on memory" in text
    ):  # Ray's general words name the OOM killer at any death
        return "killed because the machine ran out of memory"
    if "node" in text.lower() and "died" in text.lower() and "The node" in text:
        return "its machine was lost"
    if "connection error code 2" in text or "SYSTEM_ERROR" in text or "unexpectedly" in text:
        return "its process died unexpectedly (killed by a signal or crashed; its log has more)"
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "its process died")[:300]
