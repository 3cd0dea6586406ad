"""Batch norm over all workers against torch's over the whole batch in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.distributed.processes import Processes
from workers import batch_norm

pytestmark = pytest.mark.distributed

SHAPES = {"vectors": (7, 5), "images": (7, 5, 4, 3)}
MAKE = {2: nn.BatchNorm1d, 4: nn.BatchNorm2d}


def inputs(shape: tuple[int, ...], offset: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=generator) * 2 + offset, torch.randn(shape, generator=generator)


def norm_of(shape: tuple[int, ...], **settings: Any) -> nn.Module:
    torch.manual_seed(3)
    norm = MAKE[len(shape)](shape[1], **settings)
    if norm.affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return norm


def normalized(
    rank: int, world_size: int, shape: tuple[int, ...], offset: float, sizes: list[int], settings: dict[str, Any]
) -> dict[str, Tensor]:
    """This rank's part of a batch that is split into ``sizes``; of a part of size 0 a stand-in that must not count."""
    x, weight = inputs(shape, offset)
    start, size = sum(sizes[:rank]), sizes[rank]
    part, part_weight = (x[start : start + size], weight[start : start + size]) if size else (x[:1], 0 * weight[:1])
    part = part.clone().requires_grad_()
    model = batch_norm.synchronise_batch_norm(nn.Sequential(norm_of(shape, **settings)))
    batch_norm.set_world_size(model, world_size)
    with batch_norm.counted(model, size > 0):
        y = model(part)
    (y * part_weight).sum().backward()
    assert part.grad is not None
    kept = slice(None) if size else slice(0)
    gradients = {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"y": y.detach()[kept], "gradient of x": part.grad[kept], **gradients, **dict(model.named_buffers())}


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("sizes", [[4, 3], [6, 1], [3, 4, 0]], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_torchs_over_the_whole_batch(
    processes: Processes, tmp_path: Path, shape: str, sizes: list[int], offset: float
) -> None:
    """Catches ranks weighted alike whatever their size, a missing all-reduce backwards, the biased variance in the running
    statistics, and cancellation where the mean is far above the spread."""
    settings = {"momentum": None} if offset else {}
    x, weight = inputs(SHAPES[shape], offset)
    x.requires_grad_()
    norm = norm_of(SHAPES[shape], **settings).double()
    y = norm(x.double())
    (y * weight).sum().backward()
    parts = processes.run(len(sizes), tmp_path, normalized, SHAPES[shape], offset, sizes, settings)

    tolerance = 2e-4 if offset else 1e-5
    assert x.grad is not None
    for key, expected in (("y", y), ("gradient of x", x.grad)):
        torch.testing.assert_close(
            torch.cat([part[key] for part in parts]), expected.float(), rtol=tolerance, atol=tolerance
        )
    for name, parameter in norm.named_parameters():
        assert parameter.grad is not None
        found = torch.stack([part[f"gradient of 0.{name}"] for part in parts]).sum(0)
        torch.testing.assert_close(found, parameter.grad.float(), rtol=tolerance, atol=tolerance)
    for name, buffer in norm.named_buffers():
        for part in parts:
            torch.testing.assert_close(part[f"0.{name}"], buffer.to(part[f"0.{name}"].dtype), rtol=1e-5, atol=1e-6)


def test_one_worker_uses_torchs_kernel_and_takes_a_batch_of_one() -> None:
    x = torch.randn(6, 5)
    norm = norm_of((6, 5))
    ours = batch_norm.synchronise_batch_norm(nn.Sequential(norm_of((6, 5))))
    assert torch.equal(ours(x), norm(x))
    y = ours(x[:1])  # torch's own raises: "Expected more than 1 value per channel when training"
    assert isinstance(norm.bias, Tensor)
    torch.testing.assert_close(y[0], norm.bias)


def test_names_and_objects_stay() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.BatchNorm1d(4), nn.ReLU()))
    before = {name: id(value) for name, value in model.state_dict(keep_vars=True).items()}
    batch_norm.synchronise_batch_norm(model)
    assert {name: id(value) for name, value in model.state_dict(keep_vars=True).items()} == before
    assert isinstance(model.get_submodule("1.0"), batch_norm.SynchronisedBatchNorm)
