"""Each finding on data: raised on a case that has it, silent on its healthy neighbour."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from api.cli.follow import told
from tests import proteins
from workers.data_checks import run
from workers.data_checks.report import Report
from workers.health import with_data
from workers.spec import parse_spec
from workers.watch.findings import Finding

pytestmark = pytest.mark.unit

CLASSES = 4


def look(task: Mapping[str, Any], *, seconds: float = 10.0, **more: Any) -> Report:
    report = run.check(parse_spec({"name": "x", "task": task, **more}), seconds)
    json.dumps(report.document(), allow_nan=False)  # it crosses a process border
    return report


def severities(report: Report) -> dict[str, str]:
    assert report.problem is None, report.problem
    return {each.code: each.severity for each in report.findings}


def the(report: Report, code: str) -> Finding:
    (found,) = [each for each in report.findings if each.code == code]
    assert found.first_bad_step == 0
    assert found.explanation
    assert found.suggestion
    return found


# --- images in arrays -------------------------------------------------------------------------------------------------


def images(train: int = 400, evaluation: int = 100, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Noise: no two images are alike."""
    random = np.random.default_rng(seed)
    return {
        "x_train": random.integers(0, 256, (train, 6, 6), dtype=np.uint8),
        "y_train": np.arange(train) % CLASSES,
        "x_test": random.integers(0, 256, (evaluation, 6, 6), dtype=np.uint8),
        "y_test": np.arange(evaluation) % CLASSES,
    }


def npz(folder: Path, arrays: Mapping[str, NDArray[Any]], seconds: float = 10.0, **more: Any) -> Report:
    path = folder / "images.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]  # numpy's stub takes every keyword for its allow_pickle
    data = {"source": "npz", "path": str(path), **more.pop("data", {})}
    return look({"kind": "image_classification", "data": data, **more}, seconds=seconds)


def test_healthy_images_have_no_finding(tmp_path: Path) -> None:
    report = npz(tmp_path, images())
    assert severities(report) == {}
    assert report.summary["samples"] == {"training": 400, "evaluation": 100}
    assert report.summary["shape"] == [6, 6, 1]
    assert report.summary["class_counts"]["training"] == {"0": 100, "1": 100, "2": 100, "3": 100}
    assert "400 for training" in report.sentence
    assert report.unchecked is None


@pytest.mark.parametrize(("shared", "severity"), [(1, "note"), (4, "note"), (5, "warning"), (100, "warning")])
def test_images_in_both_parts(tmp_path: Path, shared: int, severity: str) -> None:
    arrays = images()
    arrays["x_test"][:shared] = arrays["x_train"][40 : 40 + shared]
    found = the(npz(tmp_path, arrays), "train_evaluation_overlap")
    assert (found.severity, found.evidence["shared"], found.evidence["share"]) == (severity, shared, shared / 100)
    assert found.evidence["examples"][0] == "evaluation image 0 = training image 40"


@pytest.mark.parametrize(("copies", "severity"), [(2, "note"), (300, "warning")])
def test_repeated_training_images(tmp_path: Path, copies: int, severity: str) -> None:
    arrays = images()
    rows = np.arange(0, copies) + 50
    arrays["x_train"][rows] = arrays["x_train"][10]
    arrays["y_train"][rows] = arrays["y_train"][10]
    arrays["y_train"][:4] = np.arange(4)
    report = npz(tmp_path, arrays, class_weights="balanced")
    found = the(report, "duplicate_samples")
    assert (found.severity, found.evidence["repeated"]) == (severity, copies)
    assert "label_error" not in severities(report)


@pytest.mark.parametrize(("pairs", "severity"), [(1, "note"), (5, "warning")])
def test_identical_images_with_different_labels(tmp_path: Path, pairs: int, severity: str) -> None:
    arrays = images()
    arrays["x_train"][1 : 2 * pairs : 2] = arrays["x_train"][0 : 2 * pairs : 2]
    found = the(npz(tmp_path, arrays), "label_error")
    assert (found.severity, found.evidence["rows"]) == (severity, list(range(2 * pairs)))


@pytest.mark.parametrize(("blank", "severity"), [(1, "note"), (60, "warning"), (400, "critical")])
def test_blank_images(tmp_path: Path, blank: int, severity: str) -> None:
    arrays = images()
    arrays["x_train"][:blank] = (np.arange(blank) % 251).astype(np.uint8)[:, None, None]
    found = the(npz(tmp_path, arrays), "empty_samples")
    assert (found.severity, found.evidence["count"]) == (severity, blank)


def test_blank_images_are_told_once(tmp_path: Path) -> None:
    """Would catch labels that are called wrong because there is nothing to see."""
    arrays = images()
    arrays["x_train"][:60] = 0
    assert severities(npz(tmp_path, arrays)) == {"empty_samples": "warning"}


def test_parts_on_different_scales(tmp_path: Path) -> None:
    arrays = images()
    floats = arrays | {"x_train": arrays["x_train"].astype(np.float32), "x_test": arrays["x_test"] / np.float32(255)}
    assert severities(npz(tmp_path, floats)) == {"split_mismatch": "warning"}
    dark = arrays | {"x_train": arrays["x_train"] / np.float32(255), "x_test": arrays["x_test"] / np.float32(2000)}
    assert severities(npz(tmp_path, dark)) == {}, "another exposure is no other scale"


def test_class_without_training_samples(tmp_path: Path) -> None:
    arrays = images()
    arrays["y_train"][arrays["y_train"] == 3] = 2
    found = the(npz(tmp_path, arrays, data={"classes": 4}), "class_missing")
    assert (found.severity, found.evidence["classes"], found.evidence["samples"]) == ("warning", ["3"], 25)
    arrays = images()
    arrays["y_test"][arrays["y_test"] == 3] = 2
    found = the(npz(tmp_path, arrays), "class_missing")
    assert (found.severity, found.evidence["in"]) == ("note", "training")


def test_only_one_class(tmp_path: Path) -> None:
    arrays = images()
    arrays["y_train"][:] = arrays["y_test"][:] = 1
    assert severities(npz(tmp_path, arrays)) == {"class_missing": "critical"}


def imbalanced(rare: int) -> dict[str, NDArray[Any]]:
    arrays = images()
    arrays["y_train"][:] = 0
    arrays["y_train"][:rare] = 1
    arrays["y_test"] %= 2
    return arrays


def test_imbalanced_classes(tmp_path: Path) -> None:
    assert severities(npz(tmp_path, imbalanced(rare=18))) == {"class_imbalance": "warning"}
    assert severities(npz(tmp_path, imbalanced(rare=20))) == {}, "19 times is within the bound"
    assert severities(npz(tmp_path, imbalanced(rare=18), class_weights="balanced")) == {}, "the loss takes care of it"


def test_few_images_to_evaluate(tmp_path: Path) -> None:
    assert severities(npz(tmp_path, images(evaluation=29))) == {"too_few_evaluation_samples": "note"}
    assert severities(npz(tmp_path, images(evaluation=30))) == {}


def test_what_makes_training_impossible_names_the_row(tmp_path: Path) -> None:
    arrays = images()
    arrays["y_train"][17] = 9
    field, message = npz(tmp_path, arrays, data={"classes": 4}).problem or ("", "")
    assert field == "task.data.train_labels"
    assert "label 9 of row 17" in message
    pixels = images()["x_train"].astype(np.float32)
    pixels[[5, 8]] = np.nan
    field, message = npz(tmp_path, images() | {"x_train": pixels, "x_test": pixels}).problem or ("", "")
    assert field == "task.data.train_images"
    assert "image 5" in message
    assert "1 other" in message


# --- image files ------------------------------------------------------------------------------------------------------


def folder_of_images(top: Path, count: int = 30) -> dict[str, Any]:
    random = np.random.default_rng(0)
    for part in ("train", "held_out"):
        for name in ("cat", "dog"):
            (top / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 256, (9, 9, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(top / part / name / f"{index}.png")
    data = {"source": "folder", "path": str(top / "train"), "evaluation_path": str(top / "held_out"), "image_size": 8}
    return {"kind": "image_classification", "data": data}


def test_image_files(tmp_path: Path) -> None:
    task = folder_of_images(tmp_path)
    report = look(task)
    assert severities(report) == {}
    assert report.summary["samples"] == {"training": 60, "evaluation": 60}
    assert report.summary["shape"] == [8, 8, 3]
    Image.new("RGB", (9, 9)).save(tmp_path / "train/cat/0.png")
    (tmp_path / "held_out/dog/3.png").write_bytes((tmp_path / "train/dog/4.png").read_bytes())
    report = look(task)
    assert severities(report) == {"empty_samples": "note", "train_evaluation_overlap": "note"}
    assert the(report, "empty_samples").evidence["examples"] == [str(tmp_path / "train/cat/0.png")]


def test_a_broken_image_ends_a_run_that_would_meet_it(tmp_path: Path) -> None:
    task = folder_of_images(tmp_path)
    broken = tmp_path / "train/dog/7.png"
    broken.write_bytes(broken.read_bytes()[:80])
    field, message = look(task).problem or ("", "")
    assert field == "task.data.path"
    assert "1 of 120 images" in message
    assert str(broken) in message
    short = look(task, training={"steps": 2, "batch_size": 8})  # may end before it
    assert the(short, "undecodable_samples").severity == "critical"
    assert look(task, training={"steps": 10, "batch_size": 8}).problem is not None, "80 samples are more than all"


def test_without_time_a_sample_is_looked_at(tmp_path: Path) -> None:
    report = look(folder_of_images(tmp_path), seconds=1e-4)
    assert report.problem is None
    assert report.unchecked is not None
    assert "of 120 images, drawn at random" in report.unchecked
    assert report.summary["samples"] == {"training": 60, "evaluation": 60}
    for part in (npz(tmp_path, images(), seconds=0.0), table(tmp_path, rows(), seconds=0.0)):
        assert "drawn at random" in (part.unchecked or "")
        assert severities(part) == {}


# --- tables -----------------------------------------------------------------------------------------------------------


def rows(count: int = 300, seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    size = random.normal(50, 10, count)
    colour = random.choice(["red", "green", "blue"], count)
    return {"size": size, "weight": random.normal(0, 1, count), "colour": colour, "y": (size > 50).astype(int)}


def table(
    folder: Path,
    train: Mapping[str, Any],
    evaluation: Mapping[str, Any] | None = None,
    seconds: float = 10.0,
    **more: Any,
) -> Report:
    import pandas

    pandas.DataFrame(train).to_csv(folder / "train.csv", index=False)
    data = {"source": "csv", "path": str(folder / "train.csv"), "target": "y", **more.pop("data", {})}
    if "colour" in train:
        data = {"categorical": ["colour"], **data}
    if evaluation is not None:
        pandas.DataFrame(evaluation).to_csv(folder / "held_out.csv", index=False)
        data["evaluation_path"] = str(folder / "held_out.csv")
    return look({"kind": "tabular", "objective": "classification", "data": data, **more}, seconds=seconds)


def test_healthy_tables_have_no_finding(tmp_path: Path) -> None:
    report = table(tmp_path, rows(), rows(100, seed=1))
    assert severities(report) == {}
    assert report.summary["samples"] == {"training": 300, "evaluation": 100}
    assert (report.summary["features"], report.summary["categorical"]) == (3, 1)
    assert severities(table(tmp_path, rows())) == {}, "a part of it held out"
    regression = table(tmp_path, rows() | {"y": rows()["size"] * 2 + 1}, objective="regression")
    assert severities(regression) == {}
    assert set(regression.summary["target"]) == {"least", "largest", "mean", "deviation"}


def test_rows_in_both_parts(tmp_path: Path) -> None:
    train = rows()
    assert the(table(tmp_path, train, train), "train_evaluation_overlap").severity == "warning"
    few = {name: np.concatenate([values[:2], rows(98, seed=1)[name]]) for name, values in train.items()}
    assert the(table(tmp_path, train, few), "train_evaluation_overlap").severity == "note"


def test_rows_of_few_values_repeat_by_nature(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    train = {name: random.integers(0, 3, 400) for name in ("a", "b", "c")} | {"y": random.integers(0, 2, 400)}
    report = table(tmp_path, train)
    assert set(severities(report).values()) == {"note"}
    copied = {name: np.repeat(values, 2) for name, values in rows(200).items()}  # copies made before the split
    found = the(table(tmp_path, copied), "train_evaluation_overlap")
    assert found.severity == "warning"
    ours, theirs = (int(each.removeprefix("row ")) for each in found.evidence["examples"][0].split(" = "))
    assert ours // 2 == theirs // 2, "rows of the file, not of the parts"


def test_a_column_that_is_the_target(tmp_path: Path) -> None:
    found = rows()
    assert severities(table(tmp_path, found | {"copy": found["y"]})) == {"target_leak": "warning"}
    named = found | {"colour": np.where(found["y"] == 1, "yes", "no")}
    assert the(table(tmp_path, named), "target_leak").evidence["columns"] == ["colour"]
    nearly = found | {"copy": np.where(np.arange(300) == 7, 1 - found["y"], found["y"])}
    assert severities(table(tmp_path, nearly)) == {}


def test_constant_columns(tmp_path: Path) -> None:
    assert severities(table(tmp_path, rows() | {"year": np.full(300, 2024)})) == {"constant_input": "note"}
    train = {"year": np.full(300, 2024), "y": np.arange(300) % 2}
    assert the(table(tmp_path, train), "constant_input").severity == "critical"


def test_a_constant_target(tmp_path: Path) -> None:
    report = table(tmp_path, rows() | {"y": np.full(300, 3.5)}, objective="regression")
    assert severities(report) == {"constant_target": "critical"}


def test_columns_on_another_scale(tmp_path: Path) -> None:
    train, held_out = rows(), rows(100, seed=1)
    other = held_out | {"size": held_out["size"] * 1000, "weight": held_out["weight"] * 1000}
    assert severities(table(tmp_path, train, other)) == {"split_mismatch": "warning"}
    drifted = held_out | {"size": held_out["size"] + 30, "weight": held_out["weight"] * 3}
    assert severities(table(tmp_path, train, drifted)) == {}


def test_columns_with_few_values_known(tmp_path: Path) -> None:
    sparse = np.where(np.arange(300) % 3 == 0, 1.0 + np.arange(300), np.nan)
    report = table(tmp_path, rows() | {"sparse": sparse}, data={"missing": "mean"})
    assert severities(report) == {"missing_values": "note"}
    known = np.where(np.arange(300) % 3 == 0, np.nan, 1.0 + np.arange(300))
    assert severities(table(tmp_path, rows() | {"known": known}, data={"missing": "mean"})) == {}
    field, message = table(tmp_path, rows() | {"known": known}).problem or ("", "")
    assert "row 0" in message, field


def test_categories_that_name_rows_or_are_new(tmp_path: Path) -> None:
    names = np.array([f"id{i}" for i in range(300)])
    assert severities(table(tmp_path, rows() | {"colour": names}))["identifier_column"] == "note"
    train, held_out = rows(), rows(100, seed=1)
    held_out["colour"] = np.where(np.arange(100) < 30, "violet", held_out["colour"])
    assert severities(table(tmp_path, train, held_out)) == {"unseen_categories": "warning"}
    held_out["colour"] = np.where(np.arange(100) < 3, "violet", rows(100, seed=1)["colour"])
    assert severities(table(tmp_path, train, held_out)) == {"unseen_categories": "note"}


# --- text -------------------------------------------------------------------------------------------------------------


def prose(words: int, seed: int) -> str:
    random = np.random.default_rng(seed)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    found = ["".join(random.choice(letters, 6)) for _ in range(words)]
    return "\n".join(" ".join(found[i : i + 20]) for i in range(0, words, 20))


def text(folder: Path, train: str, evaluation: str, **more: Any) -> Report:
    (folder / "train.txt").write_text(train)
    (folder / "held_out.txt").write_text(evaluation)
    data = {"source": "text", "path": str(folder / "train.txt"), "evaluation_path": str(folder / "held_out.txt")}
    return look({"kind": "language_model", "data": data, "block_size": 32, **more})


def test_texts(tmp_path: Path) -> None:
    train, held_out = prose(4000, 0), prose(400, 1)
    report = text(tmp_path, train, held_out)
    assert severities(report) == {}
    assert report.summary["characters"] == {"training": len(train), "evaluation": len(held_out)}
    half = held_out + "\n" + train[: len(held_out)]
    assert severities(text(tmp_path, train, half)) == {"train_evaluation_overlap": "warning"}
    refrain = "ROMEO:\nlove\n" * 1000
    assert severities(text(tmp_path, train + refrain, held_out + refrain)) == {}, "short lines are alike by nature"
    assert severities(text(tmp_path, train + "\ufffd" * 400, held_out)) == {"mangled_text": "warning"}
    assert severities(text(tmp_path, train + "\x00" * 20, held_out)) == {"mangled_text": "note"}
    assert severities(text(tmp_path, "a" * 1000, held_out)) == {"constant_input": "critical"}
    field, _ = text(tmp_path, "abc", "abc", tokenizer={"kind": "char"}).problem or ("", "")
    assert field == "task.block_size"


def jsonl(folder: Path, documents: list[Any]) -> Report:
    (folder / "x.jsonl").write_text("".join(json.dumps(each) + "\n" for each in documents))
    return look({"kind": "language_model", "data": {"source": "jsonl", "path": str(folder / "x.jsonl")}})


def test_documents(tmp_path: Path) -> None:
    found: list[Any] = [{"prompt": "add", "completion": f"the answer is {i}"} for i in range(200)]
    report = jsonl(tmp_path, found)
    assert severities(report) == {}
    assert report.summary["documents"] == {"training": 180, "evaluation": 20}
    assert the(jsonl(tmp_path, found[:180] + found[:20]), "train_evaluation_overlap").severity == "warning"
    assert severities(jsonl(tmp_path, found[:170] + 10 * [found[0]] + found[180:])) == {"duplicate_samples": "note"}
    empty = {"prompt": "add", "completion": "  \n"}
    report = jsonl(tmp_path, [empty, *found])
    assert severities(report) == {"empty_samples": "note"}
    assert the(report, "empty_samples").evidence["examples"] == [f"line 1 of {tmp_path / 'x.jsonl'}"]
    silent = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": " "}]}
    assert the(jsonl(tmp_path, [silent, silent, *found]), "empty_samples").severity == "warning"
    field, message = jsonl(tmp_path, [*found, "no object"]).problem or ("", "")
    assert "line 201" in message, field


def tokens(folder: Path, train: NDArray[Any], evaluation: NDArray[Any], vocabulary: int = 500) -> Report:
    train.astype("<u2").tofile(folder / "train.bin")
    evaluation.astype("<u2").tofile(folder / "held_out.bin")
    data = {"source": "tokens", "path": str(folder / "train.bin"), "evaluation_path": str(folder / "held_out.bin")}
    data_of = data | {"vocabulary_size": vocabulary}
    return look({"kind": "language_model", "data": data_of, "block_size": 32})


def test_token_files(tmp_path: Path) -> None:
    train, held_out = (np.random.default_rng(seed).integers(0, 500, 20_000) for seed in (0, 1))
    report = tokens(tmp_path, train, held_out)
    assert severities(report) == {}
    assert (report.summary["distinct_tokens"], report.summary["vocabulary_size"]) == (500, 500)
    assert severities(tokens(tmp_path, train, train[:6400])) == {"train_evaluation_overlap": "warning"}
    assert severities(tokens(tmp_path, np.full(20_000, 7), held_out)) == {"constant_input": "critical"}
    _, message = tokens(tmp_path, train, held_out, vocabulary=400).problem or ("", "")
    assert "with vocabulary_size 400 0 to 399 are allowed" in message


# --- proteins ---------------------------------------------------------------------------------------------------------


def chain(folder: Path, name: str, sequence: str) -> None:
    proteins.write(folder / name, proteins.atoms(sequence, proteins.backbone("helix", len(sequence))))


def test_protein_chains(tmp_path: Path) -> None:
    train, held_out = tmp_path / "train", tmp_path / "held_out"
    for folder in (train, held_out):
        folder.mkdir()
    for index in range(4):
        chain(train, f"{index}.pdb", "A" * (20 + index))
    chain(held_out, "9.pdb", "V" * 20)
    task = {"kind": "protein_structure", "data": {"path": str(train), "evaluation_path": str(held_out)}}
    report = look(task)
    assert severities(report) == {}
    assert report.summary["chains"] == {"training": 4, "evaluation": 1}
    assert report.summary["residues"] == {"training": 86, "evaluation": 20}
    narrow = {**task, "data": {**task["data"], "max_residues": 20}}  # type: ignore[dict-item]
    assert severities(look(narrow)) == {"samples_left_out": "warning"}
    chain(held_out, "9.pdb", "A" * 21)
    found = the(look(task), "train_evaluation_overlap")
    assert (found.severity, found.evidence["examples"]) == ("warning", ["9 = 1"])
    (train / "2.pdb").write_text("nothing")
    _, message = look(task).problem or ("", "")
    assert "2.pdb has no ATOM record" in message


# --- what comes with the package --------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [("image_classification", "digits"), ("tabular", "breast_cancer")])
def test_built_in_sets_are_healthy(task: tuple[str, str]) -> None:
    assert severities(look({"kind": task[0], "data": {"source": task[1]}})) == {}


# --- what becomes of a look -------------------------------------------------------------------------------------------


def test_files_that_are_not_here_are_left_to_the_workers(tmp_path: Path) -> None:
    data = {"source": "npz", "path": str(tmp_path / "none.npz")}
    report = look({"kind": "image_classification", "data": data})
    assert report.problem is None
    assert "none.npz is not on this machine" in (report.unchecked or "")


@pytest.mark.parametrize(
    ("task", "health", "checked"),
    [
        ({"kind": "image_classification", "data": {"source": "digits"}}, {}, False),
        ({"kind": "image_classification", "data": {"source": "npz", "path": "/x.npz"}}, {}, True),
        ({"kind": "image_classification", "data": {"source": "npz", "path": "/x.npz"}}, {"data_checks": False}, False),
        ({"kind": "custom", "code": {"path": "/x"}, "factory": "x:y"}, {}, False),
    ],
)
def test_which_data_is_looked_at(task: dict[str, Any], health: dict[str, Any], checked: bool) -> None:
    assert run.to_be_checked(parse_spec({"name": "x", "task": task, "health": health})) is checked


def test_findings_on_data_outlive_verdicts_on_gradients() -> None:
    data = [{"code": "class_imbalance", "severity": "warning", "explanation": "Few cats."}]
    note = [{"code": "duplicate_samples", "severity": "note", "explanation": "Copies."}]
    gradients = {"code": "vanishing_gradient", "severity": "critical", "explanation": "It vanishes."}
    healthy = {"verdict": "healthy", "sentence": "All flows.", "findings": []}
    sick = {"verdict": "critical", "sentence": "It vanishes.", "findings": [gradients]}
    assert with_data(healthy, data) == {
        "verdict": "warning", "sentence": "Few cats. All flows.", "findings": data,
    }  # fmt: skip
    assert with_data(healthy, note) == healthy | {"findings": note}
    assert with_data(sick, [*data, *note]) == sick | {"findings": [gradients, *data, *note]}
    assert with_data({"verdict": "unknown", "findings": []}, data)["verdict"] == "warning"


def test_every_code_is_in_the_docs() -> None:
    root = Path(run.__file__).parents[2]
    sources = [path.read_text() for path in (root / "workers/data_checks").glob("*.py")]
    codes = {code for source in sources for code in re.findall(r'finding\(\s*"([a-z_]+)"', source)}
    assert len(codes) > 15, "the search finds them"
    docs = (root / "docs/jobs.md").read_text()
    assert {code for code in codes if f"`{code}`" not in docs} == set()


def test_the_terminal_explains_what_the_verdict_does_not() -> None:
    finding = {"code": "label_error", "severity": "note", "explanation": "Twins differ.", "suggestion": "Look."}
    assert told(finding, {"sentence": "All flows."}) == "label_error (note): Twins differ. Look."
    assert told(finding, {"sentence": "Twins differ. All flows."}) == "label_error (note): Look."
