"""An autoencoder that takes the noise out of handwritten digits: a task that none of the built-in kinds has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

HELD_OUT = 360


def build(bottleneck: int = 12, noise: float = 0.3) -> Denoising:
    return Denoising(bottleneck, noise)


class Denoising:
    def __init__(self, bottleneck: int, noise: float) -> None:
        self.bottleneck, self.noise = bottleneck, noise

    def datasets(self) -> tuple[NoisyDigits, NoisyDigits]:
        images = torch.as_tensor(load_digits().data, dtype=torch.float32) / 16
        return NoisyDigits(images[:-HELD_OUT], self.noise), NoisyDigits(images[-HELD_OUT:], self.noise)

    def model(self) -> nn.Module:
        return nn.Sequential(
            nn.Linear(64, 128), nn.GELU(), nn.Linear(128, self.bottleneck), nn.Linear(self.bottleneck, 128), nn.GELU(), nn.Linear(128, 64)
        )  # fmt: skip

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, int]:
        return (model(batch["noisy"]) - batch["clean"]).square().sum(), batch["clean"].numel()

    def evaluate(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, int]]:
        """`unchanged`: the error of doing nothing, which the network must beat."""
        loss, count = self.loss(model, batch)
        return {"loss": (loss, count), "unchanged": ((batch["noisy"] - batch["clean"]).square().sum(), count)}


class NoisyDigits:
    """The noise of a sample is drawn from the seed and its place alone, so that any number of workers sees the same."""

    def __init__(self, images: Tensor, noise: float) -> None:
        self.images, self.noise = images, noise

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Sequence[int], *, seed: int) -> dict[str, Tensor]:
        clean = self.images[torch.as_tensor(indices)]
        noise = np.stack(
            [np.random.default_rng((seed, int(index))).standard_normal(64, np.float32) for index in indices]
        )
        return {"noisy": clean + self.noise * torch.from_numpy(noise), "clean": clean}
