"""How much memory tensors hold, while they are computed: real ones, or fake ones that have shapes and no content.

Each storage counts once, from the operation that made it until nothing refers to it. What an operation takes and gives back inside itself is not
seen; where that is much it is put down by rule: a convolution has its weight, and the weight's gradient, in a layout of its own besides (with
oneDNN on a CPU that was measured as three to four times the weight's bytes). The method is that of torch.distributed._tools.mem_tracker.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

CONVOLUTIONS = {  # operation -> position of the weight among its arguments
    torch.ops.aten.convolution.default: 1,
    torch.ops.aten.convolution_backward.default: 2,
}
WORKSPACE_OF_WEIGHT = 3

WEIGHTS, GRADIENTS, OPTIMIZER, OTHER = range(4)


@dataclass(frozen=True)
class Bytes:
    """At one moment. ``activations``: all that is no weight, gradient or optimizer state, the batch included."""

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


class LiveBytes(TorchDispatchMode):
    """While it is active: what is live, and the peaks. ``operations``: how many were dispatched."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._kinds: dict[int, tuple[int, int]] = {}  # storage -> (kind, bytes)
        self._references: dict[int, weakref.ref[Any]] = {}
        self._live = [0, 0, 0, 0]
        self._inside = False
        self.operations = 0
        self.peak = Bytes()  # when all together were most
        self.most_activations = 0

    def hold(self, tensors: Iterable[Tensor], kind: int) -> None:
        """Says what these tensors are, whether they were seen before or not."""
        for tensor in tensors:
            self._saw(tensor, kind)

    def watch_gradients(self, model: nn.Module) -> list[RemovableHandle]:
        """A gradient is known as one when it has been added up. The hooks are to be removed."""

        def accumulated(parameter: Tensor) -> None:
            if parameter.grad is not None:
                self._saw(parameter.grad, GRADIENTS)

        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return [parameter.register_post_accumulate_grad_hook(accumulated) for parameter in trained]

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if self._inside:  # an operation that is made of others on this device, and need not be on another
            return func(*args, **(kwargs or {}))
        self.operations += 1
        self._inside = True
        try:
            result = func(*args, **(kwargs or {}))
        finally:
            self._inside = False
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._saw(leaf, None)
        if func in CONVOLUTIONS:
            weight = args[CONVOLUTIONS[func]]
            self._look(WORKSPACE_OF_WEIGHT * weight.numel() * weight.element_size())
        return result

    def _saw(self, tensor: Tensor, kind: int | None) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        known = self._kinds.get(key)
        if known is None:
            self._begin(key, storage, OTHER if kind is None else kind)
        elif kind is not None and known[0] != kind:
            self._live[known[0]] -= known[1]
            self._live[kind] += known[1]
            self._kinds[key] = (kind, known[1])
        self._look()

    def _begin(self, key: int, storage: torch.UntypedStorage, kind: int) -> None:
        size = storage.nbytes()
        self._kinds[key] = (kind, size)
        self._live[kind] += size
        self._references[key] = weakref.ref(storage, lambda _: self._end(key))

    def _end(self, key: int) -> None:
        kind, size = self._kinds.pop(key)
        self._live[kind] -= size
        del self._references[key]

    def _look(self, workspace: int = 0) -> None:
        if sum(self._live) + workspace > self.peak.total:
            weights, gradients, optimizer, other = self._live
            self.peak = Bytes(weights, gradients, optimizer, other + workspace)
        self.most_activations = max(self.most_activations, self._live[OTHER] + workspace)
