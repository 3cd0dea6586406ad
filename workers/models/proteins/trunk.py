"""The trunk: a residue and a pair representation that inform each other, block by block.

The Evoformer (Algorithm 6 of Jumper et al. 2021) for one sequence instead of an alignment; attention along the sequence takes the place of that
along rows and columns, as in ESMFold's folding blocks (Lin et al. 2023). Shapes as in pairs.py; ``single`` is (B, L, C).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.kinds.proteins import FoldingModel
from workers.models.proteins.pairs import (
    OuterProduct,
    Transition,
    TriangleAttention,
    TriangleMultiplication,
    final,
    gate,
    masked_bias,
    pair_mask,
)


class PairBiasedAttention(nn.Module):
    """Algorithm 7: gated self-attention along the sequence, its logits biased by the pair representation."""

    def __init__(self, single_width: int, pair_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(single_width)
        self.norm_pair = nn.LayerNorm(pair_width)
        self.projection = nn.Linear(single_width, 3 * single_width, bias=False)
        self.bias = nn.Linear(pair_width, heads, bias=False)
        self.gate = gate(single_width, single_width)
        self.output = final(single_width, single_width)

    def forward(self, single: Tensor, pair: Tensor, mask: Tensor) -> Tensor:
        single = self.norm(single)
        query, key, value = (
            each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in self.projection(single).chunk(3, -1)
        )  # each (B, H, L, C / H)
        bias = self.bias(self.norm_pair(pair)).permute(0, 3, 1, 2) + masked_bias(mask)[:, None, None]
        found = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        gated: Tensor = self.output(torch.sigmoid(self.gate(single)) * found.transpose(1, 2).flatten(-2))
        return gated


class SharedDropout(nn.Module):
    """Dropout of pairs that leaves out the same channels along a whole row (``along`` 1) or column (2) of pairs (supplement 1.11.6)."""

    def __init__(self, share: float, along: int) -> None:
        super().__init__()
        self.share, self.along = share, along

    def forward(self, pair: Tensor) -> Tensor:
        if not self.training or self.share == 0:
            return pair
        shape = list(pair.shape)
        shape[self.along] = 1
        return pair * functional.dropout(pair.new_ones(shape), self.share)


class Block(nn.Module):
    def __init__(self, spec: FoldingModel) -> None:
        super().__init__()
        self.drop_single = nn.Dropout(spec.dropout)
        self.drop_rows, self.drop_columns = SharedDropout(spec.dropout, 1), SharedDropout(spec.dropout, 2)
        single, pair = spec.single_width, spec.pair_width
        self.attention = PairBiasedAttention(single, pair, spec.heads)
        self.single_transition = Transition(single, 4)
        self.outer_product = OuterProduct(single, pair)
        self.outgoing = TriangleMultiplication(pair, outgoing=True)
        self.incoming = TriangleMultiplication(pair, outgoing=False)
        self.starting = TriangleAttention(pair, spec.heads, starting=True) if spec.triangle_attention else None
        self.ending = TriangleAttention(pair, spec.heads, starting=False) if spec.triangle_attention else None
        self.pair_transition = Transition(pair, 2)

    def forward(self, single: Tensor, pair: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        pairs = pair_mask(mask)
        single = single + self.drop_single(self.attention(single, pair, mask))
        single = single + self.single_transition(single)
        pair = pair + self.outer_product(single, mask)
        pair = pair + self.drop_rows(self.outgoing(pair, pairs))
        pair = pair + self.drop_rows(self.incoming(pair, pairs))
        if self.starting is not None and self.ending is not None:
            pair = pair + self.drop_rows(self.starting(pair, mask))
            pair = pair + self.drop_columns(self.ending(pair, mask))
        return single, pair + self.pair_transition(pair)


class Trunk(nn.Module):
    def __init__(self, spec: FoldingModel) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.blocks))

    def forward(self, single: Tensor, pair: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        for block in self.blocks:
            single, pair = block(single, pair, mask)
        return single, pair
