"""What a task shows is kept whole, under names that can do no harm; asking for it leaves no trace in the training process."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from workers import artifacts
from workers.artifacts import ArtifactError
from workers.illustration import kept_generators, shown

pytestmark = pytest.mark.unit


def test_files_of_steps_are_listed_in_order(tmp_path: Path) -> None:
    artifacts.write(tmp_path, 1000, {"b.txt": b"12", "a.png": b"1"})
    artifacts.write(tmp_path, 20, {"a.png": b"123"})
    assert artifacts.steps(tmp_path) == [20, 1000]
    found = list(artifacts.every(tmp_path))
    assert [(each.path, each.bytes, each.media_type) for each in found] == [
        ("step-0000000020/a.png", 3, "image/png"),
        ("step-0000001000/a.png", 1, "image/png"),
        ("step-0000001000/b.txt", 2, "text/plain; charset=utf-8"),
    ]
    assert list(artifacts.every(tmp_path, newest_first=True)) == found[::-1]
    assert [artifacts.parse_path(each.path) for each in found] == [(each.step, each.name) for each in found]


def test_nothing_is_listed_where_nothing_is(tmp_path: Path) -> None:
    assert artifacts.steps(tmp_path / "none") == []
    assert artifacts.of_step(tmp_path, 3) == []


def test_a_step_that_is_done_again_replaces_its_files(tmp_path: Path) -> None:
    artifacts.write(tmp_path, 5, {"a.txt": b"old", "gone.txt": b"old"})
    artifacts.write(tmp_path, 5, {"a.txt": b"new", "b.txt": b"new"})
    assert {each.name for each in artifacts.of_step(tmp_path, 5)} == {"a.txt", "b.txt"}
    assert (tmp_path / "step-0000000005/a.txt").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["step-0000000005"]


def test_what_a_killed_writer_left_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / ".step-0000000005.partial").mkdir()
    (tmp_path / ".step-0000000005.partial" / "half.txt").write_bytes(b"ha")
    assert artifacts.steps(tmp_path) == []
    artifacts.write(tmp_path, 5, {"a.txt": b"whole"})
    assert [each.name for each in artifacts.of_step(tmp_path, 5)] == ["a.txt"]


BAD_NAMES = ["", ".", "..", "../x.txt", "a/b.txt", "/etc/passwd", "a\\b", ".hidden", "a\nb.txt", "a\x00", "a b.txt",
             "ä.png", "-rf", "a" * 129, "a%2fb", 'a"b', "x\u2028.txt"]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_could_lead_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match="file name"):
        artifacts.write(tmp_path, 1, {"good.txt": b"", name: b"x"})
    assert os.listdir(tmp_path) == []
    assert artifacts.parse_path(f"step-0000000001/{name}") is None


@pytest.mark.parametrize(
    "path", ["", "good.txt", "step-1/good.txt", "step-0000000001", "step-0000000001/", "x/step-0000000001/good.txt",
             "step-00000000012/good.txt", "step-000000000\u0661/good.txt"]
)  # fmt: skip
def test_what_is_no_path_of_an_artifact(path: str) -> None:
    assert artifacts.parse_path(path) is None


def test_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "MOST_BYTES", 10)
    artifacts.write(tmp_path, 1, {f"{n}.txt": b"x" * 10 for n in range(64)})
    with pytest.raises(ArtifactError, match=r"65 files for one step; at most 64"):
        artifacts.write(tmp_path, 2, {f"{n}.txt": b"" for n in range(65)})
    with pytest.raises(ArtifactError, match=r"big\.txt: 11 bytes; at most 10"):
        artifacts.write(tmp_path, 2, {"big.txt": b"x" * 11})
    with pytest.raises(ArtifactError, match="must be bytes, not str"):
        artifacts.write(tmp_path, 2, {"text.txt": "text"})  # type: ignore[dict-item]
    assert artifacts.steps(tmp_path) == [1]


def test_a_link_in_the_folder_is_no_artifact(tmp_path: Path) -> None:
    artifacts.write(tmp_path, 1, {"a.txt": b"x"})
    (tmp_path / "step-0000000001/b.txt").symlink_to("/etc/passwd")
    (tmp_path / "step-0000000001/c").mkdir()
    assert [each.name for each in artifacts.every(tmp_path)] == ["a.txt"]


def draws() -> tuple[float, float, float]:
    return torch.rand(1).item(), float(np.random.random()), random.random()


def test_all_generators_are_put_back() -> None:
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    expected = draws()
    torch.manual_seed(3), np.random.seed(3), random.seed(3)

    def fail() -> None:
        with kept_generators(torch.device("cpu")):
            draws()
            torch.manual_seed(7)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert draws() == expected


def test_a_model_is_shown_as_in_an_evaluation() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).train()

    def fail() -> None:
        with shown(model, torch.device("cpu"), bf16=True):
            assert not any(module.training for module in model.modules())
            assert not torch.is_grad_enabled()
            assert model(torch.ones(1, 2)).dtype == torch.bfloat16
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert all(module.training for module in model.modules())
    assert torch.is_grad_enabled()
