"""A job file on its way to the service: its relative paths are made absolute here, and its code is packed and uploaded."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api.cli.console import USAGE, err, fail, say
from api.client import Client, Document
from api.packing import PackingError, cloned, packed
from workers.jobfile import JobFileError, read_job_file
from workers.problems import SpecError
from workers.spec import code_of, parse_spec, read_from

PLACES = ("path", "git", "file")  # fields that say where code is


@dataclass(frozen=True)
class Submission:
    """``code``: a folder of this machine, or the address of a git repository; None: the service has the code, or there is none."""

    document: dict[str, Any]
    code: str | None = None

    def post(self, client: Client) -> Document:
        """Uploads the code, if there is any here, and posts the job. Raises typer.Exit when the code cannot be packed."""
        return client.create_job(self._uploaded(client))

    def plan(self, client: Client) -> Document:
        """What the job would take. Its code is uploaded for that too, and does not stay."""
        document = self._uploaded(client)
        try:
            return client.plan_job(document)
        finally:
            if document is not self.document:
                client.files.delete(document["task"]["code"]["file"])

    def _uploaded(self, client: Client) -> dict[str, Any]:
        if self.code is None:
            return self.document
        found: dict[str, Any] = _placed(self.document, {"file": self._upload(client, self.code)})
        return found

    def _upload(self, client: Client, code: str) -> str:
        with ExitStack() as stack:
            try:
                folder, name = stack.enter_context(cloned(code)) if code.startswith("git+") else (Path(code), None)
                bundle = stack.enter_context(packed(folder, name))
            except PackingError as error:
                raise fail(error, USAGE) from error
            file = client.files.create(bundle)
        say(f"uploaded {file['filename']} ({file['bytes']} bytes) as {file['id']}", "", err)
        return str(file["id"])


def read_job(path: Path, code: str | None = None) -> Submission:
    """The job of a file, checked here already; relative paths in it are taken from the file's folder. ``code``: folder or git address that takes
    the place of where the file says that the code is. Raises typer.Exit(2)."""
    try:
        document = read_job_file(path)
        if code is not None:
            document = _placed(document, {"git": code} if code.startswith("git+") else {"path": "."})
        spec = parse_spec(document)
    except JobFileError as error:
        raise fail(error, USAGE) from error
    except SpecError as error:
        for problem in error.problems:
            say(f"  {problem}", "red", err)
        problems = f"{len(error.problems)} problem{'s' if len(error.problems) > 1 else ''}"
        raise fail(f"{path} has {problems}", USAGE) from error
    assert isinstance(document, dict)
    folder = path.resolve().parent
    own = code_of(spec)
    moved = read_from(str(folder), document, spec)
    if code is not None:
        return Submission(moved, code if code.startswith("git+") else str(Path(code).resolve()))
    if own is None or own.file is not None or (own.path is not None and os.path.isabs(os.path.expanduser(own.path))):
        return Submission(moved)
    return Submission(moved, own.git or str((folder / (own.path or ".")).resolve()))


def _placed(document: Any, place: dict[str, str]) -> Any:
    """A copy of ``document`` whose code is in that place."""
    if not isinstance(document, dict) or not isinstance(document.get("task"), dict):
        return document  # whose problems are told
    known = document["task"].get("code")
    kept = {key: value for key, value in known.items() if key not in PLACES} if isinstance(known, dict) else {}
    return {**document, "task": {**document["task"], "code": {**kept, **place}}}
