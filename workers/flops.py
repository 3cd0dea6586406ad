"""Model FLOPs: what forward and backward passes of a model need, whatever a device does besides (recomputing, padding, optimizer).

A multiplication and an addition are two. Utilisation (MFU, Chowdhery et al. 2022, PaLM, appendix B) is model FLOPs a second over what the devices
can do at most.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workers.accelerators import peak_flops
from workers.spec import JobSpec

META = torch.device("meta")


@dataclass(frozen=True)
class Rates:
    """What a recorder needs to tell the model FLOPs a second."""

    per_sample: float  # FLOPs of one training sample, forward and backward
    peak: float | None = None  # FLOP/s of one worker's device; None: not known, and then there is no utilisation

    def series(self, samples: int, seconds: float, workers: int) -> dict[str, float]:
        """Of a step: the rate is of all workers together."""
        rate = samples * self.per_sample / seconds if seconds > 0 else 0.0
        told = {"system/model_flops_per_second": rate}
        return told if self.peak is None else told | {"system/mfu": rate / (self.peak * workers)}


def rates_of(task: object, model: nn.Module, spec: JobSpec, device: torch.device) -> Rates | None:
    """None for a task that does not say what a sample takes (``workers.tasks.base.Counted``), or whose model cannot be counted."""
    count = getattr(task, "flops_per_sample", None)
    if count is None:
        return None
    try:
        per_sample = float(count(model))
    except Exception:  # of a model that needs more than shapes: not knowing its FLOPs must not keep it from training
        logging.getLogger(__name__).warning("the FLOPs of a step are not known", exc_info=True)
        return None
    return Rates(per_sample, peak_of(spec, device))


def peak_of(spec: JobSpec, device: torch.device) -> float | None:
    """What the job says, else what the maker of an accelerator declares. A processor declares nothing."""
    if spec.workers.peak_flops is not None or device.type != "cuda":
        return spec.workers.peak_flops
    return peak_flops(torch.cuda.get_device_name(device), spec.training.precision)


def of_passes(model: nn.Module, *shape: int) -> float:
    """Of a sample of ``shape`` in a model that takes one tensor (B, *shape) of float32 and gives one, counted from shapes alone.

    Copies no weight and changes nothing of the model. Matrix products, convolutions and attention count, as torch's flop counter has it; frozen
    weights have no gradient to compute.
    """
    from torch.utils.flop_counter import FlopCounterMode

    from workers.simulation import ATTENTION_FLOPS, FusedAttention

    samples = 2  # batch norm needs two
    shadow = _on_meta(model).train()
    counter = FlopCounterMode(display=False, custom_mapping=ATTENTION_FLOPS)
    with torch.random.fork_rng(devices=[]), FusedAttention(), counter:
        output = shadow(torch.empty(samples, *shape, device=META))
        if output.requires_grad:
            output.sum().backward()
    return float(counter.get_total_flops()) / samples


def of_language_sample(network: Any, tokens: int) -> float:
    """Of ``tokens`` in a causal model of the transformers library (also under adapters): 6 for each weight of a matrix product, and attention.

    6 N a token: two forward, two for the gradient of the input, two for that of the weight (Kaplan et al. 2020); a frozen weight needs no gradient
    and counts 4. Embeddings are looked up, so that they count only where they are the output layer too. Attention: 12 x layers x heads x head width
    x length a token, as if the whole square were computed (PaLM, appendix B).
    """
    inner = network.get_base_model() if hasattr(network, "get_base_model") else network
    weights = sum((6 if weight.requires_grad else 4) * weight.numel() for weight in _multiplied(network))
    config = inner.config
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    attention = 12 * config.num_hidden_layers * heads * width * tokens
    return float(tokens * (weights + attention))


def _multiplied(network: nn.Module) -> Iterator[Tensor]:
    """Weights of matrix products, one that two layers share for each of them."""
    from transformers.pytorch_utils import Conv1D

    for module in network.modules():
        if isinstance(module, nn.Linear | Conv1D):
            yield module.weight


def _on_meta(model: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers have shapes and no content."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device=META), parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device=META)
    return copy.deepcopy(model, memo)
