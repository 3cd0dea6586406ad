"""What is minimised. Each function gives one number a chain, (B,), the mean over its residues that are resolved; all in fp32.

Shapes: B chains, L residues; ``mask`` (B, L) is 1 where a residue has its backbone in the file. Lengths in Å. Numbers of algorithms and
equations are those of the supplementary information of Jumper et al. 2021.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from workers.models.proteins.folding import CONFIDENCE_BINS, DISTOGRAM_BINS
from workers.models.proteins.frames import Frames
from workers.models.proteins.scores import lddt_per_residue

CLAMP, SCALE = 10.0, 10.0
TINY = 1e-4  # under roots, whose slope at 0 is infinite
FLAT = 12.0  # eq. 44 and 45: standard deviations that cost nothing
# Mean and standard deviation (Engh and Huber 1991): the C-N bond in Å, cosines of the angles CA-C-N and C-N-CA.
PEPTIDE_BOND, CA_C_N, C_N_CA = (1.329, 0.014), (-0.4473, 0.0311), (-0.5203, 0.0353)


def frame_aligned_point_error(
    predicted: Frames, points: Tensor, true: Frames, true_points: Tensor, mask: Tensor, clamped: Tensor
) -> Tensor:
    """Algorithm 28: every point as seen from every residue's frame, predicted against true; one frame and point a residue.

    ``points`` (B, L, 3). ``clamped`` (B,) is 1 for chains whose errors are cut off at 10 Å. In units of 10 Å.
    """
    difference = _seen(predicted, points) - _seen(true, true_points)  # (B, L, L, 3)
    distance = (difference.square().sum(-1) + TINY).sqrt()
    cut = torch.where(clamped[:, None, None] > 0, distance.clamp(max=CLAMP), distance)
    return _mean(cut / SCALE, mask.unsqueeze(2) * mask.unsqueeze(1))


def _seen(frames: Frames, points: Tensor) -> Tensor:
    """(B, L, M, 3): each point in each frame's own coordinates."""
    return frames.inverse_apply(points.unsqueeze(1))


def distogram(logits: Tensor, true_beta: Tensor, mask: Tensor) -> Tensor:
    """Eq. 41: cross-entropy of the bin of each distance between (pseudo) CB atoms; (B, L, L, bins) and (B, L, 3)."""
    edges = torch.linspace(2.3125, 21.6875, DISTOGRAM_BINS - 1, device=logits.device)
    bins = torch.bucketize(torch.cdist(true_beta, true_beta), edges)
    entropy = functional.cross_entropy(logits.flatten(0, 2), bins.flatten(), reduction="none").view_as(bins)
    return _mean(entropy, mask.unsqueeze(2) * mask.unsqueeze(1))


def confidence(logits: Tensor, predicted_ca: Tensor, true_ca: Tensor, mask: Tensor) -> Tensor:
    """Section 1.9.6: cross-entropy of the bin of each residue's lDDT-CA, which is measured and not learnt from here."""
    measured, counted = lddt_per_residue(predicted_ca.detach(), true_ca, mask)
    bins = (measured * CONFIDENCE_BINS).long().clamp(max=CONFIDENCE_BINS - 1)
    entropy = functional.cross_entropy(logits.flatten(0, 1), bins.flatten(), reduction="none").view_as(bins)
    return _mean(entropy, counted)


def peptide_geometry(atoms: Tensor, bonded: Tensor) -> Tensor:
    """Eq. 44 and 45 between residues: how far bond lengths and angles are out of a range of 12 standard deviations.

    ``atoms`` (B, L, 3, 3): N, CA, C. ``bonded`` (B, L) is 1 where a residue is bonded to the one before it.
    """
    ca, c = atoms[:, :-1, 1], atoms[:, :-1, 2]
    n, next_ca = atoms[:, 1:, 0], atoms[:, 1:, 1]
    bond, to_ca, onwards = n - c, ca - c, next_ca - n
    length = (bond.square().sum(-1) + TINY).sqrt()
    ca_c_n = (bond * to_ca).sum(-1) / (length * (to_ca.square().sum(-1) + TINY).sqrt())
    c_n_ca = -(bond * onwards).sum(-1) / (length * (onwards.square().sum(-1) + TINY).sqrt())
    costs = [
        functional.relu((value - mean).abs() - FLAT * deviation)
        for value, (mean, deviation) in ((length, PEPTIDE_BOND), (ca_c_n, CA_C_N), (c_n_ca, C_N_CA))
    ]
    return _mean(torch.stack(costs).sum(0), bonded[:, 1:])


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    dimensions = tuple(range(1, values.ndim))
    return (values * mask).sum(dimensions) / mask.sum(dimensions).clamp_min(1)
