"""Protein chains of PDB and mmCIF files: sequence, backbone, what is missing. By biotite, which reads both formats; no torch.

Of a file the first model is read, and of alternate positions those with the highest occupancy. Residues of which N, CA or C is missing are kept
and masked; residues of which the file has nothing show as a jump in ``position``.
"""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import zlib
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from workers.sources.problems import BadDataError

ONE_LETTER = "ARNDCQEGHILKMFPSTWYV"
BACKBONE = ("N", "CA", "C")
BOND = 2.0  # Å: the longest distance of C and N that still counts as a peptide bond; the textbook has 1.33
UNKNOWN_GAP = 64  # positions left free where the chain is broken and its numbering does not say how much is missing
MAX_BYTES = 256 << 20  # of text, unpacked: a small archive may unpack to anything


@dataclass(frozen=True)
class Chain:
    """``backbone`` (L, 3, 3) float32: N, CA, C in Å, 0 where ``resolved`` (L,) is false. ``position`` (L,): along the whole chain.

    ``bonded`` (L,): whether the residue is bonded to the one before it. ``sequence``: L one-letter codes, X for unknown residues.
    """

    name: str
    file: Path
    sequence: str
    backbone: NDArray[np.float32]
    resolved: NDArray[np.bool_]
    position: NDArray[np.int64]
    bonded: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.sequence)


def read_chains(field: str, file: Path, which: Literal["first", "longest", "all"]) -> list[Chain]:
    """The protein chains of ``file``, at least one. Raises BadDataError that names file and, where it can, chain, residue or line."""
    atoms = _atoms(field, file)
    found = [chain for name in dict.fromkeys(atoms.chain_id.tolist()) if (chain := _chain(field, file, atoms, name))]
    if not found:
        raise BadDataError(field, f"{file} has no amino acid; a protein chain is needed")
    if len(found) == 1 or which == "first":
        return [dataclasses.replace(found[0], name=_stem(file))]
    return [max(found, key=len)] if which == "longest" else found


# --- files to atoms ---------------------------------------------------------------------------------------------------


def _atoms(field: str, file: Path) -> Any:
    """biotite's AtomArray of the first model."""
    import biotite.structure.io.pdb as pdb
    import biotite.structure.io.pdbx as pdbx

    text = _text(field, file)
    mmcif = file.name.lower().removesuffix(".gz").endswith((".cif", ".mmcif"))
    kind, marks = ("mmCIF", ("_atom_site.",)) if mmcif else ("PDB", ("ATOM", "HETATM"))
    if not any(line.startswith(marks) for line in text.splitlines()):
        what = "is empty" if not text.strip() else f"has no {marks[0]} record"
        raise BadDataError(field, f"{file} {what}; a {kind} file with the atoms of a protein is needed")
    try:
        if mmcif:
            return pdbx.get_structure(pdbx.CIFFile.read(StringIO(text)), model=1, altloc="occupancy")
        return pdb.PDBFile.read(StringIO(text)).get_structure(model=1, altloc="occupancy")
    except Exception as error:  # whatever the parser stumbles over in a file that is not what its name says
        where = "" if mmcif else _bad_line(text)
        raise BadDataError(field, f"{file} cannot be read as {kind}: {where}{error}") from error


def _text(field: str, file: Path) -> str:
    try:
        with gzip.open(file) if file.name.lower().endswith(".gz") else file.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
            if len(content) > MAX_BYTES:
                raise BadDataError(field, f"{file} has more than {MAX_BYTES >> 20} MiB of text, which is the most")
            return content.decode()
    except (OSError, EOFError, zlib.error) as error:
        raise BadDataError(field, f"{file} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise BadDataError(field, f"{file} is no text: {error}") from error


def _bad_line(text: str) -> str:
    """The first atom record whose numbers cannot be read, for people."""
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith(("ATOM", "HETATM")):
            try:
                _ = int(line[22:26]), [float(line[start : start + 8]) for start in (30, 38, 46)]
            except ValueError:
                return f"line {number}, residue {line[17:26].strip()!r}: "
    return ""


# --- atoms to chains --------------------------------------------------------------------------------------------------


def _chain(field: str, file: Path, atoms: Any, name: str) -> Chain | None:
    """Null when the chain has no amino acid, as those of ligands, water and nucleic acids."""
    import biotite.structure as structure

    atoms = atoms[atoms.chain_id == name]
    amino_acid = structure.filter_amino_acids(atoms)
    starts = [*structure.get_residue_starts(atoms), len(atoms)]
    residues = [
        atoms[start:end]
        for start, end in itertools.pairwise(starts)
        if amino_acid[start] or (not atoms.hetero[start] and "CA" in atoms.atom_name[start:end])
    ]
    backbone = np.full((len(residues), 3, 3), np.nan, dtype=np.float32)
    for row, residue in zip(backbone, residues, strict=True):
        for index, atom in enumerate(BACKBONE):
            at = np.flatnonzero(residue.atom_name == atom)
            if len(at):
                row[index] = _finite(field, file, residue, residue.coord[at[0]])
    bonded = _bonded(backbone)
    # A free amino acid beside the protein is a ligand.
    kept = [
        i for i, residue in enumerate(residues) if not residue.hetero[0] or bonded[i] or bonded[i + 1 : i + 2].any()
    ]
    return _assembled(field, file, name, [residues[i] for i in kept], backbone[kept]) if kept else None


def _finite(field: str, file: Path, residue: Any, coordinates: NDArray[Any]) -> NDArray[Any]:
    if not np.isfinite(coordinates).all():
        raise BadDataError(field, f"{file}: {label(residue)} has a coordinate that is no number")
    return coordinates


def label(residue: Any) -> str:
    """Such as "residue GLY 52A of chain B"."""
    return f"residue {residue.res_name[0]} {residue.res_id[0]}{residue.ins_code[0]} of chain {residue.chain_id[0]}"


def _bonded(backbone: NDArray[np.float32]) -> NDArray[np.bool_]:
    """False at the first residue, at breaks, and where an atom is missing."""
    bonds: NDArray[Any] = np.linalg.norm(backbone[1:, 0] - backbone[:-1, 2], axis=-1)
    return np.concatenate([[False], bonds < BOND])


def _assembled(field: str, file: Path, name: str, residues: list[Any], backbone: NDArray[np.float32]) -> Chain:
    resolved = np.asarray(np.isfinite(backbone).all(axis=(1, 2)), dtype=np.bool_)
    if not resolved.any():
        has = ", ".join(residues[0].atom_name.tolist()[:8])
        raise BadDataError(
            field,
            f"{file}: no residue of chain {name} has the backbone atoms N, CA and C; {label(residues[0])} has {has}",
        )
    x, towards_n = backbone[:, 2] - backbone[:, 1], backbone[:, 0] - backbone[:, 1]
    area: NDArray[Any] = np.linalg.norm(np.cross(x, towards_n), axis=-1)
    flat = np.flatnonzero(resolved & (area < 0.1))
    if len(flat):
        raise BadDataError(field, f"{file}: N, CA and C of {label(residues[flat[0]])} lie on one line")
    bonded = _bonded(backbone)
    return Chain(
        name=f"{_stem(file)}_{name}",
        file=file,
        sequence="".join(_letter(residue.res_name[0]) for residue in residues),
        backbone=np.where(resolved[:, None, None], backbone, 0).astype(np.float32),
        resolved=resolved,
        position=_positions([int(residue.res_id[0]) for residue in residues], bonded, resolved),
        bonded=bonded & resolved & np.concatenate([[False], resolved[:-1]]),
    )


def _positions(numbers: list[int], bonded: NDArray[np.bool_], resolved: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Along the chain, from 0. Bonded residues are neighbours whatever their numbers are (insertion codes); elsewhere the numbers decide."""
    found = [0]
    for index in range(1, len(numbers)):
        step = 1
        if not bonded[index]:
            step = numbers[index] - numbers[index - 1]
            if step < 1:
                unseen = not (resolved[index] and resolved[index - 1])
                step = 1 if step == 0 and unseen else UNKNOWN_GAP
        found.append(found[-1] + step)
    return np.array(found, dtype=np.int64)


def _letter(residue_name: str) -> str:
    """Modified residues as the one that they derive from (selenomethionine: M)."""
    from biotite.structure.info import one_letter_code

    letter = one_letter_code(residue_name)
    return letter if letter is not None and letter in ONE_LETTER else "X"


def _stem(file: Path) -> str:
    return file.name.removesuffix(".gz").rpartition(".")[0] or file.name
