"""Training checkpoints: what is saved, and reading it back. ``checkpoint_saver`` writes them, ``checkpoint_folders`` says how they lie in storage.

A checkpoint counts only if its manifest exists and every file has the size and SHA-256 that stand there: torch and safetensors both load a
flipped bit without a word.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from upath import UPath

from workers import storage
from workers.checkpoint_folders import MANIFEST, STATE, Key, Manifest, ManifestError, StoredFile, key_of, read_manifest


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read. ``str()`` says which and why."""


class StorageFullError(CheckpointError):
    """There is no room for it."""


@dataclass(frozen=True)
class Checkpoint:
    path: UPath
    step: int
    metrics: Mapping[str, float]
    verdict: str


@dataclass(frozen=True)
class Damaged:
    path: UPath
    problem: str


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is complete from now on."""

    step: int
    path: str  # or URL
    bytes: int  # on rank 0 of all its files, elsewhere of this rank's
    seconds: float  # from begin until it was published (elsewhere than on rank 0: until this rank heard of it)
    blocked_seconds: float  # for which it held up the training thread
    metrics: Mapping[str, float]
    verdict: str
    rejudged: tuple[int, ...] = ()  # on rank 0: steps of older ones that are critical from now on


@dataclass(frozen=True)
class Failed:
    """A checkpoint that was given up by all ranks."""

    step: int
    problem: str  # a sentence; what exactly went wrong knows the rank where it did
    storage_full: bool
    here: bool  # it was this rank


# --- what is saved ----------------------------------------------------------------------------------------------------


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(all tensors by name, plain values by name) of model and optimizer. The tensors (or DTensors) are the live ones, not copies."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    values: dict[str, Any] = {}
    names = _optimized_names(model, optimizer)
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            target = tensors if isinstance(value, Tensor) else values
            target[f"optimizer.{names[index]}.{key}"] = value
    return tensors, values


def restore(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], values: Mapping[str, Any]
) -> None:
    """Puts back what ``tensors_of`` gave, sharded in the same way. Names or shapes that do not fit raise, nothing is skipped."""
    model.load_state_dict({name.removeprefix("model."): v for name, v in tensors.items() if name.startswith("model.")})
    _restore_optimizer(model, optimizer, tensors, values)


def _restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], values: Mapping[str, Any]
) -> None:
    index_of = {name: index for index, name in enumerate(_optimized_names(model, optimizer))}
    state: dict[int, dict[str, Any]] = {}
    for full, value in [*tensors.items(), *values.items()]:
        if full.startswith("optimizer."):
            name, _, key = full.removeprefix("optimizer.").rpartition(".")
            state.setdefault(index_of[name], {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _optimized_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """In the order in which the optimizer numbers its parameters: group by group."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]


# --- choosing ---------------------------------------------------------------------------------------------------------


def newest(root: str | os.PathLike[str], healthy_before: int = 0) -> tuple[Checkpoint | None, list[Damaged]]:
    """The newest checkpoint that verifies, and the damaged ones passed over on the way to it (unfinished ones are no damage).

    ``healthy_before``: a generation; of what earlier ones wrote only healthy checkpoints count.
    """
    folder = storage.folder_at(root)
    damaged: list[Damaged] = []
    for name in sorted(filter(key_of, storage.names_in(folder)), key=_key, reverse=True):
        try:
            found = verify(folder / name, healthy_only=_key(name).generation < healthy_before)
        except FileNotFoundError:
            continue  # unfinished
        if isinstance(found, Damaged):
            damaged.append(found)
        elif found is not None:
            return Checkpoint(found.folder, found.step, found.metrics, found.verdict), damaged
    return None, damaged


def _key(name: str) -> Key:
    key = key_of(name)
    assert key is not None
    return key


def verify(folder: UPath, *, healthy_only: bool = False) -> Manifest | Damaged | None:
    """The manifest of a complete, undamaged checkpoint, or what is wrong with it; None when it is not asked for.

    Raises FileNotFoundError without a manifest.
    """
    try:
        manifest = read_manifest(folder)
    except FileNotFoundError:
        raise
    except ManifestError as error:
        return Damaged(folder, str(error))
    except OSError as error:
        return Damaged(folder, f"{MANIFEST}: {error.strerror or error}")
    if healthy_only and manifest.verdict != "healthy":
        return None
    try:
        problem = _problem_of_files(manifest)
    except OSError as error:
        problem = f"{Path(error.filename or folder.name).name}: {error.strerror or error}"
    return manifest if problem is None else Damaged(folder, problem)


def _problem_of_files(manifest: Manifest) -> str | None:
    if storage.is_local(manifest.folder):
        return next(filter(None, (_problem_of(manifest.folder / file.path, file) for file in manifest.files)), None)
    return _download(manifest)


def _problem_of(path: UPath, file: StoredFile, copy: Path | None = None) -> str | None:
    """Also writes the bytes to ``copy`` as it reads them."""
    digest, size = hashlib.sha256(), 0
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(copy.open("wb")) if copy else None
        for chunk in storage.chunks(path):
            digest.update(chunk)
            size += len(chunk)
            if target:
                target.write(chunk)
    if size != file.bytes:
        return f"{file.path} has {size} bytes instead of {file.bytes}"
    if digest.hexdigest() != file.sha256:
        return f"{file.path} does not have the recorded SHA-256"
    return None


# --- copies of what lies in an object store ---------------------------------------------------------------------------

_copies: dict[
    str, tempfile.TemporaryDirectory[str]
] = {}  # the last one that this process has verified, until it is loaded


@atexit.register
def _forget_copies() -> None:
    while _copies:
        _copies.popitem()[1].cleanup()


def _download(manifest: Manifest) -> str | None:
    """Keeps a local copy for ``load`` when every file is as it should be, so that each is fetched once."""
    _forget_copies()
    with contextlib.ExitStack() as cleaning:
        copy = tempfile.TemporaryDirectory(prefix="chainrule-checkpoint-")
        cleaning.callback(copy.cleanup)
        for file in manifest.files:
            if problem := _problem_of(manifest.folder / file.path, file, Path(copy.name) / file.path):
                return problem
        cleaning.pop_all()
    _copies[str(manifest.folder)] = copy
    return None


@contextlib.contextmanager
def _local(folder: UPath) -> Iterator[UPath]:
    if storage.is_local(folder):
        yield folder
        return
    if str(folder) not in _copies and (problem := _download(read_manifest(folder))):
        raise OSError(problem)
    with _copies.pop(str(folder)) as copy:
        yield UPath(copy)


# --- loading ----------------------------------------------------------------------------------------------------------


def document_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """What was saved beside the tensors. Raises CheckpointError."""
    try:
        with _local(checkpoint.path) as folder:
            document: dict[str, Any] = json.loads((folder / STATE).read_bytes())
    except (OSError, ManifestError) as error:
        raise CheckpointError(f"checkpoint {checkpoint.path} could not be read: {error}") from error
    return document


def load(
    checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
) -> dict[str, Any]:
    """Puts model and optimizer back as they were, on any number of ranks and however they are sharded now; returns the document saved beside them.

    The caller has verified the checkpoint: DCP's own index is a pickle, and is only read when its digest is ours. Weights, and optimizer state that
    exists already, are filled in place. Raises CheckpointError, before anything is changed when names or shapes do not fit.
    """
    from workers import tensor_files

    try:
        with _local(checkpoint.path) as folder:
            document: dict[str, Any] = json.loads((folder / STATE).read_bytes())
            targets = _targets(tensor_files.kinds(folder), model, optimizer, device)
            tensor_files.read(folder, targets)
    except (OSError, ManifestError) as error:
        raise CheckpointError(f"checkpoint {checkpoint.path} could not be read: {error}") from error
    _restore_optimizer(model, optimizer, targets, document.pop("optimizer_values"))
    return document


def _targets(
    saved: Mapping[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
) -> dict[str, Tensor]:
    """For each saved tensor one to read it into: the live one where there is one."""
    live, _ = tensors_of(model, optimizer)
    expected = {name for name in live if name.startswith("model.")}
    given = {name for name in saved if name.startswith("model.")}
    if expected != given:
        odd = ", ".join(sorted(expected ^ given)[:5])
        raise CheckpointError(f"the checkpoint is of another model: {odd} is only in one of the two")
    parameters = dict(model.named_parameters())
    targets = {}
    for name, kind in saved.items():
        target = live.get(name)
        if name in expected and (target is None or target.shape != kind.size or target.dtype != kind.dtype):
            found = "nothing" if target is None else f"{tuple(target.shape)} of {target.dtype}"
            raise CheckpointError(
                f"size mismatch for {name}: {tuple(kind.size)} of {kind.dtype} was saved, here is {found}"
            )
        if target is None or target.shape != kind.size or target.dtype != kind.dtype:
            target = _new_state(name, kind, parameters, device)
        targets[name] = target
    return targets


def _new_state(name: str, kind: Any, parameters: Mapping[str, nn.Parameter], device: torch.device) -> Tensor:
    """Optimizer state of a parameter, sharded like it. Scalars (step counters) stay on the CPU."""
    parameter = parameters.get(name.removeprefix("optimizer.").rpartition(".")[0])
    if parameter is None:
        raise CheckpointError(f"the checkpoint is of another model: {name} has no parameter here")
    if parameter.shape == kind.size and kind.size:
        return torch.zeros_like(parameter.detach(), dtype=kind.dtype)
    return torch.empty(kind.size, dtype=kind.dtype, device=device if kind.size else "cpu")
