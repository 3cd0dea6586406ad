"""The command that says what a job will take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from api.cli.console import HomeOption, JsonOption, duration, fail, number, print_json, print_table, say, service
from api.cli.submission import read_job
from api.client import Document
from api.plan_table import rows


def plan(
    file: Annotated[Path, typer.Argument(help="Job file, YAML or JSON")],
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Say what a job will take: parameters, memory of a worker, time, price. Nothing is submitted. Exit 1 when it does not fit."""
    submission = read_job(file)
    with service(home) as client:
        found = submission.plan(client)
    if as_json:
        print_json(found)
    elif found["computed"]:
        _show(found)
    if not found["computed"]:
        raise fail(found["message"])
    if found["fits"] is False:
        raise typer.Exit(1)


def _show(found: Document) -> None:
    for name, value in facts(found):
        say(f"  {name:12} {value}")
    say("")
    table = list(rows(found, size))
    print_table(tuple(table[0]), [tuple(row.values()) for row in table])
    say("")
    for line in found["advice"]:
        say(line, "" if found["fits"] else "yellow")
    for line in found["assumptions"]:
        say(line, "dim")


def facts(found: Document) -> Iterator[tuple[str, str]]:
    """What is said of a plan in a line each."""
    trained = (
        ""
        if found["trained_parameters"] == found["parameters"]
        else f", {found['trained_parameters']:,} of them trained"
    )
    yield "parameters", f"{found['parameters']:,}{trained}"
    yield (
        "steps",
        f"{found['steps']:,} over {found['samples']:,} samples, {number(found['flops_per_step'] / 1e9)} GFLOP each",
    )
    if found["seconds"] is not None:
        yield "time", f"about {duration(found['seconds'])}, {number(found['seconds_per_step'], 3)} s a step"
    if found["price"] is not None:
        yield "price", f"about {number(found['price'], 3)} {found['currency']}"
    yield (
        "memory",
        f"{size(found['memory']['total'])} a worker"
        + ("" if found["limit"] is None else f" of {size(found['limit'])} ({found['limit_name']})"),
    )


def size(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
