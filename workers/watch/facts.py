"""Facts of a run that are known before its first step.

They are taken around the first real forward pass and loss, on the rank that tells: no pass is made for them, no random number drawn, nothing
communicated. Of sharded parameters the part that is here stands for the whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from workers import optim
from workers.batches import Plan
from workers.spec import JobSpec
from workers.tasks.base import Batch, Dataset
from workers.watch.layer_facts import begins_with_norm, layer_facts
from workers.watch.loss_call import BOUNDED, LossCall, constant_loss
from workers.watch.record import Facts, LossFacts
from workers.watch.tensor_facts import tensor_facts

MOST_NODES = 100_000  # of the graph of a loss
MANY = 16  # samples, whose deviation says something
MARKS = {"0": 0.0, "0.01": 0.01, "0.1": 0.1, "1": 1.0}  # of the run


class FirstPass:
    """What was seen of the first pass. ``watch`` around the call of the loss, ``took`` with what it gave; then ``facts``."""

    def __init__(self, model: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer, *, see_calls: bool) -> None:
        """``model``: the plain one. ``see_calls``: not in a compiled model, whose programs would be made for the mode that sees them."""
        self._model, self._batch = model, batch
        self._call = LossCall() if see_calls else None
        self._loss, self._strays = LossFacts(), 0
        self._statistics = BatchStatistics()
        self._layers = layer_facts(
            model, optimizer
        )  # now: a sharded model has other parameters until its backward pass

    @contextmanager
    def watch(self) -> Iterator[None]:
        if self._call is None:
            yield
            return
        with self._statistics.watch(self._model), self._call:
            yield

    def took(self, loss_sum: Tensor, count: Tensor, train: Dataset) -> None:
        self._strays = strays(loss_sum, self._model)
        call = self._call
        if call is None:
            return
        if call.found is None:
            self._loss = LossFacts(outer=call.outer)
            return
        found = call.found
        targets = all_targets(train, found)
        counts = class_counts(train, found) or found.class_counts or binary_counts(found, targets)
        whole = call.is_all(loss_sum, count)
        constant = constant_loss(found, call.weighed(counts), call.smoothing, call.variance, targets) if whole else None
        looked_at = found.target.rows if found.target is not None else None
        rows = sum(counts) if found.classes else looked_at if targets is None else len(targets)
        self._loss = dataclasses.replace(
            found,
            class_counts=counts,
            outer=call.outer,
            # The loss with the wrong sign has the same bound: it is below it from the first step on.
            bound=0.0 if (whole or call.is_all(-loss_sum, count)) and found.function in BOUNDED else None,
            constant=_scaled(constant, call.unit(loss_sum, count)),
            constant_rows=rows if constant is not None else None,
        )

    def seen(self) -> Facts:
        """What the pass itself shows; how long the run is and how it goes is unknown."""
        floats = [value for value in self._batch.values() if value.is_floating_point()]
        return Facts(
            layers=self._layers,
            inputs=tensor_facts(floats[0]) if floats else None,
            normalized_input=begins_with_norm(self._model),
            loss=self._loss,
            strays=self._strays,
            batch_statistics=self._statistics.fewest,
            dropout=max((float(each.p) for each in self._model.modules() if isinstance(each, _DropoutNd)), default=0.0),
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
        return dataclasses.replace(
            self.seen(),
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


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _rate(spec: JobSpec, plan: Plan, step: int) -> float:
    return optim.learning_rate(step, plan.steps, spec.schedule, spec.optimizer.learning_rate)


# --- normalisation ----------------------------------------------------------------------------------------------------


class BatchStatistics:
    """Of how many values batch norms take mean and deviation, as they are called."""

    def __init__(self) -> None:
        self.fewest: int | None = None

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[None]:
        norms = [each for each in model.modules() if isinstance(each, _BatchNorm)]
        handles = [each.register_forward_pre_hook(self._count) for each in norms]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _count(self, norm: nn.Module, given: tuple[Tensor, ...]) -> None:
        """Of an input (N, C, ...)."""
        if not given or given[0].ndim < 2 or not (norm.training or norm.running_mean is None):
            return  # one that is held still has statistics of its own
        values = given[0].numel() // max(1, given[0].shape[1]) * getattr(norm, "world_size", 1)
        self.fewest = values if self.fewest is None else min(self.fewest, values)


# --- graph ------------------------------------------------------------------------------------------------------------


def strays(loss: Tensor, model: nn.Module) -> int:
    """Parameters that would get a gradient of the loss and are none of the model's: of layers in a list or tuple that PyTorch does not look into.
    Unknown of sharded models, whose own are other tensors while they compute: 0."""
    known = {id(parameter) for parameter in model.parameters()}
    if loss.grad_fn is None or any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return 0
    seen: set[Node] = set()
    waiting, found = [loss.grad_fn], set()
    while waiting and len(seen) < MOST_NODES:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, nn.Parameter) and id(leaf) not in known:
            found.add(id(leaf))
        waiting.extend(following for following, _ in node.next_functions if following is not None)
    return len(found)


# --- labels -----------------------------------------------------------------------------------------------------------


def class_counts(train: Dataset, loss: LossFacts) -> tuple[int, ...]:
    """Over the training split, where its class numbers lie in memory as ``labels`` and are what the loss was given: no others were; else nothing."""
    labels, classes = getattr(train, "labels", None), loss.classes
    if not classes or not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point():
        return ()
    counts = labels[labels >= 0].bincount(minlength=classes).tolist()
    others = any(seen > 0 and not count for seen, count in zip(loss.class_counts, counts, strict=False))
    return tuple(counts) if len(counts) == classes and not others else ()


def all_targets(train: Dataset, loss: LossFacts) -> Tensor | None:
    """(N, ...) those of the training split, where numbers lie in memory as ``labels`` and are what the loss was given: a batch's are among them, and
    are spread like them."""
    labels, seen = getattr(train, "labels", None), loss.target
    if (
        not isinstance(labels, Tensor)
        or not labels.is_floating_point()
        or len(labels) < 2
        or not labels.isfinite().all()
    ):
        return None
    if seen is None or seen.least is None or seen.largest is None or seen.std is None or seen.rows > len(labels):
        return None
    slack = 1e-4 * float(labels.abs().max())
    among = float(labels.min()) - slack <= seen.least and seen.largest <= float(labels.max()) + slack
    alike = seen.rows < MANY or 0.5 < seen.std / max(float(labels.std()), 1e-12) < 2
    return labels.double() if among and alike else None


def binary_counts(loss: LossFacts, targets: Tensor | None) -> tuple[int, ...]:
    """Of a single answer that is 0 or 1."""
    if targets is None or not (loss.function or "").startswith("binary") or targets[0].numel() > 1:
        return ()
    if not ((targets == 0) | (targets == 1)).all():
        return ()
    positive = int(targets.sum())
    return len(targets) - positive, positive
