"""A user's own task on a file of real digits (scikit-learn's), some of which a broken scanner has made: no numbers, or a million times as large."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from workers.kinds.image_data import DigitsData
from workers.sources.arrays import read_digits

NAN = (3, 141, 592, 653, 1000, 1300)
LOUD = (17, 400, 801)

CODE = """
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Images:
    def __init__(self, inputs, labels):
        self.inputs, self.labels = torch.from_numpy(inputs), torch.from_numpy(labels)

    def __len__(self):
        return len(self.labels)

    def batch(self, indices, *, seed):
        rows = torch.as_tensor(indices)
        return {"x": self.inputs[rows], "y": self.labels[rows]}


class Scans:
    def __init__(self, path):
        self.file = np.load(path)

    def datasets(self):
        return tuple(Images(self.file[f"{part}_inputs"], self.file[f"{part}_labels"]) for part in ("train", "evaluation"))

    def model(self):
        return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 10))

    def loss(self, model, batch):
        return F.cross_entropy(model(batch["x"]), batch["y"], reduction="sum"), len(batch["y"])

    def evaluate(self, model, batch):
        logits, count = model(batch["x"]), torch.tensor(len(batch["y"]))
        right = (logits.argmax(1) == batch["y"]).sum()
        return {"loss": (F.cross_entropy(logits, batch["y"], reduction="sum"), count), "accuracy": (right, count)}
"""


def write_scans(folder: Path, nan: Sequence[int] = NAN, loud: Sequence[int] = ()) -> Path:
    """The file, with 1,437 training images and 360 others, which are all sound."""
    images = read_digits(DigitsData(source="digits"))
    arrays: dict[str, Any] = {}
    for name, part in (("train", images.train), ("evaluation", images.evaluation)):
        arrays[f"{name}_inputs"] = (part.pixels.reshape(-1, 64) / 16).astype(np.float32)
        arrays[f"{name}_labels"] = part.labels
    arrays["train_inputs"][list(nan), 5] = np.nan
    arrays["train_inputs"][list(loud)] *= 1e6
    np.savez(folder / "scans.npz", **arrays)
    return folder / "scans.npz"


def scans_job(path: Path, code: dict[str, Any], allow: Sequence[str], **parts: Any) -> dict[str, Any]:
    """``code``: where it is. ``allow``: consents; none: nothing is repaired."""
    return {
        "name": "scans",
        "task": {"kind": "custom", "code": code, "factory": "scans:Scans", "arguments": {"path": str(path)}, "metrics": ["accuracy"]},
        "training": {"epochs": 8, "batch_size": 96},
        "optimizer": {"name": "sgd", "momentum": 0.9, "learning_rate": 0.1},
        "evaluation": {"every_steps": 30, "best": "eval/accuracy", "mode": "max"},
        "health": {"mode": "repair", "allow": list(allow)} if allow else {"mode": "advise"},
        **parts,
    }  # fmt: skip
