"""Probes say what plain autograd says, tensor by tensor, on several workers too, and leave no trace in what is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.distributed.processes import Processes
from tests.distributed.toys import CLASSES, FEATURES, Memory, Result, Toy, ToyTask, context_in, job, train_toy
from workers import batches, optim, sharding
from workers.membership import Alone, MeetingPoint
from workers.spec import JobSpec
from workers.train import run
from workers.watch.record import Probes

pytestmark = pytest.mark.distributed

STEPS = 7
BATCH = 12


class Net(nn.Module):
    """An embedding, a frozen layer, weights that two layers share, dead units, channels, an activation that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, FEATURES)
        self.frozen = nn.Linear(FEATURES, FEATURES).requires_grad_(False)
        self.convolution = nn.Conv1d(1, 3, 3, padding=1)
        self.filters = nn.ReLU()
        self.wide = nn.Linear(3 * FEATURES, 10)
        self.units = nn.ReLU(inplace=True)
        self.one, self.other = nn.Linear(10, 10), nn.Linear(10, 10)
        self.other.weight = self.one.weight
        self.squash = nn.Tanh()
        self.norm = nn.LayerNorm(10)
        self.head = nn.Linear(10, CLASSES)
        with torch.no_grad():
            self.wide.bias[:4] = -100.0
            self.one.weight.mul_(20)

    def forward(self, x: Tensor) -> Tensor:
        ids = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
        y = self.frozen(x) + self.embedding(ids)
        y = self.filters(self.convolution(y.unsqueeze(1))).flatten(1)
        y = self.units(self.wide(y))
        y = self.squash(self.other(self.squash(self.one(y))))
        logits: Tensor = self.head(self.norm(y))
        return logits


class NetTask(ToyTask):
    def model(self) -> nn.Module:
        return Net()


def train_net(rank: int, world_size: int, spec: JobSpec, folder: Path, *, meeting: MeetingPoint = None) -> Result:
    sharding.SMALLEST_UNIT = 1
    memory = Memory()
    context = context_in(folder, memory, Alone(rank, world_size, store=meeting))
    return Result(run(NetTask(Toy()), spec, context), memory, [])


train_net.forms_its_own_group = True  # type: ignore[attr-defined]  # told to Processes


def net_job(workers: int, strategy: str, budget: float, **optimizer: Any) -> JobSpec:
    return job(
        training={"epochs": None, "steps": STEPS, "batch_size": BATCH, "accumulate": 2, "clip_norm": 0.5},
        workers={"count": workers, "strategy": strategy},
        optimizer={"name": "adamw", "learning_rate": 0.003, "weight_decay": 0.1, **optimizer},
        gradients={"overhead_budget": budget},
    )


# --- by hand ----------------------------------------------------------------------------------------------------------


def by_hand(spec: JobSpec) -> dict[str, Any]:
    """The same training in one process, with what each step's tensors show."""
    task = NetTask(Toy())
    batches.seed_everything(spec.training.seed)
    model = task.model()
    optimizer = optim.build_optimizer(spec.optimizer, model.parameters(), torch.device("cpu"))
    plan = batches.plan_of(spec, 50)
    layers: dict[str, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            layers.setdefault(name.rpartition(".")[0], []).append((name, parameter))
    rows: list[dict[str, dict[str, float]]] = []
    active: list[dict[str, float]] = []
    for step in range(STEPS):
        optim.set_learning_rate(optimizer, spec.optimizer.learning_rate)
        batch = task.train.batch(plan.step_indices(step).tolist(), seed=0)
        seen: dict[str, list[Tensor]] = {"filters": [], "units": [], "squash": []}
        hooks = [
            getattr(model, name).register_forward_hook(lambda m, i, o, into=into: into.append(o.detach().clone()))
            for name, into in seen.items()
        ]
        F.cross_entropy(model(batch["x"]), batch["y"]).backward()
        for hook in hooks:
            hook.remove()
        active.append(
            {
                "filters": (seen["filters"][0] == 0).all(2).all(0).float().mean().item(),
                "units": (seen["units"][0] == 0).all(0).float().mean().item(),
                "squash": torch.cat([1 - y.square() < 0.01 for y in seen["squash"]]).float().mean().item(),
            }
        )
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        nn.utils.clip_grad_norm_(model.parameters(), spec.training.clip_norm or 1e9)
        optimizer.step()
        optimizer.zero_grad()
        rows.append({layer: _shown(layer, owned, gradients, before, optimizer) for layer, owned in layers.items()})
    return {"rows": rows, "active": active, "layers": tuple(layers)}


def _shown(
    layer: str,
    owned: list[tuple[str, nn.Parameter]],
    gradients: dict[str, Tensor],
    before: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> dict[str, float]:
    def norm(tensors: list[Tensor]) -> float:
        return torch.cat([tensor.flatten().double() for tensor in tensors]).norm().item() if tensors else float("nan")

    every = torch.cat([gradients[name].flatten() for name, _ in owned])
    weight = next((gradients[name] for name, _ in owned if name.endswith("weight")), None)
    units = layer in ("convolution", "wide", "one", "head") and weight is not None
    states = [optimizer.state[p] for _, p in owned]
    exponents = torch.floor(torch.log2(every[every != 0].abs())).clamp(-40, 7).long() + 40
    counts = torch.bincount(exponents, minlength=48).double()
    return {
        "weight_norms": norm([before[name] for name, _ in owned]),
        "update_ratios": norm([p.detach() - before[name] for name, p in owned])
        / norm([before[name] for name, _ in owned]),
        "zero_shares": (every == 0).double().mean().item(),
        "zero_rows": (weight.flatten(1) == 0).all(1).double().mean().item() if units else float("nan"),  # type: ignore[union-attr]
        "largest": every.abs().max().item(),
        "nonfinite": 0.0,
        "first_moments": norm([s[k] for s in states for k in ("exp_avg", "momentum_buffer") if k in s]),
        "second_moments": norm([s["exp_avg_sq"] for s in states if "exp_avg_sq" in s]),
        "bins": (counts / counts.sum()).numpy(),  # type: ignore[dict-item]
    }


@pytest.mark.parametrize("optimizer", [{}, {"name": "sgd", "momentum": 0.9}], ids=["adamw", "sgd"])
@pytest.mark.parametrize(("workers", "strategy"), [(1, "ddp"), (2, "ddp"), (2, "fsdp"), (3, "fsdp")])
def test_what_autograd_says(
    processes: Processes, tmp_path: Path, workers: int, strategy: str, optimizer: dict[str, Any]
) -> None:
    """Accumulation and clipping are on. Catches norms of shards taken for norms, shared parameters that count twice, gradients after clipping,
    units that are silent on one worker only, stand-ins that count."""
    spec = net_job(workers, strategy, 1.0, **optimizer)
    results = processes.run(workers, tmp_path, train_net, spec, tmp_path)
    memory = results[0].memory
    probes: Probes = memory.probed()
    expected = by_hand(spec)
    assert probes.steps.tolist() == list(range(1, STEPS + 1))
    assert probes.layers == expected["layers"]
    assert probes.activations == ("filters", "units", "squash")
    for step, row in enumerate(expected["rows"]):
        for column, layer in enumerate(probes.layers):
            for name in set(row[layer]) - {"bins"}:
                found = getattr(probes, name)[step, column]
                np.testing.assert_allclose(
                    found, row[layer][name], rtol=1e-3, atol=1e-9, err_msg=f"{step} {layer} {name}"
                )
    for step, active in enumerate(expected["active"]):
        np.testing.assert_allclose(probes.silent[step], [active["filters"], active["units"], np.nan], rtol=1e-6)
        np.testing.assert_allclose(probes.saturated[step], [np.nan, np.nan, active["squash"]], rtol=1e-6)
    assert probes.silent[0, 1] >= 0.4
    assert np.nanmax(probes.saturated) > 0
    histograms = memory.probe_histograms()
    for step, row in enumerate(expected["rows"]):
        for column, layer in enumerate(probes.layers):
            # An element at the border of two bins may fall to either side.
            difference = np.abs(histograms[step, column] - row[layer]["bins"]).sum()
            assert difference < 0.05, (step, layer)


@pytest.mark.parametrize(("workers", "strategy"), [(1, "ddp"), (2, "ddp"), (2, "fsdp")])
def test_watching_changes_nothing(processes: Processes, tmp_path: Path, workers: int, strategy: str) -> None:
    watched, alone = (
        processes.run(workers, tmp_path, train_net, net_job(workers, strategy, budget), tmp_path / str(budget))
        for budget in (1.0, 0.0)
    )
    assert len(watched[0].memory.probe_rows) == STEPS
    assert not alone[0].memory.probe_rows
    for digest in ("parameters_sha256", "gradients_sha256"):
        assert {result.outcome.detail[digest] for result in (*watched, *alone)} == {
            watched[0].outcome.detail[digest]
        }, digest


def test_series_and_cost(processes: Processes, tmp_path: Path) -> None:
    result = processes.run(1, tmp_path, train_net, net_job(1, "ddp", 1.0), tmp_path)[0]
    last = result.memory.rows[STEPS]
    assert 1e-4 < last["probe/update_ratio_median"] <= last["probe/update_ratio_max"]
    assert last["probe/zero_rows_max"] >= 0.4  # of ten units four are dead
    assert last["probe/silent_max"] >= 0.4
    assert last["watch/cost_share"] > 0
    assert result.memory.probed().cost_share == pytest.approx(last["watch/cost_share"])


def test_all_workers_probe_at_the_same_steps(processes: Processes, tmp_path: Path) -> None:
    """Their clocks differ: the first rank's counts. A collective that only some took part in would hang."""
    spec = job(
        training={"epochs": None, "steps": 60, "batch_size": 12},
        workers={"count": 2},
        gradients={"overhead_budget": 0.5},
    )
    memory = processes.run(2, tmp_path, train_toy, Toy(), spec, tmp_path)[0].memory
    assert {1, 2, 3, 5, 10, 20, 50} < set(memory.probe_rows)


def test_a_run_that_goes_on_keeps_its_rows(processes: Processes, tmp_path: Path) -> None:
    """Probed again only from where it stopped on; judged by all."""
    spec = job(training={"epochs": None, "steps": 30, "batch_size": 12}, gradients={"overhead_budget": 1.0})
    first = processes.run(1, tmp_path, train_toy, Toy(), spec, tmp_path, 12)[0].memory
    second = processes.run(1, tmp_path, train_toy, Toy(), spec, tmp_path)[0].memory
    assert (max(first.probe_rows), min(second.probe_rows), max(second.probe_rows)) == (12, 13, 30)


def test_compiled_models_have_no_hooks(processes: Processes, tmp_path: Path) -> None:
    spec = job(
        training={"epochs": None, "steps": 6, "batch_size": 12, "compile": True},
        gradients={"overhead_budget": 1.0},
        workers={"count": 1},
    )
    memory = processes.run(1, tmp_path, train_toy, Toy(), spec, tmp_path)[0].memory
    assert memory.probed().activations == ()
    assert len(memory.probe_rows) == 6
    assert memory.found("watch.activations_skipped")
