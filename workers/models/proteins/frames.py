"""Rigid frames: a rotation and a translation for each residue, and the ideal backbone that hangs on it.

Shapes: ``rotation`` (..., 3, 3), ``translation`` (..., 3); lengths in Å. "Algorithm n" is one of the supplementary information of
Jumper et al. 2021 (AlphaFold 2, doi:10.1038/s41586-021-03819-2).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Where N, CA and C stand in a residue's own frame (Engh and Huber 1991): CA at the origin, C on the x axis, N in the xy plane.
IDEAL_BACKBONE = ((-0.525, 1.363, 0.0), (0.0, 0.0, 0.0), (1.526, 0.0, 0.0))


class Frames(NamedTuple):
    rotation: Tensor
    translation: Tensor

    def apply(self, points: Tensor) -> Tensor:
        """Points (..., n, 3) in each frame's own coordinates -> in the common ones."""
        moved: Tensor = points @ self.rotation.mT + self.translation.unsqueeze(-2)
        return moved

    def inverse_apply(self, points: Tensor) -> Tensor:
        """Points (..., n, 3) in common coordinates -> in each frame's own."""
        return (points - self.translation.unsqueeze(-2)) @ self.rotation

    def compose(self, other: Frames) -> Frames:
        """First ``other``, then this one."""
        moved = (self.rotation @ other.translation.unsqueeze(-1)).squeeze(-1) + self.translation
        return Frames(self.rotation @ other.rotation, moved)

    def with_fixed_rotation(self) -> Frames:
        """No gradient flows through the rotations."""
        return Frames(self.rotation.detach(), self.translation)


def identity(shape: torch.Size | tuple[int, ...], device: torch.device) -> Frames:
    eye = torch.eye(3, device=device).expand(*shape, 3, 3)
    return Frames(eye, torch.zeros(*shape, 3, device=device))


def from_three_points(n: Tensor, ca: Tensor, c: Tensor) -> Frames:
    """Algorithm 21 with x1 = N, x2 = CA, x3 = C, each (..., 3); Gram-Schmidt: x along CA-C, N in the xy plane with y > 0."""
    x = unit(c - ca)
    towards_n = n - ca
    y = unit(towards_n - (towards_n * x).sum(-1, keepdim=True) * x)
    return Frames(torch.stack([x, y, torch.linalg.cross(x, y)], dim=-1), ca)


def unit(vector: Tensor) -> Tensor:
    length: Tensor = vector.norm(dim=-1, keepdim=True)
    return vector / length.clamp_min(1e-8)


def from_quaternion_update(update: Tensor) -> Frames:
    """Algorithm 23, lines 2-3: (..., 6) = (b, c, d) of an unnormalised quaternion (1, b, c, d), and a translation."""
    b, c, d = update[..., :3].unbind(-1)
    scale = torch.rsqrt(1 + b * b + c * c + d * d)
    a, b, c, d = scale, b * scale, c * scale, d * scale
    rows = [
        *(a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)),
        *(2 * (b * c + a * d), a * a - b * b + c * c - d * d, 2 * (c * d - a * b)),
        *(2 * (b * d - a * c), 2 * (c * d + a * b), a * a - b * b - c * c + d * d),
    ]
    return Frames(torch.stack(rows, dim=-1).unflatten(-1, (3, 3)), update[..., 3:])


def backbone(frames: Frames) -> Tensor:
    """N, CA and C (..., 3, 3) of ideal residues at ``frames``."""
    return frames.apply(torch.tensor(IDEAL_BACKBONE, device=frames.translation.device))


def pseudo_beta(n: Tensor, ca: Tensor, c: Tensor) -> Tensor:
    """Where CB stands, or would stand in glycine: tetrahedral at CA, 1.53 Å away (as trRosetta builds it, Yang et al. 2020)."""
    along_n, along_c = ca - n, c - ca
    normal = torch.linalg.cross(along_n, along_c)
    found: Tensor = ca - 0.58273431 * normal + 0.56802827 * along_n - 0.54067466 * along_c
    return found
