"""What people read of a repair's fate."""

from __future__ import annotations

import pytest

from api.repair_words import state_of
from workers.repair.acts import Act, Entry, State
from workers.repair.sentences import changed

pytestmark = pytest.mark.unit


def entry(number: int, state: State, against: int | None = None, rival: float | None = None) -> Entry:
    act = Act(number, 50, "lr_too_low", "live", "tries", probation=30, instead_of=against, against=against, rival=rival)
    return Entry(act, state, {}, ended=80, score=0.5)


CONTEST = [entry(1, "taken_back"), entry(2, "kept", against=1), entry(3, "taken_back", against=2)]


@pytest.mark.parametrize(
    ("record", "event", "shown"),
    [
        (CONTEST, ["gives way", "did better (loss 0.5)", "did no better"], ["another did better", "kept", "no better"]),
        ([entry(1, "taken_back")], ["did not help"], ["did not help"]),
        ([entry(1, "kept")], ["helped and is kept"], ["kept"]),
        ([entry(1, "set_aside")], ["Another is compared with it"], ["another is compared with it"]),
        ([entry(1, "trial")], ["on trial for 30 steps"], ["on trial"]),
        ([entry(1, "undone")], ["is undone, as asked"], ["undone"]),
        ([entry(1, "kept", rival=0.9)], ["did better than the run as it was"], ["kept"]),
        ([entry(1, "taken_back", rival=0.1)], ["no better than the run as it was"], ["no better"]),
    ],
)
def test_people_read_what_became_of_it(record: list[Entry], event: list[str], shown: list[str]) -> None:
    documents = [each.act.document() | {"state": each.state, "score": each.score} for each in record]
    for each, document, told, word in zip(record, documents, event, shown, strict=True):
        assert told in changed(each, record, 80).message
        assert word in state_of(document, documents)
