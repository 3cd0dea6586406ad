"""`chainrule init`: a task of one's own to begin with, which trains as it stands."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from api.cli.console import USAGE, fail, say


def init(folder: Annotated[Path, typer.Argument(help="Folder to make")] = Path("my-task")) -> None:
    """Make a folder with a task of your own to begin with: data, network, loss and a job file. It trains as it stands."""
    files = sorted(path for path in template().iterdir() if path.is_file())
    if there := [path.name for path in files if (folder / path.name).exists()]:
        raise fail(f"{folder} has {', '.join(there)} already; nothing was written", USAGE)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in files:
            (folder / path.name).write_bytes(path.read_bytes())
    except OSError as error:
        raise fail(f"{folder}: {error.strerror}", USAGE) from error
    say(f"{folder} has {', '.join(path.name for path in files)}")
    say(
        f"train it: chainrule run {folder / 'job.yaml'}, or without any service: python -m workers.train {folder / 'job.yaml'}"
    )


def template() -> Path:
    """Lies beside the modules of ``workers``, none of which is imported for it."""
    found = importlib.util.find_spec("workers")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "template"
