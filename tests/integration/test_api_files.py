"""Uploaded files over HTTP: what comes back, what is refused, whose they are, and that a job's code cannot vanish."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.settings import Settings
from service.values import Role
from tests.integration.api_service import Service, error_of, running_service

pytestmark = pytest.mark.integration

CODE = "def build(width: int, depth: int = 2):\n    raise SystemExit('code of users never runs in the API')\n"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with running_service(tmp_path, settings=Settings(home=tmp_path, max_file_bytes=100_000)) as running:
        yield running


def bundle(**files: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in (files or {"task": CODE}).items():
            archive.writestr(zipfile.ZipInfo(f"{name}.py"), text)
    return content.getvalue()


def upload(service: Service, content: bytes | None = None, name: str = "code.zip", **more: Any) -> Any:
    content = bundle() if content is None else content
    data = more.pop("data", {"purpose": "bundle"})
    return service.post("/v1/files", files={"file": (name, content)}, data=data, **more)


def custom(file_id: str, **changes: Any) -> dict[str, Any]:
    task = {"kind": "custom", "code": {"file": file_id}, "factory": "task:build", "arguments": {"width": 3}}
    return {"name": "own", "task": task | changes}


def stored(service: Service) -> list[str]:
    return sorted(path.name for path in (service.settings.storage / "files").glob("*"))


def test_a_file_is_kept_as_it_was_sent(service: Service) -> None:
    answer = upload(service)
    assert answer.status_code == 201, answer.text
    file = answer.json()
    assert answer.headers["location"] == f"/v1/files/{file['id']}"
    assert file | {"id": "", "created_at": 0} == {
        "id": "", "object": "file", "bytes": len(bundle()), "created_at": 0, "filename": "code.zip", "purpose": "bundle",
        "status": "processed", "sha256": hashlib.sha256(bundle()).hexdigest(),
    }  # fmt: skip
    assert service.get(f"/v1/files/{file['id']}").json() == file
    content = service.get(f"/v1/files/{file['id']}/content")
    assert content.content == bundle()
    assert content.headers["content-disposition"] == "attachment; filename*=UTF-8''code.zip"
    assert service.get("/v1/files").json()["data"] == [file]
    assert service.get("/v1/files?purpose=fine-tune").json()["data"] == []
    gone = service.client.delete(f"/v1/files/{file['id']}", headers=service.headers)
    assert gone.json() == {"id": file["id"], "object": "file", "deleted": True}
    assert service.get(f"/v1/files/{file['id']}").status_code == 404
    assert stored(service) == []


def test_pages_hold_every_file_once(service: Service) -> None:
    made = [upload(service, name=f"{number}.zip").json()["id"] for number in range(5)]
    first = service.get("/v1/files?limit=3").json()
    second = service.get(f"/v1/files?limit=3&after={first['last_id']}").json()
    assert [file["id"] for file in first["data"] + second["data"]] == made[::-1]
    assert (first["has_more"], second["has_more"]) == (True, False)
    assert error_of(service.get("/v1/files?after=file-0"))["param"] == "after"


def test_the_same_key_gives_the_same_file(service: Service) -> None:
    key = {"Idempotency-Key": "one"}
    first = upload(service, headers=key).json()
    assert upload(service, headers=key).json() == first
    other = upload(service, bundle(other="x = 1"), headers=key)
    assert (other.status_code, error_of(other)["code"]) == (409, "idempotency_key_reused")
    assert stored(service) == [first["id"]]


def test_files_of_another_project_are_not_there(service: Service) -> None:
    file_id = upload(service).json()["id"]
    stranger = service.key_of(Role.ADMIN, "other")
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        answer = service.client.request(method, f"/v1/files/{file_id}{path}", headers=stranger)
        assert (answer.status_code, error_of(answer)["code"]) == (404, "not_found")
    assert service.client.get("/v1/files", headers=stranger).json()["data"] == []
    refused = service.client.post("/v1/jobs", headers=stranger, json=custom(file_id))
    assert (refused.status_code, error_of(refused)["param"]) == (422, "task.code.file")
    viewer = service.key_of(Role.VIEWER)
    assert service.client.get(f"/v1/files/{file_id}/content", headers=viewer).status_code == 403
    assert upload(service, headers=viewer).status_code == 403


REFUSED: list[tuple[str, dict[str, Any], int, str | None]] = [
    ("no archive", {"content": b"print(1)\n" * 200}, 422, "file"),
    ("path out of it", {"content": bundle(**{"../x": ""})}, 422, "file"),
    ("empty", {"content": b""}, 422, "file"),
    ("too large", {"content": b"x" * 100_001}, 413, "file"),
    ("announced as too large", {"content": b"x" * 2_000_000}, 413, None),
    ("other purpose", {"data": {"purpose": "fine-tune"}}, 422, "purpose"),
    ("no purpose", {"data": {}}, 422, "purpose"),
    ("long purpose", {"data": {"purpose": "b" * 2000}}, 422, "purpose"),
    ("unknown field", {"data": {"purpose": "bundle", "is_admin": "1"}}, 422, "is_admin"),
    ("long name", {"name": "n" * 300}, 422, "file"),
]  # fmt: skip


@pytest.mark.parametrize(("case", "status", "param"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_is_refused_leaves_nothing(service: Service, case: dict[str, Any], status: int, param: str | None) -> None:
    answer = upload(service, **case)
    assert answer.status_code == status, answer.text
    assert error_of(answer)["param"] == param
    assert stored(service) == []


FORM = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbundle\r\n'
NAMED = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a\x1bb"\r\n\r\nx\r\n--b--\r\n'
BODIES: list[tuple[str, bytes, str, int]] = [
    ("JSON", b"{}", "application/json", 415),
    ("no boundary", b"x", "multipart/form-data", 400),
    ("cut off", FORM, "multipart/form-data; boundary=b", 400),
    ("another boundary", FORM + b"--b--\r\n", "multipart/form-data; boundary=c", 400),
    ("twice", FORM + FORM + b"--b--\r\n", "multipart/form-data; boundary=b", 422),
    ("no file", FORM + b"--b--\r\n", "multipart/form-data; boundary=b", 422),
    ("control character in a name", NAMED, "multipart/form-data; boundary=b", 422),
    ("long header", b"--b\r\n" + b"h" * 9000 + b": 1\r\n\r\n", "multipart/form-data; boundary=b", 400),
    ("nothing", b"", "multipart/form-data; boundary=b", 400),
]


@pytest.mark.parametrize(("body", "kind", "status"), [row[1:] for row in BODIES], ids=[row[0] for row in BODIES])
def test_bodies_that_are_no_form(service: Service, body: bytes, kind: str, status: int) -> None:
    answer = service.post("/v1/files", content=body, headers={"content-type": kind})
    assert answer.status_code == status, answer.text
    error_of(answer)
    assert stored(service) == []


# --- jobs with code -----------------------------------------------------------------------------------------------------


def test_a_job_keeps_its_bundle_until_it_has_ended(service: Service) -> None:
    file_id = upload(service).json()["id"]
    answer = service.post("/v1/jobs", json=custom(file_id))
    assert answer.status_code == 201, answer.text
    job_id = answer.json()["id"]
    kept = service.client.delete(f"/v1/files/{file_id}", headers=service.headers)
    assert (kept.status_code, error_of(kept)["code"]) == (409, "conflict")
    assert job_id in error_of(kept)["message"]
    service.run_until(job_id, "running")
    launch = service.cluster.controllers[f"{job_id}.1"].launch
    assert launch.bundle == str(service.settings.storage / "files" / file_id)
    service.run_until(job_id, "succeeded")
    assert service.client.delete(f"/v1/files/{file_id}", headers=service.headers).status_code == 200


JOBS: list[tuple[str, dict[str, Any], str, str]] = [
    ("no such file", {"code": {"file": "file-0"}}, "task.code.file", "there is no such file"),
    ("no such module", {"factory": "nothing:build"}, "task.factory", "has no nothing.py; at its top are 'task.py'"),
    ("no such function", {"factory": "task:make"}, "task.factory", "task.py has no make; it defines build"),
    ("unknown argument", {"arguments": {"width": 1, "x": 2}}, "task.arguments.x", "no such argument; it takes width, depth"),
    ("missing argument", {"arguments": {}}, "task.arguments.width", "task.py build needs it"),
    ("git address", {"code": {"git": "git+https://host/a@v1"}}, "task.code.git", "chainrule submit"),
    ("relative path", {"code": {"path": "."}}, "task.code.path", "absolute path"),
    ("no such folder", {"code": {"path": "/nowhere"}}, "task.code.path", "no folder /nowhere"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "param", "said"), [row[1:] for row in JOBS], ids=[row[0] for row in JOBS])
def test_code_that_cannot_be_run_is_refused_before(
    service: Service, changes: dict[str, Any], param: str, said: str
) -> None:
    answer = service.post("/v1/jobs", json=custom(upload(service).json()["id"], **changes))
    error = error_of(answer)
    assert (answer.status_code, error["param"]) == (422, param), error
    assert said in error["message"]


def test_code_that_is_no_python_is_refused_with_its_line(service: Service) -> None:
    file_id = upload(service, bundle(task="x = 1\ndef build(:\n")).json()["id"]
    error = error_of(service.post("/v1/jobs", json=custom(file_id, arguments={})))
    assert (error["param"], "task.py line 2" in error["message"]) == ("task.factory", True), error


def test_whoever_runs_the_service_may_forbid_code(tmp_path: Path) -> None:
    with running_service(tmp_path, settings=Settings(home=tmp_path, allow_code=False)) as service:
        error = error_of(service.post("/v1/jobs", json=custom(upload(service).json()["id"])))
    assert (error["param"], "CHAINRULE_ALLOW_CODE" in error["message"]) == ("task.code", True)
    assert Settings(home=tmp_path).code_allowed
    assert not Settings(home=tmp_path, api_host="0.0.0.0").code_allowed
    assert Settings(home=tmp_path, api_host="0.0.0.0", allow_code=True).code_allowed
