"""Small real trainings as records: plain loops on scikit-learn's digits and tables, measured by a few lines of their own, so that the rules are
tested with what backpropagation does and not with the measuring code of the product."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from sklearn import datasets
from torch import Tensor, nn

from workers.watch.record import (
    Evaluations,
    Facts,
    LayerFacts,
    LossFacts,
    Probes,
    Record,
    Series,
    TensorFacts,
)

PROBE_EVERY = 5
SLOPE_IS_NEARLY_ZERO = {nn.Tanh: 0.95, nn.Sigmoid: 0.975}  # of |output|, or of its distance from 0 and 1


@dataclass
class Data:
    inputs: Tensor
    targets: Tensor
    held_out: tuple[Tensor, Tensor]


@cache
def _digits() -> tuple[Tensor, Tensor]:
    found = datasets.load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    inputs = torch.tensor(found.data[order], dtype=torch.float32)
    return (inputs - 4.88) / 6.02, torch.tensor(found.target[order])


def digits(count: int = 1400) -> Data:
    inputs, targets = _digits()
    return Data(inputs[:count].clone(), targets[:count].clone(), (inputs[1400:], targets[1400:]))


@cache
def _diabetes() -> tuple[Tensor, Tensor]:
    found = datasets.load_diabetes()
    return torch.tensor(found.data * 21, dtype=torch.float32), torch.tensor(found.target, dtype=torch.float32)


def diabetes() -> Data:
    inputs, targets = _diabetes()
    targets = ((targets - targets.mean()) / targets.std())[:, None]
    return Data(inputs[:350], targets[:350], (inputs[350:], targets[350:]))


def mlp(
    depth: int = 2, width: int = 64, activation: type[nn.Module] = nn.ReLU, outputs: int = 10, inputs: int = 64
) -> nn.Sequential:
    parts: list[nn.Module] = []
    for number in range(depth):
        parts += [nn.Linear(inputs if number == 0 else width, width), activation()]
    return nn.Sequential(*parts, nn.Linear(width, outputs))


@dataclass
class Plan:
    """What a training does. ``each_step(step, model)`` runs before the passes, ``edit(loss)`` changes what is derived."""

    steps: int = 300
    batch: int = 32
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] = lambda parameters: torch.optim.Adam(
        parameters, 1e-3
    )
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy
    rate: Callable[[int], float] = lambda step: 1.0  # factor, from step 1 on
    clip: float | None = None
    clear: bool = True  # the gradients, after each step
    each_step: Callable[[int, nn.Module], None] | None = None
    evaluate_every: int | None = None
    seed: int = 0
    facts: dict[str, Any] = field(default_factory=dict)  # over what is found
    loss_facts: dict[str, Any] = field(default_factory=dict)


def train(model: nn.Module, data: Data, plan: Plan) -> Record:
    torch.manual_seed(plan.seed)
    generator = torch.Generator().manual_seed(plan.seed)
    owners = [(name, module) for name, module in model.named_modules() if list(module.parameters(recurse=False))]
    layers = [(n, m) for n, m in owners if any(p.requires_grad for p in m.parameters(recurse=False))]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = plan.optimizer(parameters)
    registered = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    peak = optimizer.param_groups[0]["lr"]
    facts = _facts(owners, registered, data, plan, optimizer)
    outputs: dict[str, Tensor] = {}
    watched = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ReLU | nn.Tanh | nn.Sigmoid)]
    for name, module in watched:
        module.register_forward_hook(lambda _m, _i, output, name=name: outputs.__setitem__(name, output.detach()))
    losses: list[float] = []
    norms: list[list[float]] = []
    rates: list[float] = []
    factors: list[float] = []
    probes: dict[str, list[Any]] = {
        key: [] for key in ("steps", "weights", "updates", "zeros", "rows", "largest", "bad", "silent", "saturated")
    }
    evaluations: list[tuple[int, float, float]] = []
    uncleared = None
    parts = [list(module.parameters(recurse=False)) for _, module in layers]
    for step in range(1, plan.steps + 1):
        if plan.each_step:
            plan.each_step(step, model)
        for group in optimizer.param_groups:
            group["lr"] = peak * plan.rate(step)
        rows = torch.randint(len(data.inputs), (plan.batch,), generator=generator)
        if step == 2:
            uncleared = _norm(parameters) / max(math.hypot(*norms[0]), 1e-30)
        loss = plan.loss(model(data.inputs[rows]), data.targets[rows])
        loss.backward()
        losses.append(loss.item())
        norms.append(_norms(parts))
        total = math.hypot(*norms[-1])
        factor = min(1.0, plan.clip / (total + 1e-6)) if plan.clip else 1.0
        for parameter in parameters:
            if parameter.grad is not None and factor < 1:
                parameter.grad.mul_(factor)
        rates.append(optimizer.param_groups[0]["lr"])
        factors.append(factor)
        probing = step % PROBE_EVERY == 0 or step <= 3
        before = {name: _weight(module).detach().clone() for name, module in layers} if probing else {}
        if probing:
            _probe(probes, step, layers, [(outputs[name], type(module)) for name, module in watched])
        optimizer.step()
        if probing:
            probes["updates"].append(
                [
                    ((_weight(m).detach() - before[n]).norm() / before[n].norm().clamp(min=1e-12)).item()
                    for n, m in layers
                ]
            )
        if plan.clear:
            optimizer.zero_grad()
        if plan.evaluate_every and step % plan.evaluate_every == 0:
            evaluations.append((step, *_evaluate(model, data, plan)))
    unknown = np.full(len(losses), np.nan)
    series = Series(
        tuple(name for name, _ in layers), np.arange(1, len(losses) + 1), np.array(losses), np.array(norms), np.array(rates),
        np.array(factors), unknown, unknown,
    )  # fmt: skip
    held = np.array(evaluations, dtype=float).reshape(-1, 3)
    return Record(
        facts,
        series,
        Probes(
            layers=series.layers,
            activations=tuple(name for name, _ in watched),
            steps=np.array(probes["steps"], dtype=np.int64),
            weight_norms=np.array(probes["weights"]),
            update_ratios=np.array(probes["updates"]),
            zero_shares=np.array(probes["zeros"]),
            zero_rows=np.array(probes["rows"]),
            largest=np.array(probes["largest"]),
            nonfinite=np.array(probes["bad"]),
            silent=np.array(probes["silent"], dtype=float).reshape(len(probes["steps"]), len(watched)),
            saturated=np.array(probes["saturated"], dtype=float).reshape(len(probes["steps"]), len(watched)),
        ),
        Evaluations(held[:, 0].astype(np.int64), {"loss": held[:, 1], "accuracy": held[:, 2]}),
        uncleared=uncleared,
    )


def _weight(module: nn.Module) -> Tensor:
    return max(module.parameters(recurse=False), key=lambda parameter: parameter.numel())


def _norms(parts: list[list[nn.Parameter]]) -> list[float]:
    """Of each layer's gradient."""
    owned = [(number, p.grad) for number, each in enumerate(parts) for p in each if p.grad is not None]
    squares = [0.0] * len(parts)
    if owned:
        values = torch.stack(torch._foreach_norm([gradient for _, gradient in owned])).double().tolist()
        for (number, _), value in zip(owned, values, strict=True):
            squares[number] += value * value
    return [math.sqrt(square) for square in squares]


def _norm(parameters: list[nn.Parameter]) -> float:
    return math.hypot(*(parameter.grad.norm().item() for parameter in parameters if parameter.grad is not None), 0.0)


def _probe(
    probes: dict[str, list[Any]], step: int, layers: list[tuple[str, nn.Module]], activations: list[tuple[Tensor, Any]]
) -> None:
    gradients = [g if (g := _weight(m).grad) is not None else torch.zeros_like(_weight(m)) for _, m in layers]
    probes["steps"].append(step)
    probes["weights"].append([_weight(module).norm().item() for _, module in layers])
    probes["zeros"].append([(g == 0).float().mean().item() for g in gradients])
    probes["rows"].append(
        [(g.flatten(1) == 0).all(1).float().mean().item() if g.dim() > 1 else math.nan for g in gradients]
    )
    probes["largest"].append([g.abs().max().item() for g in gradients])
    probes["bad"].append([(~torch.isfinite(g)).sum().item() for g in gradients])
    probes["silent"].append(
        [
            (output == 0).flatten(2).all(2).all(0).float().mean().item()
            if output.dim() > 2
            else (output == 0).all(0).float().mean().item()
            if kind is nn.ReLU
            else math.nan
            for output, kind in activations
        ]
    )
    probes["saturated"].append(
        [
            ((2 * output - 1 if kind is nn.Sigmoid else output).abs() > 0.95).float().mean().item()
            if kind is not nn.ReLU
            else math.nan
            for output, kind in activations
        ]
    )


@torch.no_grad()
def _evaluate(model: nn.Module, data: Data, plan: Plan) -> tuple[float, float]:
    model.eval()
    inputs, targets = data.held_out
    outputs = model(inputs)
    model.train()
    right = (outputs.argmax(1) == targets).float().mean().item() if targets.dtype == torch.int64 else math.nan
    return plan.loss(outputs, targets).item(), right


# --- facts ------------------------------------------------------------------------------------------------------------


def tensor_facts(tensor: Tensor, batch: int) -> TensorFacts:
    rows = tensor.reshape(len(tensor), -1).double()
    finite = torch.isfinite(rows).all(1)
    good = rows[finite] if finite.any() else rows.new_zeros(1, 1)
    return TensorFacts(
        str(tensor.dtype).removeprefix("torch."),
        (batch, *tensor.shape[1:]),
        good.min().item(),
        good.max().item(),
        good.mean().item(),
        good.std().item(),
        torch.quantile(good.flatten().abs()[:100_000], 0.99).item(),
        good.mean(0).abs().max().item(),
        good.std(0).min().item(),
        good.std(0).max().item(),
        tuple(torch.nonzero(~finite).flatten()[:20].tolist()),
        len(tensor),
    )


def _facts(
    owners: list[tuple[str, nn.Module]], registered: set[int], data: Data, plan: Plan, optimizer: torch.optim.Optimizer
) -> Facts:
    floating = data.inputs.is_floating_point()
    is_class = data.targets.dtype == torch.int64
    counts = torch.bincount(data.targets.flatten()) if is_class else torch.zeros(0)
    shares = counts[counts > 0] / counts.sum() if is_class else counts
    constant = -(shares * shares.log()).sum().item() if is_class else data.targets.float().var().item()
    group = optimizer.param_groups[0]
    loss: dict[str, Any] = {
        "function": "cross_entropy" if is_class else "mse_loss",
        "target": tensor_facts(data.targets.float() if is_class else data.targets, plan.batch),
        "classes": 10 if is_class else None,
        "class_counts": tuple(counts.int().tolist()) if is_class else (),
        "bound": 0.0,
        "constant": constant,
    } | plan.loss_facts
    known: dict[str, Any] = {
        "layers": tuple(_layer(name, module, registered) for name, module in owners),
        "inputs": tensor_facts(data.inputs, plan.batch) if floating else None,
        "loss": LossFacts(**loss),
        "total_steps": plan.steps,
        "batch_size": plan.batch,
        "optimizer": type(optimizer).__name__,
        "learning_rate": group["lr"],
        "momentum": group.get("momentum"),
        "weight_decay": group.get("weight_decay"),
        "schedule": {
            str(share): group["lr"] * plan.rate(max(1, round(share * plan.steps))) for share in (0, 0.01, 0.1, 1)
        },
    } | plan.facts
    return Facts(**known)


def _layer(name: str, module: nn.Module, registered: set[int]) -> LayerFacts:
    weight = _weight(module).detach()
    rows = weight.flatten(1) if weight.dim() > 1 else None
    twins = None
    if rows is not None:
        _, inverse, counts = torch.unique(rows, dim=0, return_inverse=True, return_counts=True)
        twins = (counts[inverse] > 1).float().mean().item()
    return LayerFacts(
        name,
        type(module).__name__,
        tuple(weight.shape),
        rows.shape[1] if rows is not None else None,
        weight.mean().item(),
        weight.std().item(),
        twins,
        any(p.requires_grad for p in module.parameters(recurse=False)),
        all(id(p) in registered for p in module.parameters(recurse=False) if p.requires_grad),
        str(weight.dtype).removeprefix("torch."),
    )
