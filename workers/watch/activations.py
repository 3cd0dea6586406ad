"""What activation modules give in a step: units that are silent for the whole batch, outputs at which the slope is nearly 0.

Seen by a forward hook that is in place for that step only. Functions that are called without a module (``F.relu``) are not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.hooks import RemovableHandle

from workers.watch.sampling import sample

FLAT = 0.01  # of the largest slope; a slope below it is nearly 0
FAINT = 1e-3  # what smooth rectifiers give where they are shut; they are never exactly 0
SOME = (64, 8)  # of the samples one in so many mostly shows that no unit is silent
LOOKED_AT = 1 << 18  # outputs of a call; of more, evenly spaced ones stand for all when slopes are looked at


@dataclass(frozen=True)
class Rule:
    """``floor``: a unit none of whose outputs is further from 0 is silent; None: that is no sign of anything.
    ``flat(y)``: where the slope is nearly 0, by the output; None: cannot be told from it, or is what silence says already."""

    floor: float | None = None
    flat: Callable[[Tensor], Tensor] | None = None


def _flat_sigmoid(y: Tensor) -> Tensor:
    return y * (1 - y) < FLAT / 4  # the slope is y (1 - y), 1/4 at most


def _flat_tanh(y: Tensor) -> Tensor:
    return y.square() > 1 - FLAT  # 1 - y^2


def _flat_softsign(y: Tensor) -> Tensor:
    return (1 - y.abs()).square() < FLAT  # (1 - |y|)^2


def _flat_elu(y: Tensor) -> Tensor:
    return y < FLAT - 1  # y + 1 below 0, for alpha = 1


def _flat_selu(y: Tensor) -> Tensor:
    return y < (FLAT - 1) * 1.7580993408473766  # scale x alpha of Klambauer et al. 2017


def _flat_softplus(y: Tensor) -> Tensor:
    return y < FLAT  # 1 - exp(-y)


RULES = {
    "ReLU": Rule(0.0),
    "ReLU6": Rule(0.0, lambda y: y >= 6),
    "Threshold": Rule(0.0),
    "ReLUSquaredActivation": Rule(0.0),
    "GELU": Rule(FAINT),
    "SiLU": Rule(FAINT),
    "Mish": Rule(FAINT),
    "Hardswish": Rule(0.0),
    # transformers' own
    "GELUActivation": Rule(FAINT),
    "NewGELUActivation": Rule(FAINT),
    "FastGELUActivation": Rule(FAINT),
    "QuickGELUActivation": Rule(FAINT),
    "PytorchGELUTanh": Rule(FAINT),
    "GELUTanh": Rule(FAINT),
    "SiLUActivation": Rule(FAINT),
    "Sigmoid": Rule(flat=_flat_sigmoid),
    "Hardsigmoid": Rule(flat=lambda y: (y <= 0) | (y >= 1)),
    "Tanh": Rule(flat=_flat_tanh),
    "Hardtanh": Rule(flat=lambda y: y.abs() >= 1),  # with its usual bounds
    "Softsign": Rule(flat=_flat_softsign),
    "ELU": Rule(flat=_flat_elu),
    "SELU": Rule(flat=_flat_selu),
    "Softplus": Rule(flat=_flat_softplus),
}
UNITS_IN_CHANNELS = (
    _ConvNd,
    _NormBase,
    nn.GroupNorm,
)  # what these give has its units in dimension 1, else they are in the last


@dataclass(frozen=True)
class _Activation:
    module: nn.Module
    rule: Rule
    channels: bool


def _loud(y: Tensor, floor: float, over: tuple[int, ...]) -> Tensor:
    return ~((y.amax(over) <= floor) & (y.amin(over) >= -floor))


class Activations:
    """``begin``, then ``begin_pass`` before every pass of the step, then ``end`` and ``shares``."""

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        cost: AbstractContextManager[bool | None],
        counted: Callable[[nn.Module], bool] | None = None,
    ) -> None:
        """``cost``: entered whenever something is measured. ``counted``: whether what a module gives now counts; None: always."""
        self._hook: RemovableHandle | None = None
        self._device, self._cost, self._counted = device, cost, counted
        self._found: dict[str, _Activation] = {}
        channels = False
        for name, module in model.named_modules():
            if isinstance(module, UNITS_IN_CHANNELS):
                channels = True
            elif any(True for _ in module.parameters(recurse=False)):
                channels = False
            rule = RULES.get(type(module).__name__)
            if rule is not None:
                self._found[name or type(module).__name__] = _Activation(module, rule, channels)
        self._places = {id(found.module): (index, found) for index, found in enumerate(self._found.values())}
        self._forget()

    @property
    def names(self) -> tuple[str, ...]:
        """Network order, as the modules are registered."""
        return tuple(self._found)

    def begin(self) -> None:
        self.end()
        self._forget()
        this = weakref.ref(self)

        def called(module: nn.Module, inputs: object, output: object) -> None:
            watching = (
                None if torch.compiler.is_compiling() else this()
            )  # what is compiled now is as if this were not here
            if watching is not None:
                watching._called(module, output)

        # One for all modules, and none that is in them: somebody may copy or pickle a module with all that it has.
        self._hook = register_module_forward_hook(called)

    def begin_pass(self, counts: bool) -> None:
        """``counts``: whether its samples are of the batch; those of a stand-in are not."""
        self._counts = counts
        self._calls = [0] * len(self._found)

    def end(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def __del__(self) -> None:
        self.end()

    def _forget(self) -> None:
        self._counts = False
        self._calls = [0] * len(self._found)
        # By activation and call within a pass (a module may be used again and again): which units gave something.
        self._loud: list[list[Tensor]] = [[] for _ in self._found]
        self._flat = torch.zeros(
            (2, len(self._found)), dtype=torch.float64, device=self._device
        )  # outputs: flat ones, all

    def _called(self, module: nn.Module, output: object) -> None:
        place = self._places.get(id(module))
        # In a backward pass a checkpointed part is only computed again.
        if place is None or not self._counts or torch._C._current_graph_task_id() != -1:
            return
        if self._counted is not None and not self._counted(module):
            return
        if isinstance(output, Tensor) and output.numel() > 0 and output.dim() >= 2:
            with self._cost, torch.no_grad():
                self._look(*place, output.detach())

    def _look(self, index: int, found: _Activation, y: Tensor) -> None:
        call = self._calls[index]
        self._calls[index] += 1
        if found.rule.floor is not None:
            loud = self._loud_units(y, found.rule.floor, found.channels)
            known = self._loud[index]
            if call == len(known):
                known.append(loud)
            elif call < len(known) and known[call].shape == loud.shape:
                known[call] |= loud
        if found.rule.flat is not None:
            seen = sample(y, LOOKED_AT)
            self._flat[0, index] += found.rule.flat(seen.float()).sum() * (y.numel() / seen.numel())
            self._flat[1, index] += y.numel()

    @staticmethod
    def _loud_units(y: Tensor, floor: float, channels: bool) -> Tensor:
        """(U,) bool. What is not a number is not silent either."""
        if channels and y.dim() > 2:
            over = tuple(dimension for dimension in range(y.dim()) if dimension != 1)
        else:
            y = y.reshape(-1, y.shape[-1])
            over = (0,)
        if y.device.type == "cpu":
            for one_in in SOME:
                if len(y) >= one_in:
                    loud = _loud(y[: len(y) // one_in], floor, over)
                    if loud.all():  # the others change nothing, and to ask costs nothing there
                        return loud
        return _loud(y, floor, over)

    def shares(self, world_size: int, control: dist.ProcessGroup | None) -> Tensor:
        """(2, A) float64 on the device: shares of silent units and of outputs where the slope is nearly 0, over the whole batch.

        NaN where that means nothing or where nothing was seen. Collective: twice, when there are several workers.
        """
        sizes = torch.tensor([sum(len(loud) for loud in calls) for calls in self._loud], dtype=torch.int64)
        agreed = torch.ones(len(sizes), dtype=torch.bool)
        own = sizes
        if world_size > 1 and len(sizes):
            # The largest, and with the sign changed the smallest but for those who saw nothing. On the host: sizes are known without the device.
            both = torch.cat([sizes, torch.where(sizes > 0, -sizes, -(1 << 40))])
            dist.all_reduce(both, dist.ReduceOp.MAX, group=control)
            sizes = both[: len(sizes)]
            agreed = (sizes == -both[len(sizes) :]) | (sizes == 0)
        masks = [
            torch.cat(calls).float() if mine and fits else torch.zeros(size, device=self._device)
            for calls, mine, fits, size in zip(self._loud, own.tolist(), agreed.tolist(), sizes.tolist(), strict=True)
        ]
        flat = self._flat
        if world_size > 1 and len(sizes):
            both = torch.cat([flat.flatten(), *[mask.double() for mask in masks]])
            dist.all_reduce(both)
            flat = both[: flat.numel()].view_as(flat)
            masks = list(both[flat.numel() :].split(sizes.tolist()))
        nothing = torch.full((), torch.nan, dtype=torch.float64, device=self._device)
        silent = [
            (mask == 0).mean(dtype=torch.float64) if len(mask) and fits else nothing
            for mask, fits in zip(masks, agreed.tolist(), strict=True)
        ]
        if not silent:
            return torch.zeros((2, 0), dtype=torch.float64, device=self._device)
        return torch.stack([torch.stack(silent), flat[0] / flat[1]])
