"""What a run of the suite leaves: the one place where the suite's loop meets the product's parts that measure."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.pitfalls.case import Job
from workers.gradients import GradientMonitor
from workers.watch.record import (
    Checksums,
    Evaluations,
    Facts,
    LayerFacts,
    LossFacts,
    Probes,
    Ranks,
    Record,
    Series,
    TensorFacts,
)

PROBES = 50  # in a run
ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.GELU, nn.ELU, nn.SiLU)
FLAT_SIGMOID, FLAT_TANH = 0.01, 0.05  # slope below which a unit counts as saturated


class Recorder:
    def __init__(self, job: Job, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.job, self.model, self.optimizer = job, model, optimizer
        self.monitor = GradientMonitor(model, torch.device("cpu"))
        self.facts = facts(job, model, optimizer)
        self.every = max(1, job.steps // PROBES)
        self.step = 0
        self.norms: list[np.ndarray] = []
        self.rows: list[tuple[float, float, float, float, float]] = []  # loss, rate, clip, seconds, wait
        self.evaluations: list[tuple[int, dict[str, float]]] = []
        self.own: list[list[float]] = [[] for _ in range(job.ranks)]
        self.losses: list[list[float]] = [[] for _ in range(job.ranks)]
        self.samples: list[list[float]] = [[] for _ in range(job.ranks)]
        self.checksums: list[tuple[int, list[int]]] = []
        self.probes: list[dict[str, list[float]]] = []
        self.probe_steps: list[int] = []
        self.uncleared: float | None = None
        self._before: list[Tensor] = []
        self._activity: dict[str, tuple[float, float]] = {}
        named = [(name, module) for name, module in model.named_modules() if isinstance(module, ACTIVATIONS)]
        self.activations = tuple(name for name, _ in named)
        for name, module in named:
            module.register_forward_hook(self._hook(name))

    def _hook(self, name: str):  # type: ignore[no-untyped-def]
        def look(module: nn.Module, _: object, output: Tensor) -> None:
            if self.probing and module.training:
                with torch.no_grad():
                    self._activity[name] = _activity(module, output)

        return look

    @property
    def probing(self) -> bool:
        return self.step == 1 or self.step % self.every == 0

    def passes_begin(self, step: int, inputs: Tensor, targets: Tensor) -> None:
        self.step = step
        self._activity.clear()
        if step == 2:
            left = float(self.monitor.measure().square().sum().sqrt())
            first = float(np.sqrt(np.square(self.norms[0]).sum()))
            self.uncleared = left / first if first > 0 else 0.0

    def passed(self, rank: int, loss: float, samples: int) -> None:
        self.losses[rank].append(loss)
        self.samples[rank].append(samples)

    def own_gradients(self, replicas: list[nn.Module]) -> None:
        if len(replicas) == 1:
            return
        for rank, model in enumerate(replicas):
            gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
            norms = torch._foreach_norm(gradients) if gradients else (torch.zeros(()),)
            self.own[rank].append(float(torch.stack(list(norms)).norm()))

    def before_update(self) -> None:
        """Gradients are averaged and not yet clipped."""
        self.norms.append(self.monitor.measure().numpy())
        if self.probing:
            self._before = [parameter.detach().clone() for parameter in self.monitor.layers.parameters]

    def stepped(
        self, loss: float, rate: float, clipped: float, seconds: float, wait: float, replicas: list[nn.Module]
    ) -> None:
        self.rows.append((loss, rate, clipped, seconds, wait))
        if self.probing:
            self.probe_steps.append(self.step)
            self.probes.append(self._probe())
            if len(replicas) > 1:
                self.checksums.append((self.step, [_checksum(model) for model in replicas]))

    @torch.no_grad()
    def _probe(self) -> dict[str, list[float]]:
        layers = self.monitor.layers
        count = len(layers.names)
        sums = {name: torch.zeros(count, dtype=torch.float64) for name in ("weight", "update", "zero", "size", "bad")}
        largest, zero_rows = torch.zeros(count, dtype=torch.float64), torch.full((count,), torch.nan)
        for old, parameter, index in zip(self._before, layers.parameters, layers.owner, strict=True):
            sums["weight"][index] += old.double().square().sum()
            sums["update"][index] += (parameter - old).double().square().sum()
            gradient = parameter.grad
            if gradient is None:
                continue
            sums["zero"][index] += (gradient == 0).sum()
            sums["size"][index] += gradient.numel()
            sums["bad"][index] += (~gradient.isfinite()).sum()
            largest[index] = torch.maximum(largest[index], gradient.abs().max().double())
            if gradient.dim() >= 2 and not layers.names[index].endswith("embedding"):
                zero_rows[index] = (gradient.flatten(1) == 0).all(1).double().mean()
        weight = sums["weight"].sqrt()
        return {
            "weight_norms": weight.tolist(),
            "update_ratios": (sums["update"].sqrt() / weight.clamp(min=1e-12)).tolist(),
            "zero_shares": (sums["zero"] / sums["size"]).tolist(),
            "zero_rows": zero_rows.tolist(),
            "largest": largest.tolist(),
            "nonfinite": sums["bad"].tolist(),
            "silent": [self._activity.get(name, (np.nan, np.nan))[0] for name in self.activations],
            "saturated": [self._activity.get(name, (np.nan, np.nan))[1] for name in self.activations],
        }

    def evaluated(self, step: int, metrics: dict[str, float]) -> None:
        self.evaluations.append((step, metrics))

    def record(self) -> Record:
        names = sorted({name for _, metrics in self.evaluations for name in metrics})
        steps = np.arange(1, len(self.rows) + 1)
        losses, rates, clips, seconds, waits = np.array(self.rows, dtype=np.float64).T
        several = self.job.ranks > 1
        probed: dict[str, Any] = {name: np.array([probe[name] for probe in self.probes]) for name in self.probes[0]}
        return Record(
            facts=self.facts,
            series=Series(self.monitor.layers.names, steps, losses, np.array(self.norms), rates, clips, seconds, waits),
            probes=replace(Probes(self.monitor.layers.names, self.activations, np.array(self.probe_steps)), **probed),
            evaluations=Evaluations(
                np.array([step for step, _ in self.evaluations]),
                {name: np.array([m.get(name, np.nan) for _, m in self.evaluations]) for name in names},
            ),
            ranks=Ranks(steps, np.array(self.own).T, np.array(self.samples).T, np.array(self.losses).T)
            if several
            else Ranks(),
            checksums=Checksums(
                np.array([step for step, _ in self.checksums]),
                np.array([values for _, values in self.checksums], dtype=np.uint64),
            )
            if several
            else Checksums(),
            uncleared=self.uncleared,
        )


def _activity(module: nn.Module, output: Tensor) -> tuple[float, float]:
    """Share of units (last dimension, or channels of pictures) that gave 0 throughout; share of outputs with nearly no slope."""
    units = output.transpose(1, -1) if output.dim() == 4 else output
    silent = float((units.flatten(0, -2) == 0).all(0).float().mean())
    if isinstance(module, nn.Sigmoid):
        return silent, float((output * (1 - output) < FLAT_SIGMOID).float().mean())
    if isinstance(module, nn.Tanh):
        return silent, float((1 - output.square() < FLAT_TANH).float().mean())
    return silent, np.nan


def _checksum(model: nn.Module) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for parameter in model.parameters():
        digest.update(parameter.detach().reshape(-1).view(torch.uint8).numpy().tobytes())
    return int.from_bytes(digest.digest(), "little")


# --- facts that this file can tell by itself ---------------------------------------------------------------------------


def facts(job: Job, model: nn.Module, optimizer: torch.optim.Optimizer) -> Facts:
    head = job.train.first(8 * job.batch)
    group = optimizer.param_groups[0]
    inputs = head.inputs if head.inputs.is_floating_point() else None
    return Facts(
        layers=_layers(model, optimizer),
        inputs=tensor_facts(inputs) if inputs is not None else None,
        loss=_loss_facts(job, head.targets),
        total_steps=job.steps,
        warmup_steps=job.warmup_steps,
        steps_per_epoch=len(job.train) // min(job.batch, len(job.train)),
        batch_size=job.batch,
        world_size=job.ranks,
        optimizer=type(optimizer).__name__,
        learning_rate=group["lr"] * max(job.schedule(share / 100) for share in range(100)),
        momentum=group.get("momentum"),
        weight_decay=group.get("weight_decay"),
        schedule={str(share): group["lr"] * job.schedule(share) for share in (0, 0.01, 0.1, 1)},
        precision={torch.bfloat16: "bf16", torch.float16: "fp16"}.get(job.autocast or torch.float32, "fp32"),
        begins_trained=job.begins_trained,
    )


def _layers(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[LayerFacts, ...]:
    updated = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    found = []
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if not own:
            continue
        main = max(own, key=lambda parameter: parameter.numel()).detach()
        twins = None
        if main.dim() >= 2:
            twins = 1 - len(torch.unique(main.float().flatten(1), dim=0)) / len(main)
        found.append(
            LayerFacts(
                name,
                type(module).__name__,
                tuple(main.shape),
                main[0].numel() if main.dim() >= 2 else None,
                float(main.float().mean()),
                float(main.float().std()) if main.numel() > 1 else 0.0,
                twins,
                any(parameter.requires_grad for parameter in own),
                all(id(parameter) in updated for parameter in own if parameter.requires_grad),
                str(main.dtype).removeprefix("torch."),
            )
        )
    return tuple(found)


def tensor_facts(values: Tensor) -> TensorFacts:
    flat = values.float().flatten(1)
    finite = flat[flat.isfinite().all(1)]
    features = finite.std(0)
    return TensorFacts(
        dtype=str(values.dtype).removeprefix("torch."),
        shape=tuple(values.shape),
        least=float(finite.min()),
        largest=float(finite.max()),
        mean=float(finite.mean()),
        std=float(finite.std()),
        percentile_99=float(finite.abs().quantile(0.99)),
        largest_feature_mean=float(finite.mean(0).abs().max()),
        least_feature_std=float(features.min()),
        largest_feature_std=float(features.max()),
        nonfinite_rows=tuple(torch.nonzero(~flat.isfinite().all(1)).flatten()[:20].tolist()),
        rows=len(flat),
    )


def _loss_facts(job: Job, targets: Tensor) -> LossFacts:
    if not targets.is_floating_point():
        counts = torch.bincount(job.train.targets.flatten())
        shares = counts / counts.sum()
        entropy = float(-(shares[shares > 0] * shares[shares > 0].log()).sum())
        plain = job.loss is functional.cross_entropy
        return LossFacts(
            function="cross_entropy" if plain else None,
            classes=len(counts),
            class_counts=tuple(counts.tolist()),
            bound=0.0 if plain else None,
            constant=entropy if plain else None,
        )
    plain = job.loss is functional.mse_loss
    return LossFacts(
        function="mse_loss" if plain else None,
        target=tensor_facts(targets),
        bound=0.0 if plain else None,
        constant=float(targets[targets.isfinite().all(1)].var(0).mean()) if plain else None,
    )
