"""A look at a script before its job is accepted: it is there, and it is Python."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from workers.kinds.scripts import ScriptTask
from workers.sources.code import files_of, missing, parsed
from workers.sources.problems import BadCodeError


def look_at_script(task: ScriptTask, bundle: Path | None) -> None:
    """What a script trains on, it knows alone. Raises BadCodeError that names what is missing, or the line of a syntax error."""
    field, wanted = _start(task)
    files = files_of(task.code, bundle, [*wanted, task.output])
    path = next((path for path in wanted if path in files), None)
    if path is None and not (task.module and task.code.requirements):
        raise missing(field, wanted[0], files)
    if path is not None:
        parsed(path, files[path](), field)
    if task.output in files:
        raise BadCodeError("task.output", f"{task.output} is a file of the code; name a folder that is free")


def _start(task: ScriptTask) -> tuple[str, list[str]]:
    """(field, where the script may be)."""
    if task.entry is not None:
        return "task.entry", [task.entry]
    assert task.module is not None
    inner = PurePosixPath(*task.module.split("."))
    tops = [PurePosixPath(top) for top in ("", *task.code.python_path)]
    return "task.module", [
        str(top / path) for top in tops for path in (inner.with_suffix(".py"), inner / "__main__.py")
    ]
