"""The layers that an optimizer of a script trains: their names, found among the modules that are alive, and the norms of their gradients."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from itertools import count
from typing import Any

Roots = dict[int, tuple[Any, str]]  # id of a network -> a weak reference to it, and what its layers' names begin with

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


class Part:
    """The parameters of one optimizer by layer: the module that owns them, in network order."""

    def __init__(self, optimizer: Any, taken: list[str], roots: Roots, gone: Callable[[Any], None]) -> None:
        """``taken``: layers of other optimizers. ``roots``: the networks that were seen; new ones are added. ``gone``: is called with this one when
        the optimizer is: its parameters, which are kept here, should not outlive it."""
        this = weakref.ref(self)
        self._optimizer = weakref.ref(optimizer, lambda _: gone(this()))
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._shape = _shape(optimizer)
        self.networks, owners, order = _owners(self._parameters, roots)
        fallback = {
            id(parameter): f"group{number}.param{index}"
            for number, group in enumerate(optimizer.param_groups)
            for index, parameter in enumerate(group["params"])
        }
        names = [owners.get(id(parameter)) or fallback[id(parameter)] for parameter in self._parameters]
        # A layer of which another optimizer has a part, too: each measures its own.
        self._names = [f"{name} ({type(optimizer).__name__})" if name in taken else name for name in names]
        place = dict(zip(self._names, names, strict=True))
        self.plain_names = place  # what a layer is called where no other optimizer has a part of it
        self.names = sorted(place, key=lambda name: order.get(place[name], len(order)))
        self.device = self._parameters[0].device
        self.sharded = any(hasattr(parameter, "_local_tensor") for parameter in self._parameters)
        self._row: Any = None

    def alive(self) -> bool:
        """Also the networks are looked at: an optimizer may stay until it is collected."""
        networks = not self.networks or any(network.alive() for network in self.networks)
        return self._optimizer() is not None and networks

    def is_of(self, optimizer: Any) -> bool:
        return self._optimizer() is optimizer and self._shape == _shape(optimizer)

    def layers(self) -> list[tuple[str, Any]]:
        """Each parameter after the name of its layer, in network order."""
        place = {name: index for index, name in enumerate(self.names)}
        return sorted(zip(self._names, self._parameters, strict=True), key=lambda each: place[each[0]])

    def find_rows(self, layers: list[str]) -> None:
        import torch

        place = {name: index for index, name in enumerate(layers)}
        rows = [place[name] for name in self._names]
        own = sorted(set(rows))
        self._own = slice(own[0], own[-1] + 1) if own == list(range(own[0], own[-1] + 1)) else own
        self._row = torch.tensor([own.index(row) for row in rows], device=self.device)
        self._squares = torch.zeros(len(own), dtype=torch.float64, device=self.device)

    def measure(self, row: Any, optimizer: Any) -> None:
        """Writes the norm of each layer's gradient into ``row``; 0 for a layer without one."""
        import torch

        gradients, present = [], []
        for index, parameter in enumerate(self._parameters):
            gradient = parameter.grad
            if gradient is not None:
                gradients.append(_plain(gradient))
                present.append(index)
        self._squares.zero_()
        if gradients:
            norms = torch.stack([norm.to(self.device) for norm in torch._foreach_norm(gradients)]).double()
            scale = getattr(optimizer, "grad_scale", None)
            if scale is not None:  # a fused optimizer, which takes the scale away itself
                norms = norms / scale.to(norms.device)
            whole = len(present) == len(self._parameters)
            rows = self._row if whole else self._row[torch.tensor(present, device=self.device)]
            self._squares.index_add_(0, rows, norms.square_())
        row[self._own] = self._squares.sqrt()


class Network:
    """A tree of modules that is nobody's part, as long as the script keeps it."""

    def __init__(self, root: Any, prefix: str) -> None:
        from torch import nn

        self._root, self.prefix = weakref.ref(root), prefix
        self._wrapped = isinstance(root, (nn.DataParallel, nn.parallel.DistributedDataParallel))

    def alive(self) -> bool:
        return self._root() is not None

    def named_parameters(self) -> list[tuple[str, Any]]:
        root = self._root()
        return [(self.called(name), each) for name, each in root.named_parameters()] if root is not None else []

    def named_modules(self) -> list[tuple[str, Any]]:
        root = self._root()
        return [(self.called(name), each) for name, each in root.named_modules()] if root is not None else []

    def called(self, name: str) -> str:
        """Without what wrappers add to it."""
        segments = [segment for segment in name.split(".") if segment not in WRAPPERS]
        if self._wrapped and segments[:1] == ["module"]:
            segments = segments[1:]
        return self.prefix + ".".join(segments)


def _owners(parameters: list[Any], roots: Roots) -> tuple[list[Network], dict[int, str], dict[str, int]]:
    """The networks among the modules that are alive, id of a parameter -> its layer's name, place of each name in its network."""
    from torch import nn

    wanted = {id(parameter) for parameter in parameters}
    modules = [each for each in gc.get_objects() if issubclass(type(each), nn.Module)]
    below = {id(child) for module in modules for child in module.__dict__.get("_modules", {}).values()}
    found = []
    for module in modules:
        if id(module) not in below:
            named = [(name, id(parameter)) for name, parameter in module.named_parameters() if id(parameter) in wanted]
            if named:
                found.append((module, named))
    found.sort(key=lambda each: -len(each[1]))
    networks: list[Network] = []
    owners: dict[int, str] = {}
    order: dict[str, int] = {}
    for module, named in found:
        fresh = [(name, key) for name, key in named if key not in owners]
        if not fresh:
            continue
        network = Network(module, _prefix(module, roots))
        networks.append(network)
        for name, key in fresh:
            owners[key] = network.prefix + _layer(network.called(name).removeprefix(network.prefix))
            order.setdefault(owners[key], len(order))
    return networks, owners, order


def _prefix(module: Any, roots: Roots) -> str:
    """The first network's layers are called as they are. What a network was called that is gone, another one may be."""
    for key in [key for key, (known, _) in roots.items() if known() is None]:
        del roots[key]
    if id(module) not in roots:
        taken, kind = {prefix for _, prefix in roots.values()}, type(module).__name__
        free = (f"{kind}{number if number > 1 else ''}." for number in count(1))
        roots[id(module)] = (
            weakref.ref(module),
            "" if "" not in taken else next(each for each in free if each not in taken),
        )
    return roots[id(module)][1]


def _layer(name: str) -> str:
    return name.rpartition(".")[0] or name


def _plain(gradient: Any) -> Any:
    """What of a gradient is here as numbers: a shard's own part, the rows that a sparse one has."""
    gradient = getattr(gradient, "_local_tensor", gradient)
    return gradient.coalesce()._values() if gradient.is_sparse else gradient


def _shape(optimizer: Any) -> list[tuple[int, ...]]:
    """By group: how many parameters, and which are the first and the last."""
    groups = [group["params"] for group in optimizer.param_groups]
    return [(len(group), id(group[0]), id(group[-1])) if group else (0,) for group in groups]
