"""Metrics, gradients, logs and files of a job, from a folder as the worker group writes it."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from service.values import Role
from tests.integration.api_service import Service, error_of, running_service
from workers import artifacts
from workers.checkpoint_folders import FORMAT, INDEX, STATE, folder_of
from workers.gradient_files import GradientWriter
from workers.jobfolder import append_lines, encode
from workers.storage import folder_at, local_path

pytestmark = pytest.mark.integration


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with running_service(tmp_path / "home") as running:
        yield running


@pytest.fixture
def job(service: Service) -> str:
    return service.submit()


def write_metrics(service: Service, job: str, key: str, values: list[float]) -> None:
    rows = [
        {"step": step, "timestamp": 1_800_000_000 + step / 4, "values": {key: encode(value)}}
        for step, value in enumerate(values, start=1)
    ]
    append_lines(service.folder(job).metrics_path(1), rows)


def test_series_with_values_that_are_no_numbers(service: Service, job: str) -> None:
    write_metrics(service, job, "train/loss", [2.5, math.nan, math.inf, -math.inf, 0.1])
    write_metrics(service, job, "eval/loss", [1.0])
    everything = service.get(f"/v1/jobs/{job}/metrics").json()
    assert [series["key"] for series in everything["data"]] == ["eval/loss", "train/loss"]
    answer = service.get(f"/v1/jobs/{job}/metrics?keys=train/loss,eval/accuracy").json()
    loss, accuracy = answer["data"]
    assert [point["value"] for point in loss["points"]] == [2.5, "NaN", "Infinity", "-Infinity", 0.1]
    assert loss["points"][0] == {"step": 1, "value": 2.5, "timestamp": "2027-01-15T08:00:00.250Z"}
    assert accuracy == {"id": "eval/accuracy", "object": "series", "key": "eval/accuracy", "points": []}
    assert (answer["first_id"], answer["last_id"], answer["has_more"]) == ("train/loss", "eval/accuracy", False)


def test_a_long_series_is_thinned_and_keeps_its_peak(service: Service, job: str) -> None:
    values = [1.0 + step * 1e-6 for step in range(20_000)]
    values[12_345], values[777] = 99.0, math.nan
    write_metrics(service, job, "train/loss", values)
    points = service.get(f"/v1/jobs/{job}/metrics?keys=train/loss&max_points=50").json()["data"][0]["points"]
    assert len(points) <= 50
    assert {1, 20_000, 12_346, 778} <= {point["step"] for point in points}
    default = service.get(f"/v1/jobs/{job}/metrics").json()["data"][0]["points"]
    assert 500 < len(default) <= 1000


def test_gradients_are_a_matrix_of_layers_and_steps(service: Service, job: str) -> None:
    writer = GradientWriter(service.folder(job).gradients_path, 1)
    writer.append(("conv", "head"), [(step, (0.1 * step, 1.0)) for step in range(1, 101)])
    writer.append(("conv", "head"), [(101, (math.nan, math.inf))])
    matrix = service.get(f"/v1/jobs/{job}/gradients").json()
    assert (matrix["object"], matrix["job_id"], matrix["layers"]) == ("gradient_matrix", job, ["conv", "head"])
    assert matrix["steps"] == list(range(1, 102))
    assert matrix["norms"][2] == [0.3, 1.0]  # a float32 in its own few digits
    assert matrix["norms"][-1] == ["NaN", "Infinity"]
    part = service.get(f"/v1/jobs/{job}/gradients?first_step=10&last_step=29&max_points=4").json()
    assert len(part["steps"]) == 4
    assert set(part["steps"]) <= set(range(10, 30))
    assert 29 in part["steps"]  # the largest norm of the last stretch


def test_a_long_run_is_answered_with_few_points_for_little_reading(service: Service, job: str) -> None:
    """Would catch a page of a long job that reads all of it, or is sent all of it, at every refresh."""
    steps, layers = 20_000, 100
    spike = 13_579
    write_metrics(service, job, "train/loss", [99.0 if step == spike else 1.0 for step in range(1, steps + 1)])
    writer = GradientWriter(service.folder(job).gradients_path, 1)
    rows = [(step, [100.0 if step == spike else 0.001 * step] * layers) for step in range(1, steps + 1)]
    for start in range(0, steps, 500):
        writer.append([f"layer{index}" for index in range(layers)], rows[start : start + 500])
    urls = (f"/v1/jobs/{job}/metrics?keys=train/loss&max_points=500", f"/v1/jobs/{job}/gradients?max_points=100")
    assert service.get(urls[0]).status_code == 200  # the first look reads the metrics, once
    before = psutil.Process().io_counters().read_chars
    metrics, gradients = (service.get(url) for url in urls)
    read = psutil.Process().io_counters().read_chars - before
    assert read < 16 * steps + 100 * 4 * layers + 200_000  # an index, the rows, and what the database reads
    points = metrics.json()["data"][0]["points"]
    assert len(points) <= 500
    assert spike in {point["step"] for point in points}
    assert len(gradients.json()["steps"]) == 100
    assert spike in gradients.json()["steps"]
    assert len(metrics.content) < 500 * 100
    assert len(gradients.content) < 100 * layers * 12


def test_logs_come_in_pages_by_rank_and_attempt(service: Service, job: str) -> None:
    for rank in (0, 1):
        path = service.folder(job).log_path(1, rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            b"".join(b"2026-11-23T19:00:0%d.%03dZ rank %d says \xff %d\n" % (n, rank, rank, n) for n in range(5))
            + b"2026-11-23T19:00:09.000Z not yet wri"  # a line is shown when it is whole
        )
    url = f"/v1/jobs/{job}/logs"
    everything = service.get(url).json()
    assert len(everything["data"]) == 10
    assert [line["rank"] for line in everything["data"]] == [0, 1] * 5  # merged by time
    assert everything["data"][0]["text"] == "rank 0 says \ufffd 0"
    assert everything["data"][1]["timestamp"] == "2026-11-23T19:00:00.001Z"
    lines, page = [], service.get(f"{url}?limit=3").json()
    while True:
        lines += page["data"]
        if not page["has_more"]:
            break
        page = service.get(url, params={"limit": "3", "after": page["last_id"]}).json()
    assert lines == everything["data"]
    only = service.get(f"{url}?rank=1&attempt=1&limit=1000").json()["data"]
    assert [line["text"] for line in only] == [f"rank 1 says \ufffd {n}" for n in range(5)]
    assert service.get(f"{url}?attempt=2").json()["data"] == []


def write_checkpoint(
    service: Service, job: str, step: int, files: dict[str, bytes], listed: tuple[str, ...] = ()
) -> Path:
    """``listed``: what the manifest names besides."""
    folder = local_path(folder_of(folder_at(service.folder(job).checkpoints_root), step, 1))
    folder.mkdir(parents=True)
    files = {STATE: b"{}", INDEX: b"index", **files}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    entries = [
        {"path": name, "bytes": len(files.get(name, b"")), "sha256": hashlib.sha256(files.get(name, b"")).hexdigest()}
        for name in [*files, *listed]
    ]
    manifest = {
        "format": FORMAT,
        "step": step,
        "generation": 1,
        "created_at": 1_800_000_000.0,
        "metrics": {"eval/loss": 0.5},
        "verdict": "healthy",
        "world_size": 2,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest | {"files": entries}))
    return folder


def test_checkpoints_are_listed_and_downloaded(service: Service, job: str) -> None:
    content = os.urandom(100_000)
    folder = write_checkpoint(service, job, 100, {"part-0000.distcp": content})
    folder.with_name("step-0000000200-g000001").mkdir()  # being written: not one yet
    listed = service.get(f"/v1/jobs/{job}/checkpoints").json()["data"]
    assert [checkpoint["id"] for checkpoint in listed] == ["ckpt-0000000100"]
    assert listed[0]["bytes"] == 100_000 + len("{}") + len("index")
    assert (listed[0]["created_at"], listed[0]["verdict"]) == ("2027-01-15T08:00:00.000Z", "healthy")
    url = f"/v1/jobs/{job}/checkpoints/ckpt-0000000100/files/part-0000.distcp"
    got = service.get(url)
    assert got.content == content
    assert hashlib.sha256(got.content).hexdigest() == listed[0]["files"][2]["sha256"]
    assert service.get(url, headers={"Range": "bytes=10-19"}).content == content[10:20]
    many = "bytes=" + ",".join(f"{n}-{n}" for n in range(0, 20_000, 2))
    assert service.get(url, headers={"Range": many}).status_code < 500
    assert service.get(url, headers={"If-None-Match": '"junk', "If-Range": "junk"}).status_code == 200


OUTSIDE = ["../../../job.json", "/etc/passwd", "..%2f..%2fjob.json", "%2e%2e/%2e%2e/job.json", "..\\x", "secret", "link",
           "manifest.json", "", ".", "state.json/", "state.json%00", "STATE.JSON", "state.json;x"]  # fmt: skip


@pytest.mark.parametrize("path", OUTSIDE)
def test_only_listed_files_inside_the_folder_are_given(service: Service, job: str, tmp_path: Path, path: str) -> None:
    """Also when the listing itself, which a worker wrote, names what leads outside."""
    (tmp_path / "secret").write_text("secret")
    folder = write_checkpoint(service, job, 1, {}, listed=("link",))
    (folder / "link").symlink_to(tmp_path / "secret")
    service.folder(job).write_document("job.json", {"name": "x"})
    url = f"/v1/jobs/{job}/checkpoints/ckpt-0000000001/files"
    assert service.get(f"{url}/state.json").content == b"{}"
    answer = service.get(f"{url}/{path}")
    assert answer.status_code == 404, answer.text
    error_of(answer)


@pytest.mark.parametrize("name", ["../../../job.json", "/etc/passwd", "a/b", ".."])
def test_a_manifest_that_names_what_lies_outside_is_none(service: Service, job: str, name: str) -> None:
    write_checkpoint(service, job, 1, {})
    write_checkpoint(service, job, 2, {}, listed=(name,))
    listed = service.get(f"/v1/jobs/{job}/checkpoints").json()["data"]
    assert [checkpoint["step"] for checkpoint in listed] == [1]
    answer = service.get(f"/v1/jobs/{job}/checkpoints/ckpt-0000000002/files/state.json")
    assert answer.status_code == 404


def test_the_finished_model(service: Service, job: str) -> None:
    assert service.get(f"/v1/jobs/{job}/model").json()["data"] == []
    folder = service.folder(job).model_path
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "model.safetensors").write_bytes(b"weights")
    (folder / "MLmodel").write_text("flavors: {}")
    listed = service.get(f"/v1/jobs/{job}/model").json()["data"]
    assert {file["path"]: file["bytes"] for file in listed} == {"MLmodel": 11, "data/model.safetensors": 7}
    assert service.get(f"/v1/jobs/{job}/model/files/data/model.safetensors").content == b"weights"
    answer = service.get(f"/v1/jobs/{job}/model/files/../job.json")
    assert answer.status_code == 404


def write_artifacts(service: Service, job: str) -> None:
    folder = service.folder(job).artifacts_path
    artifacts.write(folder, 20, {"samples.txt": "Æ 1".encode(), "grid.png": b"\x89PNG"})
    artifacts.write(folder, 3, {"chain.pdb": b"ATOM", "page.html": b"<script>alert(1)</script>"})


def test_artifacts_are_listed_by_step(service: Service, job: str) -> None:
    url = f"/v1/jobs/{job}/artifacts"
    assert service.get(url).json()["data"] == []
    write_artifacts(service, job)
    (service.folder(job).artifacts_path / ".step-0000000030.partial").mkdir()  # being written: not there yet
    listed = service.get(url).json()["data"]
    first, second = "step-0000000003", "step-0000000020"
    assert [each["id"] for each in listed] == [
        f"{first}/chain.pdb", f"{first}/page.html", f"{second}/grid.png", f"{second}/samples.txt"
    ]  # fmt: skip
    assert {key: listed[3][key] for key in ("object", "job_id", "step", "name", "bytes", "media_type")} == {
        "object": "artifact", "job_id": job, "step": 20, "name": "samples.txt", "bytes": 4,
        "media_type": "text/plain; charset=utf-8",
    }  # fmt: skip
    assert [each["step"] for each in service.get(f"{url}?step=20").json()["data"]] == [20, 20]
    assert service.get(f"{url}?step=4").json()["data"] == []
    for order, expected in (("asc", listed), ("desc", listed[::-1])):
        found, page = [], service.get(f"{url}?limit=3&order={order}").json()
        assert page["has_more"]
        found += page["data"]
        page = service.get(url, params={"limit": "3", "order": order, "after": page["last_id"]}).json()
        assert not page["has_more"]
        assert found + page["data"] == expected


AS_WHAT = [
    ("step-0000000020/samples.txt", "Æ 1".encode(), "text/plain; charset=utf-8"),
    ("step-0000000020/grid.png", b"\x89PNG", "image/png"),
    ("step-0000000003/chain.pdb", b"ATOM", "chemical/x-pdb"),
    ("step-0000000003/page.html", b"<script>alert(1)</script>", "application/octet-stream"),
]


def test_an_artifact_is_downloaded_as_what_it_is(service: Service, job: str) -> None:
    """And never as a page of this site: what a user's code wrote must not run where the viewer's key is."""
    write_artifacts(service, job)
    for path, content, kind in AS_WHAT:
        answer = service.get(f"/v1/jobs/{job}/artifacts/files/{path}", headers=service.key_of(Role.VIEWER))
        assert (answer.status_code, answer.content) == (200, content)
        assert answer.headers["content-type"] == kind
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-disposition"] == f'attachment; filename="{path.rpartition("/")[2]}"'
        assert "sandbox" in answer.headers["content-security-policy"]
        stranger = service.get(
            f"/v1/jobs/{job}/artifacts/files/{path}", headers=service.key_of(Role.ADMIN, "elsewhere")
        )
        assert stranger.status_code == 404


NO_ARTIFACTS = [
    "step-0000000003/../../job.json", "../job.json", "step-0000000003/..%2f..%2fjob.json", "step-0000000003", "", ".",
    "step-0000000003/", "step-0000000003/link.txt", "step-0000000003/none.txt", "step-0000000003/chain.pdb/",
    "step-0000000003/CHAIN.pdb", "step-3/chain.pdb", "step-0000000003%2fchain.pdb%00", "step-0000000003//chain.pdb",
    "step-0000000004/chain.pdb", ".step-0000000030.partial/half.txt", "/etc/passwd", "step-0000000003/%2e%2e/%2e%2e/job.json",
]  # fmt: skip


def test_only_artifacts_are_given(service: Service, job: str, tmp_path: Path) -> None:
    write_artifacts(service, job)
    folder = service.folder(job).artifacts_path
    (tmp_path / "secret").write_text("secret")
    (folder / "step-0000000003" / "link.txt").symlink_to(tmp_path / "secret")
    (folder / ".step-0000000030.partial").mkdir()
    (folder / ".step-0000000030.partial" / "half.txt").write_text("ha")
    service.folder(job).write_document("job.json", {"name": "x"})
    assert service.get(f"/v1/jobs/{job}/artifacts/files/step-0000000003/chain.pdb").content == b"ATOM"
    for path in NO_ARTIFACTS:
        answer = service.get(f"/v1/jobs/{job}/artifacts/files/{path}")
        assert answer.status_code == 404, path
        error_of(answer)
