"""A look at a script before its job is accepted: it is there, and it is Python."""

from __future__ import annotations

import stat
import warnings
from pathlib import Path

from workers.kinds.scripts import ScriptTask
from workers.sources.problems import BadDataError

LARGEST_SCRIPT = 4 << 20  # bytes


def training_samples(task: ScriptTask) -> None:
    """None: what a script trains on, it knows alone. Raises BadDataError that names the line of a syntax error."""
    folder = Path(task.code.path)
    if not folder.is_dir():
        raise BadDataError("task.code.path", f"{folder} is no folder")
    field, name, path = _start(task, folder)
    if not path.is_file():
        raise BadDataError(field, f"there is no file {name} in {folder}")
    if path.stat().st_size > LARGEST_SCRIPT or not stat.S_ISREG(path.stat().st_mode):
        raise BadDataError(field, f"{name} is no Python file of at most {LARGEST_SCRIPT >> 20} MiB")
    _must_be_python(field, name, path)
    if (folder / task.output).is_file():
        raise BadDataError("task.output", f"{task.output} is a file in {folder}; name a folder that is free")


def _start(task: ScriptTask, folder: Path) -> tuple[str, str, Path]:
    """(field, what is looked for, where it should be)."""
    if task.entry is not None:
        return "task.entry", task.entry, folder / task.entry
    assert task.module is not None
    parts = task.module.replace(".", "/")
    if (folder / parts).is_dir():
        return "task.module", f"{parts}/__main__.py", folder / parts / "__main__.py"
    return "task.module", f"{parts}.py", folder / f"{parts}.py"


def _must_be_python(field: str, name: str, path: Path) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the compiler thinks of its style is the script's own matter
            compile(path.read_bytes(), name, "exec", dont_inherit=True)
    except SyntaxError as error:
        raise BadDataError(field, f"{name}, line {error.lineno}: {error.msg}") from error
    except (ValueError, RecursionError, MemoryError) as error:  # null bytes, nesting too deep
        raise BadDataError(field, f"{name} is no Python source: {error}") from error
