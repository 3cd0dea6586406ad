"""How alike two structures of the same residues are: lDDT, TM-score and RMSD of CA atoms, batched and with masks.

biotite has them for one pair of structures in NumPy; lDDT is part of the loss and all of them are computed where the model is. Tests hold them
against biotite's. Shapes: B chains, L residues; coordinates (B, L, 3) in Å; ``mask`` (B, L) is 1 for residues that count.
"""

from __future__ import annotations

import torch
from torch import Tensor

INCLUSION = 15.0  # Å
TOLERANCES = (0.5, 1.0, 2.0, 4.0)  # Å
REFINEMENTS = 12
SEED_LENGTHS = (1.0, 0.5, 0.25)  # of fragments that a superposition starts from, as shares of the chain


def lddt_per_residue(predicted: Tensor, true: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Each residue's lDDT-CA (B, L), 0 to 1 (Mariani et al. 2013), and 1 where it has one: where a neighbour is within 15 Å."""
    kept, neighbours = _kept(distances(predicted), distances(true), mask)
    return kept / neighbours.clamp_min(1), (neighbours > 0).to(kept.dtype)


def lddt(predicted: Tensor, true: Tensor, mask: Tensor) -> Tensor:
    """(B,): the share of the distances up to 15 Å that are kept, over all pairs of a chain."""
    return lddt_of_distances(distances(predicted), distances(true), mask)


def lddt_of_distances(predicted: Tensor, true: Tensor, mask: Tensor) -> Tensor:
    """The same from distances (B, L, L), which need not belong to a structure."""
    kept, neighbours = _kept(predicted, true, mask)
    return kept.sum(-1) / neighbours.sum(-1).clamp_min(1)


def _kept(predicted: Tensor, true: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Of each residue (B, L): how many distances to neighbours are kept, on the mean over the tolerances, and how many there are."""
    near = (true < INCLUSION) * mask.unsqueeze(2) * mask.unsqueeze(1)
    near = near * (1 - torch.eye(true.shape[1], device=true.device))
    off = (predicted - true).abs()
    kept = torch.stack([(off < tolerance).to(near.dtype) for tolerance in TOLERANCES]).mean(0)
    return (kept * near).sum(-1), near.sum(-1)


def distances(points: Tensor) -> Tensor:
    """(B, L, L). Not by a matrix product, whose rounding is larger than the smallest tolerance for far-away coordinates."""
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")


def superimpose(mobile: Tensor, fixed: Tensor, weights: Tensor) -> Tensor:
    """``mobile`` (B, L, 3) turned and moved onto ``fixed``, least weighted squares (Kabsch 1976); never mirrored."""
    total = weights.sum(-1, keepdim=True).clamp_min(1e-8).unsqueeze(-1)
    share = weights.unsqueeze(-1)
    mobile_centre, fixed_centre = ((points * share).sum(1, keepdim=True) / total for points in (mobile, fixed))
    covariance = ((mobile - mobile_centre) * share).mT @ (fixed - fixed_centre)
    left, _, right = torch.linalg.svd(covariance.double())
    sign = torch.ones_like(covariance[:, 0], dtype=torch.float64)
    sign[:, 2] = torch.linalg.det(left @ right).sign()
    rotation = (left * sign.unsqueeze(1) @ right).to(mobile.dtype)
    moved: Tensor = (mobile - mobile_centre) @ rotation + fixed_centre
    return moved


def rmsd(predicted: Tensor, true: Tensor, mask: Tensor) -> Tensor:
    """(B,) in Å, after the best superposition."""
    apart = (superimpose(predicted, true, mask) - true).square().sum(-1)
    return ((apart * mask).sum(-1) / mask.sum(-1).clamp_min(1)).sqrt()


def tm_score(predicted: Tensor, true: Tensor, mask: Tensor) -> Tensor:
    """(B,): TM-score for residues that correspond by their place, normalised by the resolved residues of the true chain.

    As Zhang and Skolnick 2004 search it: from superpositions of fragments, each refined on the residues that it brings close.
    """
    rows = zip(predicted.unbind(), true.unbind(), mask.unbind(), strict=True)
    return torch.stack([_tm_score(a[kept > 0], b[kept > 0]) for a, b, kept in rows])


def _tm_score(mobile: Tensor, fixed: Tensor) -> Tensor:
    length = len(fixed)
    scale = tm_scale(length)
    chosen = _fragments(length).to(fixed)  # (seeds, L)
    mobile, fixed = mobile.expand(len(chosen), -1, -1), fixed.expand(len(chosen), -1, -1)
    best = torch.zeros((), device=fixed.device)
    for _ in range(REFINEMENTS):
        apart = (superimpose(mobile, fixed, chosen) - fixed).square().sum(-1)
        best = torch.maximum(best, (1 / (1 + apart / scale**2)).mean(-1).max())
        # The closest three at least, which a superposition needs.
        reach = torch.maximum(apart.kthvalue(min(3, length), dim=-1, keepdim=True).values, apart.new_tensor(scale**2))
        chosen = (apart <= reach).to(fixed.dtype)
    return best


def tm_scale(length: int) -> float:
    """d0 of Zhang and Skolnick 2004, in Å; not under 0.5, as their program has it."""
    return max(0.5, 1.24 * (length - 15) ** (1 / 3) - 1.8) if length > 15 else 0.5


def _fragments(length: int) -> Tensor:
    """Masks (seeds, L) of fragments, evenly spread, that superpositions start from."""
    found = []
    for share in SEED_LENGTHS:
        size = max(min(4, length), round(length * share))
        for start in range(0, length - size + 1, max(1, size // 2)):
            mask = torch.zeros(length)
            mask[start : start + size] = 1
            found.append(mask)
    return torch.stack(found)
