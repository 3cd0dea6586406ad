"""Job files into documents: what YAML 1.1 would get wrong, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from workers.jobfile import JobFileError, parse_job_text, read_job_file
from workers.spec import parse_spec, read_from

pytestmark = pytest.mark.unit

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("1.5e-3", 1.5e-3),
        ("-2e3", -2e3),
        ("10", 10),
        ("0.5", 0.5),
        ("true", True),
        ("on", "on"),
        ("no", "no"),
        ("2026-11-23", "2026-11-23"),
        ("null", None),
        ("1e", "1e"),
        ("e5", "e5"),
        ("'1e-3'", "1e-3"),
    ],
)
def test_scalars_mean_what_they_look_like(text: str, value: object) -> None:
    document = parse_job_text(f"x: {text}")
    assert document == {"x": value}
    assert isinstance(document, dict)
    assert type(document["x"]) is type(value)


@pytest.mark.parametrize(
    ("text", "suffix", "says"),
    [
        ("a: 1\na: 2\n", ".yaml", "'a' is given twice"),
        ('{"a": 1, "a": 2}', ".json", "'a' is given twice"),
        ("a: [1\n", ".yaml", "line 2"),
        ('{"a": }', ".json", "line 1, column 7"),
        ('{"a": NaN}', ".json", "NaN is not allowed"),
        ("a: !!python/object/apply:os.system [x]", ".yaml", "could not determine a constructor"),
        ("1: a", ".yaml", "key 1 is not a text"),
        ("[" * 100_000, ".json", "nested too deeply"),
    ],
)
def test_what_is_refused_says_where(text: str, suffix: str, says: str) -> None:
    with pytest.raises(JobFileError) as caught:
        parse_job_text(text, suffix)
    assert says in str(caught.value)


def test_a_missing_and_a_binary_file(tmp_path: Path) -> None:
    with pytest.raises(JobFileError, match="No such file"):
        read_job_file(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(JobFileError, match="not UTF-8"):
        read_job_file(tmp_path / "binary.yaml")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_are_jobs(path: Path) -> None:
    parse_spec(read_job_file(path))


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 4


def test_paths_in_lists_are_the_files_folders_too() -> None:
    data = {"path": ["a.pdb", "/there/b.pdb"], "clusters": "kin.csv"}
    document: dict[str, Any] = {"name": "x", "task": {"kind": "protein_structure", "data": data}}
    moved = read_from("/jobs", document, parse_spec(document))
    assert moved["task"]["data"] == {"path": ["/jobs/a.pdb", "/there/b.pdb"], "clusters": "/jobs/kin.csv"}
    assert document["task"]["data"] is data, "the document stays as it was"
