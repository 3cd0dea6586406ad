"""Protein structures for tests: ideal helices and strands, written as files by biotite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import biotite.structure as structure
import biotite.structure.io.pdb as pdb
import biotite.structure.io.pdbx as pdbx
import numpy as np
from biotite.structure.info import one_letter_code
from numpy.typing import NDArray

# N, CA, C of one residue; the next one is turned about the z axis (degrees) and raised (Å).
SHAPES: dict[str, tuple[NDArray[Any], float, float]] = {
    "helix": (np.array([[1.372, -0.721, -0.87], [2.28, 0.0, 0.0], [1.487, 0.761, 1.13]]), 100.0, 1.5),
    "strand": (np.array([[0.3, 0.5, -1.2], [0.9, 0.0, 0.0], [0.35, 0.1, 1.4]]), 180.0, 3.3),
}
NAMES = {one_letter_code(name): name for name in "ALA GLY VAL LEU SER LYS GLU PRO".split()}  # noqa: SIM905


def backbone(shape: str, residues: int) -> NDArray[np.float32]:
    """(L, 3, 3): N, CA, C."""
    unit, turn, rise = SHAPES[shape]
    found = []
    for index in range(residues):
        angle = np.radians(turn * index)
        rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        found.append(unit @ rotation.T + [0, 0, rise * index])
    return np.array(found, dtype=np.float32)


def atoms(sequence: str, coordinates: NDArray[np.float32], chain: str = "A") -> Any:
    """biotite's AtomArray of N, CA and C."""
    array = structure.AtomArray(3 * len(sequence))
    array.coord = coordinates.reshape(-1, 3)
    array.chain_id[:] = chain
    array.res_id = np.repeat(np.arange(len(sequence)) + 1, 3)
    array.res_name = np.repeat([NAMES[letter] for letter in sequence], 3)
    array.atom_name = np.tile(["N", "CA", "C"], len(sequence))
    array.element = np.tile(["N", "C", "C"], len(sequence))
    return array


def write(path: Path, array: Any) -> Path:
    if path.suffix == ".cif":
        mmcif = pdbx.CIFFile()
        pdbx.set_structure(mmcif, array, data_block="x")
        mmcif.write(str(path))
    else:
        file = pdb.PDBFile()
        file.set_structure(array)
        file.write(str(path))
    return path


def data_set(folder: Path) -> dict[str, Any]:
    """Alanine is a helix, valine a strand: ``task.data`` of six chains to train on and two of other lengths to hold out."""
    for name, lengths in {"train": (18, 22, 26), "held_out": (20,)}.items():
        (folder / name).mkdir(parents=True)
        for shape, letter in (("helix", "A"), ("strand", "V")):
            for length in lengths:
                write(folder / name / f"{shape}{length}.pdb", atoms(letter * length, backbone(shape, length)))
    return {
        "path": str(folder / "train"),
        "evaluation_path": str(folder / "held_out"),
        "crop_size": 16,
        "crops_per_chain": 4,
    }


MODEL = {
    "single_width": 16,
    "pair_width": 8,
    "blocks": 1,
    "heads": 2,
    "structure_iterations": 2,
    "point_heads": 2,
    "recycling": 1,
}
