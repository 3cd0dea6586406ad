"""Optimizers by name and learning rates as pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from workers.sharding import is_part
from workers.spec import Optimizer, Schedule

CLASSES: Mapping[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "adamax": torch.optim.Adamax,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
}
# One fused kernel a step instead of several passes over the weights; torch has it for these on CPU and CUDA.
FUSED_DEVICES = {"sgd": ("cpu", "cuda"), "adam": ("cpu", "cuda"), "adamw": ("cpu", "cuda"), "adagrad": ("cpu",)}
FUSED_SHARDED = ("adam", "adamw")  # the kernels that torch has for sharded tensors too


def build_optimizer(spec: Optimizer, parameters: Iterable[nn.Parameter], device: torch.device) -> torch.optim.Optimizer:
    """Only parameters of two or more dimensions decay: weights, not biases and the gains of norms, which decay would only distort."""
    settings: dict[str, Any] = {"lr": spec.learning_rate, "weight_decay": spec.weight_decay}
    if spec.momentum is not None:
        settings["momentum"] = spec.momentum
    if spec.nesterov is not None:
        settings["nesterov"] = spec.nesterov
    if spec.betas is not None:
        settings["betas"] = tuple(spec.betas)
    if spec.epsilon is not None:
        settings["eps"] = spec.epsilon
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    sharded = any(is_part(parameter) for parameter in trained)
    if fused(spec, device.type) and (spec.name in FUSED_SHARDED or not sharded):
        settings["fused"] = True
    elif sharded:
        settings["foreach"] = (
            True  # torch's default only for plain tensors; all at once saves most of the way through DTensor
        )
    return CLASSES[spec.name](_groups(trained, spec.weight_decay), **settings)


def _groups(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Those that decay and those that do not; one group where that makes no difference. A sharded parameter has the dimensions of the whole."""
    if not weight_decay:
        return [{"params": parameters}]
    decaying = [parameter for parameter in parameters if parameter.ndim >= 2]
    others = [parameter for parameter in parameters if parameter.ndim < 2]
    groups: list[dict[str, Any]] = [{"params": decaying}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def fused(spec: Optimizer, device_type: str = "cpu") -> bool:
    """Whether its step of plain tensors is one kernel there."""
    return device_type in FUSED_DEVICES.get(spec.name, ())


def learning_rate(step: int, steps: int, spec: Schedule, peak: float) -> float:
    """The rate of step ``step`` (from 0) of ``steps``: linear warm-up from ``peak / warmup_steps``, then the schedule.

    Cosine as in Loshchilov and Hutter 2017 (one cycle, no restarts), ending at ``final_factor * peak`` at the last step.
    """
    warmup = min(spec.warmup_steps, steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    if spec.name == "constant":
        return peak
    done = (step - warmup) / max(1, steps - 1 - warmup)
    left = 0.5 * (1 + math.cos(math.pi * done)) if spec.name == "cosine" else 1 - done
    return peak * (spec.final_factor + (1 - spec.final_factor) * left)


def scale_weight_decay(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Of what each group was built with; some optimizers have none."""
    for group in optimizer.param_groups:
        if "weight_decay" not in group:
            continue
        group["weight_decay"] = group.setdefault("built_with_decay", group["weight_decay"]) * factor


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
