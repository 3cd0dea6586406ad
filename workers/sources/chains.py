"""The chains of a job: which files, which of them are held out, together with their kin."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workers.kinds.proteins import Places, ProteinStructureTask, StructureData
from workers.sources.arrays import SPLIT_SEED
from workers.sources.problems import BadDataError
from workers.sources.structures import Chain, read_chains

ENDINGS = tuple(f"{ending}{packed}" for ending in (".pdb", ".ent", ".cif", ".mmcif") for packed in ("", ".gz"))
MAX_LOOKED_AT = 64  # files that a quick look reads; the worker reads all


@dataclass(frozen=True)
class Chains:
    train: tuple[Chain, ...]
    evaluation: tuple[Chain, ...]


def training_samples(task: ProteinStructureTask) -> int:
    """How many crops an epoch has. Raises BadDataError for what cannot be used, as far as a bounded number of files shows it.

    With more files than that, each of those that were not read counts as one chain.
    """
    data = task.data
    train, held_out = files_of(data)
    looked_at = [train[index] for index in range(0, len(train), -(-len(train) // MAX_LOOKED_AT))]
    found = _read("task.data.path", looked_at, data)
    if held_out:
        field = "task.data.path" if data.evaluation_path is None else "task.data.evaluation_path"
        _read(field, held_out[:: -(-len(held_out) // MAX_LOOKED_AT)], data)
    return (len(found) + len(train) - len(looked_at)) * data.crops_per_chain


def read(data: StructureData) -> Chains:
    train, held_out = files_of(data)
    field = "task.data.path" if data.evaluation_path is None else "task.data.evaluation_path"
    return Chains(tuple(_read("task.data.path", train, data)), tuple(_read(field, held_out, data)))


def files_of(data: StructureData) -> tuple[list[Path], list[Path]]:
    """Those to train on, and those that are held out."""
    files = _listed("task.data.path", data.path)
    if data.evaluation_path is not None:
        return files, _listed("task.data.evaluation_path", data.evaluation_path)
    return _split(files, data)


def _listed(field: str, places: Places) -> list[Path]:
    if isinstance(places, str):
        folder = Path(places)
        if folder.is_file():
            raise BadDataError(field, f"{places} is a file; give a folder, or a list of files")
        if not folder.is_dir():
            raise BadDataError(field, f"there is no folder {places}")
        files = sorted(file for file in folder.iterdir() if _is_structure(file))
        if not files:
            raise BadDataError(field, f"{places} has no structure file ({', '.join(ENDINGS)})")
        _stay_inside(field, folder, files)
        return files
    for index, place in enumerate(places):
        if not os.path.isfile(place):
            raise BadDataError(f"{field}[{index}]", f"there is no file {place}")
        if not _is_structure(Path(place)):
            raise BadDataError(f"{field}[{index}]", f"{place} must end in one of: {', '.join(ENDINGS)}")
    return [Path(place) for place in places]


def _is_structure(file: Path) -> bool:
    return file.name.lower().endswith(ENDINGS) and not file.name.startswith(".") and file.is_file()


def _stay_inside(field: str, folder: Path, files: Sequence[Path]) -> None:
    root = os.path.realpath(folder) + os.sep
    for file in files:
        if file.is_symlink() and not os.path.realpath(file).startswith(root):
            raise BadDataError(field, f"{file} is a link to a place outside of {folder}")


def _split(files: list[Path], data: StructureData) -> tuple[list[Path], list[Path]]:
    """Whole clusters, in a random but fixed order, as long as they fit into the share."""
    cluster = _clusters(data.clusters, files) if data.clusters is not None else {file: str(file) for file in files}
    room = round(len(files) * data.holdout)
    names = sorted(set(cluster.values()))
    chosen: set[str] = set()
    for index in np.random.default_rng(SPLIT_SEED).permutation(len(names)):
        size = sum(name == names[index] for name in cluster.values())
        if size <= room:
            chosen.add(names[index])
            room -= size
    train = [file for file in files if cluster[file] not in chosen]
    if not chosen or not train:
        raise BadDataError(
            "task.data.holdout",
            f"{data.holdout} of {len(files)} files in {len(names)} clusters leaves a part without any; whole clusters are held out",
        )
    return train, [file for file in files if cluster[file] in chosen]


def _clusters(path: str, files: Sequence[Path]) -> dict[Path, str]:
    field = "task.data.clusters"
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            rows = csv.DictReader(stream)
            missing = {"file", "cluster"} - set(rows.fieldnames or ())
            if missing:
                raise BadDataError(field, f"{path} has no column {min(missing)!r}; file and cluster are needed")
            known = {row["file"]: row["cluster"] for row in rows}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadDataError(field, f"{path} cannot be read as CSV: {error}") from error
    for file in files:
        if not known.get(file.name):
            raise BadDataError(field, f"{path} has no cluster for {file.name}")
    return {file: known[file.name] for file in files}


def _read(field: str, files: Sequence[Path], data: StructureData) -> list[Chain]:
    chains = [chain for file in files for chain in read_chains(field, file, data.chain)]
    fitting = [chain for chain in chains if data.min_residues <= len(chain) <= data.max_residues]
    if not fitting:
        sizes = ", ".join(f"{chain.name} {len(chain)}" for chain in chains[:5])
        raise BadDataError(
            field, f"no chain has {data.min_residues} to {data.max_residues} residues; there are: {sizes}"
        )
    return fitting
