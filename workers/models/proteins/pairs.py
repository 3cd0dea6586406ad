"""What the trunk does with pairs of residues: triangle multiplication, triangle attention, outer product, relative positions.

Shapes: B batch, L residues, Z channels of a pair, C channels of a residue, H heads. ``pair`` is (B, L, L, Z), ``mask`` (B, L) is 1 for residues
and 0 for padding. Algorithms are numbered as in the supplementary information of Jumper et al. 2021.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

FARTHEST = 32  # relative positions are told apart up to here


def pair_mask(mask: Tensor) -> Tensor:
    """(B, L) -> (B, L, L, 1)"""
    return (mask.unsqueeze(2) * mask.unsqueeze(1)).unsqueeze(-1)


def final(inputs: int, outputs: int) -> nn.Linear:
    """A layer that ends a residual branch: zero at first, so that every block starts as the identity (supplement 1.11.4)."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def gate(inputs: int, outputs: int) -> nn.Linear:
    """Open at first (supplement 1.11.4)."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.ones_(layer.bias)
    return layer


class Transition(nn.Sequential):
    """Algorithms 9 and 15: two layers on each residue, or each pair, alone."""

    def __init__(self, width: int, factor: int) -> None:
        super().__init__(nn.LayerNorm(width), nn.Linear(width, factor * width), nn.ReLU(), final(factor * width, width))


class RelativePosition(nn.Module):
    """Algorithm 4: how far apart two residues are along the chain, cut off at 32."""

    def __init__(self, pair_width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(2 * FARTHEST + 1, pair_width)

    def forward(self, position: Tensor) -> Tensor:
        """(B, L) positions along the chain, with jumps where residues are missing -> (B, L, L, Z)"""
        distance = position.unsqueeze(2) - position.unsqueeze(1)
        found: Tensor = self.embedding(distance.clamp(-FARTHEST, FARTHEST) + FARTHEST)
        return found


class TriangleMultiplication(nn.Module):
    """Algorithms 11 (outgoing edges) and 12 (incoming edges), half as wide inside: they are most of what a step costs."""

    def __init__(self, pair_width: int, *, outgoing: bool) -> None:
        super().__init__()
        self.outgoing = outgoing
        hidden = pair_width // 2
        self.norm = nn.LayerNorm(pair_width)
        self.edges = nn.Linear(pair_width, 2 * hidden)
        self.edge_gates = gate(pair_width, 2 * hidden)
        self.norm_product = nn.LayerNorm(hidden)
        self.gate = gate(pair_width, pair_width)
        self.output = final(hidden, pair_width)

    def forward(self, pair: Tensor, pairs: Tensor) -> Tensor:
        """``pairs``: pair_mask."""
        pair = self.norm(pair)
        edges = torch.sigmoid(self.edge_gates(pair)) * self.edges(pair) * pairs
        left, right = edges.permute(0, 3, 1, 2).contiguous().chunk(2, dim=1)  # each (B, Z / 2, L, L)
        # Outgoing: sum over k of left[i, k] right[j, k]; incoming: of left[k, i] right[k, j].
        product = left @ right.mT if self.outgoing else left.mT @ right
        product = self.norm_product(product.permute(0, 2, 3, 1))
        found: Tensor = torch.sigmoid(self.gate(pair)) * self.output(product)
        return found


class TriangleAttention(nn.Module):
    """Algorithms 13 (around the starting node) and 14 (around the ending node)."""

    def __init__(self, pair_width: int, heads: int, *, starting: bool) -> None:
        super().__init__()
        self.starting, self.heads = starting, heads
        self.norm = nn.LayerNorm(pair_width)
        self.projection = nn.Linear(pair_width, 3 * pair_width, bias=False)
        self.bias = nn.Linear(pair_width, heads, bias=False)
        self.gate = gate(pair_width, pair_width)
        self.output = final(pair_width, pair_width)

    def forward(self, pair: Tensor, mask: Tensor) -> Tensor:
        pair = self.norm(pair if self.starting else pair.transpose(1, 2))
        query, key, value = (
            each.unflatten(-1, (self.heads, -1)).transpose(2, 3) for each in self.projection(pair).chunk(3, -1)
        )  # each (B, L, H, L, Z / H)
        bias = self.bias(pair).permute(0, 3, 1, 2) + masked_bias(mask)[:, None, None]  # (B, H, L, L)
        found = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias.unsqueeze(1).to(query.dtype))
        gated: Tensor = self.output(torch.sigmoid(self.gate(pair)) * found.transpose(2, 3).flatten(-2))
        return gated if self.starting else gated.transpose(1, 2)


class OuterProduct(nn.Module):
    """Algorithm 10 for one sequence: the mean over sequences has one term."""

    def __init__(self, single_width: int, pair_width: int) -> None:
        super().__init__()
        hidden = max(4, math.isqrt(2 * pair_width))
        self.norm = nn.LayerNorm(single_width)
        self.sides = nn.Linear(single_width, 2 * hidden)
        self.output = final(hidden * hidden, pair_width)

    def forward(self, single: Tensor, mask: Tensor) -> Tensor:
        """(B, L, C) -> (B, L, L, Z)"""
        left, right = (self.sides(self.norm(single)) * mask.unsqueeze(-1)).chunk(2, -1)
        product = left[:, :, None, :, None] * right[:, None, :, None, :]
        found: Tensor = self.output(product.flatten(-2))
        return found


def masked_bias(mask: Tensor) -> Tensor:
    """0 for residues, a large negative number for padding, to be added to logits; finite, so that rows of padding stay numbers."""
    return (mask - 1) * 1e4
