"""Jobs that are written correctly and cannot be accepted all the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.admission import check
from service.cluster import Capacity, Node, Resources
from service.errors import InvalidRequest
from service.settings import Settings
from workers.problems import Problem
from workers.spec import JobSpec, parse_spec

pytestmark = pytest.mark.unit


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for folder in (root, tmp_path / "data-secret"):
        folder.mkdir()
        images, labels = np.zeros((20, 4, 4), np.uint8), np.arange(20) % 2
        np.savez(folder / "a.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    return root


def spec(path: object, **changes: Any) -> JobSpec:
    task = {"kind": "image_classification", "data": {"source": "npz", "path": str(path)}}
    return parse_spec({"name": "test", "task": task, "training": {"batch_size": 10}, **changes})


def settings(*roots: Path, **changes: Any) -> Settings:
    return Settings(home=Path("/tmp/unused"), data_roots=roots, **changes)


def problems(job: JobSpec, options: Settings, capacity: Capacity | None = None) -> list[Problem]:
    try:
        check(job, options, capacity)
    except InvalidRequest as error:
        return list(error.problems)
    return []


def test_data_within_a_root_is_accepted(data: Path) -> None:
    assert problems(spec(data / "a.npz"), settings(data)) == []
    assert problems(spec(data / "a.npz"), settings(Path("/"))) == []
    assert problems(spec(data / ".." / "data" / "a.npz"), settings(data)) == []


def test_a_root_that_is_itself_a_link_allows_what_it_leads_to(data: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(data)
    assert problems(spec(tmp_path / "link" / "a.npz"), settings(tmp_path / "link")) == []


def test_paths_outside_the_roots_are_refused(data: Path, tmp_path: Path) -> None:
    (data / "link.npz").symlink_to(tmp_path / "data-secret" / "a.npz")
    (data / "folder").symlink_to(tmp_path / "data-secret")
    (data / "loop").symlink_to(data / "loop")
    for path in (
        tmp_path / "data-secret" / "a.npz",  # begins like the root
        data / ".." / "data-secret" / "a.npz",
        data / "link.npz",
        data / "folder" / "a.npz",
        "/etc/passwd",
    ):
        [problem] = problems(spec(path), settings(data))
        assert problem.path == "task.data.path"
        assert "outside the allowed data roots" in problem.message, path
    assert problems(spec(data / "loop"), settings(data)), "a loop of links leads nowhere"


def test_what_is_outside_is_not_even_looked_for(data: Path, tmp_path: Path) -> None:
    """The answer is the same for files that exist and files that do not."""
    there = problems(spec(tmp_path / "data-secret" / "a.npz"), settings(data))
    absent = problems(spec(tmp_path / "data-secret" / "b.npz"), settings(data))
    assert [p.message for p in there] == [p.message for p in absent]


def test_links_inside_a_folder_of_images_are_followed_too(data: Path, tmp_path: Path) -> None:
    (data / "images" / "cats").mkdir(parents=True)
    (data / "images" / "cats" / "1.png").symlink_to(tmp_path / "data-secret" / "a.npz")
    task = {"kind": "image_classification", "data": {"source": "folder", "path": str(data / "images")}}
    [problem] = problems(parse_spec({"name": "test", "task": task}), settings(data))
    assert "outside the allowed data roots" in problem.message


def test_a_relative_path_means_nothing_to_a_service(data: Path) -> None:
    [problem] = problems(spec("a.npz"), settings(data))
    assert "absolute" in problem.message


def test_a_name_that_no_file_can_have_is_a_problem_and_not_a_crash(data: Path) -> None:
    assert problems(spec(data / ("x" * 3000)), settings(data))


def test_without_roots_paths_are_for_people_of_this_machine(data: Path) -> None:
    job = spec(data / "a.npz")
    assert problems(job, settings(api_host="127.0.0.1")) == []
    assert problems(job, settings(api_host="localhost")) == []
    [problem] = problems(job, settings(api_host="0.0.0.0"))
    assert "CHAINRULE_DATA_ROOTS" in problem.message
    digits = parse_spec({"name": "d", "task": {"kind": "image_classification", "data": {"source": "digits"}}})
    assert problems(digits, settings(api_host="0.0.0.0")) == []


def test_a_missing_file_and_a_batch_larger_than_the_data_are_named(data: Path) -> None:
    assert [p.path for p in problems(spec(data / "b.npz"), settings(data))] == ["task.data.path"]
    large = problems(spec(data / "a.npz", training={"batch_size": 50}), settings(data))
    assert [p.path for p in large] == ["training.batch_size"]


def test_more_workers_than_the_cluster_can_ever_have_are_refused(data: Path) -> None:
    capacity = Capacity((Node("n", "a", Resources(2, 0, 2**33)),))
    job = spec(data / "a.npz", workers={"count": 4})
    [problem] = problems(job, settings(data), capacity)
    assert problem.path == "workers"
    assert "needs 4 CPUs, 2 in all" in problem.message
    assert problems(job, settings(data), None) == []
    assert problems(job, settings(data), Capacity(())) == [], "machines may still come"


def test_all_problems_come_at_once(data: Path) -> None:
    capacity = Capacity((Node("n", "a", Resources(2, 0, 2**33)),))
    found = problems(spec("/etc/passwd", workers={"count": 4}), settings(data), capacity)
    assert [p.path for p in found] == ["task.data.path", "workers"]


def test_roots_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAINRULE_DATA_ROOTS", "/data:/mnt/more")
    monkeypatch.setenv("CHAINRULE_HOME", "/srv/chainrule")
    monkeypatch.setenv("CHAINRULE_STORAGE", "")
    found = Settings()
    assert found.data_roots == (Path("/data"), Path("/mnt/more"))
    assert found.database_url == "sqlite:////srv/chainrule/chainrule.db"
    assert found.storage == Path("/srv/chainrule/storage")
    monkeypatch.setenv("CHAINRULE_DATA_ROOTS", "data")
    with pytest.raises(ValueError, match="absolute"):
        Settings()
