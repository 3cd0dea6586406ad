"""What is free on the machines and what fits there, and the sentences that waiting users read."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.cluster import Capacity, Node, Resources
from service.placement import Gang, Held, fits, free_resources, place, shortage, too_small

pytestmark = pytest.mark.unit

shares = st.builds(
    Resources,
    cpus=st.sampled_from([0.1, 0.5, 1.0, 2.0, 4.0]),
    gpus=st.sampled_from([0.0, 0.0, 1.0]),
    memory=st.sampled_from([0, 1, 4]),
)
totals = st.builds(Resources, cpus=st.integers(0, 8), gpus=st.integers(0, 2), memory=st.integers(0, 16))
gangs = st.builds(Gang, count=st.integers(1, 5), each=shares)
capacities = st.lists(totals, max_size=4).map(
    lambda nodes: Capacity(tuple(Node(f"n{i}", f"10.0.0.{i}", total) for i, total in enumerate(nodes)))
)


def cluster(*cpus: float) -> Capacity:
    return Capacity(tuple(Node(f"n{i}", f"10.0.0.{i}", Resources(c, 0, 100)) for i, c in enumerate(cpus)))


def drained(capacity: Capacity, *ids: str) -> Capacity:
    return Capacity(tuple(replace(node, draining=node.id in ids) for node in capacity.nodes))


def workers(count: int, cpus: float = 1) -> Gang:
    return Gang(count, Resources(cpus, 0, 0))


@given(capacities, st.lists(gangs, max_size=6))
def test_no_machine_is_overbooked(capacity: Capacity, wanted: list[Gang]) -> None:
    free = free_resources(capacity, [])
    for gang in wanted:
        place(free, gang)
    assert all(min(node.cpus, node.gpus, node.memory) >= -1e-4 for node in free)


def test_workers_of_a_tenth_of_a_processor_fit_ten_times() -> None:
    """Would catch flooring 0.9999999 to 0."""
    assert fits(cluster(1), workers(10, 0.1))
    assert not fits(cluster(1), workers(11, 0.1))


def test_a_gang_spreads_over_machines_but_a_worker_does_not() -> None:
    assert fits(cluster(2, 2), workers(4))
    assert fits(cluster(3, 1), workers(2, 1.0))
    assert not fits(cluster(3, 3), workers(3, 2.0))


def test_known_places_are_taken_where_they_are() -> None:
    """Without them the running job would be put on the first machine, and the waiting one wrongly refused."""
    running = Held(workers(2), places=("10.0.0.1", "10.0.0.1"))
    assert [node.cpus for node in free_resources(cluster(2, 4), [running])] == [2, 2]


def test_a_machine_that_went_away_leaves_nothing_to_start_on() -> None:
    running = Held(workers(4), places=("gone", "gone", "gone", "gone"))
    assert place(free_resources(cluster(2), [running]), workers(1))
    unplaced = Held(workers(4))
    assert not place(free_resources(cluster(2), [unplaced]), workers(1))


def test_a_drained_machine_has_nothing_to_give_and_its_workers_need_places_elsewhere() -> None:
    capacity = drained(cluster(2, 4), "n0")
    assert [node.cpus for node in free_resources(capacity, [])] == [0, 4]
    leaving = Held(workers(2), places=("n0", "n0"), moving=2)
    assert [node.cpus for node in free_resources(capacity, [leaving])] == [0, 2]
    too_many = Held(workers(9), places=("n0",) * 9, moving=9)
    assert [node.cpus for node in free_resources(capacity, [too_many])] == [0, 0]
    assert shortage([Resources(0, 0, 0)] * 2, workers(1), draining=1) == (
        "needs 1 CPUs, 0 free (1 of 2 machines are being drained)"
    )
    assert fits(capacity, workers(6)), "it may come back"


@pytest.mark.parametrize(
    ("capacity", "gang", "sentence"),
    [
        (cluster(2), workers(4), "needs 4 CPUs, 2 free"),
        (cluster(2), Gang(2, Resources(1, 0.5, 0)), "needs 1 GPUs, 0 free"),
        (cluster(3, 3), workers(3, 2), "needs 3 workers with 2 CPUs each; the machines have room for 2 of them"),
        (Capacity(()), workers(1), "waits for the cluster, which has no machines yet"),
    ],
)
def test_the_reason_to_wait_is_one_sentence(capacity: Capacity, gang: Gang, sentence: str) -> None:
    assert shortage([node.total for node in capacity.nodes], gang) == sentence


def test_too_small_says_what_the_whole_cluster_has() -> None:
    assert too_small(cluster(1, 1), workers(4)) == "the cluster can never hold this job: it needs 4 CPUs, 2 in all"
