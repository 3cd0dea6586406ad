"""Facts of a script's run, from its first steps: the optimizer that sets the pace, its networks, the loss, what the first layer is given.

Everything here is called by the observer, which leaves it out once anything in it fails.
"""

from __future__ import annotations

import dataclasses
import math
import os
import weakref
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

ROUNDS = 3  # after so many all optimizers have been seen


class Parameters:
    """Those of one optimizer, with the networks around them and by plain names: as much of a model as is asked of one."""

    def __init__(self, part: Any, *, everything: bool = False) -> None:
        """``everything``: also the parameters of its networks that it has not."""
        self._part, self._everything = part, everything

    def named_modules(self) -> list[tuple[str, Any]]:
        found = [(name.rstrip("."), each) for network in self._part.networks for name, each in network.named_modules()]
        by_name = dict(found)
        shared = [(name, by_name.get(plain)) for name, plain in self._part.plain_names.items() if name != plain]
        return found + [(name, module) for name, module in shared if module is not None]

    def modules(self) -> Iterator[Any]:
        return (module for _, module in self.named_modules())

    def named_parameters(self) -> list[tuple[str, Any]]:
        layers = self._part.layers()
        found = [(f"{layer}.{number}", parameter) for number, (layer, parameter) in enumerate(layers)]
        if self._everything:
            held = {id(parameter) for _, parameter in layers}
            found += [
                (name, parameter)
                for network in self._part.networks
                for name, parameter in network.named_parameters()
                if id(parameter) not in held
            ]
        return found


class ScriptFacts:
    def __init__(self, private: Callable[[str], ModuleType], loaded: weakref.WeakSet[Any]) -> None:
        """``loaded``: networks that were given weights."""
        self._private, self._loaded = private, loaded
        self._graph: Any = None
        self._network: Parameters | None = None
        self._part: Any = None
        self._layers: tuple[Any, ...] = ()
        self._reached: dict[str, bool] = {}  # layers in no optimizer that had a gradient in the first step
        self._losses: list[Any] = []  # of the first step
        self._others: list[Any] = []  # optimizers beside the one that sets the pace
        self._apart: set[int] = set()  # places of those among them that have a backward pass of their own
        self._passed = False  # since the last step of any of them
        self._pace: dict[str, Any] = {}
        self._rounds = self._resumed = 0
        self._norm = self._left = None  # type: Any
        self._looked_back = False  # at what the second step's first pass finds in the gradients
        self._hook = self._first = None  # type: Any
        self._inputs: Any = None
        self._samples: int | None = None
        self._autocast: str | None = None

    @property
    def complete(self) -> bool:
        return self._rounds >= ROUNDS

    # --- what is called -----------------------------------------------------------------------------------------------

    def pass_begins(self, root: Any, loss: Any) -> None:
        """Before a backward pass. ``loss``: the value of its root, not scaled."""
        if self._rounds == 0 and self._losses and self._pace.get("optimizer") == "lbfgs":
            return  # what a line search tries is one loss at several places
        if self._graph is None:
            self._graph = self._private("watch.loss_graph").LossGraph()
        self._graph.see(root, first_step=self._rounds == 0)
        if self._rounds == 0:
            self._losses.append(loss)
        elif self._rounds == 1 and not self._looked_back:
            self._left, self._looked_back = self._gradient_norm(), True
        self._passed = True

    def step_skipped(self) -> None:
        if self._rounds == 0:
            self._losses.clear()
            if self._graph is not None:
                self._graph.forget_values()

    def is_of(self, part: Any) -> bool:
        return self._part is part

    def step_begins(self, optimizer: Any, part: Any, steps_done: int) -> None:
        """Before the very first update of all: weights are as they were made."""
        self._part, self._resumed = part, steps_done
        self._network = Parameters(part, everything=True)
        held = SimpleNamespace(param_groups=optimizer.param_groups)
        self._layers = self._private("watch.layer_facts").layer_facts(self._network, held)
        self._pace = _of_optimizer(optimizer)

    def other_steps(self, optimizer: Any) -> None:
        place = next((i for i, other in enumerate(self._others) if other() is optimizer), len(self._others))
        if place == len(self._others):
            self._others.append(weakref.ref(optimizer))
        if self._passed:
            self._apart.add(place)
        self._passed = False

    def step_ended(self) -> None:
        """Of the one that sets the pace."""
        self._rounds += 1
        self._passed = False
        if self._rounds == 1:
            self._norm = self._gradient_norm()
            left_out = [each.name for each in self._layers if each.requires_grad and not each.in_optimizer]
            if left_out and self._network is not None:
                for name, parameter in self._network.named_parameters():
                    layer = name.rpartition(".")[0] or name
                    self._reached[layer] = self._reached.get(layer, False) or parameter.grad is not None
            self._listen()

    def close(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    # --- what it gives ------------------------------------------------------------------------------------------------

    def document(self, *, scaled: bool) -> dict[str, Any]:
        """The facts, and what was left in the gradients over their norm. JSON but for numbers that are not finite. ``scaled``: by a loss scaler."""
        import torch

        self.close()
        record, layer_facts = self._private("watch.record"), self._private("watch.layer_facts")
        sides = self._sides()
        loss = (
            float(torch.stack([each.reshape(()).double().cpu() for each in self._losses]).sum())
            if self._losses
            else None
        )
        world = int(os.environ.get("WORLD_SIZE", "1"))
        passes = max(1, len(self._losses))
        samples = self._samples or (self._graph.rows if self._graph is not None else None)
        facts = record.Facts(
            layers=tuple(self._in_some_optimizer()),
            inputs=self._inputs,
            normalized_input=self._network is not None and layer_facts.begins_with_norm(self._network),
            loss=self._graph.facts(loss) if self._graph is not None and sides == 1 else record.LossFacts(),
            batch_size=samples * passes * world if samples else None,
            world_size=world,
            precision="fp16" if scaled else self._autocast or "fp32",
            begins_trained=self._begins_trained(),
            optimizers=sides,
            **self._pace,
        )
        left = float(self._left / self._norm) if sides == 1 and self._left is not None and self._norm else math.nan
        return {"facts": dataclasses.asdict(facts), "uncleared": left if math.isfinite(left) else None}

    def _in_some_optimizer(self) -> Iterator[Any]:
        """A network that is moved by hand (an average, a target of another) gets no gradient: nothing is missing there."""
        held = {
            id(parameter)
            for other in self._others
            for group in getattr(other(), "param_groups", ())
            for parameter in group["params"]
        }
        elsewhere = set()
        for name, parameter in self._network.named_parameters() if self._network is not None else ():
            if id(parameter) in held:
                elsewhere.add(name.rpartition(".")[0] or name)
        for each in self._layers:
            missing = not each.in_optimizer and each.name not in elsewhere and self._reached.get(each.name, False)
            yield dataclasses.replace(each, in_optimizer=not missing)

    def _sides(self) -> int:
        """Optimizers with a loss or a network of their own, which may train against each other; those that share both do not."""
        here = (
            {id(p) for network in self._part.networks for _, p in network.named_parameters()} if self._part else set()
        )
        found = 1
        for place, other in enumerate(self._others):
            groups = getattr(other(), "param_groups", ())
            elsewhere = not any(id(parameter) in here for group in groups for parameter in group["params"])
            found += place in self._apart or elsewhere
        return found

    def _begins_trained(self) -> bool:
        modules = list(self._network.modules()) if self._network is not None else []
        named = any(getattr(getattr(each, "config", None), "_name_or_path", "") for each in modules)
        return bool(self._resumed or named or any(each in self._loaded for each in modules))

    def _gradient_norm(self) -> Any:
        import torch

        gradients = (
            [p.grad for _, p in self._part.layers() if p.grad is not None and not p.grad.is_sparse]
            if self._part
            else []
        )
        here = [getattr(gradient, "_local_tensor", gradient) for gradient in gradients]
        return torch.stack(torch._foreach_norm(here)).double().norm() if here else None

    # --- what the first layer is given --------------------------------------------------------------------------------

    def _listen(self) -> None:
        """At the next pass, once. Not in what is compiled: the hook would be, too. Not by a hook of the module's own, with which it would be copied
        or pickled."""
        from torch.nn.modules.module import register_module_forward_hook

        modules = self._network.modules() if self._network is not None else ()
        first = next((each for each in modules if next(each.parameters(recurse=False), None) is not None), None)
        if first is not None and not compiles():
            self._first = weakref.ref(first)
            self._hook = register_module_forward_hook(self._given, with_kwargs=True)

    def _given(self, module: Any, arguments: Any, named: Any, output: Any) -> None:
        import torch

        if torch.compiler.is_compiling():
            return
        try:
            if module is not self._first() or not counted(module):
                return
            self.close()
            given = next((each for each in (*arguments, *named.values()) if isinstance(each, torch.Tensor)), None)
            if given is None:
                return
            self._samples = int(given.shape[0]) if given.ndim else None
            if given.is_floating_point():
                self._inputs = self._private("watch.tensor_facts").tensor_facts(given)
            if torch.is_autocast_enabled(given.device.type):
                kind = torch.get_autocast_dtype(given.device.type)
                self._autocast = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(kind)
        except Exception:
            self._inputs = None


def counted(module: Any) -> bool:
    """Whether what it computes now is of a training pass."""
    import torch

    return bool(module.training) and torch.is_grad_enabled()


def compiles() -> bool:
    """Whether anything in this process was compiled."""
    import sys

    return bool(getattr(sys.modules.get("torch._dynamo.convert_frame"), "FRAME_COUNTER", 0))


def _of_optimizer(optimizer: Any) -> dict[str, Any]:
    groups = optimizer.param_groups
    rates = [group.get("initial_lr", group.get("lr")) for group in groups]  # a schedule keeps what it began with
    decays = [group["weight_decay"] for group in groups if group.get("weight_decay") is not None]
    first = groups[0]
    momentum = first.get("momentum", (first.get("betas") or (None,))[0])
    known = [float(rate) for rate in rates if rate is not None]
    return {
        "optimizer": type(optimizer).__name__.lower(),
        "learning_rate": max(known, default=None),
        "momentum": None if momentum is None else float(momentum),
        "weight_decay": max(map(float, decays), default=None),
    }
