"""Images in Parquet files and data sets of the datasets library, and what is said of those that cannot be used."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from workers.sources.inspect import inspect_data
from workers.sources.problems import BadDataError
from workers.spec import JobSpec, data_paths, parse_spec
from workers.tasks import build_task
from workers.tasks.base import Datasets

pytestmark = pytest.mark.unit

NAMES = ("cat", "dog")


def png(value: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.full((9, 7, 3), value, np.uint8)).save(content, "png")
    return content.getvalue()


def rows(count: int) -> tuple[list[Any], list[Any]]:
    """Dark cats, bright dogs; a Hugging Face column of images, and labels."""
    return [{"bytes": png(20 + 200 * (i % 2)), "path": None} for i in range(count)], [i % 2 for i in range(count)]


def write(path: Path, images: list[Any], labels: list[Any]) -> Path:
    parquet.write_table(pyarrow.table({"image": images, "label": labels}), path)
    return path


def job(**data: Any) -> JobSpec:
    data = {"image_size": 8, "channels": 1, **data}
    return parse_spec(
        {"name": "x", "task": {"kind": "image_classification", "data": data}, "training": {"batch_size": 4}}
    )


def opened(spec: JobSpec) -> tuple[Datasets, tuple[str, ...]]:
    task = build_task(spec.task, 0)
    return task.datasets(), task.facts().class_names


def must_be_dark_cats_and_bright_dogs(data: Any) -> None:
    batch = data.batch(range(len(data)), seed=0)
    assert batch["pixels"].shape == (len(data), 1, 8, 8)
    assert ((batch["pixels"].mean(dim=(1, 2, 3)) > 0).long() == batch["labels"]).all()


def test_parquet_as_hugging_face_writes_it(tmp_path: Path) -> None:
    import datasets

    images, labels = rows(10)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))})
    table = {"image": [Image.open(io.BytesIO(image["bytes"])) for image in images], "label": labels}
    datasets.Dataset.from_dict(table, features=features).to_parquet(str(tmp_path / "train.parquet"))
    spec = job(source="parquet", path=str(tmp_path / "train.parquet"))
    assert inspect_data(spec) == []
    found, names = opened(spec)
    assert names == NAMES
    assert found.evaluation is not None
    assert (len(found.train), len(found.evaluation)) == (8, 2)
    must_be_dark_cats_and_bright_dogs(found.train)
    must_be_dark_cats_and_bright_dogs(found.evaluation)


def test_parquet_of_bytes_and_texts_in_a_folder(tmp_path: Path) -> None:
    images, labels = rows(6)
    plain = [image["bytes"] for image in images]
    (tmp_path / "train").mkdir()
    for part in ("a", "b"):
        write(tmp_path / "train" / f"{part}.parquet", plain, [NAMES[label] for label in labels])
    write(tmp_path / "test.parquet", plain[:3], ["dog", "dog", "cat"])
    paths = {
        "path": tmp_path / "train",
        "evaluation_path": tmp_path / "test.parquet",
        "test_path": tmp_path / "test.parquet",
    }
    spec = job(source="parquet", **{field: str(path) for field, path in paths.items()})
    assert [field for field, _ in data_paths(spec)] == [f"task.data.{field}" for field in paths]
    assert inspect_data(spec) == []
    found, names = opened(spec)
    assert names == NAMES
    must_be_dark_cats_and_bright_dogs(found.train)
    assert found.test is not None
    assert found.test.batch([0, 1, 2], seed=0)["labels"].tolist() == [1, 1, 0]


@pytest.mark.parametrize("several", [True, False], ids=["splits", "one"])
def test_a_folder_that_save_to_disk_wrote(tmp_path: Path, several: bool) -> None:
    import datasets

    images, labels = rows(8)
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=list(NAMES))})
    found: Any = datasets.Dataset.from_dict({"picture": images, "kind": labels}, features=features)
    if several:
        found = datasets.DatasetDict({"train": found, "validation": found.select([1, 2, 3])})
    found.save_to_disk(str(tmp_path / "set"))
    spec = job(
        source="huggingface", path=str(tmp_path / "set"), image_column="picture", label_column="kind",
        **({"evaluation_split": "validation"} if several else {}),
    )  # fmt: skip
    assert inspect_data(spec) == []
    data, names = opened(spec)
    assert names == NAMES
    must_be_dark_cats_and_bright_dogs(data.train)
    assert data.evaluation is not None
    assert len(data.evaluation) == (3 if several else 2)
    assert data.evaluation.batch([0], seed=0)["pixels"].shape == (1, 1, 8, 8)
    with pytest.raises(BadDataError, match=r"^task\.data\.train_split: there is no split 'other'; there are: train"):
        opened(job(source="huggingface", path=str(tmp_path / "set"), train_split="other"))
    with pytest.raises(BadDataError, match=r"^task\.data\.image_column: split 'train' has no column 'image'; it has: "):
        opened(job(source="huggingface", path=str(tmp_path / "set")))


def test_one_broken_image_is_named(tmp_path: Path) -> None:
    images, labels = rows(1300)
    images[1297] = {"bytes": b"\x89PNG\r\n\x1a\nbroken", "path": None}
    images[1298] = {"bytes": None, "path": "/etc/hostname"}
    path = str(write(tmp_path / "a.parquet", images, labels))
    spec = job(source="parquet", path=path, evaluation_path=path)
    assert inspect_data(spec) == [], "it is beyond what is looked at before"
    train = opened(spec)[0].train
    with pytest.raises(BadDataError, match=r"row 1297 of .*a\.parquet cannot be decoded"):
        train.batch([5, 1297], seed=0)
    with pytest.raises(BadDataError, match=r"row 1298 of .*a\.parquet has no image"):
        train.batch([1298], seed=0)


@pytest.mark.parametrize(
    ("images", "labels", "field", "says"),
    [
        (None, [0, 1, None, 1], "label_column", "row 2 of .* has label None; labels are integers or texts"),
        (None, [0.0, 1.0, 1.0, 0.0], "label_column", "row 0 of .* has label 0.0"),
        (None, ["a", "a", "a", "a"], "label_column", "has one class only, 'a'"),
        (None, [0, -1, 1, 0], "label_column", "label -1 of row 1 is out of range"),
        ([1, 2, 3, 4], [0, 1, 0, 1], "image_column", "row 0 of .* has no image"),
        ([b"x"] * 4, [0, 1, 0, 1], "path", "row 0 of .* cannot be read"),
        ([], [], "path", "cannot be read as parquet|has no rows"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_bad_columns(tmp_path: Path, images: Any, labels: Any, field: str, says: str) -> None:
    path = write(tmp_path / "a.parquet", rows(4)[0] if images is None else images, labels)
    problems = inspect_data(job(source="parquet", path=str(path)))
    assert [problem.path for problem in problems] == [f"task.data.{field}"]
    import re

    assert re.search(says, problems[0].message), problems[0].message


def test_files_that_are_none(tmp_path: Path) -> None:
    def said(**data: Any) -> str:
        (problem,) = inspect_data(job(**data))
        return str(problem)

    assert "there is no Parquet file at" in said(source="parquet", path=str(tmp_path))
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    assert "cannot be read as parquet" in said(source="parquet", path=str(tmp_path))
    write(tmp_path / "a.parquet", *rows(4))
    path = str(tmp_path / "a.parquet")
    assert "has no column 'img'; it has: image, label" in said(source="parquet", path=path, image_column="img")
    assert "there is no Parquet file at" in said(source="parquet", path=path, evaluation_path=str(tmp_path / "none"))
    assert "there is no folder" in said(source="huggingface", path=str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadDataError, match=r"^task\.data\.path: .* cannot be loaded"):
        opened(job(source="huggingface", path=str(tmp_path / "empty")))
