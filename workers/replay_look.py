"""A step that is looked at closely while it is done again: what every module gives, the gradient at its output, weights before and after.

Hooks only read. What ranks and microbatches see of one call of a module is added up (``merged``): a row then speaks of the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from workers.gradients import named
from workers.sharding import is_part, local


@dataclass
class Call:
    """What one call of a module gave, over passes: sums, so that they can be added up. Travels between processes."""

    module: str
    type: str
    number: int  # of this call within a pass, from 0 on
    shape: tuple[int, ...]  # of all samples that were seen; the first dimension is theirs
    elements: int = 0
    total: float = 0.0
    squares: float = 0.0
    zeros: int = 0
    gradient_squares: float = 0.0  # of the gradient at its output, as autograd gives it
    has_gradient: bool = False

    def add(self, other: Call) -> None:
        if self.shape[1:] == other.shape[1:] and self.shape:
            self.shape = (self.shape[0] + other.shape[0], *self.shape[1:])
        for name in ("elements", "total", "squares", "zeros", "gradient_squares"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.has_gradient |= other.has_gradient

    @property
    def mean(self) -> float:
        return self.total / self.elements if self.elements else math.nan

    @property
    def deviation(self) -> float:
        """Of all elements, not of a sample of them."""
        if not self.elements:
            return math.nan
        return math.sqrt(max(0.0, self.squares / self.elements - self.mean**2))


@dataclass
class Weights:
    """Of one parameter: norms, and the update's."""

    name: str
    shape: tuple[int, ...]
    gradient: float | None  # of the mean loss, before clipping; None: it has none
    weight: float  # before the update
    update: float


@dataclass
class Seen:
    """By one rank. ``norms``: of each layer's gradient, float64, as they are recorded."""

    calls: list[Call] = field(default_factory=list)
    weights: list[Weights] = field(default_factory=list)
    layers: tuple[str, ...] = ()
    norms: list[float] = field(default_factory=list)
    values: Mapping[str, float] = field(default_factory=dict)  # the series of the step
    scale: float = 1.0  # by which gradients at outputs become those of the mean loss
    clipping: float = 1.0  # what gradients were multiplied with before the update


def merged(ranks: Iterable[list[Call]]) -> list[Call]:
    """In the order of the first rank's calls."""
    found: dict[tuple[str, int], Call] = {}
    for calls in ranks:
        for call in calls:
            known = found.setdefault((call.module, call.number), call)
            if known is not call:
                known.add(call)
    return list(found.values())


class Look:
    """``begin``, ``begin_pass`` before every pass, ``end``. Not for compiled models, whose programs would be other ones."""

    def __init__(self, model: nn.Module) -> None:
        self._names = {id(module): name or "(model)" for name, module in model.named_modules()}
        self._calls: dict[tuple[str, int], Call] = {}
        self._numbers: dict[str, int] = {}
        self._counts = False
        self._last: Tensor | None = None
        self._hook: Any = None

    def begin(self) -> None:
        # One for all modules, and none that is in them: what they compute is what they compute without it.
        self._hook = register_module_forward_hook(self._called)

    def begin_pass(self, counts: bool) -> None:
        """``counts``: its samples are of the batch; those of a stand-in are not."""
        self._counts, self._numbers, self._last = counts, {}, None

    def end(self) -> list[Call]:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        self._last = None
        return list(self._calls.values())

    def _called(self, module: nn.Module, inputs: object, output: object) -> None:
        name = self._names.get(id(module))
        # In a backward pass a checkpointed part is only computed again.
        if name is None or not self._counts or torch._C._current_graph_task_id() != -1:
            return
        value = _tensor_of(output)
        if value is None or value is self._last:  # what the module inside has given, handed on as it is
            return
        self._last = value
        number = self._numbers.get(name, 0)
        self._numbers[name] = number + 1
        call = _measured(name, type(module).__name__, number, value)
        known = self._calls.setdefault((name, number), call)
        if known is not call:
            known.add(call)
        if value.requires_grad:
            value.register_hook(_gradient_of(known))


def _tensor_of(output: object) -> Tensor | None:
    """The first of floating-point numbers: of a module that gives several, what it is for."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    values: Iterable[Any] = ()
    if isinstance(output, Mapping):
        values = output.values()
    elif isinstance(output, tuple | list):
        values = output
    return next((found for found in map(_tensor_of, values) if found is not None), None)


@torch.no_grad()
def _measured(name: str, type: str, number: int, value: Tensor) -> Call:
    numbers = local(value.detach()).double()
    return Call(
        name,
        type,
        number,
        tuple(value.shape),
        numbers.numel(),
        float(numbers.sum()),
        float(numbers.square().sum()),
        int((numbers == 0).sum()),
    )


def _gradient_of(call: Call) -> Callable[[Tensor], None]:
    def see(gradient: Tensor) -> None:
        with torch.no_grad():
            call.gradient_squares += float(local(gradient.detach()).double().square().sum())
            call.has_gradient = True

    return see


# --- weights ----------------------------------------------------------------------------------------------------------


class Update:
    """``before`` with the gradients, right before the update; ``after`` it. Both are called by all ranks."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = [(name, each) for name, each in model.named_parameters() if each.requires_grad]

    @torch.no_grad()
    def before(self, correction: float) -> None:
        """``correction``: by which gradients become those of the mean loss."""
        self._kept = [local(each.detach()).clone() for _, each in self._parameters]
        self._gradients = [self._norm(each, each.grad) for _, each in self._parameters]
        self._gradients = [None if norm is None else norm * correction for norm in self._gradients]

    @torch.no_grad()
    def after(self) -> list[Weights]:
        found = []
        for (name, each), kept, gradient in zip(self._parameters, self._kept, self._gradients, strict=True):
            changed = local(each.detach()).double() - kept.double()
            weight, update = self._norm(each, kept), self._norm(each, changed)
            found.append(Weights(name, tuple(each.shape), gradient, weight or 0.0, update or 0.0))
        return found

    @staticmethod
    def _norm(parameter: nn.Parameter, values: Tensor | None) -> float | None:
        """Over all ranks, where each has a part."""
        if values is None:
            return None
        here = local(values)
        square = (named(here) if here.is_sparse else here).double().square().sum()
        if is_part(parameter):
            dist.all_reduce(square)
        return math.sqrt(float(square))
