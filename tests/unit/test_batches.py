"""The order of samples: the same for any number of workers, each sample once an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workers.batches import Plan, Prefetcher, microbatches, seed_everything, share, step_seed
from workers.tasks.base import BadDataError, Batch

pytestmark = pytest.mark.unit

SIZES = st.tuples(st.integers(1, 60), st.integers(1, 5), st.integers(1, 4))  # samples of a step, workers, accumulate


@given(st.integers(1, 200), st.integers(1, 64), st.integers(0, 2**63 - 1), st.integers(0, 3))
def test_an_epoch_has_every_sample_once(samples: int, batch_size: int, seed: int, epoch: int) -> None:
    """Catches a dropped last batch, an overlap of slices and a permutation that runs on over the epoch's end."""
    plan = Plan(samples, batch_size, seed, steps=10**6)
    first = epoch * plan.steps_per_epoch
    steps = [plan.step_indices(step) for step in range(first, first + plan.steps_per_epoch)]
    assert sorted(np.concatenate(steps).tolist()) == list(range(samples))
    assert all(len(step) == batch_size for step in steps[:-1])
    assert all(plan.epoch(step) == epoch for step in range(first, first + plan.steps_per_epoch))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        plan = Plan(100, 100, seed, steps=10)
        return list(plan.step_indices(epoch))

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


@given(SIZES)
def test_workers_share_a_step_without_loss_or_overlap(sizes: tuple[int, int, int]) -> None:
    """Catches a sample that two workers take, one that nobody takes, and a worker that gets much more than the others."""
    samples, world_size, accumulate = sizes
    indices = np.random.default_rng(0).permutation(1000)[:samples]
    taken = [
        [part for part in microbatches(indices, rank, world_size, accumulate) if part.weight]
        for rank in range(world_size)
    ]
    counts = [sum(len(part.indices) for part in parts) for parts in taken]
    everything = np.concatenate([part.indices for parts in taken for part in parts])
    assert sorted(everything.tolist()) == sorted(indices.tolist())
    assert max(counts) - min(counts) <= 1


@given(SIZES)
def test_each_microbatch_has_the_same_samples_for_any_number_of_workers(sizes: tuple[int, int, int]) -> None:
    """Batch norm sees a microbatch of all workers together, so its samples must not depend on their number.

    Catches sharing out first and splitting into microbatches afterwards.
    """
    samples, world_size, accumulate = sizes
    indices = np.random.default_rng(1).permutation(1000)[:samples]
    alone = [part.indices.tolist() for part in microbatches(indices, 0, 1, accumulate)]
    shares = [microbatches(indices, rank, world_size, accumulate) for rank in range(world_size)]
    assert {len(parts) for parts in shares} == {len(alone)}  # so that all ranks join the same collectives
    for number, whole in enumerate(alone):
        together = [parts[number].indices.tolist() for parts in shares if parts[number].weight]
        assert sorted(chain.from_iterable(together)) == sorted(whole)


def test_an_empty_share_gets_a_stand_in_that_counts_nothing() -> None:
    parts = [microbatches(np.array([7, 3]), rank, 3, 1) for rank in range(3)]
    assert [[(part.indices.tolist(), part.weight) for part in rank] for rank in parts] == [
        [([7], 1.0)],
        [([3], 1.0)],
        [([7], 0.0)],
    ]


def test_a_share_is_contiguous() -> None:
    assert [share(np.arange(7), rank, 3).tolist() for rank in range(3)] == [[0, 1, 2], [3, 4], [5, 6]]


def test_a_seed_for_each_step_and_rank() -> None:
    seeds = {step_seed(seed, step, rank) for seed in (0, 2**63 - 1) for step in range(50) for rank in range(3)}
    assert len(seeds) == 300
    assert all(0 <= seed < 2**63 for seed in seeds)
    seed_everything(step_seed(0, 1, 2))
    first = (torch.rand(3).tolist(), np.random.rand(), torch.rand(1).item())
    seed_everything(step_seed(0, 1, 2))
    assert (torch.rand(3).tolist(), np.random.rand(), torch.rand(1).item()) == first


class Squares:
    """Ten samples; sample 5 cannot be read if ``broken``."""

    def __init__(self, broken: bool = False) -> None:
        self.broken = broken

    def __len__(self) -> int:
        return 10

    def batch(self, indices: Sequence[int], *, seed: int) -> Batch:
        if self.broken and 5 in indices:
            raise BadDataError("task.data.path", "sample 5 cannot be read")
        return {"x": torch.tensor(indices).square(), "seed": torch.full((len(indices),), seed % 2**31)}


def prefetch(dataset: Squares, *, first: int = 0, batch_size: int = 4) -> Prefetcher:
    return Prefetcher(
        dataset,
        Plan(10, batch_size, seed=3, steps=6),
        first=first,
        rank=0,
        world_size=1,
        accumulate=2,
        device=torch.device("cpu"),
    )


def test_prefetching_gives_the_planned_samples_in_order_from_any_step() -> None:
    plan = Plan(10, 4, seed=3, steps=6)
    for first in (0, 2, 6):
        prefetcher = prefetch(Squares(), first=first)
        seen = [
            (data.step, data.samples, torch.cat([batch["x"] for batch, _ in data.microbatches])) for data in prefetcher
        ]
        prefetcher.close()
        assert [step for step, _, _ in seen] == list(range(first, 6))
        for step, samples, x in seen:
            assert x.tolist() == np.square(plan.step_indices(step)).tolist()
            assert samples == len(x)


def test_augmentation_gets_one_seed_an_epoch() -> None:
    prefetcher = prefetch(Squares())
    seeds = [{value for batch, _ in data.microbatches for value in batch["seed"].tolist()} for data in prefetcher]
    prefetcher.close()
    assert [len(seed) for seed in seeds] == [1] * 6
    assert seeds[0] == seeds[1] == seeds[2] != seeds[3] == seeds[4] == seeds[5]


def test_a_problem_while_reading_is_raised_at_its_step() -> None:
    plan = Plan(10, 4, seed=3, steps=6)
    bad = next(step for step in range(3) if 5 in plan.step_indices(step))
    prefetcher = prefetch(Squares(broken=True))
    done: list[int] = []
    with pytest.raises(BadDataError, match="sample 5"):
        done.extend(data.step for data in prefetcher)
    prefetcher.close()
    assert done == list(range(bad))


def test_closing_ends_the_thread_of_a_reader_that_is_ahead() -> None:
    prefetcher = prefetch(Squares(), batch_size=2)
    next(iter(prefetcher))
    prefetcher.close()
    assert not prefetcher._thread.is_alive()


def test_seeds_of_batches_have_63_bits() -> None:
    """As docs/jobs.md says: they fit torch's generators and numpy's, and not what takes 32 bits."""
    seeds = [step_seed(seed, epoch, 0) for seed in (0, 2**63 - 1) for epoch in range(64)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) >= 2**62 > 2**32
    assert len(set(seeds)) == len(seeds)
