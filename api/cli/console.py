"""What the commands share: where the service is, how to print, and how to end."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from api.client import ApiError, Client, Document, NoServiceError
from api.home import Home

HomeOption = Annotated[
    Path | None, typer.Option("--home", help="Folder of the installation [$CHAINRULE_HOME, else ~/.chainrule]")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs")]
JobArgument = Annotated[str, typer.Argument(help="Id of the job")]
FollowOption = Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended")]

# Names and messages come from other people; a terminal must not obey them.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

FAILED, USAGE, NOBODY, PAUSED, INTERRUPTED = 1, 2, 3, 4, 130  # exit codes

WIDE = 1000  # characters

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def clean(text: object) -> str:
    return CONTROL.sub("\ufffd", str(text))


def say(message: object, style: str = "", console: Console = out) -> None:
    """One line for people, on standard output unless told; never read as markup."""
    console.print(Text(clean(message), style=style))


def fail(message: object, code: int = 1) -> typer.Exit:
    """To be raised: prints what went wrong."""
    err.print(Text(f"error: {clean(message)}", style="red"))
    return typer.Exit(code)


def print_json(document: Any) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def print_table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """The first column, an id to be copied, is never cut; nor is anything where a program reads."""
    first, *others = columns
    table = Table(Column(first, no_wrap=True), *others, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(Text("" if cell is None else clean(cell)) for cell in row))
    console = out if out.is_terminal else Console(highlight=False, width=WIDE)
    console.print(table)


@contextlib.contextmanager
def service(home: Path | None) -> Iterator[Client]:
    """A client of the service; what goes wrong with it becomes a message and an exit code: 1 refused, 3 nobody there, 130 Ctrl-C."""
    try:
        with Client.from_environment(Home(home)) as client:
            yield client
    except ApiError as error:
        raise refused(error, FAILED) from error
    except NoServiceError as error:
        raise fail(error, NOBODY) from error
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def refused(error: ApiError, code: int) -> typer.Exit:
    """To be raised: prints what the API refused, every problem on a line of its own."""
    for problem in error.problems:
        value = f" (got {problem['value']})" if problem.get("value") is not None else ""
        say(f"  {problem['path'] or 'job'}: {problem['message']}{value}", "red", err)
    if not error.problems:
        return fail(error.message, code)
    return fail(f"{len(error.problems)} problem{'s' if len(error.problems) > 1 else ''}", code)


def number(value: Any, digits: int = 4) -> str:
    return f"{value:.{digits}g}" if isinstance(value, int | float) else str(value)


def clock(moment: str | None) -> str:
    """The wire's time to the second, in UTC."""
    return "" if moment is None else moment[:19].replace("T", " ")


def between(start: str | None, end: str | None) -> str:
    """From one time of the wire to another, or to now."""
    if start is None:
        return ""
    until = datetime.fromisoformat(end) if end else datetime.now(UTC)
    return duration((until - datetime.fromisoformat(start)).total_seconds())


def exit_code(job: Document) -> int:
    return {"succeeded": 0, "paused": PAUSED}.get(job["status"], FAILED)


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
