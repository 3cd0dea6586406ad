"""A step of a job done again, as it was, and looked at layer by layer: ``python -m workers.replay FOLDER STEP``.

It begins with the newest checkpoint before the step that can be used, or with the start, and does what lies in between again too: the same samples,
the same number of workers (processes of their own, over gloo), the same changes by repairs. Nothing of the job's folder is changed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from workers import checkpoints, storage
from workers.checkpoint_folders import complete
from workers.checkpoints import Checkpoint, Damaged
from workers.jobfolder import JobFolder
from workers.replay_report import report
from workers.replay_run import CannotBeRedoneError, Part, redo
from workers.replay_text import shown
from workers.step_ledger import Change, NoSuchStepError, StepLedger, Stretch, UnknownStepError

SAID = 2000  # characters of what went wrong in a process
RELATED = (NoSuchStepError, UnknownStepError, CannotBeRedoneError)


@dataclass(frozen=True)
class Way:
    """From where, and over which stretches, a state is come to again."""

    begins: Checkpoint | None
    stretches: Sequence[Stretch]
    passed_over: Sequence[str]  # checkpoints that could not be used, and why

    @property
    def step(self) -> int:
        return self.begins.step if self.begins is not None else 0


def replay(folder: JobFolder, step: int, bundle: Path | None = None) -> dict[str, Any]:
    """The step as a document, see ``replay_report``. ``bundle``: the file with the job's own code, where it is not unpacked in the folder.

    Raises NoSuchStepError, UnknownStepError, CannotBeRedoneError, BadDataError; ChildProcessError for what failed in a process.
    """
    ledger = StepLedger(folder)
    made = ledger.step(step)
    way = _way(folder, ledger.lineage(step), step)
    with tempfile.TemporaryDirectory(prefix="chainrule-replay-") as scratch:
        if folder.code_path.is_dir():  # a copy: importing it, and asking for what it requires, may write beside it
            shutil.copytree(folder.code_path, Path(scratch) / "code", symlinks=True)
        begins, seen = way.begins, []
        for stretch in way.stretches:
            part = Part(
                spec=ledger.spec,
                world_size=stretch.group.world_size,
                accumulate=stretch.group.accumulate,
                first=stretch.first,
                last=stretch.last,
                begins=begins,
                under_way=stretch.group.begins < stretch.first - 1,
                acts=[each.act.document() for each in stretch.changes],
                looked_at=stretch.last == step,
                scratch=Path(scratch),
                bundle=bundle,
            )
            seen = _redone(part)
            if not part.looked_at:
                begins, _ = checkpoints.newest(part.saved)
                if begins is None or begins.step != stretch.last:
                    raise CannotBeRedoneError(
                        f"after step {stretch.last} the weights are no numbers, which no checkpoint keeps"
                    )
    return report(folder, ledger, made, seen, way.step, way.stretches, way.passed_over)


# --- from where -------------------------------------------------------------------------------------------------------


def _way(folder: JobFolder, lineage: Sequence[Stretch], step: int) -> Way:
    """From the newest checkpoint that can be used. Raises CannotBeRedoneError that names the act for which there is none."""
    passed_over: list[str] = []
    problem: str | None = None
    for begins in _checkpoints(folder, step, passed_over):
        at = begins.step if begins is not None else 0
        stretches = [_after(stretch, at) for stretch in lineage if stretch.last > at]
        found = next(filter(None, (_problem(stretch) for stretch in stretches)), None)
        if found is None:
            return Way(begins, stretches, passed_over)
        problem = problem or found
    raise CannotBeRedoneError(problem or "there is nothing to begin with")


def _checkpoints(folder: JobFolder, step: int, passed_over: list[str]) -> Iterator[Checkpoint | None]:
    """Those of steps before it, the newest first; then None, the start."""
    for manifest in reversed(complete(storage.folder_at(folder.checkpoints_root))):
        if manifest.step >= step:
            continue
        found = checkpoints.verify(manifest.folder)
        if isinstance(found, Damaged):
            passed_over.append(f"{found.path.name}: {found.problem}")
        elif found is not None:
            yield Checkpoint(found.folder, found.step, found.metrics, found.verdict)
    yield None


def _after(stretch: Stretch, step: int) -> Stretch:
    """What of it comes after a step."""
    changes = tuple(each for each in stretch.changes if each.step >= step)
    return replace(stretch, first=max(stretch.first, step + 1), changes=changes)


def _problem(stretch: Stretch) -> str | None:
    """Why a stretch cannot be done again from its first step on: what was in the memory of its workers then was from before it."""
    before = stretch.first - 1
    begun: dict[int, Change] = {}
    for change in stretch.changes:
        try:
            act = change.act
        except TypeError as error:
            return f"repair {change.number} after step {change.step} is of another version: {error}"
        named = f"repair {act.number} ({act.words}), after step {change.step}"
        if act.verdict is None:
            begun[act.number] = change
            if act.rewind is not None and act.rewind < before:
                return f"{named}, went back to step {act.rewind}, of which no checkpoint is left to begin with"
        elif act.rewind is not None and (act.number not in begun or act.rewind < before):
            return f"{named}, put back what was before it, and no checkpoint from before it is left to begin with"
    return None


# --- the processes ----------------------------------------------------------------------------------------------------


def _redone(part: Part) -> list[Any]:
    """What each rank has seen. Raises what one of them raised, where that is known to whoever calls, else ChildProcessError."""
    context = get_context("spawn")
    processes, pipes = [], []
    try:
        for rank in range(part.world_size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, part, rank), daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            pipes.append(ours)
        return _answers(pipes)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _answers(pipes: Sequence[Connection]) -> list[Any]:
    """The first that fails is the one to hear of: the others wait for it."""
    answers: dict[int, Any] = {}
    while len(answers) < len(pipes):
        for pipe in wait([pipe for rank, pipe in enumerate(pipes) if rank not in answers]):
            rank = pipes.index(pipe)
            try:
                fine, answer = pipes[rank].recv()
            except EOFError:
                raise ChildProcessError(f"the process of rank {rank} died") from None
            if not fine:
                raise answer
            answers[rank] = answer
    return [answers[rank] for rank in range(len(pipes))]


def _serve(pipe: Connection, part: Part, rank: int) -> None:
    from workers.sources.problems import BadDataError

    sys.dont_write_bytecode = True  # what Python leaves behind when it imports a user's code would lie in their folder
    try:
        pipe.send((True, redo(part, rank)))
    except (*RELATED, BadDataError) as error:
        pipe.send((False, error))
    except BaseException:  # whatever it was, its text is all that can be told elsewhere
        pipe.send((False, ChildProcessError(f"rank {rank} failed:\n{traceback.format_exc()[-SAID:]}")))


# --- the command ------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """0: done again, and equal to what is recorded as far as that is known; 1: done again, and different; 2: cannot be done again."""
    from workers.sources.problems import BadDataError

    parser = argparse.ArgumentParser(
        prog="python -m workers.replay", description="Do a step of a job again, as it was."
    )
    parser.add_argument("folder", type=Path, help="of the job")
    parser.add_argument("step", type=int, help="from 1 on")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    parser.add_argument(
        "--checkpoints", help="folder or URL of the job's checkpoints, where they do not lie in its folder"
    )
    parser.add_argument("--bundle", type=Path, help="file with the job's own code")
    given = parser.parse_args(arguments)
    try:
        found = replay(JobFolder.at(given.folder, given.checkpoints), given.step, given.bundle)
    except (*RELATED, BadDataError, ChildProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(found) if given.json else shown(found))
    return 1 if found["compared"]["same"] is False else 0


if __name__ == "__main__":
    # Not as __main__: what travels to other processes is found there by the module's name.
    from workers.replay import main as run

    raise SystemExit(run())
