"""The command for what a job's task showed of its model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from api.cli.console import HomeOption, JobArgument, JsonOption, clock, fail, print_json, print_table, say, service
from api.client import Client, Document
from workers.artifacts import parse_path


def artifacts(
    job_id: JobArgument,
    step: Annotated[int | None, typer.Option(help="Only those after this step", min=0)] = None,
    download: Annotated[
        Path | None, typer.Option(help="Write the files below this folder, in a folder for each step")
    ] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """List what a job's task showed of its model after evaluations: texts, pictures, structures."""
    with service(home) as client:
        found = list(_all(client, job_id, step))
        for artifact in found if download else ():
            _write(client, job_id, str(artifact["path"]), download)
    if as_json:
        for artifact in found:
            print_json(artifact)
    elif not found:
        say(f"{job_id} has shown nothing" + ("" if step is None else f" after step {step}"), "dim")
    elif download:
        say(f"{len(found)} file{'s' if len(found) > 1 else ''} in {download}")
    else:
        rows = ((each["path"], each["bytes"], each["media_type"], clock(each["created_at"])) for each in found)
        print_table(("file", "bytes", "type", "written (UTC)"), rows)


def _all(client: Client, job_id: str, step: int | None) -> Iterator[Document]:
    after: str | None = None
    while True:
        page = client.artifacts(job_id, step=step, after=after, limit=1000)
        yield from page["data"]
        if not page["has_more"]:
            return
        after = page["last_id"]


def _write(client: Client, job_id: str, path: str, folder: Path | None) -> None:
    """Raises typer.Exit when the file cannot be written here."""
    assert folder is not None
    if parse_path(path) is None:  # a server must not choose where on this machine it lands
        raise fail(f"the service names a file {path!r}, which is no artifact's")
    target = folder / path
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(client.download_artifact(job_id, path))
    except OSError as error:
        raise fail(f"{target} cannot be written: {error.strerror}") from error
