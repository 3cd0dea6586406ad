"""From representations to a backbone in space: invariant point attention moves one frame a residue, again and again.

Shapes: B batch, L residues, C and Z channels of residue and pair, H heads, P points; coordinates inside are in units of 10 Å.
Algorithms are numbered as in the supplementary information of Jumper et al. 2021.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.kinds.proteins import FoldingModel
from workers.models.proteins import frames as rigid
from workers.models.proteins.frames import Frames
from workers.models.proteins.pairs import final, masked_bias

UNIT = 10.0  # Å
CHANNELS, QUERY_POINTS, VALUE_POINTS = 16, 4, 8  # of a head, as in the supplement


class InvariantPointAttention(nn.Module):
    """Algorithm 22. Its result does not change when all frames are rotated and moved together."""

    def __init__(self, single_width: int, pair_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scalars = nn.Linear(single_width, 3 * heads * CHANNELS, bias=False)
        self.points = nn.Linear(single_width, heads * (2 * QUERY_POINTS + VALUE_POINTS) * 3, bias=False)
        self.bias = nn.Linear(pair_width, heads, bias=False)
        self.distance_weight = nn.Parameter(torch.full((heads,), math.log(math.e - 1)))  # softplus gives 1
        self.output = final(heads * (pair_width + CHANNELS + VALUE_POINTS * 4), single_width)

    def pair_bias(self, pair: Tensor, mask: Tensor) -> Tensor:
        """(B, H, L, L); the same in every pass, so it is computed once."""
        found: Tensor = self.bias(pair).permute(0, 3, 1, 2) + masked_bias(mask)[:, None, None]
        return found

    def forward(self, single: Tensor, pair: Tensor, bias: Tensor, frames: Frames) -> Tensor:
        query, key, value = (
            each.unflatten(-1, (self.heads, CHANNELS)).transpose(1, 2) for each in self.scalars(single).chunk(3, -1)
        )
        points = frames.apply(self.points(single).unflatten(-1, (-1, 3))).unflatten(2, (self.heads, -1))
        query_points, key_points, value_points = points.transpose(1, 2).split(
            [QUERY_POINTS, QUERY_POINTS, VALUE_POINTS], dim=3
        )  # each (B, H, L, P, 3)
        logits = query @ key.mT / math.sqrt(CHANNELS) + bias
        # Line 7: w_L (q.k / sqrt(c) + b - gamma w_C / 2 sum |q - k|^2), w_L = sqrt(1/3), w_C = sqrt(2 / 9P)
        strength = functional.softplus(self.distance_weight) * (math.sqrt(2 / (9 * QUERY_POINTS)) / 2)
        logits = logits - strength[:, None, None] * _squared_distances(query_points.flatten(-2), key_points.flatten(-2))
        weights = (math.sqrt(1 / 3) * logits).softmax(-1)  # (B, H, L, L)
        over_pairs = weights.transpose(1, 2) @ pair  # (B, L, H, Z)
        over_scalars = (weights @ value).transpose(1, 2)
        over_points = (weights @ value_points.flatten(-2)).transpose(1, 2)  # (B, L, H, 3 P)
        own = frames.inverse_apply(over_points.reshape(*single.shape[:2], -1, 3))  # (B, L, H P, 3)
        lengths = (own.square().sum(-1) + 1e-8).sqrt()
        found = [over_pairs.flatten(2), over_scalars.flatten(2), own.flatten(2), lengths]
        update: Tensor = self.output(torch.cat(found, dim=-1))
        return update


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(..., L, D) and (..., M, D) -> (..., L, M), as one matrix product."""
    return a.square().sum(-1).unsqueeze(-1) + b.square().sum(-1).unsqueeze(-2) - 2 * (a @ b.mT)


class StructureModule(nn.Module):
    """Algorithm 20 without side chains. All residues start at the origin; the passes share their weights."""

    def __init__(self, spec: FoldingModel) -> None:
        super().__init__()
        width = spec.single_width
        self.iterations = spec.structure_iterations
        self.norm_single, self.norm_pair = nn.LayerNorm(width), nn.LayerNorm(spec.pair_width)
        self.single = nn.Linear(width, width)
        self.attention = InvariantPointAttention(width, spec.pair_width, spec.point_heads)
        self.norm_attention, self.norm_transition = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transition = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), final(width, width)
        )
        self.backbone_update = final(width, 6)

    def forward(self, single: Tensor, pair: Tensor, mask: Tensor) -> tuple[Tensor, list[Frames]]:
        """(B, L, C) -> the residues' last representation, and their frames in Å after each pass.

        In fp32 whatever the rest of the model computes in: bf16 has three digits, which is no precision for coordinates.
        """
        with torch.autocast(single.device.type, enabled=False):
            single, pair = self.norm_single(single.float()), self.norm_pair(pair.float())
            bias = self.attention.pair_bias(pair, mask)
            single = self.single(single)
            frames, found = rigid.identity(single.shape[:2], single.device), []
            for step in range(self.iterations):
                single = self.norm_attention(single + self.attention(single, pair, bias, frames))
                single = self.norm_transition(single + self.transition(single))
                # Algorithm 23
                frames = frames.compose(rigid.from_quaternion_update(self.backbone_update(single)))
                found.append(Frames(frames.rotation, frames.translation * UNIT))
                if step + 1 < self.iterations:
                    frames = frames.with_fixed_rotation()  # line 20: else the passes' gradients grow unstable
        return single, found
