"""What /openapi.json, /docs and /v1/schema promise, held against what the service does."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator
from html import escape
from html.parser import HTMLParser
from typing import Any

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from api import examples
from tests.integration.api_service import DIGITS, Service, running_service
from workers import artifacts
from workers.jobfolder import JobFolder, append_lines

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture(scope="module")
def document(service: Service) -> dict[str, Any]:
    found: dict[str, Any] = service.client.get("/openapi.json").json()
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def check(document: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    rooted = schema | {"components": document["components"], "$schema": "https://json-schema.org/draft/2020-12/schema"}
    Draft202012Validator(rooted).validate(value)


def test_every_route_is_described(document: dict[str, Any]) -> None:
    assert len(list(operations(document))) >= 19
    for method, path, operation in operations(document):
        where = f"{method} {path}"
        assert operation["summary"], where
        assert operation["description"], where
        assert operation["tags"], where
        if path.startswith("/v1"):
            assert operation["security"] == [{"key": []}], where
            assert {"401", "403", "503"} <= set(operation["responses"]), where
        for parameter in operation.get("parameters", []):
            assert parameter.get("description") or parameter["schema"].get("description"), (
                f"{where} {parameter['name']}"
            )
        for status, response in operation["responses"].items():
            for kind, media in response.get("content", {}).items():
                assert (
                    "example" in media
                    or kind in ("application/octet-stream", "text/plain", "image/png")
                    or "{path}" in path
                ), f"{where} {status} {kind}"
    assert "HTTPValidationError" not in str(document)


def test_every_example_has_the_shape_that_it_illustrates(document: dict[str, Any]) -> None:
    checked = 0
    for _, path, operation in operations(document):
        for response in operation["responses"].values():
            media = response.get("content", {}).get("application/json", {})
            if "example" in media and path != "/v1/schema":
                check(document, media["schema"], media["example"])
                checked += 1
    assert checked > 60
    for example in examples.JOB_BODY["requestBody"]["content"]["application/json"]["examples"].values():
        check(document, {"$ref": "#/components/schemas/JobSpec"}, example["value"])


def test_bounds_of_parameters_are_described(document: dict[str, Any]) -> None:
    parameters = document["paths"]["/v1/jobs"]["get"]["parameters"]
    limit = next(parameter["schema"] for parameter in parameters if parameter["name"] == "limit")
    assert (limit["type"], limit["minimum"], limit["maximum"], limit["default"]) == ("integer", 1, 100, 20)


def a_step_in(folder: JobFolder, spec: dict[str, Any]) -> None:
    """What a training leaves of its first one."""
    folder.create(json.dumps(spec))
    told = {"world_size": 2, "train_samples": 1437, "resumed_from": None}
    started = {"timestamp": 1.0, "level": "info", "type": "training.started", "message": "", "data": told}
    append_lines(folder.events_path(1), [{**started, "sequence": 1, "source": None}])
    append_lines(folder.metrics_path(1), [{"step": 1, "timestamp": 2.0, "values": {"train/loss": 0.5}}])


def test_what_is_answered_has_the_shape_that_is_promised(service: Service, document: dict[str, Any]) -> None:
    job = service.submit()
    service.run_until(job, "succeeded")
    folder = service.folder(job)
    folder.model_path.mkdir(parents=True)
    (folder.model_path / "MLmodel").write_text("x")
    a_step_in(folder, service.get(f"/v1/jobs/{job}").json()["spec"])
    form: dict[str, Any] = {"files": {"file": ("code.tar", tar_of_one_file())}, "data": {"purpose": "bundle"}}
    file = service.post("/v1/files", **form).json()["id"]
    artifacts.write(folder.artifacts_path, 3, {"samples.txt": b"x"})
    for method, path, operation in operations(document):
        if method == "get" and not path.endswith(("{path}", "/content")) and path not in ("/docs", "/metrics"):
            needed = {
                parameter["name"]: parameter["schema"]["examples"][0]
                for parameter in operation.get("parameters", [])
                if parameter["in"] == "query" and parameter["required"]
            }
            place = path.replace("{job_id}", job).replace("{file_id}", file).replace("{step}", "1")
            answer = service.get(place, params=needed)
            assert answer.status_code == 200, path
            check(document, operation["responses"]["200"]["content"]["application/json"]["schema"], answer.json())
            shape = operation["responses"]["200"]["content"]["application/json"]["example"]
            if path != "/v1/schema":
                assert set(shape) == set(answer.json()), path
    bad = service.post("/v1/jobs", json={})
    check(document, {"$ref": "#/components/schemas/Error"}, bad.json())


def tar_of_one_file() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("empty.py"))
    return content.getvalue()


def test_the_job_schema_is_valid_and_strict(service: Service) -> None:
    schema = service.get("/v1/schema").json()
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    assert validator.is_valid(DIGITS)
    assert validator.is_valid(examples.SUBMITTED)
    assert validator.is_valid(examples.TABLE)
    for wrong in (
        DIGITS | {"is_admin": True},
        {"name": "x"},
        {"name": "x", "task": {"kind": "image_classification", "data": {"source": "webdataset", "path": "x"}}},
        DIGITS | {"workers": {"count": 0}},
    ):
        assert not validator.is_valid(wrong), wrong


def test_examples_are_accepted_by_the_service(service: Service) -> None:
    body = examples.JOB_BODY["requestBody"]["content"]
    as_json = service.post("/v1/jobs", json=body["application/json"]["examples"]["digits"]["value"])
    assert as_json.status_code == 201, as_json.text
    text = body["application/yaml"]["examples"]["digits"]["value"]
    as_yaml = service.post("/v1/jobs", content=text, headers={"Content-Type": "application/yaml"})
    assert as_yaml.status_code == 201, as_yaml.text


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_needs_nothing_from_elsewhere(service: Service, document: dict[str, Any]) -> None:
    answer = service.client.get("/docs")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    page = Page()
    page.feed(answer.text)
    assert not {tag for tag, _ in page.tags} & {"script", "img", "link", "iframe"}
    links = [attributes["href"] or "" for tag, attributes in page.tags if tag == "a"]
    assert all(link.startswith(("#", "/")) for link in links), links
    anchors = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {link[1:] for link in links if link.startswith("#")} <= anchors
    for method, path, operation in operations(document):
        assert f"{method.upper()} {path}" in answer.text
        assert escape(operation["summary"]) in answer.text
    assert re.search(r"curl -s -X POST -H &quot;Authorization: Bearer \$KEY&quot;", answer.text)
    assert service.client.get("/", follow_redirects=False).headers["location"] == "/docs"
