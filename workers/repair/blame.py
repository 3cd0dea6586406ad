"""Which samples are at fault, found out one by one: each alone through a model as it was before the first step.

Why there, and not where the run stands: a trained model's gradients are heavy-tailed, because what it has learnt gives next to none, and a sample
with a wrong label stands out from that by orders. Before the first step all labels are equally wrong. What stands out there has another scale, or is
no number: it is the sample's numbers that are at fault, not what it is about.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from workers.repair.quarantine import Blamed
from workers.sources.problems import BadDataError
from workers.tasks.base import Dataset, Task

SECONDS = 20.0  # for a look: the other ranks wait
USUAL = 64  # samples whose gradients say what is usual
SUSPECTS = 2048  # samples of the steps in which it went wrong, at most, that are looked at one by one
MOST = 1_000_000  # of all samples
MODELS = 3  # of other first weights: a sample that is far out is answered rightly by chance by one of them, and then has no gradient at all
TOGETHER = 32  # of the others, as long as nothing stands out from them
EXTREME = 100.0  # times the usual norm
CLEAR = 20.0  # times the usual norm: with samples between this and the other there is no line to be drawn


def blamed(
    task: Task,
    build: Callable[[int], nn.Module],
    dataset: Dataset,
    suspects: Sequence[int],
    *,
    seed: int,
    seconds: float = SECONDS,
) -> Blamed:
    """``build``: a new model as it is before the first step, of a seed. ``suspects``: samples of the steps in which it went wrong; all others are
    looked at too, in a random but fixed order, as far as there is time.

    Batch norms are held still and nothing is dropped: a sample is judged for itself.
    """
    ends_at = time.monotonic() + seconds
    found: list[Blamed] = []
    for number in range(MODELS):
        if found and time.monotonic() >= ends_at:
            break
        found.append(_of_model(_Look(task, build(seed + number), dataset, seed, ends_at), dataset, suspects, seed))
    nonfinite = {sample for each in found for sample in each.nonfinite}
    extreme = {sample for each in found for sample in each.extreme} - nonfinite
    return Blamed(tuple(sorted(nonfinite)), tuple(sorted(extreme)), found[0].looked_at)


def _of_model(look: _Look, dataset: Dataset, suspects: Sequence[int], seed: int) -> Blamed:
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(dataset))[:MOST].tolist()
    few = look.each(order[:USUAL])
    if sum(map(math.isfinite, few)) <= len(few) / 2:
        return Blamed(
            looked_at=len(few)
        )  # a loss that means nothing of a single sample, or a model that never gives a number
    usual = _median(few)
    look.each(suspects[:SUSPECTS])
    seen = look.norms
    rest = [sample for sample in order if sample not in seen]
    for place in range(0, len(rest), TOGETHER):
        if look.over:
            break
        some = rest[place : place + TOGETHER]
        together = look.norm(some)
        # Of gradients that all point the same way the sum is at most so many times as long.
        if together is None or not together <= (CLEAR + len(some)) * usual:
            look.each(some)
        else:
            look.passed += len(some)
    return _judged(look.norms, usual, len(look.norms) + look.passed)


def _judged(norms: dict[int, float], usual: float, looked_at: int) -> Blamed:
    bad = tuple(sorted(sample for sample, norm in norms.items() if not math.isfinite(norm)))
    finite = {sample: norm for sample, norm in norms.items() if math.isfinite(norm)}
    between = any(CLEAR * usual < norm <= EXTREME * usual for norm in finite.values())
    if not usual > 0 or between:
        return Blamed(bad, (), looked_at)
    return Blamed(bad, tuple(sorted(sample for sample, norm in finite.items() if norm > EXTREME * usual)), looked_at)


def _median(norms: Iterable[float]) -> float:
    finite = [norm for norm in norms if math.isfinite(norm)]
    return float(np.median(finite)) if finite else math.nan


class _Look:
    """``norms``: of each sample that was looked at alone: of its mean loss's gradient; NaN where that or its loss is no number."""

    def __init__(self, task: Task, model: nn.Module, dataset: Dataset, seed: int, ends_at: float) -> None:
        self._task, self._model, self._dataset, self._seed, self._ends_at = task, model, dataset, seed, ends_at
        self.norms: dict[int, float] = {}
        self.passed = 0  # looked at together with others, and nothing stood out
        model.train()  # recurrent networks on accelerators have no backward pass in evaluation
        for module in model.modules():
            if isinstance(module, _BatchNorm | _DropoutNd):
                module.eval()
        self._parameters = [each for each in model.parameters() if each.requires_grad]
        self._device = next((each.device for each in self._parameters), torch.device("cpu"))

    @property
    def over(self) -> bool:
        return time.monotonic() >= self._ends_at

    def each(self, samples: Iterable[int]) -> list[float]:
        for sample in samples:
            if self.over:
                break
            if sample not in self.norms and (norm := self.norm([sample])) is not None:
                self.norms[sample] = norm
        return [self.norms[sample] for sample in samples if sample in self.norms]

    def norm(self, samples: Sequence[int]) -> float | None:
        """Of the gradient of their losses' sum, of a single one's mean. None: they say nothing, or cannot be read."""
        try:
            batch = self._dataset.batch(list(samples), seed=self._seed)
        except BadDataError:
            return None  # the run hears of it in its own way
        batch = {name: value.to(self._device) for name, value in batch.items()}
        loss_sum, count = self._task.loss(self._model, batch)
        terms = float(count.detach())
        if terms == 0:
            return None
        if not bool(torch.isfinite(loss_sum.detach())):
            return math.nan
        if not loss_sum.requires_grad:
            return None
        gradients = torch.autograd.grad(loss_sum / (terms / len(samples)), self._parameters, allow_unused=True)
        dense = [each.coalesce().values() if each.is_sparse else each for each in gradients if each is not None]
        squares = [each.detach().double().square().sum() for each in dense]
        norm = float(torch.stack(squares).sum().sqrt()) if squares else 0.0
        return norm if math.isfinite(norm) else math.nan
