"""Who starts, shrinks, gives way and grows: properties that hold for any cluster and any queue, and examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import combinations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from service.cluster import Capacity, Node, Resources
from service.placement import Gang, fits
from service.planning import Active, Candidate, Plan, Resize, Rules, plan

pytestmark = pytest.mark.unit

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RULES = Rules(backfill=timedelta(seconds=300), elastic=timedelta(seconds=30), preemption=True)
LONG_AGO = NOW - timedelta(seconds=1000)


def cluster(*cpus: float) -> Capacity:
    return Capacity(tuple(Node(f"n{i}", f"10.0.0.{i}", Resources(c, 0, 100)) for i, c in enumerate(cpus)))


def drained(capacity: Capacity, *ids: str) -> Capacity:
    return Capacity(tuple(replace(node, draining=node.id in ids) for node in capacity.nodes))


def candidate(
    job_id: str, size: int, *, most: int = 0, priority: int = 0, age: float = 0, cpus: float = 1
) -> Candidate:
    born = NOW - timedelta(seconds=age)
    return Candidate(job_id, Resources(cpus, 0, 0), size, max(most, size), priority, created_at=born, ready_at=born)


def active(job_id: str, *places: str, fewest: int = 0, most: int = 0, priority: int = 0, cpus: float = 1) -> Active:
    """A job at work; a fixed number of workers unless told otherwise."""
    size = len(places)
    return Active(
        job_id, Resources(cpus, 0, 0), size, fewest or size, most or size, priority, LONG_AGO, LONG_AGO, places
    )


def planned(capacity: Capacity, actives: Sequence[Active], queue: Sequence[Candidate], rules: Rules = RULES) -> Plan:
    return plan(capacity, actives, queue, NOW, rules)


# --- in all situations ------------------------------------------------------------------------------------------------

capacities = st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=4).map(
    lambda nodes: Capacity(
        tuple(
            Node(f"n{i}", f"10.0.0.{i}", Resources(cpus, 0, 100), draining and i > 0)
            for i, (cpus, draining) in enumerate(nodes)
        )
    )
)
candidates = st.lists(
    st.tuples(
        st.integers(1, 4), st.integers(0, 3), st.integers(-1, 1), st.integers(0, 600), st.sampled_from([0.5, 1, 2])
    ),
    max_size=6,
).map(
    lambda items: [
        candidate(f"queued-{i}", size, most=size + more, priority=priority, age=age, cpus=cpus)
        for i, (size, more, priority, age, cpus) in enumerate(items)
    ]
)
wishes = st.lists(
    st.tuples(
        st.integers(1, 4), st.integers(0, 3), st.integers(0, 3), st.integers(-1, 1), st.sampled_from([0.5, 1, 2]),
        st.integers(0, 60), st.sampled_from(["settled", "known", "new", "ending"]),
    ),
    max_size=5,
)  # fmt: skip


@st.composite
def worlds(draw: st.DrawFn, machines: int | None = None) -> tuple[Capacity, list[Active], list[Candidate]]:
    """Jobs are where there is room for them; nothing is held twice."""
    capacity = draw(capacities)
    capacity = replace(capacity, nodes=capacity.nodes[:machines])
    left = {node.id: node.total.cpus for node in capacity.nodes}
    actives = []
    for index, (size, less, more, priority, cpus, calm, state) in enumerate(draw(wishes)):
        places = []
        for _ in range(size):
            where = next((node for node, has in left.items() if has >= cpus), None)
            if where is None:
                break
            left[where] -= cpus
            places.append(where)
        if len(places) == size:
            actives.append(
                Active(
                    f"active-{index}", Resources(cpus, 0, 0), size, max(1, size - less), size + more, priority,
                    LONG_AGO, NOW - timedelta(seconds=calm), () if state == "new" else tuple(places),
                    ending=state == "ending", known=state != "new", settled=state == "settled",
                    resumable=calm % 3 > 0,
                )
            )  # fmt: skip
    return capacity, actives, draw(candidates)


def in_order(queue: Sequence[Candidate]) -> list[Candidate]:
    return sorted(queue, key=lambda job: (-job.priority, job.created_at, job.job_id))


@given(worlds())
def test_nothing_is_ever_planned_beyond_what_is_there(world: tuple[Capacity, list[Active], list[Candidate]]) -> None:
    """What is held now, with what starts and grows, before anything is given back; what is drained takes nothing new."""
    capacity, actives, queue = world
    result = planned(capacity, actives, queue)
    jobs: list[Active | Candidate] = [*actives, *queue]
    each = {job.job_id: job.each.cpus for job in jobs}
    held = sum(job.size * job.each.cpus for job in actives)
    grown = sum(
        max(0, result.resize[job.job_id].workers - job.size) * job.each.cpus
        for job in actives
        if job.job_id in result.resize
    )
    started = sum(size * each[job_id] for job_id, size in result.start.items())
    drain = {node.id for node in capacity.nodes if node.draining}
    leaving = sum(job.each.cpus for job in actives for place in job.places if place in drain)
    usable = sum(node.total.cpus for node in capacity.nodes if not node.draining)
    if all(job.known for job in actives):
        assert held - leaving + grown + started <= usable + 1e-4


@given(worlds())
def test_sizes_stay_within_the_range_and_only_what_may_is_resized(
    world: tuple[Capacity, list[Active], list[Candidate]],
) -> None:
    capacity, actives, queue = world
    result = planned(capacity, actives, queue)
    jobs = {job.job_id: job for job in actives}
    for job_id, resize in result.resize.items():
        job = jobs[job_id]
        assert not job.ending
        assert job.fewest <= resize.workers <= job.most
        if resize.workers > job.size:
            assert job.settled
            assert NOW - job.resized_at >= RULES.elastic
    for job_id, size in result.start.items():
        wanted = next(job for job in queue if job.job_id == job_id)
        assert wanted.size <= size <= wanted.most


@given(worlds())
def test_only_a_job_of_strictly_lower_priority_gives_way_and_only_for_one_that_waits(
    world: tuple[Capacity, list[Active], list[Candidate]],
) -> None:
    capacity, actives, queue = world
    result = planned(capacity, actives, queue)
    jobs: list[Active | Candidate] = [*actives, *queue]
    priority = {job.job_id: job.priority for job in jobs}
    for job_id, other in result.preempt.items():
        assert priority[job_id] < priority[other]
        assert other in result.waiting
        left = next(job for job in actives if job.job_id == job_id)
        assert not left.ending
        assert left.resumable
    assert planned(capacity, actives, queue, replace(RULES, preemption=False)).preempt == {}


@given(worlds())
def test_every_job_starts_or_is_told_why_not(world: tuple[Capacity, list[Active], list[Candidate]]) -> None:
    capacity, actives, queue = world
    result = planned(capacity, actives, queue)
    assert set(result.start) | set(result.waiting) == {job.job_id for job in queue}
    assert not set(result.start) & set(result.waiting)
    assert all(result.waiting.values())


@given(worlds(machines=1))
def test_acting_twice_is_harmless(world: tuple[Capacity, list[Active], list[Candidate]]) -> None:
    """The plan is made again before anything has come of it: nobody else gives way, and nobody shrinks further. (On several
    machines what starts may land where somebody else was to have room, so that the second look is another one.)"""
    capacity, actives, queue = world
    assume(all(job.known for job in actives))  # else a change of theirs counts as done at once
    first = planned(capacity, actives, queue)
    then = [_as_planned(job, first) for job in actives]
    begun = [_begun(job, first.start[job.job_id]) for job in queue if job.job_id in first.start]
    second = planned(capacity, [*then, *begun], [job for job in queue if job.job_id in first.waiting])
    assert second.preempt == {}
    sizes = {job.job_id: job.size for job in (*then, *begun)}
    assert not [job_id for job_id, resize in second.resize.items() if resize.workers < sizes[job_id]]


def _as_planned(job: Active, result: Plan) -> Active:
    if job.job_id in result.preempt:
        return replace(job, ending=True)
    if job.job_id in result.resize:
        return replace(job, size=result.resize[job.job_id].workers, resized_at=NOW, settled=False)
    return job


def _begun(job: Candidate, size: int) -> Active:
    return Active(
        job.job_id, job.each, size, job.size, job.most, job.priority, job.created_at, NOW, known=False, settled=False
    )


@given(worlds(), st.randoms())
def test_the_order_in_which_jobs_are_read_does_not_matter(
    world: tuple[Capacity, list[Active], list[Candidate]], random: object
) -> None:
    capacity, actives, queue = world
    shuffled = list(queue)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert planned(capacity, actives, shuffled) == planned(capacity, actives, queue)


@given(worlds())
def test_nobody_starts_behind_a_job_that_has_waited_for_long(
    world: tuple[Capacity, list[Active], list[Candidate]],
) -> None:
    capacity, actives, queue = world
    result = planned(capacity, actives, queue)
    ordered = in_order(queue)
    starved = next(
        (i for i, job in enumerate(ordered) if job.job_id in result.waiting and NOW - job.ready_at >= RULES.backfill),
        None,
    )
    if starved is not None:
        assert not {job.job_id for job in ordered[starved:]} & set(result.start)


@given(capacities, candidates)
def test_the_first_of_the_queue_starts_when_the_empty_cluster_can_hold_it(
    capacity: Capacity, queue: list[Candidate]
) -> None:
    """With the one above: whoever can be held starts once what is ahead of it has ended."""
    whole = drained(capacity)
    if queue and fits(whole, (first := in_order(queue)[0]).gang):
        assert first.job_id in planned(whole, [], queue).start


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(-1, 0)), min_size=1, max_size=4), st.integers(1, 8))
def test_no_smaller_part_of_those_that_give_way_would_have_been_enough(
    jobs: list[tuple[int, int]], needed: int
) -> None:
    places = [f"n{index}" for index in range(len(jobs))]
    capacity = cluster(*(size for size, _ in jobs))
    actives = [
        active(f"a{index}", *[places[index]] * size, priority=priority) for index, (size, priority) in enumerate(jobs)
    ]
    sizes = {f"a{index}": size for index, (size, _) in enumerate(jobs)}
    victims = planned(capacity, actives, [candidate("urgent", needed, priority=1)]).preempt
    assert bool(victims) == (needed <= sum(sizes.values())), "all or nothing"
    for part in combinations(victims, max(0, len(victims) - 1)):
        assert sum(sizes[job_id] for job_id in part) < needed


# --- the queue --------------------------------------------------------------------------------------------------------


def test_priority_comes_before_age_and_age_before_the_rest() -> None:
    queue = [candidate("young", 1, age=1), candidate("old", 1, age=9), candidate("urgent", 1, priority=5)]
    assert list(planned(cluster(8), [], queue).start) == ["urgent", "old", "young"]
    assert list(planned(cluster(2), [], queue).start) == ["urgent", "old"]


def test_a_small_job_overtakes_one_that_does_not_fit_but_not_for_ever() -> None:
    running = [active("running", "n0", "n0")]

    def start(waited: float) -> list[str]:
        queue = [candidate("large", 4, age=waited), candidate("small", 1)]
        return list(planned(cluster(4), running, queue).start)

    assert start(299) == ["small"]
    assert start(300) == []


# --- elastic ----------------------------------------------------------------------------------------------------------


def test_a_job_with_a_range_starts_with_as_many_as_fit_unless_somebody_waits() -> None:
    elastic = candidate("elastic", 1, most=8)
    assert planned(cluster(4), [], [elastic]).start == {"elastic": 4}
    assert planned(cluster(4), [], [elastic, candidate("other", 2)]).start == {"elastic": 2, "other": 2}
    assert planned(cluster(4), [], [elastic, candidate("large", 4)]).start == {"elastic": 1}
    assert planned(cluster(4), [], [elastic, candidate("impossible", 9)]).start == {"elastic": 4}


def test_room_is_shared_among_equals() -> None:
    two = [candidate("a", 1, most=8), candidate("b", 1, most=8)]
    assert planned(cluster(6), [], two).start == {"a": 3, "b": 3}
    urgent = [candidate("a", 1, most=8), candidate("b", 1, most=8, priority=1)]
    assert planned(cluster(6), [], urgent).start == {"b": 5, "a": 1}


def test_a_job_grows_into_free_room_after_a_while_and_not_while_somebody_waits() -> None:
    job = active("elastic", "n0", most=4)
    assert planned(cluster(4), [job], []).resize == {"elastic": Resize(4, "there is room for more")}
    assert planned(cluster(4), [replace(job, resized_at=NOW - timedelta(seconds=29))], []).resize == {}
    assert planned(cluster(4), [replace(job, settled=False)], []).resize == {}
    assert planned(cluster(4), [job], [candidate("large", 4, priority=-1)]).resize == {}


def test_nobody_grows_into_the_room_of_a_job_that_is_about_to_come_back() -> None:
    job = active("elastic", "n0", most=4)
    assert plan(cluster(4), [job], [], NOW, RULES, expected=[Gang(4, Resources(1, 0, 0))]).resize == {}
    never = plan(cluster(4), [job], [], NOW, RULES, expected=[Gang(9, Resources(1, 0, 0))])
    assert never.resize["elastic"].workers == 4, "it can never come"


@pytest.mark.parametrize(("priority", "shrinks"), [(1, True), (0, True), (-1, False)])
def test_a_job_shrinks_for_one_that_is_at_least_as_important_and_only_as_far_as_needed(
    priority: int, shrinks: bool
) -> None:
    job = active("elastic", *["n0"] * 4, fewest=1, most=4)
    result = planned(cluster(4), [job], [candidate("next", 2, priority=priority)])
    assert result.resize == ({"elastic": Resize(2, "to make room for next")} if shrinks else {})
    assert result.start == {}, "not before the room is free"
    assert planned(
        cluster(4), [job], [candidate("next", 4, priority=priority)], replace(RULES, preemption=False)
    ) == Plan({}, {}, {}, {"next": "needs 4 CPUs, 0 free"}), "nobody shrinks when that would not help"


def test_room_that_is_being_made_is_kept_for_the_job_for_which_it_is_made() -> None:
    """Would catch a small job that takes the first processor that a shrinking one gives back."""
    shrinking = replace(active("elastic", *["n0"] * 3, fewest=2, most=4), size=2, settled=False)
    queue = [candidate("large", 2, age=9), candidate("small", 1)]
    result = planned(cluster(4), [shrinking], queue)
    assert (result.start, result.resize) == ({}, {})
    assert result.waiting["large"] == "waits while room is made for it"
    assert planned(cluster(4), [replace(shrinking, places=("n0", "n0"))], queue).start == {"large": 2}


def test_a_changed_range_is_followed_in_both_directions() -> None:
    job = active("job", "n0", "n0")
    assert planned(cluster(4), [replace(job, fewest=3, most=3)], []).resize == {"job": Resize(3, "its range changed")}
    assert planned(cluster(4), [replace(job, fewest=1, most=1)], []).resize == {"job": Resize(1, "its range changed")}
    assert planned(cluster(2), [replace(job, fewest=3, most=3)], []).resize == {}, "there is no room"
    full = planned(cluster(4), [replace(job, fewest=9, most=9)], [candidate("large", 4)])
    assert full.resize == {"job": Resize(4, "its range changed")}, "a job at work may have it before one that waits"


def test_a_job_with_a_range_goes_on_with_what_is_left_of_the_cluster() -> None:
    job = replace(active("elastic", "n0", "n0", fewest=1, most=4), size=4)
    assert planned(cluster(3), [job], []).resize == {"elastic": Resize(3, "the machines that are left hold no more")}
    assert planned(cluster(3), [replace(job, known=False)], []).resize == {}, "nobody knows where it is"
    fixed = replace(job, fewest=4)
    assert planned(cluster(3), [fixed], []).resize == {}


# --- preemption -------------------------------------------------------------------------------------------------------


def test_a_more_important_job_pauses_the_cheapest_less_important_ones() -> None:
    running = [
        active("small", "n0"),
        active("large", *["n0"] * 3),
        active("precious", *["n0"] * 2, priority=2),
    ]
    urgent = candidate("urgent", 1, priority=1)
    result = planned(cluster(6), running, [urgent])
    assert result.preempt == {"small": "urgent"}
    assert result.waiting == {"urgent": "waits while small is paused for it"}
    assert planned(cluster(6), running, [replace(urgent, size=2)]).preempt == {"large": "urgent"}
    assert planned(cluster(6), running, [replace(urgent, size=5)]).preempt == {}, "it would not help"
    assert planned(cluster(6), running, [replace(urgent, priority=0)]).preempt == {}


def test_a_script_that_would_begin_anew_does_not_give_way() -> None:
    """Although it is the smallest and the least important one."""
    script = replace(active("script", "n0", priority=-1), resumable=False)
    urgent = candidate("urgent", 1, priority=1)
    assert planned(cluster(3), [script, active("model", "n0", "n0")], [urgent]).preempt == {"model": "urgent"}
    both = planned(cluster(3), [script, active("model", "n0", "n0")], [replace(urgent, size=3)])
    assert both.preempt == {}, "and nobody is paused when that does not help without it"
    alone = planned(cluster(1), [script], [urgent])
    assert alone.preempt == {}
    assert alone.waiting == {
        "urgent": "waits for script script of lower priority, which would begin anew after a pause (task.resumable is false)"
    }
    other = replace(script, job_id="other")
    assert (
        "scripts other and script" in planned(cluster(2), [script, other], [replace(urgent, size=2)]).waiting["urgent"]
    )
    same = planned(cluster(1), [replace(script, priority=1)], [urgent]).waiting["urgent"]
    assert same == "needs 1 CPUs, 0 free"
    assert planned(cluster(1), [replace(script, resumable=True)], [urgent]).preempt == {"script": "urgent"}


def test_the_least_important_gives_way_first() -> None:
    running = [active("lower", *["n0"] * 2, priority=-1), active("low", "n0"), active("other", "n0")]
    assert planned(cluster(4), running, [candidate("urgent", 1, priority=1)]).preempt == {"lower": "urgent"}


def test_jobs_shrink_before_anybody_is_paused() -> None:
    running = [active("fixed", "n0", "n0"), active("elastic", "n0", "n0", fewest=1, most=2)]
    result = planned(cluster(4), running, [candidate("urgent", 1, priority=1)])
    assert (result.preempt, result.resize) == ({}, {"elastic": Resize(1, "to make room for urgent")})
    both = planned(cluster(4), running, [candidate("urgent", 3, priority=1)])
    assert (set(both.preempt), set(both.resize)) == ({"fixed"}, {"elastic"})


def test_a_preempted_job_waits_until_there_is_room() -> None:
    leaving = replace(active("low", *["n0"] * 4), ending=True)
    urgent, low = candidate("urgent", 4, priority=1), candidate("low", 4)
    assert planned(cluster(4), [leaving], [urgent]).start == {}
    at_work = active("urgent", *["n0"] * 4, priority=1)
    again = planned(cluster(4), [at_work], [low])
    assert (again.start, again.preempt) == ({}, {})
    assert planned(cluster(4), [], [urgent, low]).start == {"urgent": 4}


# --- drain ------------------------------------------------------------------------------------------------------------


def test_nothing_new_goes_to_a_drained_machine() -> None:
    capacity = drained(cluster(4, 2), "n0")
    assert planned(capacity, [], [candidate("job", 3)]).waiting == {
        "job": "needs 3 CPUs, 2 free (1 of 2 machines are being drained)"
    }
    assert planned(capacity, [], [candidate("elastic", 1, most=8)]).start == {"elastic": 2}


def test_workers_that_leave_a_drained_machine_keep_room_elsewhere() -> None:
    """Would catch a job of the queue that takes the last place to which they could move."""
    capacity = drained(cluster(2, 2), "n0")
    assert planned(capacity, [active("moving", "n0", "n0")], [candidate("next", 1)]).start == {}
    assert planned(capacity, [active("staying", "n1")], [candidate("next", 1)]).start == {"next": 1}


def test_a_job_with_a_range_shrinks_when_not_all_its_workers_find_another_machine() -> None:
    capacity = drained(cluster(2, 3), "n0")
    job = active("elastic", "n0", "n0", "n1", "n1", fewest=1, most=4)
    assert planned(capacity, [job], []).resize == {"elastic": Resize(3, "the machines that are left hold no more")}
