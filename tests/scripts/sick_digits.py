"""Networks for handwritten digits, one of each mood: healthy, or with a sickness that people give their networks. They know nothing of Chainrule."""

import sklearn.datasets
import torch
from torch import nn

MOODS = ("healthy", "deep_sigmoid", "high_rate", "dead_relu", "uncleared")  # the last one in the bare loop only


def digits():
    """(1797, 64) between 0 and 1, and their classes."""
    pixels, labels = sklearn.datasets.load_digits(return_X_y=True)
    return torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels)


def network(mood):
    if mood == "deep_sigmoid":
        hidden = [layer for _ in range(10) for layer in (nn.Linear(64, 64), nn.Sigmoid())]
        return nn.Sequential(*hidden, nn.Linear(64, 10))
    made = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    if mood == "dead_relu":
        nn.init.constant_(made[2].bias, -30.0)
    return made


def rate(mood):
    """Of Adam."""
    return 3.0 if mood == "high_rate" else 3e-3
