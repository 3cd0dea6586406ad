"""One step of a job: what formed it, and doing it again to look at it layer by layer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from api.cli.console import NOBODY, USAGE, HomeOption, JobArgument, JsonOption, fail, number, print_json, say, service
from api.client import Document
from api.home import Home

DIFFERENT, IMPOSSIBLE = 1, 2  # as `python -m workers.replay` ends

StepArgument = Annotated[int, typer.Argument(min=1, help="Of the job, from 1 on")]


def step(
    job_id: JobArgument,
    step: StepArgument,
    max_samples: Annotated[int, typer.Option(min=1, max=10_000, help="Most samples, over all workers")] = 100,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Show which samples formed a step on which worker, and what came of it: loss, norm of the gradient, learning rate."""
    with service(home) as client:
        found = client.step(job_id, step, max_samples=max_samples)
    print_json(found) if as_json else _show(found)


def _show(found: Document) -> None:
    workers = f"{found['workers']} worker{'s' if found['workers'] > 1 else ''}"
    split = f", {found['accumulate']} microbatches each" if found["accumulate"] > 1 else ""
    say(
        f"step {found['step']}, epoch {found['epoch'] + 1}, attempt {found['attempt']}: {found['samples']} samples on {workers}{split}"
    )
    say(
        f"loss {number(found['loss'], 6)}, gradient norm {number(found['gradient_norm'])}, "
        f"learning rate {number(found['learning_rate'])}"
    )
    if found["quarantined"]:
        say(f"left out: {', '.join(map(str, found['quarantined']))}", "dim")
    for rank in found["ranks"]:
        names = rank["names"] if rank["names"] is not None else rank["indices"]
        more = f" and {rank['left_out']} more" if rank["left_out"] else ""
        say(f"rank {rank['rank']}: {', '.join(map(str, names))}{more}")


def replay(
    run: Annotated[str, typer.Argument(metavar="JOB", help="Id of a job, or a job's folder")],
    step: StepArgument,
    bundle: Annotated[Path | None, typer.Option(help="File with the job's own code, where its folder has none")] = None,
    checkpoints: Annotated[str | None, typer.Option(help="Of the job: folder or URL, where not in its folder")] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Do a step of a job again on this machine, from the checkpoint before it, and show it layer by layer. Exit 1 when it differs.

    Forward activations, the loss, gradients backwards by the chain rule, updates. Nothing of the job is changed."""
    folder, kept = (Path(run), checkpoints) if Path(run).is_dir() else _folder_of(run, checkpoints, home)
    ended = subprocess.run(
        _command(folder, step, kept, bundle), stdout=subprocess.PIPE, env=_environment(), check=False
    )
    if ended.returncode not in (0, DIFFERENT) or not ended.stdout.strip():
        raise typer.Exit(ended.returncode or IMPOSSIBLE)
    found = json.loads(ended.stdout)
    if as_json:
        print_json(found)
    else:
        from workers.replay_text import shown

        say(shown(found))
    if ended.returncode:
        raise typer.Exit(ended.returncode)


def _folder_of(job_id: str, checkpoints: str | None, home: Path | None) -> tuple[Path, str | None]:
    """A job's folder and its checkpoints, where this machine sees the service's storage. Raises typer.Exit where it does not."""
    with service(home) as client:
        job = client.get_job(job_id)
    if job["spec"]["task"]["kind"] == "script":
        raise fail(f"{job_id} is a script, whose own loop decides what a step is: it cannot be done again", USAGE)
    from service.settings import Settings

    settings = Settings(home=Home(home).path)
    folder = settings.storage / "jobs" / job_id
    if not folder.is_dir():
        raise fail(
            f"the folder of {job_id} is not on this machine ({folder}): run this where the service's storage is, or give the folder",
            NOBODY,
        )
    kept = f"{settings.checkpoints.rstrip('/')}/{job_id}" if settings.checkpoints else None
    return folder, checkpoints or kept


def _command(folder: Path, step: int, checkpoints: str | None, bundle: Path | None) -> list[str]:
    command = [sys.executable, "-P", "-m", "workers.replay", str(folder), str(step), "--json"]
    command += ["--checkpoints", checkpoints] if checkpoints else []
    return command + (["--bundle", str(bundle)] if bundle else [])


def _environment() -> dict[str, str]:
    """Nothing is computed on accelerators: those may be at work. Without what says where a service is, and its key."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CHAINRULE_")}
    return kept | {"CUDA_VISIBLE_DEVICES": ""}
