"""One worker's model and optimizer become those of all, bit for bit; and a step that broke off can be done again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.distributed.processes import Processes
from workers import checkpoints, handover, parallel
from workers.handover import BufferKeeper, hand_over
from workers.optim import build_optimizer
from workers.spec import Optimizer, OptimizerName

pytestmark = pytest.mark.distributed

CPU = torch.device("cpu")
STEPS = 4  # that the source has done
Role = Literal["source", "same", "behind", "new"]
ROLES: tuple[Role, ...] = ("same", "new", "source", "behind")  # by rank


class Net(nn.Module):
    """Tied and frozen weights, a scalar, a matrix that does not lie in memory in order, and buffers of several kinds."""

    average: Tensor
    counts: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(40, 30), nn.BatchNorm1d(30), nn.Tanh(), nn.Linear(30, 40))
        self.mix = nn.Parameter(torch.randn(40, 24).t())
        self.gain = nn.Parameter(torch.tensor(1.5))
        self.head, self.tied = nn.Linear(24, 24), nn.Linear(24, 24)
        self.tied.weight = self.head.weight
        self.frozen = nn.Linear(24, 5).requires_grad_(False)
        self.register_buffer("average", torch.zeros(24, 40, dtype=torch.bfloat16))
        self.register_buffer("counts", torch.zeros(300, dtype=torch.int64))
        self.register_buffer("seen", torch.zeros(200, dtype=torch.bool))
        self.register_buffer("nothing", torch.zeros(0))
        self.register_buffer("own", torch.zeros(50), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.average.lerp_(self.mix.bfloat16(), 0.5)
                self.counts += torch.arange(300) + (1 << 40)  # a float would not hold it
                self.seen[int(self.counts[1]) % 1000 * 10 :] = True
        y: Tensor = self.frozen(self.tied(self.head((x + self.body(x)) @ self.mix.t()))) * self.gain
        return y


def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    x = torch.randn(16, 40, generator=torch.Generator().manual_seed(number))
    model(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def built(name: str, seed: int, steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = parallel.prepare(Net(), CPU)
    momentum = 0.9 if name in ("sgd", "rmsprop") else None
    spec = Optimizer.model_validate({"name": name, "learning_rate": 0.05, "momentum": momentum})
    optimizer = build_optimizer(spec, model.parameters(), CPU)
    for number in range(steps):
        step(model, optimizer, number)
    return model, optimizer


def built_as(role: Role, name: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A new worker's weights are another's, so that what it keeps of them would be seen."""
    seed, steps = {"source": (1, STEPS), "same": (1, STEPS), "behind": (1, STEPS - 1), "new": (2, 0)}[role]
    return built(name, seed, steps)


def bits(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Everything there is, by name; floats as their bits."""
    tensors, values = checkpoints.tensors_of(model, optimizer)
    # Views of bytes need memory in order, and scalars have no bytes to view.
    raw = {name: t.detach().contiguous().reshape(-1).view(torch.uint8).tolist() for name, t in tensors.items()}
    kinds = {
        f"{name} is": (str(tensor.dtype), tuple(tensor.shape), str(tensor.device)) for name, tensor in tensors.items()
    }
    return {**raw, **kinds, **values}


def places(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Where each tensor lies in memory."""
    return {name: tensor.data_ptr() for name, tensor in checkpoints.tensors_of(model, optimizer)[0].items()}


def handed(rank: int, world_size: int, name: str, chunk_bytes: int) -> dict[str, Any]:
    role = ROLES[rank]
    model, optimizer = built_as(role, name)
    before, lay = bits(model, optimizer), places(model, optimizer)
    document = {"step": STEPS} if role == "source" else {}
    kept, handover.CHUNK_BYTES = handover.CHUNK_BYTES, chunk_bytes
    try:
        told = hand_over(
            model,
            optimizer,
            document,
            rank=rank,
            source=ROLES.index("source"),
            same=role == "same",
            device=CPU,
            group=None,
        )
    finally:
        handover.CHUNK_BYTES = kept
    after, stayed = bits(model, optimizer), places(model, optimizer) == lay
    step(model, optimizer, STEPS)
    return {
        "before": before,
        "after": after,
        "told": told,
        "stayed": stayed,
        "next": bits(model, optimizer),
        "tied": model.get_parameter("tied.weight") is model.get_parameter("head.weight"),
    }


@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_all_have_what_the_source_has(processes: Processes, tmp_path: Path, name: str) -> None:
    """And go on alike: catches state that belongs to another parameter, or that two tensors share. In chunks of 2,000 bytes some tensors travel
    together, and others are larger than a chunk."""
    results = processes.run(len(ROLES), tmp_path, handed, name, 2000)
    source = results[ROLES.index("source")]
    for role, found in zip(ROLES, results, strict=True):
        assert (found["before"] == source["before"]) == (role in ("source", "same"))
        assert differences(found["after"], source["before"]) == [], role
        assert differences(found["next"], source["next"]) == [], role
        assert found["told"] == {"step": STEPS}
        assert found["tied"]
        if role in ("source", "same"):
            assert found["stayed"], f"{role} is left alone"


@pytest.mark.parametrize("chunk_bytes", [1, 300, handover.CHUNK_BYTES])
def test_chunks_of_any_size_carry_the_same(processes: Processes, tmp_path: Path, chunk_bytes: int) -> None:
    results = processes.run(len(ROLES), tmp_path, handed, "adamw", chunk_bytes)
    for found in results:
        assert differences(found["after"], results[ROLES.index("source")]["before"]) == []


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    return [name for name in sorted({*found, *wanted}) if found.get(name) != wanted.get(name)]


@pytest.mark.parametrize("sent", [0, 1, 5])
def test_what_breaks_off_leaves_those_who_had_it_already(processes: Processes, tmp_path: Path, sent: int) -> None:
    """The new worker is lost after so many messages. Whoever stands where the source does can go on with another one."""
    results = processes.run(len(ROLES), tmp_path, broken_off, "adamw", sent)
    assert results[ROLES.index("new")][0]
    for role, (_, before, after) in zip(ROLES, results, strict=True):
        if role in ("source", "same"):
            assert differences(after, before) == [], role


class LostError(Exception):
    pass


def broken_off(rank: int, world_size: int, name: str, sent: int) -> tuple[bool, dict[str, Any], dict[str, Any]]:
    """(whether it noticed, what it had before, what it has after)."""
    role = ROLES[rank]
    model, optimizer = built_as(role, name)
    before, broadcast, count = bits(model, optimizer), dist.broadcast, 0

    def until_it_is_lost(*arguments: Any, **named: Any) -> Any:
        nonlocal count
        if count == sent and role == "new":
            raise LostError
        count += 1
        return broadcast(*arguments, **named)

    kept, handover.CHUNK_BYTES = handover.CHUNK_BYTES, 2000
    dist.broadcast = until_it_is_lost
    try:
        source = ROLES.index("source")
        hand_over(model, optimizer, {}, rank=rank, source=source, same=role == "same", device=CPU, group=None)
        return False, before, bits(model, optimizer)
    except (LostError, RuntimeError):
        return True, before, bits(model, optimizer)
    finally:
        # What calls this leaves the group, which frees the others.
        dist.broadcast, handover.CHUNK_BYTES = broadcast, kept


# --- a step that breaks off -------------------------------------------------------------------------------------------


class Replacing(nn.Module):
    """Puts a new tensor in the place of a buffer at each pass, as some models do. torch's own norm does not count its changes."""

    total: Tensor
    own: Tensor
    absent: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("total", torch.zeros(3))
        self.register_buffer("constant", torch.ones(3))
        self.register_buffer("absent", None)
        self.register_buffer("own", torch.zeros(3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.total = self.total + x.sum(0)
        self.own.add_(1)
        y: Tensor = self.norm(x)
        return y


def buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def batch(number: int) -> Tensor:
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(number))


def test_buffers_are_put_back_as_they_were_when_the_step_began() -> None:
    model, undisturbed = Replacing(), Replacing()
    keeper = BufferKeeper(model)
    for number in range(3):
        keeper.keep()
        model(batch(number))
        undisturbed(batch(number))
    keeper.keep()
    began = buffers(model)
    model(batch(77))
    model(batch(78))  # the second microbatch
    assert not same(buffers(model), began)
    keeper.put_back()
    assert same(buffers(model), began)
    assert model.absent is None
    for number in range(3, 6):  # once more and on: nothing of what was put back is an alias of what is kept
        keeper.keep()
        model(batch(number))
        undisturbed(batch(number))
        assert same(buffers(model), buffers(undisturbed))
    keeper.put_back()
    assert not same(buffers(model), buffers(undisturbed))
    model(batch(5))
    assert same(buffers(model), buffers(undisturbed))


def test_a_step_can_break_off_again_and_again() -> None:
    model = Replacing()
    keeper = BufferKeeper(model)
    model(batch(0))
    keeper.keep()
    began = buffers(model)
    for number in range(1, 4):
        model(batch(number))
        keeper.put_back()
        assert same(buffers(model), began)
        keeper.keep()


def test_only_what_a_step_changed_is_copied() -> None:
    """A model may have large buffers that never change, and a step little time."""
    model = Replacing()
    keeper = BufferKeeper(model)

    def copies() -> dict[str, tuple[int, int]]:
        found = zip(keeper._slots, keeper._kept, strict=True)
        return {name: (id(kept[2]), kept[2]._version) for (_, name), kept in found if kept is not None}

    keeper.keep()
    first = copies()
    model(batch(0))
    keeper.keep()
    second = copies()
    assert second["constant"] == first["constant"]
    assert all(second[name] != first[name] for name in ("total", "own", "running_mean", "num_batches_tracked"))
    keeper.keep()
    assert all(copies()[name] == second[name] for name in ("constant", "total", "own"))


def test_a_buffer_that_changes_its_shape() -> None:
    model = Replacing()
    keeper = BufferKeeper(model)
    keeper.keep()
    model.total = torch.arange(5.0)
    keeper.keep()
    model.total = torch.zeros(7)
    keeper.put_back()
    assert torch.equal(model.total, torch.arange(5.0))
