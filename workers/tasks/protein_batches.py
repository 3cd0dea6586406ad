"""Chains as batches: random crops to train on, whole chains to be measured by; padded, with masks.

A batch has ``residues`` and ``position`` (B, L) integers, ``mask`` (B, L) 1 for residues, ``resolved`` (B, L) 1 for those whose backbone is in the
file, ``atoms`` (B, L, 3, 3) N, CA, C in Å, ``bonded`` (B, L), ``clamped`` (B,) and ``held_out`` (B,) 0 or 1, ``baseline`` (B, 3), and
``recycles`` (B, n), whose second dimension is the number of times that the result is fed back.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from workers.models.proteins import baselines
from workers.models.proteins.folding import RESIDUES
from workers.sources.structures import Chain
from workers.tasks.base import Batch

MOST_TRAINING_CROPS = 64  # that an evaluation looks at

CODES = {letter: code for code, letter in enumerate(RESIDUES)}


def encoded(sequence: str) -> Tensor:
    """(L,) codes of one-letter codes; X for those that are none of the twenty."""
    return torch.tensor([CODES.get(letter, CODES["X"]) for letter in sequence])


class Crops:
    """``crops_per_chain`` samples of every chain, each a random crop that is a function of (seed, index)."""

    def __init__(
        self, chains: Sequence[Chain], crop_size: int, crops_per_chain: int, recycling: int, unclamped: float
    ) -> None:
        self.chains, self.crop_size = chains, crop_size
        self._crops_per_chain, self._recycling, self._unclamped = crops_per_chain, recycling, unclamped

    def __len__(self) -> int:
        return len(self.chains) * self._crops_per_chain

    def batch(self, indices: Sequence[int], *, seed: int) -> Batch:
        parts, clamped = [], []
        for index in indices:
            generator = np.random.default_rng((seed, index))
            chain = self.chains[index // self._crops_per_chain]
            start = int(generator.integers(0, max(0, len(chain) - self.crop_size), endpoint=True))
            parts.append(_part(chain, start, self.crop_size))
            clamped.append(float(generator.random() >= self._unclamped))
        # The same for all batches of an epoch: every worker makes as many passes as the others.
        recycles = int(np.random.default_rng(seed).integers(0, self._recycling, endpoint=True))
        found = _padded(parts, self.crop_size)
        return {**found, "clamped": torch.tensor(clamped), "recycles": torch.zeros(len(parts), recycles)}

    def middle(self, index: int) -> dict[str, Tensor]:
        chain = self.chains[index]
        return _part(chain, max(0, len(chain) - self.crop_size) // 2, self.crop_size)


class HeldOut:
    """The held-out chains, whole, then the middle crops of training chains (of a bounded number of them)."""

    def __init__(self, chains: Sequence[Chain], train: Crops, recycling: int, distances_by_separation: Tensor) -> None:
        self.chains = chains
        self._train, self._recycling = train, recycling
        self._crops = range(0, len(train.chains), -(-len(train.chains) // MOST_TRAINING_CROPS))
        self._distances = distances_by_separation
        self.baselines = lru_cache(maxsize=None)(self._baselines)

    def __len__(self) -> int:
        return len(self.chains) + len(self._crops)

    def _baselines(self, index: int) -> dict[str, baselines.Scores]:
        return baselines.scores(self.chains[index], self._distances)

    def batch(self, indices: Sequence[int], *, seed: int) -> Batch:
        whole = [index for index in indices if index < len(self.chains)]
        parts = [_part(self.chains[index], 0, len(self.chains[index])) for index in whole]
        parts += [
            self._train.middle(self._crops[index - len(self.chains)]) for index in indices if index >= len(self.chains)
        ]
        baseline = torch.zeros(len(parts), 3)
        for row, index in enumerate(whole):
            baseline[row] = torch.tensor(baselines.best(self.baselines(index)))
        return {
            **_padded(parts, max(len(part["residues"]) for part in parts)),
            "clamped": torch.ones(len(parts)),
            "recycles": torch.zeros(len(parts), self._recycling),
            "held_out": (torch.arange(len(parts)) < len(whole)).float(),
            "baseline": baseline,
        }


def _part(chain: Chain, start: int, length: int) -> dict[str, Tensor]:
    rows = slice(start, start + length)
    bonded = torch.from_numpy(chain.bonded[rows]).float()
    bonded[0] = 0
    return {
        "residues": encoded(chain.sequence[rows]),
        "position": torch.from_numpy(chain.position[rows]),
        "mask": torch.ones(len(chain.sequence[rows])),
        "resolved": torch.from_numpy(chain.resolved[rows]).float(),
        "atoms": torch.from_numpy(chain.backbone[rows]),
        "bonded": bonded,
    }


def _padded(parts: Sequence[dict[str, Tensor]], length: int) -> dict[str, Tensor]:
    """Each tensor filled up with zeros to (B, length, ...)."""
    found = {}
    for name, first in parts[0].items():
        table = torch.zeros(len(parts), length, *first.shape[1:], dtype=first.dtype)
        for row, part in zip(table, parts, strict=True):
            row[: len(part[name])] = part[name]
        found[name] = table
    return found
