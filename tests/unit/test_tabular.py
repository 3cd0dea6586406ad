"""Tables: categories, missing values, metrics, and what is said of columns that cannot be used."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch

from workers.export import PyfuncModel, export_model, load_model
from workers.problems import SpecError
from workers.sources.inspect import inspect_data
from workers.spec import JobSpec, parse_spec
from workers.tasks import build_task
from workers.tasks.base import Measured
from workers.weights import full_state_dict

pytestmark = pytest.mark.unit

COLOURS = ["red", "green", "blue"]


def table(rows: int = 60) -> pandas.DataFrame:
    return pandas.DataFrame(
        {
            "size": [float(row % 7) for row in range(rows)],
            "colour": [COLOURS[row % 3] for row in range(rows)],
            "zone": [row % 2 for row in range(rows)],
            "price": [10.0 * (row % 3) + row % 7 for row in range(rows)],
            "sold": ["yes" if row % 3 else "no" for row in range(rows)],
        }
    )


def job(path: Path, target: str = "sold", objective: str = "classification", **parts: Any) -> JobSpec:
    source = "csv" if path.suffix == ".csv" else "parquet"
    task = {key: parts.pop(key) for key in ("class_weights",) if key in parts}
    data = {
        "source": source,
        "path": str(path),
        "target": target,
        "features": ["size", "colour"],
        "categorical": ["colour"],
        **parts,
    }
    return parse_spec(
        {
            "name": "x",
            "task": {"kind": "tabular", "data": data, "objective": objective, **task},
            "training": {"batch_size": 8},
        }
    )


def saved(frame: pandas.DataFrame, path: Path) -> Path:
    frame.to_csv(path, index=False) if path.suffix == ".csv" else frame.to_parquet(path)
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_categories_become_one_hot(tmp_path: Path, name: str) -> None:
    spec = job(saved(table(), tmp_path / name))
    assert inspect_data(spec) == []
    task = build_task(spec.task, 0)
    train = task.datasets().train
    features = train.batch(range(len(train)), seed=0)["features"]
    assert features.shape == (48, 1 + 4), "a number, three colours, one place for others"
    assert (features[:, 1:].sum(1) == 1).all()
    assert not features[:, 4].any()
    assert task.facts().preprocessing["categories"] == {"colour": sorted(COLOURS)}
    assert abs(features[:, 0].mean().item()) < 1e-5


def test_what_was_not_seen_in_training_has_a_place(tmp_path: Path) -> None:
    other = table(10)
    other.loc[3, "colour"] = "mauve"
    spec = job(saved(table(), tmp_path / "a.csv"), evaluation_path=str(saved(other, tmp_path / "b.csv")))
    evaluation = build_task(spec.task, 0).datasets().evaluation
    assert evaluation is not None
    assert evaluation.batch([3], seed=0)["features"][0, 1:].tolist() == [0, 0, 0, 1]


def test_missing_values(tmp_path: Path) -> None:
    """A number takes the training mean, which does not count the gaps; a category its slot for the unseen."""
    frame = table()
    frame.loc[5, "size"] = math.nan
    frame.loc[6, "colour"] = None
    path = saved(frame, tmp_path / "a.csv")
    (problem,) = inspect_data(job(path))
    assert "column 'size' is empty or NaN in row 5; missing: mean allows that" in problem.message
    (problem,) = inspect_data(job(path, features=["colour"]))
    assert "column 'colour' is empty in row 6" in problem.message
    spec = job(path, missing="mean", evaluation_path=str(path))
    task = build_task(spec.task, 0)
    features = task.datasets().train.batch(range(60), seed=0)["features"]
    assert features[5, 0] == 0
    assert features[6, 1:].tolist() == [0, 0, 0, 1]
    expected = frame["size"].mean()
    assert task.facts().preprocessing["mean"][0] == pytest.approx(expected)  # type: ignore[index]
    frame["size"] = math.nan
    (problem,) = inspect_data(job(saved(frame, path), missing="mean"))
    assert "column 'size' is empty or NaN in row 0" in problem.message


def test_the_exported_model_takes_names(tmp_path: Path) -> None:
    spec = job(saved(table(), tmp_path / "a.csv"))
    task = build_task(spec.task, 0)
    evaluation = task.datasets().evaluation
    assert evaluation is not None
    network = task.model().eval()
    export_model(tmp_path / "model", full_state_dict(network), task, spec)
    rows = pandas.DataFrame({"colour": ["red", "mauve"], "other": [1, 2], "size": [3.0, math.nan]})
    answers = PyfuncModel(load_model(tmp_path / "model")).predict(rows)
    assert list(answers["label"]) == [task.facts().class_names[index] for index in answers["class"]]
    mean, deviation = (task.facts().preprocessing[key][0] for key in ("mean", "deviation"))  # type: ignore[index]
    given = torch.tensor([[(3 - mean) / deviation, 0, 0, 1, 0], [0, 0, 0, 0, 1]], dtype=torch.float32)
    with torch.no_grad():
        expected = network(given).softmax(1).max(1).values
    np.testing.assert_allclose(answers["probability"], expected.numpy(), rtol=1e-5)


def test_regression_is_measured_as_torchmetrics_does(tmp_path: Path) -> None:
    from torchmetrics.functional import mean_absolute_error, mean_squared_error, r2_score

    spec = job(saved(table(), tmp_path / "a.csv"), "price", "regression")
    task = build_task(spec.task, 0)
    evaluation = task.datasets().evaluation
    assert evaluation is not None
    assert isinstance(task, Measured)
    torch.manual_seed(0)
    network = task.model().eval()
    batch = evaluation.batch(range(len(evaluation)), seed=0)
    with torch.no_grad():
        answers, outputs = task.answers(network, batch), network(batch["features"]).squeeze(1)
    known: Any = task.facts().preprocessing
    unit, mean = known["target_deviation"], known["target_mean"]
    predicted, truth = outputs * unit + mean, batch["targets"] * unit + mean
    sums = {name: (total / count).item() for name, (total, count) in task.sums(answers).items()}
    assert sums["mse"] == pytest.approx(mean_squared_error(predicted, truth).item(), rel=1e-4)
    assert sums["mae"] == pytest.approx(mean_absolute_error(predicted, truth).item(), rel=1e-4)
    assert task.measure(answers)["r2"] == pytest.approx(r2_score(predicted, truth).item(), rel=1e-4)
    assert set(spec.task.metrics()) == {*sums, "r2"}


def test_class_weights_of_a_table(tmp_path: Path) -> None:
    task = build_task(job(saved(table(), tmp_path / "a.csv"), class_weights="balanced").task, 0)
    train, network = task.datasets().train, task.model().eval()
    batch = train.batch(range(48), seed=0)
    loss, count = task.loss(network, batch)
    assert count.item() == pytest.approx(48), "balanced weights have mean 1"
    weights = 48 / (2 * batch["targets"].bincount())
    expected = torch.nn.functional.cross_entropy(network(batch["features"]), batch["targets"], weight=weights)
    torch.testing.assert_close(loss / count, expected)


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        (
            {"features": ["size", "color"], "categorical": None},
            "features",
            "no column 'color'; there are: size, colour",
        ),
        (
            {"categorical": None},
            "path",
            "column 'colour' must be numbers; row 0 has 'red'. Columns of names go into categorical",
        ),
        ({"target": "sould"}, "target", "there is no column 'sould'"),
        ({"features": ["size", "sold"], "categorical": ["sold"], "target": "sold"}, "", "categorical has sold"),
        ({"categorical": ["zone"]}, "", "categorical has zone, which is not among the features"),
        ({"features": None, "categorical": ["zones"]}, "categorical", "there is no column 'zones'"),
    ],
    ids=str,
)
def test_bad_columns(tmp_path: Path, change: dict[str, Any], field: str, says: str) -> None:
    path = saved(table(), tmp_path / "a.csv")
    if not field:
        with pytest.raises(SpecError, match=says):
            job(path, **change)
        return
    (problem,) = inspect_data(job(path, **change))
    assert problem.path == f"task.data.{field}"
    assert says in problem.message


def test_weights_of_classes_have_no_meaning_for_numbers(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="class_weights do not fit objective 'regression'"):
        job(tmp_path / "a.csv", "price", "regression", class_weights="balanced")
