"""The same model trains on in one process group after another, whatever became of the last one."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import signal
import weakref
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._C._distributed_c10d import FileStore

from tests.distributed.processes import Processes
from workers import batches, parallel
from workers.process_group import ProcessGroup

pytestmark = pytest.mark.distributed

CPU = torch.device("cpu")
GROUP = ProcessGroup(CPU)
SAMPLES, FEATURES, STEPS = 12, 6, 3  # a generation has STEPS steps


def new_model() -> nn.Module:
    torch.manual_seed(1)
    # No bias before the norm: its gradient is nothing but rounding, which AdamW would make large.
    layers = [
        nn.Linear(FEATURES, 8, bias=False),
        nn.BatchNorm1d(8),
        nn.Tanh(),
        nn.Linear(8, 8),
        nn.Tanh(),
        nn.Linear(8, 1),
    ]
    return parallel.prepare(nn.Sequential(*layers), CPU)


def batch(step: int) -> Tensor:
    return torch.randn(SAMPLES, FEATURES, generator=torch.Generator().manual_seed(step))


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rank: int,
    world_size: int,
    generation: int,
    in_backward: Callable[[], None] | None = None,
    accumulate: bool = True,
) -> weakref.ref[nn.Module]:
    """One generation in a group that is there already. ``in_backward`` is called in the middle of its last backward pass."""
    wrapped = parallel.distribute(model, CPU, world_size, "ddp")
    assert parallel.plain(wrapped) is model
    try:
        for step in range(generation * STEPS, (generation + 1) * STEPS):
            halves = batch(step).split(SAMPLES // 2 if accumulate else SAMPLES)
            for number, half in enumerate(halves):
                mine = half[batches.share(range(len(half)), rank, world_size)]  # type: ignore[arg-type]
                last = number == len(halves) - 1
                with contextlib.nullcontext() if last else parallel.no_sync(wrapped):
                    loss = wrapped(mine).square().sum() * (world_size / SAMPLES)
                    if in_backward is not None and last and step == (generation + 1) * STEPS - 1:
                        middle = model.get_submodule("3").weight
                        middle.register_hook(lambda _: in_backward())  # type: ignore[operator]
                    loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    finally:
        parallel.dissolve(wrapped)
    return weakref.ref(wrapped)


def undisturbed(generations: int) -> dict[str, Tensor]:
    model = new_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    for generation in range(generations):
        train(model, optimizer, 0, 1, generation)
    return dict(model.state_dict())


def survivor(rank: int, world_size: int, store: str) -> tuple[dict[str, Tensor], list[bool]]:
    """Four generations of one model and its optimizer: two workers, each alone, two with swapped ranks, two again."""
    model = new_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    gone = []
    gc.disable()  # as it is while training
    try:
        for generation, size in enumerate((2, 1, 2, 2)):
            GROUP.leave()
            rank = 1 - rank if size == 2 else rank
            if size == 2:
                files = FileStore(f"{store}-{generation}", size)
                GROUP.join(rank, size, files, 30.0)
            wrapper = train(model, optimizer, rank if size == 2 else 0, size, generation)
            gone.append(size == 1 or wrapper() is None)
    finally:
        gc.enable()
    return dict(model.state_dict()), gone


def test_one_model_through_several_groups(processes: Processes, tmp_path: Path) -> None:
    """Catches hooks of an older wrapper, gradients that are views into its buckets, a world size that batch norm keeps, and
    buckets that stay in memory."""
    results = processes.run(2, tmp_path, survivor, str(tmp_path / "group"))
    expected = undisturbed(4)
    for state, gone in results:
        assert gone == [True] * 4
        for name, value in expected.items():
            torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(results[0][0][name], results[1][0][name]) for name in expected)


def test_no_gradient_and_no_hook_is_left(processes: Processes, tmp_path: Path) -> None:
    assert processes.run(2, tmp_path, backward_alone_after_a_group) == [(True, True)] * 2


def backward_alone_after_a_group(rank: int, world_size: int) -> tuple[bool, bool]:
    model = new_model()
    wrapped = parallel.distribute(model, CPU, world_size, "ddp")
    wrapped(batch(0)).sum().backward()
    old = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None for gradient in old)
    parallel.dissolve(wrapped)
    cleared = all(parameter.grad is None for parameter in model.parameters())
    GROUP.leave()  # an old hook would fail from here on
    parallel.distribute(model, CPU, 1, "ddp")
    kept = [gradient.clone() for gradient in old if gradient is not None]
    model(batch(1)).sum().backward()
    untouched = all(torch.equal(a, b) for a, b in zip(kept, old, strict=True) if b is not None)
    return cleared, untouched


# --- a peer that is killed in the middle of a backward pass -----------------------------------------------------------


def member(pipe: Connection, rank: int, store: str) -> None:
    """One of three workers; the last kills itself in its backward pass, the others go on as two."""
    torch.set_num_threads(1)
    model = new_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    GROUP.join(rank, 3, FileStore(f"{store}-0", 3), 30.0)

    def end() -> None:
        if rank == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    broken: list[
        RuntimeError
    ] = []  # its traceback keeps the old wrapper alive, as that of an error being reported would
    try:
        train(model, optimizer, rank, 3, 0, in_backward=end)
    except RuntimeError as error:
        broken.append(error)
    GROUP.leave()
    GROUP.join(rank, 2, FileStore(f"{store}-1", 2), 30.0)
    middle = model.get_submodule("3").weight
    middle._backward_hooks.clear()  # type: ignore[union-attr]
    train(model, optimizer, rank, 2, 1)
    GROUP.leave()
    pipe.send(
        pickle.dumps((str(broken[0]), dict(model.state_dict())))
    )  # plain pickle copies; the pipe's own would share memory


def test_a_backward_pass_that_broke_off_leaves_nothing(tmp_path: Path) -> None:
    context = get_context("spawn")
    pipes, members = [], []
    for rank in range(3):
        ours, theirs = context.Pipe()
        started = context.Process(target=member, args=(theirs, rank, str(tmp_path / "group")), daemon=True)
        started.start()
        theirs.close()
        pipes.append(ours)
        members.append(started)
    try:
        assert all(pipe.poll(60) for pipe in pipes[:2])
        (broke, one), (_, two) = (pickle.loads(pipe.recv()) for pipe in pipes[:2])
        members[2].join(10)
        assert members[2].exitcode == -signal.SIGKILL
    finally:
        for started in members:
            started.kill()
            started.join()
    assert broke, "the survivors' backward pass was to break off"
    assert all(torch.equal(one[name], two[name]) for name in one)
    for name, value in interrupted().items():
        torch.testing.assert_close(one[name], value, rtol=1e-4, atol=1e-5)


def interrupted() -> dict[str, Tensor]:
    """What the survivors should end with: the broken step was not made."""
    model = new_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)

    class Broke(Exception):
        pass

    def end() -> None:
        raise Broke

    with contextlib.suppress(Broke):
        train(model, optimizer, 0, 1, 0, in_backward=end)
    middle = model.get_submodule("3").weight
    middle._backward_hooks.clear()  # type: ignore[union-attr]
    train(model, optimizer, 0, 1, 1)
    return dict(model.state_dict())
