"""One training step of a job without its numbers: parameters, live bytes, operations, FLOPs, from shapes alone.

Model and batch are on torch's meta device, whose tensors have a shape and no content, so that a model of any size can be looked at. A task whose
loss asks for values (``.item()``, a mask that selects) cannot be computed so: its step is made for real, with few samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from workers import optim, sharding
from workers.live_bytes import OPTIMIZER, OTHER, WEIGHTS, Bytes, LiveBytes
from workers.spec import JobSpec
from workers.tasks.base import Batch, Dataset, Task

FEW_SAMPLES = 4  # of a step that is made for real
META = torch.device("meta")


@dataclass(frozen=True)
class Step:
    """Of one microbatch of ``samples`` on one worker."""

    samples: int
    peak: Bytes
    most_activations: int  # bytes; may be at another moment than the peak
    batch: int  # bytes
    operations: int
    flops: int


@dataclass(frozen=True)
class Simulation:
    """Bytes, unless they are counts. ``half`` has fewer samples than ``full``: what lies between and beyond is a straight line."""

    parameters: int
    trained: int
    weights: int  # with the model's buffers
    gradients: int  # when all are there
    optimizer: int
    root: int  # weights that FSDP keeps gathered
    largest_unit: int  # of weights that FSDP gathers together
    full: Step
    half: Step
    real: bool  # made for real, not on the meta device

    def at(self, samples: float, value: Callable[[Step], int]) -> float:
        """``value`` of a microbatch of so many samples."""
        high, low = value(self.full), value(self.half)
        slope = (high - low) / (self.full.samples - self.half.samples)
        return max(0.0, high + slope * (samples - self.full.samples))


def simulate(task: Task, dataset: Dataset, spec: JobSpec, samples: int) -> Simulation:
    """``samples``: of a microbatch. Raises what the task raises when its step cannot be made at all."""
    try:
        with META:
            model = task.model()
        return _simulation(task, model.to(META), dataset, spec, samples, META)
    except (NotImplementedError, RuntimeError, ValueError):  # each is how some operation says that it needs values
        return _simulation(task, task.model(), dataset, spec, min(samples, FEW_SAMPLES), torch.device("cpu"))


def _simulation(
    task: Task, model: nn.Module, dataset: Dataset, spec: JobSpec, samples: int, device: torch.device
) -> Simulation:
    model.train()
    optimizer = optim.build_optimizer(spec.optimizer, model.parameters(), device)
    full = max(2, samples)
    steps = [_step(task, model, optimizer, _batch(dataset, count, device), spec, count) for count in (full // 2, full)]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    unit_bytes = [_bytes(unit.parameters()) for unit in sharding.units(model)]
    weights = _bytes(model.parameters())
    return Simulation(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        trained=sum(parameter.numel() for parameter in trained),
        weights=weights + _bytes(model.buffers()),
        gradients=_bytes(trained),
        optimizer=_bytes(_state(optimizer)),
        root=max(0, weights - sum(unit_bytes)),
        largest_unit=max(unit_bytes, default=0),
        full=steps[1],
        half=steps[0],
        real=device.type != "meta",
    )


def _batch(dataset: Dataset, samples: int, device: torch.device) -> Batch:
    """Of the first samples, again and again where there are too few."""
    indices = [index % len(dataset) for index in range(samples)]
    return {name: value.to(device) for name, value in dataset.batch(indices, seed=0).items()}


def _step(
    task: Task, model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, spec: JobSpec, samples: int
) -> Step:
    """The second of two: the optimizer's state is there from the first one's end on."""
    step = Step(samples, Bytes(), 0, _bytes(batch.values()), 0, 0)
    bf16 = spec.training.precision == "bf16"
    for _ in range(2):
        live = LiveBytes()
        live.hold([*model.parameters(), *model.buffers()], WEIGHTS)
        live.hold(_state(optimizer), OPTIMIZER)
        live.hold(batch.values(), OTHER)
        hooks = live.watch_gradients(model)
        try:
            with FusedAttention(), FlopCounterMode(display=False, custom_mapping=ATTENTION_FLOPS) as flops, live:
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    loss_sum, _ = task.loss(model, batch)
                torch.autograd.backward(loss_sum)
                del loss_sum
                if optim.fused(spec.optimizer):  # not on the meta device; its one kernel takes nothing
                    operations = live.operations + 1
            if not optim.fused(spec.optimizer):
                with live:
                    optimizer.step()
                operations = live.operations
            else:
                optimizer.step()
        finally:
            for hook in hooks:
                hook.remove()
        optimizer.zero_grad(set_to_none=True)
        step = replace(
            step,
            peak=live.peak,
            most_activations=live.most_activations,
            operations=operations,
            flops=flops.get_total_flops(),
        )
    return step


def _state(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]


def _bytes(tensors: Any) -> int:
    """Shared storages once."""
    sizes = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(sizes.values())


# --- attention --------------------------------------------------------------------------------------------------------
# On the meta device torch takes the form of attention that writes the whole matrix of weights; on a CPU and on accelerators it takes one that does
# not (Dao et al. 2022), where it can.

_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_CPU_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def _flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _backward_flops(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(grad, query, key, value))


ATTENTION_FLOPS: dict[Any, Any] = {_CPU: _flops, _CPU_BACKWARD: _backward_flops}


class FusedAttention(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _attention(func, *args, **kwargs)
        return func(*args, **kwargs)


def _attention(
    original: Any, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    learned_mask = attn_mask is not None and attn_mask.requires_grad
    same = query.shape[-1] == value.shape[-1] and (query.shape[1] == key.shape[1])
    if query.device.type != "meta" or query.dim() != 4 or dropout_p > 0 or learned_mask or not same:
        result: Tensor = original(
            query, key, value, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
        )  # fmt: skip
        return result
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype)
    output: Tensor = _CPU(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
    return output
