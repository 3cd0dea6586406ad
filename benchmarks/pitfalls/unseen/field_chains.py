"""Data of ``unseen_field``: proteins of the folder ``shared`` beside the project. N samples, L residues of a chain, T positions."""

from __future__ import annotations

import csv
import gzip
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.pitfalls.data import Pair, Split
from benchmarks.pitfalls.unseen.field_data import FOLDER
from benchmarks.pitfalls.unseen.shared import each

ACIDS = [
    "ALA",
    "ARG",
    "ASN",
    "ASP",
    "CYS",
    "GLN",
    "GLU",
    "GLY",
    "HIS",
    "ILE",
    "LEU",
    "LYS",
    "MET",
    "PHE",
    "PRO",
    "SER",
    "THR",
    "TRP",
    "TYR",
    "VAL",
]
HELD_OUT = {"d1ecaa_", "d1itha_", "d3g46a_", "d3lb2a_", "2nwd_X", "1ay7_B"}  # validate; most have kin that do not
AS_USUAL = torch.tensor([5.8, 6.7, 8.1, 10.0, 11.3])  # distances of residues that are 2 to 6 apart, in angstrom
SPREAD = torch.tensor([0.55, 1.9, 2.5, 2.7, 3.1])
STATES = 3  # of a residue: helix, strand, other


@dataclass(frozen=True)
class Chain:
    acids: Tensor  # (L,) numbers
    places: Tensor  # (L, 3) of the alpha carbons, in angstrom, as the file has them
    states: Tensor  # (L,) by the angles of the backbone
    angles: Tensor  # (L, 2) phi and psi in degrees, 0 at the ends
    near: Tensor  # (L,) how many other alpha carbons are within 10 angstrom
    validates: bool


def _angle(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Dihedral angles in degrees of four rows of points (L, 3)."""
    one, two, three = b - a, c - b, d - c
    first, second = torch.linalg.cross(one, two), torch.linalg.cross(two, three)
    sine = (torch.linalg.cross(first, second) * functional.normalize(two, dim=1)).sum(1)
    return torch.atan2(sine, (first * second).sum(1)) * 180 / math.pi


@cache
def chains() -> tuple[Chain, ...]:
    with (FOLDER / "proteins" / "train.csv").open(encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    found = []
    for row in rows:
        atoms: dict[str, list[list[float]]] = {"N": [], "CA": [], "C": []}
        acids = []
        with gzip.open(FOLDER / "proteins" / "train" / row["file"], "rt", encoding="ascii") as file:
            for line in file:
                name = line[12:16].strip()
                if line.startswith("ATOM") and name in atoms:
                    atoms[name].append([float(line[start : start + 8]) for start in (30, 38, 46)])
                    acids += [ACIDS.index(line[17:20])] if name == "CA" else []
        n, ca, c = (torch.tensor(atoms[name]) for name in ("N", "CA", "C"))
        phi, psi = _angle(c[:-2], n[1:-1], ca[1:-1], c[1:-1]), _angle(n[1:-1], ca[1:-1], c[1:-1], n[2:])
        helix = (phi < 0) & (psi > -100) & (psi < 30)
        strand = (phi < 0) & ((psi > 90) | (psi < -150))
        states = functional.pad(torch.where(helix, 0, torch.where(strand, 1, 2)), (1, 1), value=2)
        angles = functional.pad(torch.stack([phi, psi], 1), (0, 0, 1, 1))
        near = (torch.cdist(ca, ca) < 10).sum(1) - 1
        found.append(Chain(torch.tensor(acids), ca, states, angles, near, row["file"].split(".")[0] in HELD_OUT))
    return tuple(found)


def spans(length: int = 32) -> Pair:
    """Stretches of chains: amino acids (N, T) and states (N, T)."""
    return _stretches(length, lambda chain: (chain.acids, chain.states))


def folded(length: int = 32, centred: bool = True, unit: float = 10.0) -> Pair:
    """Stretches: places, about -2 to 2 (or as the file has them), and the amino acid's number (N, T, 4), and states (N, T)."""
    pair = _stretches(length, lambda chain: (torch.cat([chain.places, chain.acids[:, None].float()], 1), chain.states))

    def part(split: Split) -> Split:
        places, acids = split.inputs.split([3, 1], 2)
        middle = places.mean(1, keepdim=True) if centred else 0.0
        return Split(torch.cat([(places - middle) / unit, acids], 2), split.targets)

    return each(pair, part)


def _stretches(length: int, of: Callable[[Chain], tuple[Tensor, Tensor]]) -> Pair:
    parts: list[Split] = []
    for validates in (False, True):
        cut = [of(chain) for chain in chains() if chain.validates == validates]
        rows = [
            (x[start : start + length], y[start : start + length])
            for x, y in cut
            for start in range(0, len(x) - length + 1, length // 4)
        ]
        parts.append(Split(torch.stack([x for x, _ in rows]), torch.stack([y for _, y in rows])))
    return Pair(*parts)


def bends() -> Pair:
    """Distances among seven alpha carbons in a row, of mean 0 and deviation 1 (N, 15), and the middle one's state (N,)."""
    return _around(lambda chain: chain.states[3:-3])


def turns(unit: float = 100.0) -> Pair:
    """Angles phi and psi of three residues in a row (N, 6), and whether the next is in a helix, a strand or neither (N,)."""
    parts = []
    for validates in (False, True):
        own = [chain for chain in chains() if chain.validates == validates]
        inputs = torch.cat([chain.angles.unfold(0, 3, 1)[:-1].flatten(1) for chain in own])
        parts.append(Split(inputs / unit, torch.cat([chain.states[3:] for chain in own])))
    return Pair(*parts)


def crowding(raw: bool = False) -> Pair:
    """The same distances and the middle one's amino acid (N, 35), and how many residues are near it (N, 1): raw or of deviation 1."""
    pair = _around(lambda chain: chain.near[3:-3, None].float(), acids=True)
    return pair if raw else pair.mapped(targets=1 / 4.5, targets_shift=-16.3 / 4.5)


def crowding_row() -> Pair:
    """The same with targets (N,)."""
    return each(crowding(), lambda split: Split(split.inputs, split.targets[:, 0]))


def _around(target: Callable[[Chain], Tensor], acids: bool = False) -> Pair:
    one, other = torch.triu_indices(7, 7, 2)
    parts = []
    for validates in (False, True):
        inputs, targets = [], []
        for chain in (chain for chain in chains() if chain.validates == validates):
            windows = chain.places.unfold(0, 7, 1).mT  # (L - 6, 7, 3)
            distances = (windows[:, one] - windows[:, other]).norm(dim=2)
            kind = [functional.one_hot(chain.acids[3:-3], 20).float() * 2] if acids else []
            inputs.append(torch.cat([(distances - AS_USUAL[other - one - 2]) / SPREAD[other - one - 2], *kind], 1))
            targets.append(target(chain))
        parts.append(Split(torch.cat(inputs), torch.cat(targets)))
    return Pair(*parts)
