"""Facts of a run that are known before its first step.

They are taken around the first real forward pass and loss, on the rank that tells: no pass is made for them, no random number drawn, nothing
communicated. Of sharded parameters the part that is here stands for the whole.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from workers import optim
from workers.batches import Plan
from workers.sharding import local
from workers.spec import JobSpec
from workers.tasks.base import Batch, Dataset
from workers.watch.loss_call import BOUNDED, LossCall, constant_loss
from workers.watch.record import Facts, LayerFacts, LossFacts
from workers.watch.tensor_facts import tensor_facts

MARKS = {"0": 0.0, "0.01": 0.01, "0.1": 0.1, "1": 1.0}  # of the run
ACTIVATIONS = frozenset(
    {"ReLU", "ReLU6", "LeakyReLU", "PReLU", "ELU", "SELU", "CELU", "GELU", "SiLU", "Mish", "Sigmoid", "Tanh", "Softplus", "Softsign", "Softmax",
     "LogSoftmax", "LogSigmoid", "Hardtanh", "Hardsigmoid", "Hardswish"}
)  # fmt: skip
ROWS_COMPARED = 1024
NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


class FirstPass:
    """What was seen of the first pass. ``watch`` around the call of the loss, ``took`` with what it gave; then ``facts``."""

    def __init__(self, model: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer, *, see_calls: bool) -> None:
        """``model``: the plain one. ``see_calls``: not in a compiled model, whose programs would be made for the mode that sees them."""
        self._model, self._batch = model, batch
        self._call = LossCall() if see_calls else None
        self._loss = LossFacts()
        self._layers = layer_facts(
            model, optimizer
        )  # now: a sharded model has other parameters until its backward pass

    @contextmanager
    def watch(self) -> Iterator[None]:
        if self._call is None:
            yield
            return
        with self._call:
            yield

    def took(self, loss_sum: Tensor, count: Tensor, train: Dataset) -> None:
        call = self._call
        if call is None or call.found is None:
            return
        found = call.found
        counts = class_counts(train, found.classes) or found.class_counts
        whole = call.is_all(loss_sum, count)
        self._loss = dataclasses.replace(
            found,
            class_counts=counts,
            bound=0.0 if whole and found.function in BOUNDED else None,
            constant=constant_loss(found, counts, call.smoothing) if whole else None,
        )

    def facts(
        self,
        spec: JobSpec,
        plan: Plan,
        *,
        world_size: int,
        begins_trained: bool,
        first: int,
    ) -> Facts:
        """``first``: steps done before this pass."""
        floats = [value for value in self._batch.values() if value.is_floating_point()]
        return Facts(
            layers=self._layers,
            inputs=tensor_facts(floats[0]) if floats else None,
            normalized_input=_begins_with_norm(self._model),
            loss=self._loss,
            total_steps=plan.steps,
            warmup_steps=min(spec.schedule.warmup_steps, plan.steps),
            steps_per_epoch=plan.steps_per_epoch,
            batch_size=plan.batch_size,
            world_size=world_size,
            optimizer=spec.optimizer.name,
            learning_rate=max(_rate(spec, plan, step) for step in (0, min(spec.schedule.warmup_steps, plan.steps - 1))),
            momentum=spec.optimizer.momentum,
            weight_decay=spec.optimizer.weight_decay,
            schedule={name: _rate(spec, plan, round(share * (plan.steps - 1))) for name, share in MARKS.items()},
            precision=spec.training.precision,
            begins_trained=begins_trained or first > 0,
        )


def _rate(spec: JobSpec, plan: Plan, step: int) -> float:
    return optim.learning_rate(step, plan.steps, spec.schedule, spec.optimizer.learning_rate)


# --- layers -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def layer_facts(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[LayerFacts, ...]:
    """Of every module that owns parameters: first those that are trained, in network order, as in the record's series."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    modules = dict(model.named_modules())
    owned: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        owned.setdefault(name.rpartition(".")[0] or name, []).append(parameter)
    following = _activations(model)
    found = []
    for name, parameters in owned.items():
        module = modules.get(name, model)
        largest = max(parameters, key=lambda parameter: parameter.numel())
        here = local(largest.detach()).float()
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        found.append(
            LayerFacts(
                name=name,
                kind=type(module).__name__,
                shape=tuple(largest.shape),
                fan_in=math.prod(largest.shape[1:])
                if largest.ndim > 1
                else None,  # a row of a sharded one would be gathered
                mean=float(here.mean()) if here.numel() else None,
                std=float(here.std(correction=0)) if here.numel() else None,
                twin_rows=twin_rows(here) if largest.ndim > 1 and here.numel() else None,
                requires_grad=bool(trained),
                in_optimizer=all(id(parameter) in held for parameter in trained),
                dtype=str(largest.dtype).removeprefix("torch."),
                activation=following.get(name),
            )
        )
    return tuple(sorted(found, key=lambda layer: not layer.requires_grad))


def twin_rows(weight: Tensor) -> float:
    """Share of the rows (N, ...) that are equal to another one, among the first thousand: rows are sorted for it."""
    rows = weight[:ROWS_COMPARED].flatten(1)
    _, counts = rows.unique(dim=0, return_counts=True)
    return float(counts[counts > 1].sum()) / len(rows)


def _activations(model: nn.Module) -> dict[str, str]:
    """Class of the activation module behind a layer in the order of definition, with norms and dropout passed over."""
    found: dict[str, str] = {}
    last: str | None = None
    for name, module in model.named_modules():
        if type(module).__name__ in ACTIVATIONS:
            if last is not None:
                found.setdefault(last, type(module).__name__)
            last = None
        elif next(module.parameters(recurse=False), None) is not None and not isinstance(module, NORMS):
            last = name
    return found


def _begins_with_norm(model: nn.Module) -> bool:
    owner = next((each for each in model.modules() if next(each.parameters(recurse=False), None) is not None), None)
    return isinstance(owner, NORMS)


def class_counts(train: Dataset, classes: int | None) -> tuple[int, ...]:
    """Over the training split, where its class numbers lie in memory as ``labels``; else nothing."""
    labels = getattr(train, "labels", None)
    if not classes or not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point():
        return ()
    counts = labels[labels >= 0].bincount(minlength=classes)
    return tuple(counts.tolist()) if len(counts) == classes else ()
