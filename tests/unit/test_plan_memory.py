"""The memory of a plan, against what a real step takes, and its rules for several workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from workers import optim
from workers.live_bytes import OPTIMIZER, WEIGHTS, LiveBytes
from workers.plan_memory import Layout, advice, memory, table
from workers.simulation import Simulation, Step, simulate
from workers.spec import JobSpec, parse_spec
from workers.tasks import build_task
from workers.tasks.base import Dataset, Task

pytestmark = pytest.mark.unit


def job(model: dict[str, Any], batch_size: int, **parts: Any) -> JobSpec:
    task = {"kind": "image_classification", "data": {"source": "digits"}, "model": model}
    return parse_spec({"name": "x", "task": task, "training": {"batch_size": batch_size}, **parts})


MODELS = {
    "mlp": job({"architecture": "mlp", "hidden": [512, 512]}, 128),
    "mlp, sgd": job({"architecture": "mlp", "hidden": [256]}, 64, optimizer={"name": "sgd", "momentum": 0.9}),
    "cnn": job({"architecture": "cnn", "channels": [32, 64]}, 128),
    "resnet": job(
        {"architecture": "resnet",
         "config": {"hidden_sizes": [64, 128], "depths": [1, 1], "embedding_size": 32, "layer_type": "basic"}}, 64,
    ),
    "vit": job(
        {"architecture": "vit",
         "config": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "patch_size": 2}},
        64,
    ),
}  # fmt: skip


def measured_peak(task: Task, dataset: Dataset, spec: JobSpec) -> int:
    """Bytes: weights, optimizer state and batch, and what torch's allocator gave out besides at most during a step, kernels' workspaces
    included, as torch's profiler has it. The second step, when the optimizer has its state.

    With one thread: where a processor has AVX2 alone, oneDNN's convolutions take a workspace for every thread, which with two is
    nearly as large as all that a small network keeps."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return measured_peak_of_a_thread(task, dataset, spec)
    finally:
        torch.set_num_threads(threads)


def measured_peak_of_a_thread(task: Task, dataset: Dataset, spec: JobSpec) -> int:
    batch = dataset.batch(range(spec.training.batch_size), seed=0)
    model = task.model().train()
    optimizer = optim.build_optimizer(spec.optimizer, model.parameters(), torch.device("cpu"))

    def step() -> None:
        task.loss(model, batch)[0].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    states = [
        value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)
    ]
    held = sum(each.nbytes for each in (*model.parameters(), *model.buffers(), *states, *batch.values()))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    results: Any = profiled.profiler
    events = [each for each in results.kineto_results.events() if each.name() == "[memory]"]
    live = most = 0
    for each in sorted(events, key=lambda event: event.start_ns()):
        live += each.nbytes()
        most = max(most, live)
    return held + most


@pytest.mark.parametrize("name", MODELS)
def test_predicted_memory_is_within_a_fifth_of_what_a_step_takes(name: str) -> None:
    spec = MODELS[name]
    task = build_task(spec.task, 0)
    data = task.datasets().train
    found = simulate(task, data, spec, spec.training.batch_size)
    assert not found.real
    predicted = memory(found, Layout("ddp", 1, 1, spec.training.batch_size), 0).tensors
    assert predicted == pytest.approx(measured_peak(task, data, spec), rel=0.2)


def assert_predicted(task: dict[str, Any], batch_size: int) -> None:
    spec = parse_spec({"name": "x", "task": task, "training": {"batch_size": batch_size}})
    built = build_task(spec.task, 0)
    data = built.datasets().train
    found = simulate(built, data, spec, batch_size)
    predicted = memory(found, Layout("ddp", 1, 1, batch_size), 0).tensors
    assert predicted == pytest.approx(measured_peak(built, data, spec), rel=0.2)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_memory_of_a_language_model(architecture: str) -> None:
    """From a few samples to three times as many: what does not grow with them would be taken for what does."""
    model = {"architecture": architecture, "layers": 2, "heads": 4, "width": 96}
    docs = Path(__file__).parents[2] / "docs"
    data = {"source": "text", "path": str(docs)}
    task = {"kind": "language_model", "data": data, "tokenizer": {"kind": "char"}, "model": model, "block_size": 64}
    assert_predicted(task, 12)


@pytest.mark.shared_data
def test_memory_of_a_structure_model(shared_data: Path) -> None:
    folder = shared_data / "proteins"
    data = {"path": str(folder / "train"), "clusters": str(folder / "train.csv"), "crop_size": 32}
    model = {"blocks": 1, "single_width": 64, "pair_width": 32, "structure_iterations": 2, "recycling": 0}
    assert_predicted({"kind": "protein_structure", "data": data, "model": model}, 8)


def test_bytes_are_counted_as_long_as_they_live() -> None:
    """By hand: 3 x 4 weights and 4 biases of 4 bytes; an input of 2 x 3, outputs of 2 x 4."""
    model = nn.Linear(3, 4)
    live = LiveBytes()
    live.hold(model.parameters(), WEIGHTS)
    live.hold([torch.zeros(5, dtype=torch.float64)], OPTIMIZER)
    live.watch_gradients(model)
    with live:
        values = torch.ones(2, 3)
        outputs = model(values)
        view = outputs.view(8)  # the same bytes
        assert (live.peak.weights, live.peak.activations) == (64, 24 + 32)
        del outputs, values
        view.sum().backward()
    assert live.peak.gradients <= 64
    assert live.most_activations <= 24 + 32 + 4 + 4 + 32 + 64


class Selective:
    """A task that asks for values: how many labels there are of one kind."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def loss(self, model: nn.Module, batch: Any) -> Any:
        chosen = batch["labels"] < 20
        assert int(chosen.sum()) > 0
        return self._task.loss(model, {name: value[chosen] for name, value in batch.items()})


def test_a_loss_that_needs_values_is_computed_for_real_with_few_samples() -> None:
    spec = MODELS["cnn"]
    task = build_task(spec.task, 0)
    data = task.datasets().train
    found = simulate(Selective(task), data, spec, 128)
    assert found.real
    assert found.full.samples == 4
    layout = Layout("ddp", 1, 1, 128)
    assert memory(found, layout, 0).tensors == pytest.approx(measured_peak(task, data, spec), rel=0.3)


def a_step(samples: int) -> Step:
    from workers.live_bytes import Bytes

    return Step(samples, Bytes(1000, 500, 2000, 10 + samples * 100), 10 + samples * 120, samples, 100, samples * 7)


FOUND = Simulation(250, 250, 1000, 1000, 2000, 100, 300, a_step(8), a_step(4), False)


def test_memory_of_layouts_by_hand() -> None:
    alone = memory(FOUND, Layout("ddp", 1, 1, 8), 5)
    found = (alone.weights, alone.gradients, alone.optimizer, alone.activations, alone.buffers, alone.process)
    assert found == (1000, 500, 2000, 810, 0, 5)
    assert (alone.total, alone.tensors) == (4315, 4310)
    few = memory(FOUND, Layout("ddp", 1, 1, 1), 0)
    assert few.gradients + few.activations == 1000  # at the end of the backward pass all gradients are there
    several = memory(FOUND, Layout("ddp", 2, 1, 8), 0)
    assert (several.gradients, several.activations) == (1000, 10 + 4 * 120)
    split = memory(FOUND, Layout("fsdp", 4, 1, 16), 0)
    assert (split.weights, split.gradients, split.optimizer) == (250, 250, 500)
    assert split.buffers == 2 * 100 + 4 * 300
    adding_up = memory(FOUND, Layout("fsdp", 4, 2, 16), 0)
    assert adding_up.gradients == 1000  # whole on each worker while microbatches are added up
    assert Layout("ddp", 3, 2, 10).microbatch == 2
    assert Layout("ddp", 3, 2, 8).microbatch == 2


def test_advice_names_the_least_change_that_fits() -> None:
    asked = Layout("ddp", 1, 1, 64)
    fitting = memory(FOUND, Layout("ddp", 1, 4, 64), 0).total
    needs, *ways = advice(FOUND, asked, 0, fitting, "workers.memory")
    assert needs.startswith("Does not fit")
    assert "training.accumulate 4 (microbatches of 16)" in ways[0]
    assert advice(FOUND, asked, 0, 10**6, "workers.memory") == []
    assert advice(FOUND, asked, 0, None, "") == []
    hopeless = advice(FOUND, asked, 0, 100, "workers.memory")
    assert "Nothing up to 64 workers does" in hopeless[1]
    sharded = Layout("fsdp", 2, 1, 64)
    assert "ddp fits as well" in advice(FOUND, sharded, 0, 10**6, "workers.memory")[0]


def test_the_table_has_no_layout_that_cannot_be() -> None:
    rows = table(FOUND, Layout("ddp", 2, 2, 8), 0, 10**6)
    assert [(row["strategy"], row["workers"]) for row in rows] == [
        ("ddp", 2), ("ddp", 1), ("fsdp", 2), ("ddp", 4), ("fsdp", 4)
    ]  # fmt: skip
    assert all(row["fits"] for row in rows)
