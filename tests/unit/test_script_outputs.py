"""Files of a script's output folder as artifacts."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from workers import artifacts
from workers.scripts.outputs import Kept, Outputs, name_of

pytestmark = pytest.mark.unit


def write(path: Path, text: str = "x", age: float = 60.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (time.time() - age, time.time() - age))


def kept(outputs: Outputs) -> list[str]:
    return [each.path for each in artifacts.every(outputs.target)]


def test_new_files_now_and_then_and_all_at_the_end(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path / "outputs", tmp_path / "artifacts")
    assert outputs.keep_new(1) == Kept()
    write(outputs.folder / "log.txt")
    write(outputs.folder / "half.txt", age=0.0)
    assert outputs.keep_new(5).names == ("log.txt",)
    assert outputs.keep_new(9) == Kept(), "nothing is new"
    write(outputs.folder / "deep" / "curve.csv", age=30)
    assert outputs.keep_new(10).names == ("deep__curve.csv",)
    assert outputs.keep_all(12).names == ("deep__curve.csv", "half.txt", "log.txt")
    assert kept(outputs)[:2] == ["step-0000000005/log.txt", "step-0000000010/deep__curve.csv"]


def test_what_is_too_much_stays_where_it_is(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path / "outputs", tmp_path / "artifacts")
    for number in range(artifacts.MOST_FILES + 3):
        write(outputs.folder / f"{number}.txt", age=1000 - number)
    with (outputs.folder / "large.bin").open("wb") as stream:
        stream.truncate(artifacts.MOST_BYTES + 1)
    (outputs.folder / "link").symlink_to("/etc/passwd")
    found = outputs.keep_all(3)
    assert len(found.names) == artifacts.MOST_FILES
    assert found.left_out == ("0.txt", "1.txt", "2.txt", "large.bin")


@pytest.mark.parametrize(
    ("path", "name"), [("a b/c.txt", "a_b__c.txt"), (".hidden", "xhidden"), ("é.png", "x.png"), ("a/" * 100 + "b", "")]
)
def test_every_name_is_one_of_an_artifact(path: str, name: str) -> None:
    found = name_of(Path(path))
    assert artifacts.NAME.fullmatch(found)
    if len(path) < 50:
        assert found == name
