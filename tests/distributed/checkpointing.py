"""A small model with every kind of state, and how the tests save it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from upath import UPath

from workers import checkpoints
from workers.checkpoint_folders import Manifest, Retention
from workers.checkpoint_saver import Saver
from workers.checkpoints import Failed, Saved

KEEP_ALL = Retention(keep_last=1000, keep_best=0, best="eval/loss", mode="min")


def trained_model(seed: int, steps: int = 2, width: int = 8) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    for _ in range(steps):
        backward(model, seed)
        optimizer.step()
    return model, optimizer


def backward(model: nn.Module, seed: int) -> None:
    model.zero_grad()
    model(torch.randn(10, 6, generator=torch.Generator().manual_seed(seed))).square().sum().backward()


def saver(
    root: Path | str, rank: int = 0, world_size: int = 1, generation: int = 1, keep: Retention = KEEP_ALL
) -> Saver:
    return Saver(root, rank=rank, world_size=world_size, generation=generation, retention=keep)


def write(root: Path | str, step: int, seed: int = 0, loss: float = 1.0, verdict: str = "unknown", **of: Any) -> Path:
    """Saves a checkpoint from one process and returns its folder."""
    writer = saver(root, **of)
    writer.begin(step, *trained_model(seed), {"best": loss, "answer": 42}, {"eval/loss": loss}, verdict)
    result = writer.settle(None)
    assert isinstance(result, Saved), result
    return Path(result.path)


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
    state = optimizer.state_dict()["state"]
    return [
        *model.state_dict().values(),
        *(state[index][key] for index in sorted(state) for key in sorted(state[index])),
    ]


def found_step(root: Path | str) -> int | None:
    """Step of the newest checkpoint that verifies."""
    checkpoint, _ = checkpoints.newest(root)
    return checkpoint.step if checkpoint else None


def verify(path: Path) -> Manifest | checkpoints.Damaged:
    found = checkpoints.verify(UPath(path))
    assert found is not None
    return found


def problem_of(result: Saved | Failed | None) -> Failed:
    assert isinstance(result, Failed), result
    return result
