"""What one forward pass shows of a model: which modules run, in which order, what follows them, what the output comes from.

It is made with a copy, so that buffers, gradients and hooks of the model stay as they are, in the mode in which the model is.
"""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

from workers.repair.anatomy import ACTIVATIONS, NORMS, OPAQUE, Unfit

# Arguments of one forward pass, or what makes one with the model that it is given and returns the output.
Example = Tensor | tuple[Any, ...] | Mapping[str, Any] | Callable[[nn.Module], Any]

RECTIFYING = frozenset({"relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "celu", "gelu", "silu", "mish", "softplus", "hardswish"})  # fmt: skip
BOUNDED = frozenset({"sigmoid", "tanh", "hardtanh", "softsign", "hardsigmoid"})
FUNCTIONS = RECTIFYING | BOUNDED | {"selu"}
PRODUCTS = frozenset({"mul", "multiply", "__mul__", "__rmul__", "addcmul", "where", "lerp"})
# They show an input to nothing that computes: other views of it, and questions about it.
LOOKING = frozenset({"view", "reshape", "flatten", "squeeze", "unsqueeze", "permute", "transpose", "movedim", "contiguous", "to", "float", "dim",
                     "size", "numel", "data_ptr", "is_floating_point", "__get__", "__len__"})  # fmt: skip
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_forward_hooks_with_kwargs",
         "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called")  # fmt: skip


@dataclass
class Trace:
    """Modules by name. What they got and gave are the tensors of the last call."""

    calls: Counter[str] = field(default_factory=Counter)
    order: list[str] = field(default_factory=list)  # of first calls of those that own parameters
    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    activations: dict[str, str] = field(default_factory=dict)  # layer -> function that is the first to follow it
    gates: set[str] = field(default_factory=set)  # what they gave is multiplied with something
    read_outside: set[str] = field(default_factory=set)  # their parameters were used while they did not run
    ends: set[str] = field(default_factory=set)  # layers from which the output comes with no other layer in between
    at_output: set[str] = field(default_factory=set)  # what they gave is the output, or a view of it
    behind: dict[str, set[str]] = field(
        default_factory=dict
    )  # activation -> layers that were the last to run before it
    raw: set[str] = field(default_factory=set)  # what they got is the model's first input, or a view of it
    computed_from_input: bool = False  # something else computes with the first input too


def trace(model: nn.Module, example: Example) -> Trace:
    """Raises what the model raises on the example, and Unfit where it cannot be copied."""
    with quietly(model):
        twin = copied(model)
        watcher = _Watcher(twin)
        with watcher:
            output = run(twin, example)
        return watcher.told(output)


def run(model: nn.Module, example: Example) -> Any:
    if isinstance(example, Tensor):
        return model(example)
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else example(model)


@contextmanager
def quietly(model: nn.Module) -> Iterator[None]:
    """Gradients are on; torch's random numbers go on afterwards where they were before."""
    devices = sorted(
        {parameter.device.index or 0 for parameter in model.parameters() if parameter.device.type == "cuda"}
    )
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        yield


def copied(model: nn.Module) -> nn.Module:
    """A deep copy without gradients, and without this package's own hooks, whose owners would be copied with them."""
    kept = [
        (module, name, getattr(module, name)) for module in model.modules() for name in HOOKS if hasattr(module, name)
    ]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters() if parameter.grad is not None]
    try:
        for module, name, hooks in kept:
            setattr(module, name, type(hooks)((key, hook) for key, hook in hooks.items() if not _is_ours(hook)))
        for parameter, _ in gradients:
            parameter.grad = None
        return copy.deepcopy(model)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise Unfit(f"the model cannot be copied: {type(error).__name__}: {error}") from error
    finally:
        for module, name, hooks in kept:
            setattr(module, name, hooks)
        for parameter, gradient in gradients:
            parameter.grad = gradient


def _is_ours(hook: Any) -> bool:
    while isinstance(hook, functools.partial):
        hook = hook.func
    return str(getattr(hook, "__module__", "")).partition(".")[0] == "workers"


def tensors_in(value: Any) -> list[Tensor]:
    return [leaf for leaf in _pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def is_view(a: Tensor, b: Tensor) -> bool:
    """Whether both are all of the same numbers in memory, in whatever shape."""
    if a is b:
        return True
    with suppress(RuntimeError):  # tensors without memory of their own: sparse ones, subclasses
        return a.numel() > 0 and a.numel() == b.numel() and a.device == b.device and a.data_ptr() == b.data_ptr()
    return False


class _Watcher(TorchFunctionMode):
    """Sees modules by hooks on a copy, and functions as a mode. Keeps what passes, so that no address in memory is used twice."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.found = model, Trace()
        self._running: list[str] = []
        self._owner = {
            id(parameter): name
            for name, module in model.named_modules()
            for parameter in module.parameters(recurse=False)
        }
        self._last: str | None = None
        self._input: Tensor | None = None
        self._given: list[Tensor] = []
        self._nodes: dict[Any, str] = {}
        for name, module in model.named_modules():
            module.register_forward_pre_hook(functools.partial(self._before, name), prepend=True, with_kwargs=True)
            module.register_forward_hook(functools.partial(self._after, name), always_call=True)

    def _before(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = tensors_in((args, kwargs))
        if not self._running and self._input is None and args and isinstance(args[0], Tensor):
            self._input = args[0]
        self._running.append(name)
        self.found.calls[name] += 1
        if given:
            self.found.inputs[name] = given[0]
            if self._input is not None and is_view(given[0], self._input) and not _has_layers_inside(module):
                self.found.raw.add(name)

    def _after(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._running and self._running[-1] == name:
            self._running.pop()
        given = tensors_in(output)
        if not given:
            return
        self.found.outputs[name] = given[0]
        if not name:
            self._given = given
        if isinstance(module, ACTIVATIONS) and self._last is not None:
            self.found.behind.setdefault(name, set()).add(self._last)
        if isinstance(module, NORMS) or next(module.parameters(recurse=False), None) is None:
            return
        if self.found.calls[name] == 1:
            self.found.order.append(name)
        self._last = name
        self._nodes |= {tensor.grad_fn: name for tensor in given if tensor.grad_fn is not None}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = _name_of(func)
        given = tensors_in((args, kwargs))
        inside = self._running[-1] if self._running else ""
        for tensor in given:
            owner = self._owner.get(id(tensor))
            if owner is not None and owner != inside:
                self.found.read_outside.add(owner)
        if name in FUNCTIONS and self._last is not None:
            self.found.activations.setdefault(self._last, name)
        if name in PRODUCTS and len(given) > 1:
            self.found.gates |= {
                each for each, gave in self.found.outputs.items() if any(is_view(gave, tensor) for tensor in given)
            }
        self._look_for_input(name, inside, given)
        return func(*args, **kwargs)

    def _look_for_input(self, name: str, inside: str, given: Iterable[Tensor]) -> None:
        if self._input is None or name in LOOKING or inside in self.found.raw:
            return
        if any(is_view(tensor, self._input) for tensor in given):
            self.found.computed_from_input = True

    def told(self, output: Any) -> Trace:
        # The example may compute a loss from what the model itself gave.
        given = [*tensors_in(output), *self._given]
        # Of an output that no gradient leaves (a class, say) the last layer is all that can be guessed.
        self.found.ends = _nearest(given, self._nodes) or set(self.found.order[-1:])
        sources = [{name for name, gave in self.found.outputs.items() if is_view(gave, tensor)} for tensor in given]
        self.found.at_output = set().union(*sources)
        return self.found


def _name_of(func: Any) -> str:
    """'relu' also of relu_, which works in place."""
    name = str(getattr(func, "__name__", ""))
    return name if name.endswith("__") else name.removesuffix("_")


def _has_layers_inside(module: nn.Module) -> bool:
    return next(module.children(), None) is not None and not isinstance(module, OPAQUE)


def _nearest(outputs: Iterable[Tensor], nodes: Mapping[Any, str]) -> set[str]:
    """Layers whose result is met first on the way back from the outputs, on each way."""
    found: set[str] = set()
    waiting = [tensor.grad_fn for tensor in outputs if tensor.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if node in nodes:
            found.add(nodes[node])
            continue
        for before, _ in node.next_functions:
            if before is not None and before not in seen:
                seen.add(before)
                waiting.append(before)
    return found
