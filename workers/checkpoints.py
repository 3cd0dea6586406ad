"""Training checkpoints: torch DCP for tensors, JSON for the rest, and a manifest of digests written last.

A folder counts as a checkpoint only if its ``manifest.json`` exists and every file has the size and SHA-256 that stand there: torch and safetensors
both load a flipped bit without a word.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

MANIFEST = "manifest.json"
STATE = "state.json"
INDEX = ".metadata"  # DCP's own


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read. ``str()`` says which and why."""


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Damaged:
    path: Path
    problem: str


def folder_of(root: Path, step: int) -> Path:
    return root / f"step-{step:010d}"


# --- what is saved ----------------------------------------------------------------------------------------------------


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(all tensors by name, plain values by name) of model and optimizer. The tensors are the live ones, not copies."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    values: dict[str, Any] = {}
    names = _optimized_names(model)
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            target = tensors if isinstance(value, Tensor) else values
            target[f"optimizer.{names[index]}.{key}"] = value
    return tensors, values


def restore(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], values: Mapping[str, Any]
) -> None:
    """Puts back what ``tensors_of`` gave. Names or shapes that do not fit raise, nothing is skipped."""
    model.load_state_dict({name.removeprefix("model."): v for name, v in tensors.items() if name.startswith("model.")})
    names = _optimized_names(model)
    index_of = {name: index for index, name in enumerate(names)}
    state: dict[int, dict[str, Any]] = {}
    for full, value in [*tensors.items(), *values.items()]:
        if full.startswith("optimizer."):
            name, _, key = full.removeprefix("optimizer.").rpartition(".")
            state.setdefault(index_of[name], {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _optimized_names(model: nn.Module) -> list[str]:
    """In the order in which the optimizer got the parameters."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


# --- writing ----------------------------------------------------------------------------------------------------------


def save(
    root: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    metrics: Mapping[str, float],
    *,
    rank: int,
    world_size: int,
    group: dist.ProcessGroup | None,
) -> Checkpoint:
    """Writes one checkpoint; all ranks call it. Complete when it returns. Raises CheckpointError, on every rank."""
    path = folder_of(root, step)
    tensors, values = tensors_of(model, optimizer)

    def write_tensors() -> None:
        from workers import tensor_files

        tensor_files.write(path, tensors, world_size, group)

    def finish() -> None:
        document = {"step": step, "optimizer_values": values, **state}
        _write_durably(path / STATE, json.dumps(document).encode())
        _write_manifest(path, step, metrics, world_size)

    problem = _shared(_problem(lambda: _empty_folder(path)) if rank == 0 else None, world_size, group)
    problem = problem or _problem(write_tensors)  # DCP raises on every rank what went wrong on any
    problem = problem or _shared(_problem(finish) if rank == 0 else None, world_size, group)
    if problem is not None:
        raise CheckpointError(f"checkpoint of step {step} could not be written to {path}: {problem}")
    return Checkpoint(path, step, dict(metrics))


def _problem(action: Callable[[], None]) -> str | None:
    try:
        action()
    except OSError as error:
        return str(error)
    return None


def _shared(problem: str | None, world_size: int, group: dist.ProcessGroup | None) -> str | None:
    """Rank 0's problem, on every rank, so that none waits for it in the next collective."""
    if world_size == 1:
        return problem
    found = [problem]
    dist.broadcast_object_list(found, src=0, group=group)
    return found[0]


def _empty_folder(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)  # the remains of an attempt that died while writing
    path.mkdir(parents=True)


def _write_manifest(path: Path, step: int, metrics: Mapping[str, float], world_size: int) -> None:
    files = [_file_entry(path, file) for file in sorted(path.rglob("*")) if file.is_file() and file.name != MANIFEST]
    document = {
        "format": 1,
        "step": step,
        "created_at": time.time(),
        "metrics": dict(metrics),
        "world_size": world_size,
        "files": files,
    }
    _write_durably(path / MANIFEST, json.dumps(document, indent=1).encode())


def _file_entry(root: Path, file: Path) -> dict[str, Any]:
    return {"path": str(file.relative_to(root)), "bytes": file.stat().st_size, "sha256": sha256(file)}


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_durably(path: Path, content: bytes) -> None:
    """So that after a crash at any instant the file is whole or not there."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    partial.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


# --- reading ----------------------------------------------------------------------------------------------------------


def verify(path: Path) -> dict[str, Any] | Damaged:
    """The manifest of a complete, undamaged checkpoint, or what is wrong with it."""
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_bytes())
        problem = _problem_of(path, manifest)
    except OSError as error:
        problem = f"{Path(error.filename or path).name}: {error.strerror}"
    except (ValueError, KeyError, TypeError) as error:
        problem = f"unreadable manifest ({type(error).__name__}: {error})"
    return manifest if problem is None else Damaged(path, problem)


def _problem_of(path: Path, manifest: Mapping[str, Any]) -> str | None:
    """The manifest itself has no digest, so what it says must fit the folder's name and what every checkpoint has."""
    if manifest["format"] != 1 or folder_of(path.parent, manifest["step"]) != path:
        return f"the manifest is of format {manifest['format']!r} and step {manifest['step']!r}"
    if not isinstance(manifest["metrics"], dict):
        return "the manifest has no metrics"
    named = {entry["path"] for entry in manifest["files"]}
    if missing := {STATE, INDEX} - named:
        return f"the manifest does not name {', '.join(sorted(missing))}"
    for entry in manifest["files"]:
        file = path / entry["path"]
        if path.resolve() not in file.resolve().parents:
            return f"the manifest names {entry['path']!r}, outside of the checkpoint"
        if file.stat().st_size != entry["bytes"]:
            return f"{entry['path']} has {file.stat().st_size} bytes instead of {entry['bytes']}"
        if sha256(file) != entry["sha256"]:
            return f"{entry['path']} does not have the recorded SHA-256"
    return None


def newest(root: Path) -> tuple[Checkpoint | None, list[Damaged]]:
    """The newest checkpoint that verifies, and the damaged ones passed over on the way to it (unfinished ones are no damage)."""
    damaged: list[Damaged] = []
    for path in sorted(root.glob("step-*"), reverse=True):
        if not (path / MANIFEST).exists():
            continue
        manifest = verify(path)
        if isinstance(manifest, Damaged):
            damaged.append(manifest)
            continue
        return Checkpoint(path, manifest["step"], manifest["metrics"]), damaged
    return None, damaged


def load(
    checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
) -> dict[str, Any]:
    """Puts model and optimizer back as they were, on any number of ranks; returns the state saved beside them.

    The caller has verified the checkpoint: DCP's own index is a pickle, and is only read when its digest is ours.
    """
    from workers import tensor_files

    try:
        tensors = tensor_files.read(checkpoint.path, device)
    except OSError as error:
        raise CheckpointError(f"checkpoint {checkpoint.path} could not be read: {error}") from error
    state: dict[str, Any] = json.loads((checkpoint.path / STATE).read_bytes())
    restore(model, optimizer, tensors, state.pop("optimizer_values"))
    return state


# --- retention --------------------------------------------------------------------------------------------------------


def prune(root: Path, *, keep_last: int, keep_best: int, best: str, mode: str) -> list[Path]:
    """Removes what retention no longer keeps, and unfinished folders older than the newest complete one. Rank 0 only."""
    complete: list[tuple[Path, Mapping[str, float]]] = []
    unfinished: list[Path] = []
    for path in sorted(root.glob("step-*")):
        try:
            complete.append((path, json.loads((path / MANIFEST).read_bytes())["metrics"]))
        except (OSError, ValueError, KeyError):
            unfinished.append(path)
    kept = {path for path, _ in complete[-keep_last:]}
    scored = [(metrics[best], path) for path, metrics in complete if best in metrics]
    scored.sort(key=lambda pair: pair[0], reverse=mode == "max")
    kept |= {path for _, path in scored[:keep_best]}
    gone = [path for path, _ in complete if path not in kept]
    gone += [path for path in unfinished if complete and path < complete[-1][0]]
    for path in gone:
        # The manifest first: a half-removed checkpoint must not look like one.
        (path / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)
    return gone
