"""Commands about the cluster and its nodes."""

from __future__ import annotations

from typing import Annotated

import typer

from api.cli.console import USAGE, HomeOption, JsonOption, clock, fail, number, print_json, print_table, say, service
from api.client import Client, Document

NodeArgument = Annotated[str, typer.Argument(help="The node: its id, the beginning of it, or its address")]
UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def cluster(as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Show the nodes of the cluster, what jobs hold of them, and the queue."""
    with service(home) as client:
        found = client.cluster()
    print_json(found) if as_json else _show(found)


def cordon(
    node: NodeArgument,
    reason: Annotated[str | None, typer.Option(help="For others who look at the cluster")] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Take a node out of use: nothing new goes there, and what is there moves away. Needs an admin key."""
    with service(home) as client:
        node_id = _find(client, node)
        found = client.cordon_node(node_id, reason)
    print_json(found) if as_json else say(f"{node_id} is out of use; `chainrule uncordon {node_id[:12]}` puts it back")


def uncordon(node: NodeArgument, as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Put a node back into use. Needs an admin key."""
    with service(home) as client:
        node_id = _find(client, node)
        found = client.uncordon_node(node_id)
    print_json(found) if as_json else say(f"{node_id} is in use")


def _find(client: Client, wanted: str) -> str:
    """The id of the one node that is meant. Raises typer.Exit when it is none, or several."""
    nodes = client.cluster()["nodes"]
    meant = [n["id"] for n in nodes if wanted and (n["id"].startswith(wanted) or n["address"] == wanted)]
    if wanted in meant:
        return wanted
    if len(meant) == 1:
        return str(meant[0])
    known = ", ".join(f"{node['id'][:12]} ({node['address']})" for node in nodes) or "none"
    problem = "means several nodes" if meant else "is no node of the cluster"
    raise fail(f"{wanted!r} {problem}; there are: {known}", USAGE)


def _show(found: Document) -> None:
    if not found["reachable"]:
        say(f"the cluster cannot be reached: {found['message']}", "red")
    if not found["scheduler"]["alive"]:
        say("no scheduler is at work", "red")
    print_table(("node", "address", "cpus", "gpus", "memory", "state"), map(_node, found["nodes"]))
    used = found["used"]
    say(f"jobs hold {number(used['cpus'])} cpus, {number(used['gpus'])} gpus, {_bytes(used['memory'])}", "")
    say(f"{found['active']} active, {found['queued']} queued; seen {clock(found['updated_at']) or 'never'}", "dim")


def _node(node: Document) -> tuple[object, ...]:
    state = "draining" if node["draining"] else "in use"
    if node["cordoned"]:
        state = f"cordoned {clock(node['cordoned_at'])}" + (f": {node['reason']}" if node["reason"] else "")
    total = node["total"]
    return (
        node["id"],
        node["address"],
        number(total["cpus"]),
        number(total["gpus"]),
        _bytes(total["memory"]),
        state,
    )


def _bytes(count: float) -> str:
    for unit in UNITS:
        if count < 1024 or unit == UNITS[-1]:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("the last unit takes everything")
