"""Reading data, and saying what is wrong with it: field, value, row or file."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from workers.kinds.image_data import DigitsData, FolderData, IdxData, NpzData
from workers.kinds.tables import BreastCancerData, TableData
from workers.sources import arrays, folders, tables
from workers.sources.inspect import inspect_data
from workers.sources.problems import BadDataError
from workers.spec import parse_spec

pytestmark = pytest.mark.unit


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    ours = arrays.read_digits(DigitsData(source="digits"))
    assert (len(ours.train.labels), len(ours.evaluation.labels)) == (1437, 360)
    theirs = load_digits()
    mine = np.concatenate([ours.train.pixels, ours.evaluation.pixels]).reshape(-1, 64)
    assert sorted(map(bytes, mine.astype(np.uint8))) == sorted(map(bytes, theirs.data.astype(np.uint8)))
    counts = np.bincount(ours.evaluation.labels)
    assert counts.min() >= 34, "held-out digits must be spread over the classes"
    assert counts.max() <= 38


def test_breast_cancer_is_scikit_learns() -> None:
    from sklearn.datasets import load_breast_cancer

    ours = tables.read_breast_cancer(BreastCancerData(source="breast_cancer"))
    theirs = load_breast_cancer()
    rows = np.concatenate([ours.train.features, ours.evaluation.features])
    assert sorted(rows[:, 0].tolist()) == sorted(theirs.data[:, 0].tolist())
    assert len(ours.feature_names) == 30
    assert np.bincount(np.concatenate([ours.train.targets, ours.evaluation.targets])).tolist() == [212, 357]


def npz(path: Path, **changes: Any) -> NpzData:
    content: dict[str, Any] = {
        "x_train": np.zeros((20, 4, 4), np.uint8),
        "y_train": np.arange(20) % 3,
        "x_test": np.zeros((6, 4, 4), np.uint8),
        "y_test": np.arange(6) % 3,
    }
    np.savez(path, **(content | changes))
    return NpzData(source="npz", path=str(path))


def test_npz(tmp_path: Path) -> None:
    found = arrays.read_npz(npz(tmp_path / "a.npz"))
    assert found.train.pixels.shape == (20, 4, 4, 1)
    assert found.classes == 3
    assert found.scale == 255.0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"y_test": np.array([0, 1, 2, 3, 0, 0])}, "label 3 of row 3 is out of range; allowed is 0 to 2"),
        ({"y_train": np.array([-1] * 20)}, "label -1 of row 0"),
        ({"y_train": np.arange(19)}, "19 labels for 20 images"),
        ({"y_train": np.zeros(20)}, "labels must be integers"),
        ({"x_train": np.zeros((0, 4, 4), np.uint8), "y_train": np.zeros(0, int)}, "there are no images"),
        ({"x_train": np.zeros((20, 4), np.uint8)}, "shape"),
        ({"x_test": np.zeros((6, 5, 5), np.uint8)}, "do not fit"),
        ({"x_test": np.zeros((6, 4, 4), np.float32)}, "both be uint8 or both be floats"),
        ({"y_train": np.array([10**7] * 20)}, "at most 1,000,000 are allowed"),
        ({"x_train": np.full((20, 4, 4), np.nan, np.float32)}, "image 0 has a value that is NaN"),
        ({"x_train": np.array([{}] * 20, dtype=object)}, "cannot be read"),
    ],
    ids=str,
)
def test_bad_npz(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    data = npz(tmp_path / "a.npz", **changes)
    with pytest.raises(BadDataError, match=r"^task\.data\.") as caught:
        arrays.read_npz(data)
    assert says in str(caught.value)


def test_npz_files_that_are_none(tmp_path: Path) -> None:
    data = npz(tmp_path / "a.npz")
    content = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(BadDataError, match="cannot be read"):
        arrays.read_npz(data)
    with pytest.raises(BadDataError, match="no array 'images'; it has"):
        arrays.read_npz(npz(tmp_path / "b.npz").model_copy(update={"train_images": "images"}))
    with pytest.raises(BadDataError, match="there is no file"):
        arrays.read_npz(data.model_copy(update={"path": str(tmp_path / "none.npz")}))


def idx(path: Path, array: np.ndarray[Any, Any]) -> str:
    content = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx(tmp_path: Path, suffix: str) -> None:
    images = np.arange(10 * 4 * 4, dtype=np.uint8).reshape(10, 4, 4)
    data = IdxData(
        source="idx",
        train_images=idx(tmp_path / f"images{suffix}", images),
        train_labels=idx(tmp_path / f"labels{suffix}", np.arange(10, dtype=np.uint8) % 2),
    )
    found = arrays.read_idx(data)
    assert len(found.train.labels) == 8
    assert len(found.evaluation.labels) == 2
    both = np.concatenate([found.train.pixels, found.evaluation.pixels])[..., 0]
    assert sorted(map(bytes, both)) == sorted(map(bytes, images))


def test_idx_that_is_cut_off_or_something_else(tmp_path: Path) -> None:
    path = idx(tmp_path / "images", np.zeros((10, 4, 4), np.uint8))
    labels = idx(tmp_path / "labels", np.zeros(10, np.uint8))
    data = IdxData(source="idx", train_images=path, train_labels=labels)
    Path(path).write_bytes(Path(path).read_bytes()[:-1])
    with pytest.raises(
        BadDataError, match=r"task\.data\.train_images: .* has 175 bytes; its header \(10, 4, 4\) needs 176"
    ):
        arrays.read_idx(data)
    Path(path).write_bytes(b"\x89PNG....")
    with pytest.raises(BadDataError, match="not in the idx format"):
        arrays.read_idx(data)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    root = tmp_path / "pictures"
    for name, value in (("cat", 10), ("dog", 200)):
        (root / name).mkdir(parents=True)
        for index in range(5):
            Image.fromarray(np.full((9, 7, 3), value, np.uint8)).save(root / name / f"{index}.png")
    (root / "cat" / ".hidden.png").write_bytes(b"x")
    (root / "cat" / "notes.txt").write_text("not a picture")
    return root


def test_folder(pictures: Path) -> None:
    found = folders.read_folder(FolderData(source="folder", path=str(pictures), image_size=8))
    assert found.class_names == ("cat", "dog")
    assert len(found.train.paths) == 8
    assert len(found.evaluation.paths) == 2
    pixels = folders.decode(pictures / "dog" / "0.png", 8, 3)
    assert pixels.shape == (8, 8, 3)
    assert pixels.mean() == 200


def test_bad_folders(pictures: Path, tmp_path: Path) -> None:
    data = FolderData(source="folder", path=str(pictures))
    (pictures / "dog" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(BadDataError, match=r"bad\.png"):
        folders.decode(pictures / "dog" / "bad.png", 8, 3)
    with pytest.raises(BadDataError, match=r"bad\.png"):
        folders.check_header(pictures / "dog" / "bad.png")
    (pictures / "empty").mkdir()
    with pytest.raises(BadDataError, match=r"class folder .*empty has no image"):
        folders.read_folder(data)
    (pictures / "empty").rmdir()
    Image.fromarray(np.full((9, 7), 40_000, np.uint16)).save(pictures / "cat" / "deep.png")
    with pytest.raises(BadDataError, match="only 8 bits a channel"):  # converting would make it white
        folders.decode(pictures / "cat" / "deep.png", 8, 3)
    (pictures / "cat" / "deep.png").unlink()
    (pictures / "cat" / ".ipynb_checkpoints").mkdir()
    (pictures / "cat" / ".ipynb_checkpoints" / "copy.png").write_bytes((pictures / "cat" / "0.png").read_bytes())
    assert not any("copy" in path.name for path in folders.read_folder(data).train.paths)
    os.symlink("/", pictures / "elsewhere")
    with pytest.raises(BadDataError, match="outside"):
        folders.read_folder(data.model_copy(update={"evaluation_path": None}))
    (pictures / "elsewhere").unlink()
    outside = tmp_path / "outside.png"
    outside.write_bytes((pictures / "cat" / "0.png").read_bytes())
    os.symlink(outside, pictures / "cat" / "link.png")
    with pytest.raises(BadDataError, match="outside"):
        folders.read_folder(data)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(BadDataError, match="at least 2; it has 0"):
        folders.read_folder(data.model_copy(update={"path": str(tmp_path / "nothing")}))


def test_table(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b,kind\n" + "".join(f"{i},{-i},{'xy'[i % 2]}\n" for i in range(10)))
    found = tables.read_table(TableData(source="csv", path=str(path), target="kind"), "classification")
    assert found.feature_names == ("a", "b")
    assert found.class_names == ("x", "y")
    assert len(found.train.targets) == 8
    regression = tables.read_table(TableData(source="csv", path=str(path), target="b", features=["a"]), "regression")
    np.testing.assert_array_equal(regression.train.features[:, 0], -regression.train.targets)


def test_times_in_seconds_stay_apart(tmp_path: Path) -> None:
    """Would catch a cast to float32 before standardising, which leaves two of these values."""
    from workers.kinds.tables import TabularTask
    from workers.tasks.tabular import Tabular

    path = tmp_path / "times.csv"
    path.write_text("time,kind\n" + "".join(f"{1_700_000_000 + i},{i % 2}\n" for i in range(80)))
    data = TableData(source="csv", path=str(path), target="kind")
    train = Tabular(TabularTask(kind="tabular", data=data), seed=0).datasets().train
    assert len(train.batch(range(64), seed=0)["features"].unique()) == 64


def test_a_target_is_no_feature(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,t\n1,0\n2,1\n")
    with pytest.raises(BadDataError, match="give the answer away"):
        tables.read_table(TableData(source="csv", path=str(path), target="t", features=["a", "t"]), "classification")


def test_parquet_holds_the_same_as_csv(tmp_path: Path) -> None:
    import pandas

    frame = pandas.DataFrame({"a": np.arange(10.0), "t": np.arange(10) % 2})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "a.parquet")
    both = [
        tables.read_table(TableData(source=source, path=str(tmp_path / f"a.{source}"), target="t"), "classification")
        for source in ("csv", "parquet")
    ]
    np.testing.assert_array_equal(both[0].train.features, both[1].train.features)


@pytest.mark.parametrize(
    ("text", "target", "says"),
    [
        ("a,t\n1,0\nx,1\n", "t", "column 'a' must be numbers; row 1 has 'x'"),
        ("a,t\n1,0\n,1\n3,0\n", "t", "column 'a' is empty or NaN in row 1; missing: mean allows that"),
        ("a,t\n1,0\n2,1\n", "z", "no column 'z'; there are: a, t"),
        ("a,t\n", "t", "has no rows"),
        ("a,t\n1,0\n2,0\n", "t", "1 different values"),
        ("", "t", "cannot be read as csv"),
        ("a,t\n1,0,5\n2,1,6\n", "t", "more values than its header"),
        ("t\n1\n0\n", "t", "no column besides the target"),
        ("a,t\n1e200,0\n2,1\n", "t", "beyond 1e+100 in row 0"),
    ],
)
def test_bad_tables(tmp_path: Path, text: str, target: str, says: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(BadDataError) as caught:
        tables.read_table(TableData(source="csv", path=str(path), target=target), "classification")
    assert says in str(caught.value)


def test_the_quick_look_names_field_and_value(tmp_path: Path) -> None:
    npz(tmp_path / "a.npz")
    task = {"kind": "image_classification", "data": {"source": "npz", "path": str(tmp_path / "a.npz")}}
    assert inspect_data(parse_spec({"name": "x", "task": task, "training": {"batch_size": 20}})) == []
    (problem,) = inspect_data(parse_spec({"name": "x", "task": task, "training": {"batch_size": 21}}))
    assert (problem.path, problem.value) == ("training.batch_size", "21")
    assert "at most 20" in problem.message


def test_the_quick_look_knows_the_sizes_of_the_built_in_sets() -> None:
    for task, size in (
        ({"kind": "image_classification", "data": {"source": "digits"}}, 1437),
        ({"kind": "tabular", "data": {"source": "breast_cancer"}}, 455),
    ):
        assert not inspect_data(parse_spec({"name": "x", "task": task, "training": {"batch_size": size}}))
        assert inspect_data(parse_spec({"name": "x", "task": task, "training": {"batch_size": size + 1}}))
    assert len(tables.read_breast_cancer(BreastCancerData(source="breast_cancer")).train.targets) == 455
