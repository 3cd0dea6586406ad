"""Which evaluation was the best, and when there was none better for too long."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from workers.reports import ReasonCode
from workers.scoring import Score
from workers.sources.problems import BadDataError
from workers.spec import Evaluation

pytestmark = pytest.mark.unit


def score(patience: int | None = 2, **parts: Any) -> Score:
    stopping = {"patience": patience, "min_delta": parts.pop("min_delta", 0.0)} if patience else None
    return Score(Evaluation.model_validate({"early_stopping": stopping, **parts}))


def ends_after(scored: Score, values: list[float]) -> int | None:
    """Number of evaluations after which it is time to stop."""
    for number, value in enumerate(values, start=1):
        scored.take({scored._spec.best: value})
        if scored.without_gain(step=number) is not None:
            return number
    return None


@pytest.mark.parametrize(
    ("parts", "values", "expected"),
    [
        ({}, [3, 2, 1, 1, 1], 5),  # no better is not better
        ({}, [3, 4, 2, 3, 1, 2, 2], 7),
        ({"patience": 1}, [3, 2, 2.5], 3),
        ({"min_delta": 0.5}, [3, 2.8, 2.6], 3),
        ({"min_delta": 0.5}, [3, 2.8, 2.4, 2.0, 2.0], 5),  # compared with the best, not with the one before
        ({"mode": "max"}, [1, 2, 3, 2, 1], 5),
        ({"mode": "max"}, [1, 2, 3, 4, 5], None),
        ({}, [math.nan, math.nan], 2),
        ({}, [3, math.nan, 2, math.nan, math.inf], 5),
        ({}, [math.nan, 5, 4], None),
        ({"patience": None}, [1, 2, 3, 4, 5], None),
        ({"best": "eval/accuracy", "mode": "max"}, [0.5, 0.4, 0.3], 3),
    ],
)
def test_when_to_stop(parts: dict[str, Any], values: list[float], expected: int | None) -> None:
    assert ends_after(score(**parts), values) == expected


def test_the_outcome_says_why() -> None:
    scored = score(patience=1)
    scored.take({"eval/loss": 1.0})
    scored.take({"eval/loss": 1.0})
    outcome = scored.without_gain(step=40)
    assert outcome is not None
    assert outcome.code is ReasonCode.EARLY_STOPPED
    assert outcome.message == "eval/loss did not improve in 1 evaluations; stopped after step 40"


def test_a_metric_that_is_not_measured_is_named() -> None:
    with pytest.raises(BadDataError, match=r"evaluation\.best.*'eval/accuracy'; there are: eval/loss"):
        score(best="eval/accuracy").take({"eval/loss": 1.0})


def test_another_worker_goes_on_with_what_is_known() -> None:
    """Through JSON, as in a checkpoint. Catches a count or a best value that begins anew."""
    first = score(patience=3)
    assert ends_after(first, [2, 3, 3]) is None
    document = json.loads(json.dumps(first.document()))
    other = score(patience=3)
    other.restore(document)
    assert other.metrics == {"eval/loss": 3}
    assert ends_after(other, [2.5]) == 1


def test_only_finite_metrics_go_into_a_manifest() -> None:
    scored = score()
    scored.take({"eval/loss": math.nan, "eval/accuracy": 0.5})
    assert scored.finite_metrics() == {"eval/accuracy": 0.5}
    assert math.isnan(scored.metrics["eval/loss"])
