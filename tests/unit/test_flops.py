"""Model FLOPs against sums made by hand, and the share of a device's peak."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from workers import flops
from workers.accelerators import peak_flops
from workers.kinds.language import Lora, NewModel
from workers.models.causal import new_model
from workers.spec import JobSpec, parse_spec
from workers.tasks import build_task

pytestmark = pytest.mark.unit
CPU = torch.device("cpu")


def job(**parts: Any) -> JobSpec:
    task = {"kind": "image_classification", "data": {"source": "digits"},
            "model": {"architecture": "mlp", "hidden": [32]}}  # fmt: skip
    return parse_spec({"name": "x", "task": task, **parts})


def test_two_linear_layers() -> None:
    """Forward 2 m n each, weight gradients as much again, and input gradients but for the first layer, whose input needs none."""
    spec = job()
    task = build_task(spec.task, 0)
    task.datasets()
    rates = flops.rates_of(task, task.model(), spec, CPU)
    assert rates == flops.Rates(2 * 2 * (64 * 32 + 32 * 10) + 2 * 32 * 10, None)


def test_a_convolution_and_a_frozen_layer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(4 * 25, 2))
    conv, head = 2 * 25 * 4 * 3 * 9, 2 * 100 * 2
    assert flops.of_passes(model, 3, 5, 5) == 2 * conv + 3 * head
    model[0].weight.requires_grad_(False)
    assert flops.of_passes(model, 3, 5, 5) == conv + 2 * head


def test_counting_changes_nothing() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5), nn.Flatten(), nn.Linear(18, 2)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    flops.of_passes(model, 1, 5, 5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


LAYERS, WIDTH, VOCABULARY, BLOCK = 2, 16, 50, 8
MATRICES = LAYERS * (4 + 8) * WIDTH**2  # GPT-2: query, key, value, output; two layers of four times the width


@pytest.fixture
def network() -> Any:
    spec = NewModel(architecture="gpt2", layers=LAYERS, heads=2, width=WIDTH)
    return new_model(spec, VOCABULARY, BLOCK, None).network


def test_a_language_model(network: Any) -> None:
    """6 N a token without embeddings but with the output layer, which has the same weights; attention's two products, forward and backward."""
    attention = 3 * LAYERS * 2 * (2 * BLOCK * WIDTH)
    expected = BLOCK * (6 * (MATRICES + WIDTH * VOCABULARY) + attention)
    assert flops.of_language_sample(network, BLOCK) == expected


def test_the_formula_agrees_with_what_torch_counts(network: Any) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    from workers.simulation import ATTENTION_FLOPS

    tokens = torch.zeros(1, BLOCK, dtype=torch.int64)
    with FlopCounterMode(display=False, custom_mapping=ATTENTION_FLOPS) as counter:
        network(input_ids=tokens, use_cache=False).logits.sum().backward()
    # A fused backward pass of attention computes the weights once more: a product of five instead of four.
    again = LAYERS * 2 * BLOCK * BLOCK * WIDTH
    assert counter.get_total_flops() - flops.of_language_sample(network, BLOCK) in (0, again)


def test_adapters(network: Any) -> None:
    """Frozen weights have no gradient of their own: 4 N; adapters of rank 2 on the fused query, key and value."""
    from workers.models.causal import _adapted

    lora = Lora(rank=2, target_modules=["c_attn"])
    attention = 12 * LAYERS * WIDTH * BLOCK
    adapters = LAYERS * 2 * (WIDTH + 3 * WIDTH)
    expected = BLOCK * (4 * (MATRICES + WIDTH * VOCABULARY) + 6 * adapters + attention)
    assert flops.of_language_sample(_adapted(network, lora), BLOCK) == expected


def test_series() -> None:
    told = flops.Rates(1e9, 4e12).series(samples=64, seconds=0.02, workers=2)
    assert told["system/model_flops_per_second"] == pytest.approx(3.2e12)
    assert told["system/mfu"] == pytest.approx(0.4)
    assert "system/mfu" not in flops.Rates(1e9).series(64, 0.02, 2)


def test_a_peak_is_declared_or_not_known() -> None:
    assert flops.peak_of(job(), CPU) is None
    assert flops.peak_of(job(workers={"peak_flops": 2e11}), CPU) == 2e11
    assert peak_flops("NVIDIA H100 80GB HBM3", "bf16") == 989e12
    assert peak_flops("NVIDIA H100 PCIe", "bf16") == 756e12
    assert peak_flops("NVIDIA A100-SXM4-80GB", "fp32") == 19.5e12
    assert peak_flops("Tesla T4", "fp32") == 8.1e12
    assert peak_flops("Tesla T4", "bf16") is None
    assert peak_flops("NVIDIA A10G", "bf16") is None  # another card than the A10
    assert peak_flops("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16") is None
    assert peak_flops("NVIDIA GeForce RTX 4090", "bf16") is None
