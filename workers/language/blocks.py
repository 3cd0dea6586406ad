"""Blocks of tokens as samples: cut from one long text, or packed from documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from workers.language.cross_entropy import IGNORED
from workers.tasks.base import Batch


class TextBlocks:
    """Sample i is the i-th block of ``tokens`` and, as labels, the tokens that follow each of its tokens.

    For training the cuts lie elsewhere in every epoch, and what is left over at the end is not used. For evaluation (``shifted`` false) they
    lie at multiples of the block size and the last block is filled up: every token but the very first is predicted once.
    """

    def __init__(self, tokens: NDArray[Any], block_size: int, *, shifted: bool) -> None:
        self._tokens, self._size = tokens, block_size
        whole, rest = divmod(len(tokens) - 1, block_size)
        # Shifted by up to a block, one block less fits.
        self._shifts = block_size if shifted and whole > 1 else 1
        self._samples = whole - (self._shifts - 1 > rest) if shifted else whole + (rest > 0)

    def __len__(self) -> int:
        return self._samples

    def batch(self, indices: Sequence[int], *, seed: int) -> Batch:
        shift = int(np.random.default_rng(seed).integers(self._shifts)) if self._shifts > 1 else 0
        tokens = np.zeros((len(indices), self._size), dtype=np.int64)
        labels = np.full((len(indices), self._size), IGNORED, dtype=np.int64)
        for row, index in enumerate(indices):
            start = shift + index * self._size
            block = self._tokens[start : start + self._size + 1]
            tokens[row, : len(block) - 1], labels[row, : len(block) - 1] = block[:-1], block[1:]
        return {"tokens": torch.from_numpy(tokens), "labels": torch.from_numpy(labels)}


@dataclass(frozen=True)
class TokenizedDocument:
    tokens: NDArray[Any]
    learnt: NDArray[np.bool_]  # whether each token is one that the model shall predict


class PackedDocuments:
    """Several documents share a block; ``positions`` begin anew with each, which keeps the model from looking across.

    A document that is longer than a block is cut into pieces. Pieces with nothing to learn are left out, so every sample has something.
    """

    def __init__(self, documents: Sequence[TokenizedDocument], block_size: int) -> None:
        self._documents, self._size = documents, block_size
        self._pieces = [
            piece for index, document in enumerate(documents) for piece in _pieces(index, document, block_size)
        ]
        self._bins = pack([end - start for _, start, end in self._pieces], block_size)

    def __len__(self) -> int:
        return len(self._bins)

    def batch(self, indices: Sequence[int], *, seed: int) -> Batch:
        shape = (len(indices), self._size)
        tokens, positions = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        labels = np.full(shape, IGNORED, dtype=np.int64)
        for row, index in enumerate(indices):
            at = 0
            for piece in self._bins[index]:
                document, start, end = self._pieces[piece]
                found, here = self._documents[document], slice(at, at + end - start)
                tokens[row, here] = found.tokens[start:end]
                following = found.tokens[start + 1 : end + 1].astype(np.int64)
                labels[row, here] = np.where(found.learnt[start + 1 : end + 1], following, IGNORED)
                positions[row, here] = np.arange(end - start)
                at += end - start
            positions[row, at:] = np.arange(self._size - at)  # the rest is a document of its own, without labels
        return {
            "tokens": torch.from_numpy(tokens),
            "labels": torch.from_numpy(labels),
            "positions": torch.from_numpy(positions),
        }


def _pieces(index: int, document: TokenizedDocument, block_size: int) -> list[tuple[int, int, int]]:
    """(document, first, one past the last) of the tokens that predict their followers."""
    last = len(document.tokens) - 1  # which predicts nothing
    cuts = [(start, min(start + block_size, last)) for start in range(0, last, block_size)]
    return [(index, start, end) for start, end in cuts if document.learnt[start + 1 : end + 1].any()]


def pack(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Which pieces share a bin of ``size``: the longest first, each into the fullest bin that has room (best fit decreasing)."""
    bins: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(size + 1)]  # bins by the room that is left in them
    for piece in sorted(range(len(lengths)), key=lambda piece: (-lengths[piece], piece)):
        length = lengths[piece]
        room = next((room for room in range(length, size + 1) if with_room[room]), None)
        if room is None:
            room = size
            with_room[size].append(len(bins))
            bins.append([])
        chosen = with_room[room].pop()
        bins[chosen].append(piece)
        with_room[room - length].append(chosen)
    return bins
