"""How checkpoints lie in storage, and which of them are kept. No torch here: the API lists checkpoints too.

    step-0000000100-g000002/      a checkpoint of step 100 that the group of generation 2 wrote
        part-0000.distcp          tensors that rank 0 wrote, in the format of torch's distributed checkpoint (DCP)
        part-0001.distcp          ... rank 1
        .metadata                 DCP's index: which tensor lies where
        state.json                everything that is no tensor
        manifest.json             written last: step, metrics, verdict, and size and SHA-256 of each file above

A folder without a manifest is no checkpoint. Every generation writes into folders of its own, so that a thread of an abandoned one cannot touch
what a later one has published.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from upath import UPath

from workers import storage

FORMAT = 2
MANIFEST = "manifest.json"
STATE = "state.json"
INDEX = ".metadata"  # DCP's name
NAME = re.compile(r"step-(\d{10,})-g(\d{6,})", re.ASCII)
FILE_NAME = re.compile(r"\.?[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)


class Key(NamedTuple):
    """What a folder's name says. Compares as checkpoints follow upon each other."""

    step: int
    generation: int


def folder_of(root: UPath, step: int, generation: int) -> UPath:
    return root / f"step-{step:010d}-g{generation:06d}"


def key_of(name: str) -> Key | None:
    """None: the name is none of a checkpoint's folder."""
    match = NAME.fullmatch(name)
    return Key(int(match[1]), int(match[2])) if match else None


def newest_generation(root: str) -> int:
    """The largest that has written to ``root``, 0 if none has."""
    keys = filter(None, map(key_of, storage.names_in(storage.folder_at(root))))
    return max((key.generation for key in keys), default=0)


@dataclass(frozen=True)
class StoredFile:
    path: str  # name within the folder
    bytes: int
    sha256: str


def stored(path: str, content: bytes) -> StoredFile:
    return StoredFile(path, len(content), hashlib.sha256(content).hexdigest())


@dataclass(frozen=True)
class Manifest:
    """A complete checkpoint. Its files are as it says only if their digests agree, which nobody has looked at yet."""

    folder: UPath
    step: int
    generation: int
    created_at: float  # seconds since the epoch
    world_size: int
    metrics: Mapping[str, float]
    verdict: str  # on the gradients, when it was saved or, once something critical turned out to have begun before it, since then
    files: tuple[StoredFile, ...]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    @property
    def key(self) -> Key:
        return Key(self.step, self.generation)

    def document(self) -> dict[str, Any]:
        """As it is stored."""
        fields = {name: value for name, value in vars(self).items() if name != "folder"}
        return {
            "format": FORMAT,
            **fields,
            "metrics": dict(self.metrics),
            "files": [asdict(file) for file in self.files],
        }


class ManifestError(ValueError):
    """A manifest that cannot be what was written."""


def write_manifest(manifest: Manifest) -> None:
    storage.write_whole(manifest.folder / MANIFEST, json.dumps(manifest.document(), indent=1).encode())


def read_manifest(folder: UPath) -> Manifest:
    """Raises FileNotFoundError when there is none, OSError, and ManifestError.

    A manifest has no digest of its own, so what it says must fit the folder's name and what every checkpoint has.
    """
    content = (folder / MANIFEST).read_bytes()
    try:
        document = json.loads(content)
        if problem := _problem_of(folder, document):
            raise ManifestError(problem)
        del document["format"]
        files = tuple(StoredFile(**entry) for entry in document.pop("files"))
        return Manifest(folder=folder, files=files, **document)
    except ManifestError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise ManifestError(f"unreadable manifest ({type(error).__name__}: {error})") from error


def _problem_of(folder: UPath, document: Mapping[str, Any]) -> str | None:
    """Raises KeyError and TypeError where something is missing or of another kind."""
    if document["format"] != FORMAT:
        return f"the manifest is not of format {FORMAT}"
    if key_of(folder.name) != (document["step"], document["generation"]):
        return f"the manifest is of step {document['step']!r} and generation {document['generation']!r}"
    kinds = {"metrics": dict, "verdict": str, "created_at": float, "world_size": int, "files": list}
    if wrong := [name for name, kind in kinds.items() if not isinstance(document[name], kind)]:
        return f"the manifest's {' and '.join(wrong)} cannot be what was written"
    for file in document["files"]:
        if not FILE_NAME.fullmatch(file["path"]):
            return f"the manifest names {file['path']!r}, outside of the checkpoint"
        if not isinstance(file["bytes"], int) or not isinstance(file["sha256"], str):
            return f"the manifest does not say how {file['path']} should be"
    if missing := {STATE, INDEX} - {file["path"] for file in document["files"]}:
        return f"the manifest does not name {', '.join(sorted(missing))}"
    return None


def complete(root: UPath) -> list[Manifest]:
    """What has a readable manifest, oldest first; of a step that was saved by several generations, the last."""
    found: dict[int, Manifest] = {}
    for name in storage.names_in(root):
        try:
            manifest = read_manifest(root / name) if key_of(name) else None
        except (OSError, ManifestError):
            continue  # unfinished, removed just now, or damaged, of which the worker that resumes tells
        if manifest is not None:
            found[manifest.step] = manifest
    return [found[step] for step in sorted(found)]


def rejudge(root: UPath, sick_from: int) -> list[int]:
    """Something critical began in step ``sick_from``, as is known now: a checkpoint of that step or a later one is not healthy, whatever was said
    when it was saved. Returns their steps. Only rank 0 calls this, with no other checkpoint being published or removed."""
    changed = [found for found in complete(root) if found.step >= sick_from and found.verdict != "critical"]
    for manifest in changed:
        write_manifest(replace(manifest, verdict="critical"))
    return [manifest.step for manifest in changed]


# --- retention --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay: the last ones, the best ones, and always the last with a healthy verdict."""

    keep_last: int
    keep_best: int
    best: str  # name of the metric
    mode: str  # min or max: whether a smaller or a larger value is better


def prune(root: UPath, retention: Retention, newest: Key) -> list[UPath]:
    """Removes what is no longer kept now that ``newest`` is published, and what was left unfinished; returns the folders.

    Gone is also what earlier generations left of later steps: training went back before those (to a healthy state, or because they were damaged),
    so they are of another future. Only rank 0 of the group that published ``newest`` calls this, with nothing in flight.
    """
    keys = [key for name in storage.names_in(root) if (key := key_of(name))]
    manifests = [found for found in complete(root) if found.step < newest.step]
    known = {found.key for found in manifests}
    kept = _kept([*manifests, read_manifest(folder_of(root, *newest))], retention)
    # Unfinished folders of later generations may be under way, when it is this one that lags behind.
    gone = [key for key in keys if key not in kept and (key in known or key.generation <= newest.generation)]
    for folder in (folders := [folder_of(root, *key) for key in gone]):
        # The manifest first: a half-removed checkpoint must not look like one.
        storage.remove_file(folder / MANIFEST)
        storage.remove_folder(folder)
    return folders


def _kept(manifests: Sequence[Manifest], retention: Retention) -> set[Key]:
    """``manifests``: oldest first."""
    scored = [(found.metrics[retention.best], found.key) for found in manifests if retention.best in found.metrics]
    scored.sort(key=lambda pair: pair[0], reverse=retention.mode == "max")
    healthy = [found.key for found in manifests if found.verdict == "healthy"]
    return {
        *(found.key for found in manifests[-retention.keep_last :]),
        *(key for _, key in scored[: retention.keep_best]),
        *healthy[-1:],
    }
