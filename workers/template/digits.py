"""Handwritten digits with a network of your own: everything that Chainrule asks of a task.

`build` is what job.yaml names as its factory, and its keyword arguments are the job's `arguments`. Replace data, network and loss by yours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional


def build(hidden: int = 64, dropout: float = 0.0, seed: int = 0) -> DigitsTask:
    """`seed` is the job's training.seed, because an argument has that name."""
    return DigitsTask(hidden, dropout, seed)


class DigitsTask:
    def __init__(self, hidden: int, dropout: float, seed: int) -> None:
        self.hidden, self.dropout, self.seed = hidden, dropout, seed

    def datasets(self) -> tuple[Digits, Digits]:
        """Training data and evaluation data. Any worker may be asked for any sample."""
        images, labels = load_digits(return_X_y=True)
        order = np.random.default_rng(self.seed).permutation(len(labels))
        training, held_out = order[360:], order[:360]
        return Digits(images[training], labels[training]), Digits(images[held_out], labels[held_out])

    def model(self) -> nn.Module:
        """A new network; its random numbers come from torch's generator, which is seeded."""
        return nn.Sequential(
            nn.Linear(64, self.hidden),
            nn.ReLU(),
            nn.Dropout(self.dropout),
            nn.Linear(self.hidden, self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, 10),
        )

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, int]:
        """The SUM of the losses, and how many there are: so the result is the same on any number of workers."""
        labels = batch["labels"]
        return functional.cross_entropy(model(batch["images"]), labels, reduction="sum"), len(labels)

    def evaluate(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, int]]:
        """Each metric as (sum, count). `loss` is always one of them; job.yaml lists the others under `metrics`."""
        outputs, labels = model(batch["images"]), batch["labels"]
        loss = functional.cross_entropy(outputs, labels, reduction="sum")
        return {"loss": (loss, len(labels)), "accuracy": ((outputs.argmax(1) == labels).sum(), len(labels))}

    def predict(self, model: nn.Module, inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Optional: what the finished model answers in MLflow. `inputs`: (N, 64), brightness 0 to 16."""
        probabilities = model(pixels(inputs)).softmax(1).numpy()
        return {"digit": probabilities.argmax(1), "probabilities": probabilities}


class Digits:
    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = pixels(images), torch.as_tensor(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Sequence[int], *, seed: int) -> dict[str, Tensor]:
        """The samples at these places. Random augmentation must depend on `seed` (63 bits) and the place of a sample alone."""
        chosen = torch.as_tensor(indices)
        return {"images": self.images[chosen], "labels": self.labels[chosen]}


def pixels(images: np.ndarray) -> Tensor:
    return torch.as_tensor(np.asarray(images), dtype=torch.float32) / 16
