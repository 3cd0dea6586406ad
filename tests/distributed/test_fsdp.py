"""Split over the workers, a model trains as it does whole: the same curve, the same statistics, the same file at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.distributed.processes import Processes
from tests.distributed.test_worker_count import CASES, Case
from tests.distributed.toys import Points, Result, Toy, ToyTask, job, train_toy
from workers import batches, parallel, sharding
from workers.export import WEIGHTS, export_model
from workers.gradients import GradientMonitor
from workers.membership import MeetingPoint
from workers.reports import ReasonCode
from workers.spec import JobSpec, OptimizerName
from workers.weights import finite, full_state_dict, parameters_sha256

pytestmark = pytest.mark.distributed

CPU = torch.device("cpu")
# Of three workers the last has nothing of a matrix with four rows, and the shards of one with 16 are uneven.
WORKERS = 3


def every_layer_a_unit(
    rank: int, world_size: int, toy: Toy, spec: JobSpec, folder: Path, *rest: Any, meeting: MeetingPoint
) -> Result:
    sharding.SMALLEST_UNIT = 1
    return train_toy(rank, world_size, toy, spec, folder, *rest, meeting=meeting)  # type: ignore[misc]  # rest is short of it


every_layer_a_unit.forms_its_own_group = True  # type: ignore[attr-defined]  # told to Processes


def trained(processes: Processes, folder: Path, strategy: str, case: Case, *rest: Any) -> list[Result]:
    folder.mkdir()
    spec = job(training=dict(case.training), workers={"count": WORKERS, "strategy": strategy}, **case.parts)
    return processes.run(WORKERS, folder, every_layer_a_unit, case.toy, spec, folder, *rest)


ALL_CASES = {
    **CASES,
    "dropout": Case(Toy(dropout=0.3)),
    "bf16": Case(Toy(normalization=True), {"precision": "bf16", "accumulate": 2}),
}


@pytest.mark.parametrize("name", ALL_CASES)
def test_the_same_curve_as_with_ddp(processes: Processes, tmp_path: Path, name: str) -> None:
    """Catches gradients that are added instead of averaged, norms of shards taken for norms, accumulation that synchronises
    too often or never, and an evaluation that leaves a unit gathered."""
    whole, split = (trained(processes, tmp_path / strategy, strategy, ALL_CASES[name]) for strategy in ("ddp", "fsdp"))
    # DDP adds up, FSDP takes the mean: the passes differ by a factor of three, which bf16 rounds.
    rtol = 3e-3 if name == "bf16" else 1e-4
    for key in ("train/loss", "gradient/norm", "eval/loss"):
        np.testing.assert_allclose(
            split[0].memory.series(key), whole[0].memory.series(key), rtol=rtol, atol=1e-7, err_msg=key
        )
    assert split[0].memory.layers == whole[0].memory.layers
    for step, norms in whole[0].memory.norms.items():
        np.testing.assert_allclose(split[0].memory.norms[step], norms, rtol=rtol, atol=1e-3 if name == "bf16" else 1e-6)
    assert [result.read for result in split] == [result.read for result in whole]
    for digest in ("parameters_sha256", "gradients_sha256"):
        assert len({result.outcome.detail[digest] for result in split}) == 1, digest


@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_every_optimizer_works_on_parts(processes: Processes, tmp_path: Path, name: str) -> None:
    """Some of torch's kernels do not know sharded tensors."""
    optimizer = {"name": name, "learning_rate": 0.01, "weight_decay": 0.01}
    if name in ("sgd", "rmsprop"):
        optimizer["momentum"] = 0.9
    case = Case(training={"epochs": 1, "batch_size": 12}, parts={"optimizer": optimizer})
    whole, split = (trained(processes, tmp_path / strategy, strategy, case) for strategy in ("ddp", "fsdp"))
    for key in ("train/loss", "eval/loss"):
        np.testing.assert_allclose(split[0].memory.series(key), whole[0].memory.series(key), rtol=1e-4)


def test_a_stop_is_agreed_and_leaves_a_checkpoint(processes: Processes, tmp_path: Path) -> None:
    stopped = trained(processes, tmp_path / "run", "fsdp", Case(), 7, 1)
    assert [(r.outcome.code, r.outcome.detail["steps"]) for r in stopped] == [(ReasonCode.CANCELLED, 7)] * WORKERS
    assert [event["step"] for event in stopped[0].memory.found("checkpoint.saved")] == [7]


def test_the_finished_model_is_whole(processes: Processes, tmp_path: Path) -> None:
    results = trained(processes, tmp_path / "run", "fsdp", Case(Toy(normalization=True)))
    model = ToyTask(Toy(normalization=True)).model()
    model.load_state_dict(load_file(tmp_path / "run" / "model" / WEIGHTS))  # strict: every name, every shape
    assert {result.outcome.detail["parameters_sha256"] for result in results} == {parameters_sha256(model)}


# --- of parts and wholes ----------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Tied weights, a frozen layer, a parameter that gets no gradient, one of the model itself, batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([1.5]))
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(12, 5), nn.BatchNorm1d(5), nn.Linear(5, 12))])
        self.body = nn.Sequential(nn.Linear(12, 7), nn.Tanh(), nn.Linear(7, 12))
        self.one = nn.Sequential(nn.Linear(12, 12))
        self.other = nn.Sequential(nn.Linear(12, 12))
        self.other[0].weight = self.one[0].weight
        self.frozen = nn.Linear(12, 2).requires_grad_(False)
        self.unused = nn.Linear(12, 1)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        y: Tensor = self.frozen(self.other(self.one(self.body(x)))) * self.gain
        return y


def net() -> nn.Module:
    torch.manual_seed(4)
    return parallel.prepare(Net(), CPU)


def measured(rank: int, world_size: int, strategy: str) -> dict[str, Any]:
    sharding.SMALLEST_UNIT = 1
    wrapped = parallel.distribute(net(), CPU, world_size, strategy)  # type: ignore[arg-type]
    model = parallel.plain(wrapped)
    monitor = GradientMonitor(model, CPU)
    points = Points(9, seed=3).points
    wrapped(points[batches.share(np.arange(9), rank, world_size)]).square().sum().backward()
    norms = monitor.measure()
    monitor.scale(torch.tensor(0.5, dtype=torch.float64))
    held = sum(sharding.local(parameter).numel() for parameter in model.parameters())
    digest = parameters_sha256(model)
    state = {name: value.numpy().copy() for name, value in full_state_dict(model, keep=rank == 0).items()}
    was_finite = finite(model)
    if rank == world_size - 1:  # which has a part of this matrix only
        with torch.no_grad():
            sharding.local(model.get_parameter("body.0.weight"))[-1, -1] = float("inf")
    return {
        "layers": monitor.layers.names,
        "norms": norms.tolist(),
        "scaled": monitor.measure().tolist(),
        "held": held,
        "digest": digest,
        "state": state,
        "finite": [was_finite, finite(model)],
        "lockstep": parallel.lockstep(wrapped),
    }


@pytest.fixture(scope="module")
def parts(processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return processes.run(2, tmp_path_factory.mktemp("parts"), measured, "fsdp")


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    """The same of one worker with all samples: its gradients are the sum of what the two workers average."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "SMALLEST_UNIT", 1)
        return measured(0, 1, "fsdp")


def test_norms_of_parts_are_those_of_the_whole(parts: list[dict[str, Any]], whole: dict[str, Any]) -> None:
    for found in parts:
        assert found["layers"] == whole["layers"]
        assert found["norms"] == parts[0]["norms"]
        assert found["norms"] == pytest.approx([norm / 2 for norm in whole["norms"]], rel=1e-6)
        assert found["scaled"] == pytest.approx([norm / 2 for norm in found["norms"]], rel=1e-6)
        assert found["lockstep"]
    assert 0.0 in whole["norms"]  # nothing reached that one
    assert not whole["lockstep"]


def test_each_worker_holds_about_its_part(parts: list[dict[str, Any]], whole: dict[str, Any]) -> None:
    held = [found["held"] for found in parts]
    assert sum(held) == whole["held"]
    assert max(held) < 0.65 * whole["held"]


def test_weights_are_those_of_the_whole_model(parts: list[dict[str, Any]], whole: dict[str, Any]) -> None:
    first, second = parts
    assert second["state"] == {}
    assert list(first["state"]) == list(whole["state"])
    model = net()
    for name, value in first["state"].items():
        np.testing.assert_allclose(value, whole["state"][name], rtol=1e-6)
        if "running" not in name and "tracked" not in name:
            assert np.array_equal(value, model.state_dict()[name].numpy()), name


def test_the_digest_is_that_of_the_whole_model(parts: list[dict[str, Any]]) -> None:
    model = net()
    model.load_state_dict({name: torch.from_numpy(value) for name, value in parts[0]["state"].items()})
    assert {found["digest"] for found in parts} == {parameters_sha256(model)}


def test_all_workers_hear_of_one_weight_that_is_no_number(parts: list[dict[str, Any]]) -> None:
    assert [found["finite"] for found in parts] == [[True, False]] * 2


def test_what_every_worker_has_whole_counts_once(processes: Processes, tmp_path: Path) -> None:
    alone, other = processes.run(2, tmp_path, with_one_left_out)
    assert alone == other == pytest.approx([3.0, 5.0])


def with_one_left_out(rank: int, world_size: int) -> list[float]:
    from torch.distributed.fsdp import fully_shard

    model = nn.Sequential(nn.Linear(1, 4, bias=False), nn.Linear(4, 1, bias=False))
    fully_shard(model, ignored_params={model[0].weight})  # type: ignore[arg-type]
    for parameter, value in zip(model.parameters(), ([[1.5]] * 4, [[2.5] * 4]), strict=True):
        gradient = torch.tensor(value)
        if sharding.is_part(parameter):
            from torch.distributed.tensor import distribute_tensor

            assert hasattr(parameter, "device_mesh")
            gradient = distribute_tensor(gradient, parameter.device_mesh, parameter.placements)  # type: ignore[attr-defined]
        parameter.grad = gradient
    return GradientMonitor(model, CPU).measure().tolist()


def test_tied_weights_are_gathered_and_written_once(processes: Processes, tmp_path: Path) -> None:
    assert processes.run(2, tmp_path, exported, tmp_path) == [True, True]
    assert [name for name in load_file(tmp_path / "model" / WEIGHTS) if name.startswith(("one", "other"))] == [
        "one.0.bias",
        "one.0.weight",
        "other.0.bias",
    ]


def exported(rank: int, world_size: int, folder: Path) -> bool:
    model = parallel.distribute(net(), CPU, world_size, "fsdp")
    weights = full_state_dict(model)
    if rank == 0:
        export_model(folder / "model", weights, ToyTask(Toy()), job())
    return weights["one.0.weight"] is weights["other.0.weight"]


# --- which modules are gathered together ------------------------------------------------------------------------------


def names(model: nn.Module) -> list[str]:
    found = sharding.units(model)
    return [next(name for name, module in model.named_modules() if module is unit) for unit in found]


class Transformer(nn.Module):
    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4 * width, width)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(width, 2, 4 * width) for _ in range(layers))
        self.head = nn.Linear(width, 4 * width)


def test_a_transformers_blocks_are_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "SMALLEST_UNIT", 1000)
    assert names(Transformer(12, 16)) == [f"layers.{index}" for index in range(12)]
    assert names(Transformer(2, 16)) == ["layers.0", "layers.1"]  # larger than an eighth, but there is nothing to split
    monkeypatch.setattr(sharding, "SMALLEST_UNIT", 10_000)
    assert names(Transformer(12, 16)) == []  # 3,216 parameters each


def test_stages_are_split_into_blocks_and_small_layers_left_to_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "SMALLEST_UNIT", 100)

    def stage(width: int) -> nn.Sequential:
        return nn.Sequential(*(nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(10)))

    model = nn.Sequential(nn.Linear(3, 8), stage(8), stage(32))
    assert names(model) == ["1", *(f"2.{index}" for index in range(10))]  # 720 and 10 x 1,056 parameters


def test_modules_with_tied_weights_are_no_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """FSDP would make two parameters of one."""
    monkeypatch.setattr(sharding, "SMALLEST_UNIT", 1)
    assert names(Net()) == ["blocks.0.0", "blocks.0.1", "blocks.0.2", "body.0", "body.2"]


def test_a_unit_with_units_inside_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled must not gather parameters on its way."""
    monkeypatch.setattr(sharding, "SMALLEST_UNIT", 100)
    block = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32), nn.LayerNorm(200))  # the norm alone has 400
    model = nn.Sequential(nn.Sequential(block, nn.Linear(1, 1)))
    assert names(model) == ["0.0.0", "0.0.1", "0.0.2"]
    block.register_parameter("own", nn.Parameter(torch.zeros(500)))
    assert names(model) == ["0.0.0", "0.0.1", "0.0.2", "0.0"]
    assert sharding.compilable(model) == list(block)
    assert sharding.compilable(nn.Linear(2, 2))  # without units, all of it
