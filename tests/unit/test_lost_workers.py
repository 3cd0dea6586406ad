"""What a controller remembers of the workers that it lost."""

from __future__ import annotations

import json
import time

import pytest

from workers.lost_workers import KEPT, LostWorkers
from workers.reports import ReasonCode

pytestmark = pytest.mark.unit


def test_who_died_is_the_cause_and_not_whose_connection_broke() -> None:
    losses = LostWorkers()
    losses.begin(40, {0: "connection reset", 2: "connection reset"})
    losses.blame(1, "killed by signal 9")
    losses.blame(3, "out of memory")
    losses.goes_on_from("memory")
    recovery = losses.end(time.time() + 2.0)
    assert (recovery.ranks, recovery.cause) == ([1, 3], "rank 1: killed by signal 9; rank 3: out of memory")
    assert (recovery.step, recovery.source) == (40, "memory")
    assert 1.5 < recovery.seconds < 2.5
    assert not losses.is_open


def test_a_controller_that_was_restarted_in_the_midst_of_a_loss_goes_on_with_it() -> None:
    """Would catch a loss that is told twice, never, or as shorter than it was."""
    first, second = LostWorkers(), LostWorkers()
    first.begin(10, {0: "connection reset"})
    second.restore(json.loads(json.dumps(first.document())))
    assert second.is_open
    assert first.end(time.time() + 5).lost_at == second.end(time.time() + 5).lost_at
    third = LostWorkers()
    third.restore(json.loads(json.dumps(second.document())))
    assert not third.is_open
    assert [recovery.cause for recovery in third.recovered] == ["rank 0: connection reset"]


def test_losses_without_a_step_between_them_come_to_an_end() -> None:
    losses = LostWorkers()
    for _ in range(3):
        assert losses.exhausted(2) is None
        losses.begin(7, {})
        losses.blame(1, "killed")
    outcome = losses.exhausted(2)
    assert outcome is not None
    assert outcome.code is ReasonCode.NO_PROGRESS
    assert outcome.message.endswith("last: rank 1: killed")
    losses.begin(8, {})  # a step was done
    assert losses.exhausted(2) is None


def test_what_is_remembered_is_bounded_and_a_group_formed_anew_is_no_loss_of_anybody() -> None:
    losses = LostWorkers()
    for _ in range(KEPT + 20):
        losses.begin_without_cause()
        losses.end(None)
    assert len(losses.recovered) == KEPT
    assert losses.recovered[-1].ranks == []
    assert losses.exhausted(0) is None
