"""The loss at which a backward pass begins, read from its autograd graph: for scripts, around whose forward pass nobody stands.

Only what autograd has kept for the backward pass is read. Losses that torch composes of simpler functions (l1_loss, kl_div, targets that are
probabilities of classes) leave no node of their own and are not known.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.watch.loss_call import BOUNDED, constant_loss
from workers.watch.record import LossFacts, TensorFacts
from workers.watch.tensor_facts import tensor_facts

LOSSES = {
    "NllLoss": "nll_loss",
    "NllLoss2D": "nll_loss",
    "MseLoss": "mse_loss",
    "BinaryCrossEntropy": "binary_cross_entropy",
    "BinaryCrossEntropyWithLogits": "binary_cross_entropy_with_logits",
    "SmoothL1Loss": "smooth_l1_loss",
    "HuberLoss": "huber_loss",
}
# Change only how a tensor lies, or its precision.
CARRIED = frozenset(
    {"View", "UnsafeView", "ReshapeAlias", "ToCopy", "Clone", "Squeeze", "Unsqueeze", "Transpose", "T", "Permute", "Expand", "Slice", "Select",
     "Alias"}
)  # fmt: skip
PASSED_THROUGH = frozenset({"_DDPSink"})  # gives all tensors that it was given, each in its place
SCALED = CARRIED | {"Div", "Mul", "Mean", "Sum", "MaskedFill"}
FAR = 64  # nodes between the root and the loss, at most
AS_GOOD_AS = 0.02


class LossGraph:
    """Of the first backward passes. ``see`` each root before its pass; then ``facts``."""

    def __init__(self) -> None:
        self._found: LossFacts | None = None
        self._smoothed = False
        self._values: list[Tensor] = []  # means of the loss over its elements, of the first step's passes
        self._reduced = True
        self._labels: Tensor | None = None  # counts, (C,)
        self.rows: int | None = None  # samples in a pass, or whatever the loss counts

    @torch.no_grad()
    def see(self, root: Tensor, *, first_step: bool = True) -> None:
        """May be called for many passes; of those after the first step only labels are counted."""
        node, smoothed = loss_node(root)
        if node is None:
            return
        if self._found is None:
            self._smoothed = smoothed
            self._look(node)
        elif self._labels is not None and _kind(node).startswith("Nll"):
            counts = _counts(node, len(self._labels))
            self._labels += counts.to(self._labels.device)
        if first_step:
            self._values.append(_mean_loss(node))

    def forget_values(self) -> None:
        """Of passes whose step is not made."""
        self._values.clear()

    def facts(self, row_loss: float | None) -> LossFacts:
        """``row_loss``: the loss of the first step, as the series has it: several passes added up, each divided by their number, or whatever
        the script does. The best constant answer is given in the same measure. Where other terms may be in it nothing is said of it."""
        if self._found is None:
            return LossFacts()
        counts = tuple(int(count) for count in self._labels.tolist()) if self._labels is not None else ()
        found = dataclasses.replace(self._found, class_counts=counts)
        value = float(torch.stack(self._values).mean()) if self._values else math.nan
        ratio = row_loss / value if row_loss is not None and value else None
        known = ratio is not None and ratio > 0 and (self._reduced or abs(ratio - 1) < AS_GOOD_AS)
        if self._smoothed or not known or ratio is None:
            return found
        constant = constant_loss(found, counts, 0.0)
        return dataclasses.replace(
            found,
            bound=0.0 if found.function in BOUNDED else None,
            constant=None if constant is None else ratio * constant,
        )

    def _look(self, node: Any) -> None:
        function = LOSSES[_kind(node)]
        given, target, weight = node._saved_self, node._saved_target, getattr(node, "_saved_weight", None)
        behind = next((before for before, _ in node.next_functions if before is not None), None)
        output = tensor_facts(given)
        classes = None
        if function == "nll_loss":
            classes = given.shape[1] if given.ndim > 1 else given.shape[0]
            before = _carried(behind)
            if before is not None and _kind(before) == "LogSoftmax":
                function, behind = "cross_entropy", before.next_functions[0][0]
                output = TensorFacts(output.dtype, output.shape, rows=output.rows)  # logits are not kept
            self._labels = _counts(node, classes)
        elif _kind(behind) == "Expand":
            output = dataclasses.replace(output, shape=tuple(behind._saved_self_sym_sizes))  # type: ignore[union-attr]
        origin = _carried(behind)
        self._reduced = int(node._saved_reduction) > 0
        self.rows = int(target.shape[0]) if target.ndim else None
        self._found = LossFacts(
            function=function,
            output_operation=_snake(_kind(origin)) if origin is not None else None,
            output=output,
            target=tensor_facts(_as_given(target)),
            classes=classes,
            weighted=weight is not None or getattr(node, "_saved_pos_weight", None) is not None,
            class_weights=tuple(weight.tolist()) if weight is not None and weight.numel() == classes else (),
        )


def loss_node(root: Tensor) -> tuple[Any, bool]:
    """The one loss behind ``root``, but for factors, and whether its labels are smoothed. None: there is none, or something else beside it."""
    leaves = list(_leaves(root))
    losses = [node for node in leaves if _kind(node) in LOSSES]
    others = [node for node in leaves if _kind(node) not in LOSSES]
    if len(losses) != 1:
        return None, False
    # Smoothed labels add a mean over the same logarithms.
    logs = _carried(losses[0].next_functions[0][0])
    smoothed = bool(others) and all(other is logs for other in others)
    return (losses[0], smoothed) if smoothed or not others else (None, False)


def _leaves(root: Tensor) -> Iterator[Any]:
    """Where sums and factors end."""
    stack, seen = [(root.grad_fn, root.output_nr)], 0
    while stack and seen < FAR:
        node, place = stack.pop()
        seen += 1
        if node is None:
            continue
        if _kind(node) in PASSED_THROUGH:
            stack.append(node.next_functions[place])
        elif _kind(node) in SCALED or _kind(node) in ("Add", "Neg"):
            stack += node.next_functions
        else:
            yield node


def _carried(node: Any) -> Any:
    """The first node from ``node`` on that computes something; what passes several tensors through is followed to the first of them."""
    for _ in range(FAR):
        if node is None or _kind(node) not in CARRIED | PASSED_THROUGH:
            return node
        node = node.next_functions[0][0]
    return None


def _kind(node: Any) -> str:
    return re.sub(r"Backward\d*$", "", node.name().rpartition("::")[2]) if node is not None else ""


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def _ignored(node: Any) -> int:
    index = int(node._saved_ignore_index)
    return index - (1 << 64) if index >= 1 << 63 else index  # autograd shows it without its sign


def _counts(node: Any, classes: int) -> Tensor:
    """(C,)"""
    labels = node._saved_target.flatten()
    kept = labels[(labels >= 0) & (labels < classes) & (labels != _ignored(node))]
    counts: Tensor = kept.bincount(minlength=classes)
    return counts


def _mean_loss(node: Any) -> Tensor:
    given, target, weight = node._saved_self, node._saved_target, getattr(node, "_saved_weight", None)
    function = LOSSES[_kind(node)]
    if function == "nll_loss":
        return F.nll_loss(given.float(), target, weight, ignore_index=_ignored(node))
    if function == "binary_cross_entropy_with_logits":
        return F.binary_cross_entropy_with_logits(given, target, weight, pos_weight=node._saved_pos_weight)
    if function == "binary_cross_entropy":
        return F.binary_cross_entropy(given, target, weight)
    if function == "huber_loss":
        return F.huber_loss(given, target, delta=node._saved_delta)
    if function == "smooth_l1_loss":
        return F.smooth_l1_loss(given, target, beta=node._saved_beta)
    return F.mse_loss(given, target)


def _as_given(target: Tensor) -> Tensor:
    """Without the leading dimensions over which it was spread."""
    while target.ndim and target.stride(0) == 0 and target.shape[0] > 1:
        target = target[0]
    return target
