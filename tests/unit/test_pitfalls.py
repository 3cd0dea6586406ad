"""The fault-injection suite's own parts: its cases can be built and trained, and its scores are right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.pitfalls import kept, verify
from benchmarks.pitfalls.case import Case, Goal
from benchmarks.pitfalls.cases import ALL
from benchmarks.pitfalls.loop import run
from benchmarks.pitfalls.scoring import Judged, score
from benchmarks.pitfalls.table import table

pytestmark = pytest.mark.unit


@pytest.mark.timeout(600)  # some begin with what was trained beforehand
@pytest.mark.parametrize("case", ALL[::8], ids=lambda case: case.name)
def test_a_case_makes_two_steps_and_leaves_a_record(case: Case, request: pytest.FixtureRequest) -> None:
    """Every eighth; ``python -m benchmarks.pitfalls verify`` trains all of them."""
    if case.family in ("unseen_field", "unseen_desk", "unseen_road"):
        request.getfixturevalue("shared_data")
    for build in filter(None, (case.build, case.healed)):
        record = run(replace(build(0), steps=2), 0, watch=True).record
        assert record is not None
        assert record.series.norms.shape == (2, len(record.series.layers))
        assert len(record.until(1).probes.steps) == 1


def test_names_are_unique_and_the_suite_is_large_and_mixed() -> None:
    assert len({case.name for case in ALL}) == len(ALL) >= 80
    assert sum(case.sick for case in ALL) / len(ALL) == pytest.approx(2 / 3, abs=0.07)


def test_scores_of_runs_counted_by_hand() -> None:
    def judged(expected: str | None, code: str | None, found_at: int | None, also: tuple[str, ...] = ()) -> Judged:
        return Judged("a", 0, False, expected, also, code, found_at, 100)

    figures = score(
        [
            judged("plateau", "plateau", 10),
            judged("plateau", "lr_zero", 50, ("lr_zero",)),
            judged("plateau", "bad_init", 51),
            judged("plateau", None, None),
            judged(None, "plateau", 3),
            judged(None, None, None),
        ]
    )
    assert figures["recall"] == 3 / 4
    assert figures["precision"] == 3 / 4
    assert figures["false_alarms"] == 1 / 2
    assert figures["right_first_code"] == 2 / 3
    assert figures["found_in_first_tenth"] == 1 / 4
    assert figures["found_in_first_half"] == 2 / 4


@pytest.mark.parametrize(("value", "reached"), [(0.5, True), (0.49, False), (float("nan"), False)])
def test_a_goal_is_not_reached_by_what_is_no_number(value: float, reached: bool) -> None:
    assert Goal("accuracy", at_least=0.5).reached({"accuracy": value}) is reached


def test_what_was_verified_is_kept_and_unseen_families_have_a_file_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "VERIFIED", tmp_path / "seen.json")
    monkeypatch.setattr(verify, "UNSEEN", tmp_path / "unseen.json")
    names = ["vision/a", "gone/b", "unseen_tables/c"]

    def result(name: str) -> verify.Verified:
        return verify.Verified(name, "accuracy >= 0.5", (0,), (0.9,), (True,))

    verify.store([result(name) for name in names], names)
    verify.store([], ["unseen_tables/c", "vision/a"])
    assert list(verify.stored()) == ["vision/a", "unseen_tables/c"]
    assert "vision" not in verify.UNSEEN.read_text()


def test_the_table_says_when_a_case_was_verified_for_another_goal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a case that was made easier, or harder, and is shown as verified."""
    monkeypatch.setattr(verify, "VERIFIED", tmp_path / "seen.json")
    monkeypatch.setattr(verify, "UNSEEN", tmp_path / "unseen.json")
    case = next(case for case in ALL if not case.sick)
    result = verify.Verified(case.name, str(case.goal), (0, 1), (0.9, 0.9), (True, True))
    shown = []
    for each in (result, replace(result, goal="accuracy >= 0.123"), replace(result, reached=(True, False))):
        verify.store([each], [case.name])
        shown.append(table([case]).splitlines()[-1].rpartition(" | ")[2])
    assert shown == ["2 |", "for another goal (accuracy >= 0.123) |", "no |"]


def test_a_kept_record_is_of_the_sources_that_made_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What builds the models and data of an unseen family lies beside its cases, and is its own."""
    one_each = [
        next(case for case in ALL if case.family == family) for family in ("vision", "unseen_tables", "unseen_pictures")
    ]
    before = [kept.path_of(case, 0, tmp_path) for case in one_each]
    monkeypatch.setitem(kept.UNSEEN, "pictures", kept.UNSEEN["pictures"] + b"changed")
    after = [kept.path_of(case, 0, tmp_path) for case in one_each]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, True, False]
    assert {"workers/watch/layer_facts.py", "workers/watch/spending.py"} <= set(kept.SOURCES)
