"""The whole network: sequence in, backbone frames and confidence out, its result fed back a few times.

Shapes as in pairs.py. Algorithms are numbered as in the supplementary information of Jumper et al. 2021.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from workers.kinds.proteins import FoldingModel
from workers.models.proteins import frames as rigid
from workers.models.proteins.frames import Frames
from workers.models.proteins.pairs import RelativePosition
from workers.models.proteins.structure_module import StructureModule
from workers.models.proteins.trunk import Trunk
from workers.sources.structures import ONE_LETTER

RESIDUES = f"{ONE_LETTER}X"  # X: unknown
DISTOGRAM_BINS = 64  # supplement 1.9.8: equal ones from 2 to 22 Å, the last one for all beyond
CONFIDENCE_BINS = 50  # Algorithm 29: of the predicted lDDT-CA, from 0 to 1
RECYCLED_BINS = 15  # Algorithm 32: from 3.25 Å by 1.25 Å


class Prediction(NamedTuple):  # a tuple, in whose tensors the wrappers of data parallelism look for gradients
    passes: list[Frames]  # after each pass of the structure module, in Å
    distogram: Tensor  # (B, L, L, 64) logits
    confidence: Tensor  # (B, L, 50) logits

    @property
    def frames(self) -> Frames:
        return self.passes[-1]

    def plddt(self) -> Tensor:
        """(B, L), 0 to 1: the expected lDDT-CA of each residue (Algorithm 29)."""
        centres = (torch.arange(CONFIDENCE_BINS, device=self.confidence.device) + 0.5) / CONFIDENCE_BINS
        return self.confidence.softmax(-1) @ centres


class SequenceContext(nn.Module):
    """Each residue with its neighbours along the chain: two convolutions over 9 residues. Not in AlphaFold 2, whose alignments tell more."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.residue = nn.Embedding(len(RESIDUES), width)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, width, 9, padding=4) for _ in range(2))

    def forward(self, residues: Tensor, mask: Tensor) -> Tensor:
        """(B, L) -> (B, L, C); 0 at padding, which so is what the convolutions pad with."""
        single: Tensor = self.residue(residues) * mask.unsqueeze(-1)
        for convolution in self.convolutions:
            seen = nn.functional.relu(convolution(single.transpose(1, 2))).transpose(1, 2)
            single = single + seen * mask.unsqueeze(-1)
        return single


class Folding(nn.Module):
    def __init__(self, spec: FoldingModel) -> None:
        super().__init__()
        single, pair = spec.single_width, spec.pair_width
        self.recycling = spec.recycling
        self.context = SequenceContext(single)
        self.left, self.right = nn.Linear(single, pair), nn.Linear(single, pair)
        self.relative_position = RelativePosition(pair)
        self.recycle_single, self.recycle_pair = nn.LayerNorm(single), nn.LayerNorm(pair)
        self.recycle_distance = nn.Linear(RECYCLED_BINS, pair)
        self.trunk = Trunk(spec)
        self.structure = StructureModule(spec)
        self.distogram = nn.Linear(pair, DISTOGRAM_BINS)
        self.confidence = nn.Sequential(
            nn.LayerNorm(single), nn.Linear(single, single), nn.ReLU(), nn.Linear(single, single), nn.ReLU(),
            nn.Linear(single, CONFIDENCE_BINS),
        )  # fmt: skip

    def forward(self, residues: Tensor, position: Tensor, mask: Tensor, recycles: Tensor | None = None) -> Prediction:
        """``residues``, ``position`` (B, L) integers, ``mask`` (B, L) with 1 for residues and 0 for padding.

        ``recycles`` (B, n): its second dimension says how often the result is fed back; default: as often as the model has it.
        A shape, because reading a number from a device would stop the host there. Only the last pass has gradients (Algorithm 31).
        """
        times = self.recycling if recycles is None else recycles.shape[1]
        single, pair = self._embed(residues, position, mask)
        before: tuple[Tensor, Tensor, Tensor] | None = None
        if times:
            with torch.no_grad():
                for _ in range(times):
                    before = self._fed_back(*self._pass(single, pair, mask, before)[:3])
            torch.clear_autocast_cache()  # else the pass with gradients would use the casts of weights made without
        _, trunk_pair, passes, last = self._pass(single, pair, mask, before)
        distances = trunk_pair + trunk_pair.transpose(1, 2)
        return Prediction(passes, self.distogram(distances).float(), self.confidence(last).float())

    def _embed(self, residues: Tensor, position: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Algorithms 3 and 4."""
        single = self.context(residues, mask)
        sides = self.left(single).unsqueeze(2) + self.right(single).unsqueeze(1)
        return single, sides + self.relative_position(position)

    def _pass(
        self, single: Tensor, pair: Tensor, mask: Tensor, before: tuple[Tensor, Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, list[Frames], Tensor]:
        """Algorithm 30, one cycle. The first one is fed zeros, so that every weight has its part in every step."""
        old_single, old_pair, old_bins = before or (
            torch.zeros_like(single),
            torch.zeros_like(pair),
            pair.new_zeros(*pair.shape[:3], RECYCLED_BINS),
        )
        single = single + self.recycle_single(old_single)
        pair = pair + self.recycle_pair(old_pair) + self.recycle_distance(old_bins)  # Algorithm 32
        single, pair = self.trunk(single, pair, mask)
        last, passes = self.structure(single, pair, mask)
        return single, pair, passes, last

    def _fed_back(self, single: Tensor, pair: Tensor, passes: list[Frames]) -> tuple[Tensor, Tensor, Tensor]:
        atoms = rigid.backbone(passes[-1])
        beta = rigid.pseudo_beta(*atoms.unbind(-2))
        bins = torch.bucketize(
            torch.cdist(beta, beta), torch.arange(RECYCLED_BINS, device=beta.device) * 1.25 + 3.25, right=True
        )
        one_hot = nn.functional.one_hot(bins, RECYCLED_BINS + 1)[..., 1:]  # closer than the first edge: in no bin
        return single, pair, one_hot.to(pair.dtype)
