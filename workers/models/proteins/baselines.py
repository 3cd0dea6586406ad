"""Predictors that know nothing of the sequence, beside which a model's figures are told: an ideal helix, and mean distances by separation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from workers.models.proteins.scores import distances, lddt, lddt_of_distances, rmsd, tm_score
from workers.sources.structures import Chain

MOST_CHAINS = 500  # that mean distances are taken from
RISE, TURN, RADIUS = (
    1.5,
    math.radians(100),
    2.3,
)  # of an alpha helix a residue: Å, angle, Å from its axis to CA (Pauling et al. 1951)


class Scores(NamedTuple):
    lddt_ca: float
    tm_score: float
    rmsd: float


def helix(length: int) -> Tensor:
    """CA atoms (L, 3) of a straight right-handed alpha helix."""
    turn = torch.arange(length) * TURN
    return torch.stack([RADIUS * turn.cos(), RADIUS * turn.sin(), RISE * torch.arange(length)], dim=-1)


def mean_distances(chains: Sequence[Chain]) -> Tensor:
    """(S,): the mean CA distance in Å of residues that are 0, 1, ... positions apart; where none are, that of the next smaller separation."""
    sums, counts = torch.zeros(2, 1, dtype=torch.float64)
    for chain in chains[:: -(-len(chains) // MOST_CHAINS)]:
        ca = torch.from_numpy(chain.backbone[chain.resolved, 1])
        position = torch.from_numpy(chain.position[chain.resolved])
        apart = (position.unsqueeze(1) - position.unsqueeze(0)).abs().flatten()
        size = max(len(sums), int(apart.max()) + 1)
        sums, counts = (torch.nn.functional.pad(each, (0, size - len(each))) for each in (sums, counts))
        sums += torch.bincount(apart, torch.cdist(ca, ca).flatten().double(), minlength=size)
        counts += torch.bincount(apart, minlength=size)
    for separation in (counts == 0).nonzero().flatten().tolist():
        sums[separation], counts[separation] = sums[separation - 1], counts[separation - 1]
    found: Tensor = sums / counts
    return found.float()


def scores(chain: Chain, distances_by_separation: Tensor) -> dict[str, Scores]:
    """What the trivial predictors reach on ``chain``."""
    true = torch.from_numpy(chain.backbone[None, :, 1])
    mask = torch.from_numpy(chain.resolved[None]).float()
    position = torch.from_numpy(chain.position)
    apart = (position.unsqueeze(1) - position.unsqueeze(0)).abs().clamp(max=len(distances_by_separation) - 1)
    expected = distances_by_separation[apart].unsqueeze(0)
    points = embedded(expected[0]).unsqueeze(0)
    by_distance, mirrored = (_scores(points * torch.tensor([1.0, 1.0, hand]), true, mask) for hand in (1.0, -1.0))
    lddt_ca = lddt_of_distances(expected, distances(true), mask).item()
    return {
        "ideal_helix": _scores(helix(int(position[-1]) + 1)[position].unsqueeze(0), true, mask),
        # lDDT knows no handedness and needs no coordinates; for the others the luckier hand counts.
        "mean_distance": Scores(
            max(lddt_ca, by_distance.lddt_ca),
            max(by_distance.tm_score, mirrored.tm_score),
            min(by_distance.rmsd, mirrored.rmsd),
        ),
    }


def best(found: dict[str, Scores]) -> Scores:
    """The better of the trivial predictors, score by score."""
    return Scores(
        max(each.lddt_ca for each in found.values()),
        max(each.tm_score for each in found.values()),
        min(each.rmsd for each in found.values()),
    )


def embedded(distances: Tensor) -> Tensor:
    """Points (L, 3) whose distances come near to (L, L): classical multidimensional scaling (Torgerson 1952)."""
    length = len(distances)
    centring = torch.eye(length) - 1 / length
    values, vectors = torch.linalg.eigh(-0.5 * centring @ distances.square() @ centring)
    found: Tensor = vectors[:, -3:] * values[-3:].clamp_min(0).sqrt()
    return found


def _scores(predicted: Tensor, true: Tensor, mask: Tensor) -> Scores:
    return Scores(
        lddt(predicted, true, mask).item(), tm_score(predicted, true, mask).item(), rmsd(predicted, true, mask).item()
    )
