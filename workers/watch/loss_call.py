"""The call of the loss in a pass as it is really made, seen by a mode that lets every function through unchanged."""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from workers.watch.record import LossFacts
from workers.watch.tensor_facts import tensor_facts

CLASS_LOSSES = frozenset({"cross_entropy", "nll_loss"})
SQUARED_LOSSES = frozenset({"mse_loss"})
LOSSES = CLASS_LOSSES | SQUARED_LOSSES | {
    "binary_cross_entropy", "binary_cross_entropy_with_logits", "l1_loss", "smooth_l1_loss", "huber_loss", "kl_div", "gaussian_nll_loss",
    "poisson_nll_loss",
}  # fmt: skip
# What a loss cannot fall below, for targets as it asks for them; likelihoods of densities have no bound.
BOUNDED = LOSSES - {"kl_div", "gaussian_nll_loss", "poisson_nll_loss"}
DIFFERENCES = frozenset({"sub", "__sub__", "rsub", "__rsub__", "subtract"})
FEWEST_SPREAD = 3  # outputs: fewer may be that many by chance
MANY_LABELS_A_CLASS = 10  # nothing has to be corrected
LABELS_A_CLASS = 5  # of those that were seen: fewer say little about how frequent each is
# Do not change what a tensor says, only how it lies or what it is called.
CARRIED = frozenset(
    {"float", "double", "half", "bfloat16", "to", "type", "contiguous", "clone", "detach", "view", "reshape", "flatten", "unflatten", "squeeze",
     "unsqueeze", "transpose", "permute", "movedim", "expand", "__getitem__", "__get__", "select", "narrow", "t"}
)  # fmt: skip


class LossCall(TorchFunctionMode):
    """Remembers which function each tensor came from (by weak references: nothing lives longer), and the first loss that was called."""

    def __init__(self) -> None:
        super().__init__()
        self._from: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        self.found: LossFacts | None = None
        self.value: Tensor | None = None  # what the loss gave
        self.labels: Tensor | None = None  # class numbers that counted, (N,)
        self.outer: tuple[int, ...] = ()  # a column of outputs less a row of targets: how many of each
        self.smoothing = 0.0
        self.weight: Tensor | None = None  # of the classes, (C,)
        self.variance: float | None = None  # of targets that are no class numbers, about each one's own mean, (B, ...)
        self.per_target = math.nan  # the mean of what was given, over targets, whatever it was reduced to

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in DIFFERENCES and not self.outer:
            self.outer = _outer(args, result)
        if name in LOSSES and self.found is None:
            with contextlib.suppress(
                Exception
            ):  # whatever somebody calls with that name: looking must not fail the pass
                self._see(name, args, kwargs or {}, result)
        if isinstance(result, Tensor):
            first = next((each for each in args if isinstance(each, Tensor)), None)
            carried = self._origin(first) if name in CARRIED else name
            if carried is not None:
                self._from[id(result)] = (weakref.ref(result), carried)
        return result

    def _origin(self, tensor: Tensor | None) -> str | None:
        known = self._from.get(id(tensor))
        return known[1] if known is not None and known[0]() is tensor else None

    @torch.no_grad()
    def _see(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        output = args[0] if args else kwargs.get("input")
        target = args[1] if len(args) > 1 else kwargs.get("target")
        if not isinstance(output, Tensor) or not isinstance(target, Tensor) or not isinstance(result, Tensor):
            return
        classes = (output.shape[1] if output.ndim > 1 else output.shape[0]) if name in CLASS_LOSSES else None
        self.smoothing = float(kwargs.get("label_smoothing", 0.0))
        if classes is not None and not target.is_floating_point():
            labels = target.flatten()
            self.labels = labels[(labels >= 0) & (labels < classes) & (labels != kwargs.get("ignore_index", -100))]
        if target.is_floating_point() and target.ndim > 1 and len(target) > 1:
            self.variance = float(target.double().var(0, correction=0).mean())
        weight = kwargs.get("weight", args[2] if len(args) > 2 and name != "mse_loss" else None)
        self.weight = weight.detach() if isinstance(weight, Tensor) and name in CLASS_LOSSES else None
        self.value = result.detach()
        self.per_target = float(self.value.double().sum()) / _values(kwargs, self.value, target)
        self.found = LossFacts(
            function=name,
            output_operation=self._origin(output),
            output=tensor_facts(output),
            target=tensor_facts(target),
            classes=classes,
            class_counts=tuple(self.labels.bincount(minlength=classes).tolist()) if self.labels is not None and classes else (),
            weighted=isinstance(weight, Tensor) or isinstance(kwargs.get("pos_weight"), Tensor),
            class_weights=tuple(self.weight.tolist()) if self.weight is not None and self.weight.numel() == classes else (),
        )  # fmt: skip

    def weighed(self, counts: tuple[int, ...]) -> tuple[float, ...]:
        """What classes that were counted stand for under the weights of the loss, which divides by the sum of these."""
        if self.weight is None or len(self.weight) != len(counts):
            return counts
        parts = torch.tensor(counts, dtype=torch.float64) * self.weight.double().cpu()
        total = float(parts.sum())
        return tuple((parts * (sum(counts) / total)).tolist()) if total > 0 else counts

    def is_all(self, loss_sum: Tensor, count: Tensor) -> bool:
        """Whether the loss that was seen is the whole loss of the pass, and not one of several parts."""
        if self.value is None:
            return False
        total, mean = float(self.value.double().sum()), float(self.value.double().mean())
        given = float(loss_sum.detach())
        return math.isclose(total, given, rel_tol=1e-3) or (
            self.value.ndim == 0 and float(count) > 0 and math.isclose(mean, given / float(count), rel_tol=1e-3)
        )

    def unit(self, loss_sum: Tensor, count: Tensor) -> float:
        """How many times as large the loss that is recorded is as the mean over targets: as many as there are where it is summed."""
        given = float(loss_sum.detach()) / float(count) if float(count) > 0 else math.nan
        ratio = given / self.per_target if self.per_target else math.nan
        return ratio if math.isfinite(ratio) and ratio > 0 else 1.0


def _outer(args: tuple[Any, ...], result: Any) -> tuple[int, ...]:
    """(B, 1) less (B,), or the other way round, of which one hangs on weights and the other does not: each output less every target. Right: pairs
    of outputs, pairs of targets."""
    if (
        len(args) < 2
        or not isinstance(args[0], Tensor)
        or not isinstance(args[1], Tensor)
        or not isinstance(result, Tensor)
    ):
        return ()
    rows = len(result) if result.ndim == 2 else 0
    shapes = {tuple(args[0].shape), tuple(args[1].shape)}
    spread = rows >= FEWEST_SPREAD and shapes == {(rows, 1), (rows,)} and tuple(result.shape) == (rows, rows)
    return (rows, rows) if spread and args[0].requires_grad != args[1].requires_grad else ()


def _values(kwargs: Mapping[str, Any], value: Tensor, target: Tensor) -> int:
    """What the sum of ``value`` is to be divided by for the mean over targets."""
    return max(1, target.numel()) if kwargs.get("reduction") == "sum" else max(1, value.numel())


def constant_loss(
    loss: LossFacts,
    counts: tuple[float, ...],
    smoothing: float,
    variance: float | None = None,
    targets: Tensor | None = None,
) -> float | None:
    """H: the loss of the best answer that is the same for all samples. Of class numbers the entropy of their shares, corrected for the few labels
    that it is estimated from (Miller 1955), or ln C where there are too few to say; of squared errors the variance of the targets, each about its
    own mean where that is known (``variance``). ``targets``: those of all training samples, (N, ...), where they are known. None where nothing is
    known."""
    if loss.function in CLASS_LOSSES and loss.classes:
        total = sum(counts)
        seen = sum(count > 0 for count in counts)
        if total < LABELS_A_CLASS * seen or not total:
            return math.log(loss.classes)
        missing = (seen - 1) / (2 * total) if total < MANY_LABELS_A_CLASS * loss.classes else 0.0
        shares = [(1 - smoothing) * count / total + smoothing / loss.classes for count in counts]
        entropy = -sum(share * math.log(share) for share in shares if share > 0)
        return min(entropy + missing, math.log(loss.classes))
    target = loss.target
    if target is None or target.std is None or target.mean is None:
        return None
    if loss.function in SQUARED_LOSSES:
        if targets is not None:
            return float(targets.var(0, correction=0).mean())
        return target.std**2 if variance is None or not math.isfinite(variance) else variance
    if loss.function in ("binary_cross_entropy", "binary_cross_entropy_with_logits") and not loss.weighted:
        share = target.mean if targets is None else float(targets.mean())
        return -share * math.log(share) - (1 - share) * math.log(1 - share) if 0 < share < 1 else None
    return None
