"""Random changes of training images: the numbers are drawn with the samples, the images are changed on the device.

A sample's numbers are a function of (seed, index of the sample) alone, the seed being one of job and epoch, so that they do not depend on
which worker has the sample nor on what else is in its batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.kinds.images import Augmentation
from workers.tasks.base import Batch, Dataset

FLIP, ROW, COLUMN, OTHER, KIND, SHARE, BOX_ROW, BOX_COLUMN, NUMBERS = 0, 1, 2, 3, 6, 7, 8, 9, 10
PARTNER = NUMBERS  # drawn besides: it stays on the host


def changes(spec: Augmentation) -> bool:
    return spec != Augmentation()


class AugmentedImages:
    """Adds to each batch the sample's random numbers, ``draws`` (B, NUMBERS) in [0, 1), and where images are mixed the partner of each.

    The partner is any sample of the whole training set, not of the batch: which samples a worker has at once depends on their number.
    """

    def __init__(self, images: Dataset, spec: Augmentation) -> None:
        self._images, self._spec = images, spec

    def __len__(self) -> int:
        return len(self._images)

    def batch(self, indices: Sequence[int], *, seed: int) -> Batch:
        draws = uniform(seed, indices, NUMBERS + 1)
        found = {**self._images.batch(indices, seed=seed)}
        if self._spec.mixup or self._spec.cutmix:
            partners = (draws[:, PARTNER] * len(self._images)).astype(np.int64)
            others = self._images.batch(partners.tolist(), seed=seed)
            found |= {"other_pixels": others["pixels"], "other_labels": others["labels"]}
            draws[:, SHARE] = _shares(self._spec, draws)
        found["draws"] = torch.from_numpy(draws[:, :NUMBERS].astype(np.float32))
        return found


def uniform(seed: int, indices: Sequence[int], count: int) -> NDArray[np.float64]:
    """(N, count) numbers in [0, 1). Each is the output of SplitMix64 (Steele, Lea and Flood 2014) for seed, index and column."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    rows = np.asarray(indices, dtype=np.uint64)[:, np.newaxis] + np.uint64(1)
    columns = np.arange(1, count + 1, dtype=np.uint64)[np.newaxis]
    stream = _scrambled(np.full((1, 1), seed % 2**64, dtype=np.uint64) + golden)
    bits = _scrambled(_scrambled(stream + rows * golden) + columns * golden)
    return (bits >> np.uint64(11)).astype(np.float64) / 2.0**53


def _scrambled(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _shares(spec: Augmentation, draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """The part of each image that stays itself: Beta(a, a), by its inverse distribution function."""
    from scipy.special import betaincinv

    alpha = np.where(_cuts(spec, draws[:, KIND]), spec.cutmix, spec.mixup)
    shares: NDArray[np.float64] = betaincinv(alpha, alpha, draws[:, SHARE])
    return shares


def _cuts(spec: Augmentation, kind: NDArray[np.float64] | Tensor) -> NDArray[np.bool_] | Tensor:
    """Which images are mixed by cutting: all, none, or half where the job asks for both."""
    return kind < (0.5 if spec.mixup else 1.0) * bool(spec.cutmix)


# --- on the device ----------------------------------------------------------------------------------------------------


def augmented(spec: Augmentation, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """(pixels (B, C, H, W), share of each that is its own (B,), or None where nothing is mixed)."""
    draws = batch["draws"]
    pixels = _moved(spec, batch["pixels"], draws)
    if "other_pixels" not in batch:
        return pixels, None
    other = _moved(spec, batch["other_pixels"], draws[:, OTHER:])
    own = _own_parts(spec, draws, *pixels.shape[2:])
    return own * pixels + (1 - own) * other, own.mean(dim=(1, 2, 3))


def _moved(spec: Augmentation, pixels: Tensor, draws: Tensor) -> Tensor:
    """Flipped and shifted. The border's pixels are repeated: black would be an unusual value in a bright image."""
    if not (spec.horizontal_flip or spec.crop_padding):
        return pixels
    batch, channels, height, width = pixels.shape
    rows = _shifted(height, draws[:, ROW], spec.crop_padding)
    columns = _shifted(width, draws[:, COLUMN], spec.crop_padding)
    if spec.horizontal_flip:
        columns = torch.where(draws[:, FLIP, None] < 0.5, width - 1 - columns, columns)
    rows = rows[:, None, :, None].expand(batch, channels, height, width)
    columns = columns[:, None, None, :].expand(batch, channels, height, width)
    return pixels.gather(2, rows).gather(3, columns)


def _shifted(size: int, draws: Tensor, padding: int) -> Tensor:
    """(B, size): from where each row (or column) is taken."""
    shift = (draws * (2 * padding + 1)).long() - padding
    places: Tensor = torch.arange(size, device=draws.device) + shift[:, None]
    return places.clamp(0, size - 1)


def _own_parts(spec: Augmentation, draws: Tensor, height: int, width: int) -> Tensor:
    """(B, 1, H, W): how much of each pixel is the image's own.

    mixup (Zhang et al. 2018): the same everywhere. cutmix (Yun et al. 2019): none in a box of the other's share of the area around a random
    centre, cut off at the border.
    """
    share = draws[:, SHARE]
    side = (1 - share).sqrt() / 2
    rows = _inside(height, draws[:, BOX_ROW], side)[:, None, :, None]
    columns = _inside(width, draws[:, BOX_COLUMN], side)[:, None, None, :]
    cut = (~(rows & columns)).to(share.dtype)
    cuts = torch.as_tensor(_cuts(spec, draws[:, KIND]))
    blended = share[:, None, None, None].expand_as(cut)
    return torch.where(cuts[:, None, None, None], cut, blended)


def _inside(size: int, centre: Tensor, half: Tensor) -> Tensor:
    """(B, size): which pixels are within ``half`` of ``centre``, both shares of the size."""
    places = (torch.arange(size, device=centre.device) + 0.5) / size
    return (places - centre[:, None]).abs() < half[:, None]
