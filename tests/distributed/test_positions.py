"""A worker goes on from the state that its group was formed on, or says that it has another."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.toys import Memory, Toy, ToyTask, context_in, job, train_toy
from workers.membership import Alone, Membership, Position
from workers.reports import Outcome
from workers.train import run

pytestmark = pytest.mark.distributed

TOY = Toy(dropout=0.3, normalization=True)
LEFT_AFTER = 4  # steps


class Script(Alone):
    """One worker that is asked to leave its group after some steps, and is then seated on ``thought`` before it is on what it said."""

    def __init__(self, thought: Position, source: int | None) -> None:
        super().__init__(0, 1)
        self.asked: list[tuple[Position | None, str | None]] = []
        self._thought, self._source = thought, source
        self._votes = 0

    def next_group(self, position: Position | None, broken: str | None) -> Membership:
        self.asked.append((position, broken))
        generation = len(self.asked)
        if generation == 2:
            return Membership(generation, 0, 1, self._thought, self._source)
        return Membership(generation, 0, 1, position)

    def regroup_requested(self) -> bool:
        self._votes += 1
        return self._votes == LEFT_AFTER


def trained(folder: Path, link: Script) -> tuple[Outcome, Memory]:
    memory = Memory()
    context = context_in(folder, memory, link)
    return run(ToyTask(TOY), job(), context), memory


@pytest.mark.parametrize("source", [None, 0])
@pytest.mark.parametrize("step", [LEFT_AFTER - 1, LEFT_AFTER + 1])
def test_a_state_that_it_has_not_is_not_gone_on_from(tmp_path: Path, step: int, source: int | None) -> None:
    """Would catch a controller's old picture of a worker that becomes the state of all, or one worker's step done twice."""
    undisturbed = train_toy(0, 1, TOY, job(), tmp_path / "whole")
    link = Script(Position(step), source)
    outcome, memory = trained(tmp_path / "moved", link)
    first, left, misplaced = link.asked
    assert (first, left) == ((None, None), (Position(LEFT_AFTER), None))
    assert misplaced[0] == Position(LEFT_AFTER)
    assert f"not at {Position(step)}" in str(misplaced[1])
    assert outcome.detail["parameters_sha256"] == undisturbed.outcome.detail["parameters_sha256"]
    assert memory.series("train/loss") == undisturbed.memory.series("train/loss")
