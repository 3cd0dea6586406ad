"""Who starts next: properties that hold for any cluster and any queue, and the sentences that waiting users read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.cluster import Capacity, Node, Resources
from service.placement import Candidate, Gang, Held, fits, free_resources, plan, shortage, too_small

pytestmark = pytest.mark.unit

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BACKFILL = timedelta(seconds=300)

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
queues = st.lists(st.tuples(gangs, st.integers(-1, 1), st.integers(0, 600)), max_size=8).map(
    lambda items: [candidate(f"job-{i}", gang, priority, age) for i, (gang, priority, age) in enumerate(items)]
)


def candidate(job_id: str, gang: Gang, priority: int = 0, age_seconds: float = 0) -> Candidate:
    born = NOW - timedelta(seconds=age_seconds)
    return Candidate(job_id, gang, priority, created_at=born, ready_at=born)


def cluster(*cpus: float) -> Capacity:
    return Capacity(tuple(Node(f"n{i}", f"10.0.0.{i}", Resources(c, 0, 100)) for i, c in enumerate(cpus)))


def workers(count: int, cpus: float = 1) -> Gang:
    return Gang(count, Resources(cpus, 0, 0))


def in_order(queue: list[Candidate]) -> list[Candidate]:
    return sorted(queue, key=lambda job: (-job.priority, job.created_at, job.job_id))


@given(capacities, queues)
def test_no_machine_is_overbooked_and_gangs_start_whole(capacity: Capacity, queue: list[Candidate]) -> None:
    started = set(plan(capacity, [], queue, NOW, BACKFILL).start)
    held = [Held(job.gang) for job in in_order(queue) if job.job_id in started]
    for name in ("cpus", "gpus", "memory"):
        there = sum(getattr(node.total, name) for node in capacity.nodes)
        taken = sum(holding.gang.count * getattr(holding.gang.each, name) for holding in held)
        assert taken <= there + 1e-4
    for node in free_resources(capacity, []):
        assert min(node.cpus, node.gpus, node.memory) >= 0


@given(capacities, queues)
def test_every_job_starts_or_is_told_why_not(capacity: Capacity, queue: list[Candidate]) -> None:
    planned = plan(capacity, [], queue, NOW, BACKFILL)
    assert set(planned.start) | set(planned.waiting) == {job.job_id for job in queue}
    assert not set(planned.start) & set(planned.waiting)
    assert all(planned.waiting.values())


@given(capacities, queues, st.randoms())
def test_the_order_in_which_the_queue_is_read_does_not_matter(
    capacity: Capacity, queue: list[Candidate], random: object
) -> None:
    shuffled = list(queue)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert plan(capacity, [], shuffled, NOW, BACKFILL) == plan(capacity, [], queue, NOW, BACKFILL)


@given(capacities, queues)
def test_nobody_starts_behind_a_job_that_has_waited_for_long(capacity: Capacity, queue: list[Candidate]) -> None:
    planned = plan(capacity, [], queue, NOW, BACKFILL)
    ordered = in_order(queue)
    starved = next(
        (i for i, job in enumerate(ordered) if job.job_id in planned.waiting and NOW - job.ready_at >= BACKFILL), None
    )
    if starved is not None:
        assert not {job.job_id for job in ordered[starved:]} & set(planned.start)


@given(capacities, queues)
def test_the_first_of_the_queue_starts_when_the_empty_cluster_can_hold_it(
    capacity: Capacity, queue: list[Candidate]
) -> None:
    """With the one above: whoever can be held starts once what is ahead of it has ended."""
    if queue and fits(capacity, (first := in_order(queue)[0]).gang):
        assert first.job_id in plan(capacity, [], queue, NOW, BACKFILL).start


@given(capacities, st.lists(gangs, max_size=4), queues)
def test_what_is_held_only_takes_away(capacity: Capacity, held: list[Gang], queue: list[Candidate]) -> None:
    if queue:
        one = queue[:1]
        with_less = plan(capacity, [Held(gang) for gang in held], one, NOW, BACKFILL).start
        assert set(with_less) <= set(plan(capacity, [], one, NOW, BACKFILL).start)


def test_priority_comes_before_age_and_age_before_the_rest() -> None:
    queue = [
        candidate("young", workers(1), age_seconds=1),
        candidate("old", workers(1), age_seconds=9),
        candidate("urgent", workers(1), priority=5),
    ]
    assert plan(cluster(8), [], queue, NOW, BACKFILL).start == ("urgent", "old", "young")
    assert plan(cluster(2), [], queue, NOW, BACKFILL).start == ("urgent", "old")


def test_a_small_job_overtakes_one_that_does_not_fit_but_not_for_ever() -> None:
    held = [Held(workers(2))]

    def start(waited: float) -> tuple[str, ...]:
        queue = [candidate("large", workers(4), age_seconds=waited), candidate("small", workers(1))]
        return plan(cluster(4), held, queue, NOW, BACKFILL).start

    assert start(299) == ("small",)
    assert start(300) == ()


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
    running = Held(workers(2), addresses=("10.0.0.1", "10.0.0.1"))
    assert [node.cpus for node in free_resources(cluster(2, 4), [running])] == [2, 2]


def test_a_machine_that_went_away_leaves_nothing_to_start_on() -> None:
    running = Held(workers(4), addresses=("gone", "gone", "gone", "gone"))
    assert plan(cluster(2), [running], [candidate("next", workers(1))], NOW, BACKFILL).start == ("next",)
    unplaced = Held(workers(4))
    assert plan(cluster(2), [unplaced], [candidate("next", workers(1))], NOW, BACKFILL).start == ()


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
