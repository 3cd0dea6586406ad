"""What people and programs send by mistake or on purpose: always a 4xx in the envelope, never a job, never a 500."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.api_service import DIGITS, Service, error_of, running_service

pytestmark = pytest.mark.integration

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("home")) as running:
        yield running


def with_name(name: str) -> bytes:
    return json.dumps(DIGITS | {"name": name}).encode()


def with_field(path: str, text: str) -> bytes:
    """The job with the JSON ``text`` as the value of one field."""
    part, _, field = path.partition(".")
    value = f'{{"{field}": {text}}}' if field else text
    return f'{{"name": "n", "task": {json.dumps(DIGITS["task"])}, "{part}": {value}}}'.encode()


SHAPES: list[tuple[str, bytes, int]] = [
    ("empty", b"", 400),
    ("white space", b" \n", 400),
    ("null", b"null", 422),
    ("array", b"[]", 422),
    ("text", b'"job"', 422),
    ("number", b"7", 422),
    ("empty object", b"{}", 422),
    ("xml", b"<job/>", 400),
    ("cut off", json.dumps(DIGITS).encode()[:-1], 400),
    ("trailing garbage", json.dumps(DIGITS).encode() + b" x", 400),
    ("two documents", json.dumps(DIGITS).encode() * 2, 400),
    ("byte order mark", b"\xef\xbb\xbf" + json.dumps(DIGITS).encode(), 400),
    ("UTF-16", json.dumps(DIGITS).encode("utf-16"), 400),
    ("UTF-16 without mark", json.dumps(DIGITS).encode("utf-16-le"), 400),
    ("UTF-32", json.dumps(DIGITS).encode("utf-32-be"), 400),
    ("invalid UTF-8", b'{"name": "\xff\xfe"}', 400),
    ("key twice", b'{"name": "a", "name": "b"}', 400),
    ("key twice, deep", b'{"name": "a", "task": {"kind": "tabular", "kind": "x"}}', 400),
    ("unknown key", with_field("is_admin", "true"), 422),
    ("prototype", with_field("__proto__", "{}"), 422),
    ("key of 1 MB", b'{"' + b"k" * 2**20 + b'": 1}', 422),
    ("key with escapes", b'{"\\u001b[31m\\r\\nSet-Cookie: x": 1}', 422),
    ("100,000 unknown keys", json.dumps(dict.fromkeys(map(str, range(10**5)))).encode(), 422),
    ("100,000 nested arrays", b"[" * 10**5, 400),
    ("900 nested arrays", b"[" * 900 + b"]" * 900, 400),
    ("900 nested objects", b'{"a":' * 900 + b"1" + b"}" * 900, 400),
    ("single quotes", b"{'name': 'digits'}", 400),
    ("comment", b'{"name": "digits" /* x */}', 400),
    ("trailing comma", b'{"name": "digits",}', 400),
    ("raw newline in text", b'{"name": "a\nb"}', 400),
]

TEXTS: list[tuple[str, bytes, int]] = [
    ("NUL", with_name("a\x00b"), 422),
    ("lone surrogate", b'{"name": "\\ud800"}', 400),
    ("lone low surrogate", b'{"name": "\\udc00x"}', 400),
    ("surrogate as key", b'{"\\ud800": 1}', 400),
    ("empty", with_name(""), 422),
    ("spaces only", with_name("   "), 422),
    ("1 MiB", with_name("x" * 2**20), 422),
    ("newline", with_name("a\nb"), 422),
    ("forged header", with_name("a\r\nSet-Cookie: x"), 422),
    ("ANSI escape", with_name("\x1b[31mred"), 422),
    ("C1 control", with_name("a\x9bb"), 422),
    ("line separator", with_name("a\u2028b"), 422),
    ("metadata value with NUL", with_field("metadata", '{"k": "\\u0000"}'), 422),
    ("metadata not text", with_field("metadata", '{"k": 1}'), 422),
    ("17 pairs of metadata", with_field("metadata", json.dumps({str(n): "v" for n in range(17)})), 422),
]

NUMBERS: list[tuple[str, bytes, int]] = [
    ("NaN", with_field("optimizer.learning_rate", "NaN"), 400),
    ("Infinity", with_field("optimizer.learning_rate", "Infinity"), 400),
    ("-Infinity", with_field("optimizer.learning_rate", "-Infinity"), 400),
    ("1e999", with_field("optimizer.learning_rate", "1e999"), 400),
    ("-1e999", with_field("optimizer.learning_rate", "-1e999"), 400),
    ("40 digits", with_field("training.epochs", "1" * 40), 422),
    ("5,000 digits", with_field("training.epochs", "1" * 5000), 400),
    ("2^31", with_field("training.epochs", str(2**31)), 422),
    ("seed 2^63", with_field("training.seed", str(2**63)), 422),
    ("negative", with_field("training.epochs", "-1"), 422),
    ("zero workers", with_field("workers.count", "0"), 422),
    ("10^6 workers", with_field("workers.count", "1000000"), 422),
    ("no cpu", with_field("workers.cpus", "0"), 422),
    ("true as 1", with_field("workers.count", "true"), 422),
    ("text as number", with_field("workers.count", '"2"'), 422),
    ("1.0 as integer", with_field("workers.count", "1.0"), 422),
    ("negative learning rate", with_field("optimizer.learning_rate", "-0.1"), 422),
    ("10^12 epochs", with_field("training.epochs", str(10**12)), 422),
    ("deadline 0", with_field("deadline_seconds", "0"), 422),
    ("deadline -1", with_field("deadline_seconds", "-1"), 422),
    ("leading zero", with_field("training.epochs", "01"), 400),
    ("hexadecimal", with_field("training.epochs", "0x10"), 400),
    ("batch larger than the data", with_field("training.batch_size", "1000000"), 422),
]

ALL = [(f"{group}: {name}", body, status) for group, cases in
       (("shape", SHAPES), ("text", TEXTS), ("number", NUMBERS)) for name, body, status in cases]  # fmt: skip


@pytest.mark.parametrize(("body", "status"), [case[1:] for case in ALL], ids=[case[0] for case in ALL])
def test_bad_json_is_refused(service: Service, body: bytes, status: int) -> None:
    answer = service.post("/v1/jobs", content=body, headers=JSON)
    assert answer.status_code == status, answer.text[:500]
    error = error_of(answer)
    assert "\x1b" not in error["message"]
    assert "\n" not in error["message"]
    assert service.job_count() == 0


ACCEPTED = ["😀 family 👨‍👩‍👧", "<script>alert(1)</script>", "{{7*7}}", "%n%s", "=cmd|' /C calc'!A0", "e\u0301" * 50,
            "\u202egnp.exe", "CON", "Ünïcode", "a\u200bb", "../../etc/passwd"]  # fmt: skip


@pytest.mark.parametrize("name", ACCEPTED)
def test_odd_names_are_only_text(tmp_path: Path, name: str) -> None:
    """Nothing interprets them: they come back as they were, in every representation."""
    with running_service(tmp_path) as service:
        job = service.submit(name=name)
        assert service.get(f"/v1/jobs/{job}").json()["name"] == name
        assert service.get("/v1/jobs", params={"name": name}).json()["data"][0]["id"] == job


YAML = [
    ("tab", b"name:\n\tx"), ("alias bomb", b"a: &a [x,x,x,x,x,x,x,x]\n" + b"".join(
        f"{new}: &{new} [*{old},*{old},*{old},*{old},*{old},*{old},*{old},*{old}]\n".encode()
        for old, new in zip("abcdefghi", "bcdefghij", strict=True))),
    ("circle", b"name: &a [*a]"), ("python object", b"name: !!python/object/apply:os.system [id]"),
    ("binary", b"name: !!binary aGVsbG8="), ("set", b"name: !!set {a, b}"), ("5,000 digits", b"name: " + b"1" * 5000),
    ("nested", b"[" * 5000), ("surrogate", b'name: "\\ud800"'), ("key twice", b"name: a\nname: b"),
    ("two documents", b"name: a\n---\nname: b"), ("number as key", b"1: 2"), ("control character", b"name: \x07"),
]  # fmt: skip


@pytest.mark.parametrize("body", [case[1] for case in YAML], ids=[case[0] for case in YAML])
def test_bad_yaml_is_refused(service: Service, body: bytes) -> None:
    answer = service.post("/v1/jobs", content=body, headers={"Content-Type": "application/yaml"})
    assert answer.status_code == 400, answer.text[:500]
    assert error_of(answer)["code"] == "invalid_body"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
        ({"Content-Type": "application/json; charset=utf-16"}, 415),
        ({"Content-Type": "\x00"}, 415),
        (JSON | {"Content-Encoding": "gzip"}, 415),
        ({}, 415),
        (JSON | {"Idempotency-Key": ""}, 400),
        (JSON | {"Idempotency-Key": "x" * 10_000}, 400),
        (JSON | {"Idempotency-Key": "ключ".encode()}, 400),
        (JSON | {"Content-Length": "-5"}, 413),
        (JSON | {"Content-Length": "99999999999999999999999"}, 413),
    ],
)
def test_bad_headers_of_a_submission(service: Service, headers: dict[str, Any], status: int) -> None:
    answer = service.post("/v1/jobs", content=json.dumps(DIGITS).encode(), headers=headers)
    assert answer.status_code == status, answer.text
    error_of(answer)
    assert service.job_count() == 0


CHANGES: list[tuple[str, bytes, int, str | None]] = [
    ("empty", b"", 400, None),
    ("null", b"null", 422, "body"),
    ("array", b"[]", 422, "body"),
    ("nothing", b"{}", 422, "body"),
    ("nothing but null", b'{"priority": null}', 422, "body"),
    ("cut off", b'{"priority": 1', 400, None),
    ("key twice", b'{"priority": 1, "priority": 2}', 400, None),
    ("unknown field", b'{"prio": 1}', 422, "prio"),
    ("a known one beside an unknown", b'{"priority": 1, "prio": 1}', 422, "prio"),
    ("status", b'{"status": "paused"}', 422, "status"),
    ("priority as text", b'{"priority": "1"}', 422, "priority"),
    ("priority 1.5", b'{"priority": 1.5}', 422, "priority"),
    ("priority true", b'{"priority": true}', 422, "priority"),
    ("priority too high", b'{"priority": 1001}', 422, "priority"),
    ("priority NaN", b'{"priority": NaN}', 400, None),
    ("metadata not text", b'{"metadata": {"a": 1}}', 422, "metadata.a"),
    ("metadata with NUL", b'{"metadata": {"a": "\\u0000"}}', 422, "metadata.a"),
    ("17 pairs", json.dumps({"metadata": {str(n): "v" for n in range(17)}}).encode(), 422, "metadata"),
    ("metadata a list", b'{"metadata": []}', 422, "metadata"),
    ("workers a number", b'{"workers": 2}', 422, "workers"),
    ("no workers", b'{"workers": {}}', 422, "workers"),
    ("0 workers", b'{"workers": {"count": 0}}', 422, "workers.count"),
    ("10^6 workers", b'{"workers": {"count": 1000000}}', 422, "workers.count"),
    ("count as text", b'{"workers": {"count": "2"}}', 422, "workers.count"),
    ("count and range", b'{"workers": {"count": 2, "min": 1, "max": 2}}', 422, "workers"),
    ("min alone", b'{"workers": {"min": 1}}', 422, "workers"),
    ("min above max", b'{"workers": {"min": 3, "max": 2}}', 422, "workers"),
    ("more workers than samples of a step", b'{"workers": {"count": 129}}', 422, "workers"),
    ("processors", b'{"workers": {"count": 2, "cpus": 4}}', 422, "workers.cpus"),
    ("learning rate", b'{"learning_rate": 0.1}', 422, "learning_rate"),
    ("rate of a job that does not run", b'{"optimizer": {"learning_rate": 0.1}}', 409, "job_id"),
    ("clip of a job that does not run", b'{"training": {"clip_norm": 1.0}}', 409, "job_id"),
    ("name", b'{"name": "another"}', 422, "name"),
    ("task", b'{"task": {"kind": "tabular"}}', 422, "task.kind"),
    ("seed", b'{"training": {"seed": 1}}', 422, "training.seed"),
]


@pytest.mark.parametrize(("body", "status", "param"), [case[1:] for case in CHANGES], ids=[case[0] for case in CHANGES])
def test_bad_changes_are_refused_and_change_nothing(
    other: tuple[Service, str], body: bytes, status: int, param: str | None
) -> None:
    service, job = other
    before = service.get(f"/v1/jobs/{job}").json()
    answer = service.patch(f"/v1/jobs/{job}", content=body, headers=JSON)
    assert answer.status_code == status, answer.text
    error = error_of(answer)
    assert error["param"] == param, error
    if status == 422:
        assert error["problems"]
    assert service.get(f"/v1/jobs/{job}").json() == before


@pytest.mark.parametrize(
    ("body", "param", "status"),
    [
        ({"learning_rate": 0.5}, "learning_rate", 422),
        ({"optimizer": {"learning_rate": 0}}, "optimizer.learning_rate", 422),
        ({"optimizer": {"learning_rate": "0.1"}}, "optimizer.learning_rate", 422),
        ({"optimizer": {"name": "sgd"}}, "optimizer.name", 422),
        ({"training": {"clip_norm": -1}}, "training.clip_norm", 422),
        ({"training": {"clip_norm": 1.0}}, "job_id", 409),
    ],
    ids=str,
)
def test_rates_that_cannot_be_are_refused_and_none_of_a_job_that_does_not_run(
    other: tuple[Service, str], body: dict[str, Any], param: str, status: int
) -> None:
    service, job = other
    answer = service.patch(f"/v1/jobs/{job}", json=body)
    assert (answer.status_code, error_of(answer)["param"]) == (status, param)


CORDONS: list[tuple[str, bytes, int]] = [
    ("array", b"[]", 422), ("unknown field", b'{"why": "x"}', 422), ("reason a number", b'{"reason": 1}', 422),
    ("escape", b'{"reason": "\\u001b[31m"}', 422), ("too long", json.dumps({"reason": "x" * 501}).encode(), 422),
    ("cut off", b'{"reason": ', 400),
]  # fmt: skip


@pytest.mark.parametrize(("body", "status"), [case[1:] for case in CORDONS], ids=[case[0] for case in CORDONS])
def test_bad_cordons_are_refused(other: tuple[Service, str], body: bytes, status: int) -> None:
    service, _ = other
    service.run_pass()
    answer = service.post("/v1/cluster/nodes/node-0/cordon", content=body, headers=JSON)
    assert answer.status_code == status, answer.text
    error_of(answer)
    assert not service.get("/v1/cluster").json()["nodes"][0]["cordoned"]


@pytest.mark.parametrize(
    "identity", ["..", "%2e%2e", "node-0%00", "a" * 101, "node%200", "nöde", "node-7", "%0d%0aX: y"]
)
@pytest.mark.parametrize("action", ["cordon", "uncordon"])
def test_what_is_no_node_is_not_found(other: tuple[Service, str], identity: str, action: str) -> None:
    service, _ = other
    answer = service.post(f"/v1/cluster/nodes/{identity}/{action}")
    assert answer.status_code == 404
    error_of(answer)


def test_a_body_has_a_limit(service: Service) -> None:
    large = json.dumps(DIGITS | {"metadata": {"k": "v" * 11 * 2**20}}).encode()
    assert service.post("/v1/jobs", content=large, headers=JSON).status_code == 413
    answer = service.post("/v1/jobs", content=(b" " * 2**16 for _ in range(200)), headers=JSON)  # no length announced
    assert answer.status_code == 413
    assert error_of(answer)["code"] == "body_too_large"
    bomb = gzip.compress(b" " * 2**22)
    assert service.post("/v1/jobs", content=bomb, headers=JSON | {"Content-Encoding": "gzip"}).status_code == 415
    below = json.dumps(DIGITS | {"metadata": {"k": "v" * 9 * 2**20}}).encode()
    answer = service.post("/v1/jobs", content=below, headers=JSON)
    assert answer.status_code == 422
    assert error_of(answer)["param"] == "metadata.k"


PATHS = ["..", "%2e%2e%2f", "%252e%252e%252f", "..%5c..", "job-", "JOB-0123", "job-1/", "job-1;a=b", "%00", "job-%00",
         "%ff%fe", "a" * 10_000, "key-000000000000000000000000", "event-1", "job-1%0d%0aX: y", "job-ü", "C:%5cx", "%2e"]  # fmt: skip


@pytest.mark.parametrize("identity", PATHS, ids=[path[:20] for path in PATHS])
@pytest.mark.parametrize("suffix", ["", "/events", "/metrics"])
def test_what_is_no_id_is_not_found(service: Service, identity: str, suffix: str) -> None:
    answer = service.get(f"/v1/jobs/{identity}{suffix}")
    if answer.status_code == 200:  # the client itself resolved the dots
        assert answer.json()["object"] == "list"
        return
    assert answer.status_code == 404
    error_of(answer)


QUERIES = [
    "jobs?limit=0", "jobs?limit=-1", "jobs?limit=1000000000", "jobs?limit=1.0", "jobs?limit=1e2", "jobs?limit=true",
    "jobs?limit=", "jobs?limit=%D9%A1", "jobs?limit=1_0", "jobs?limit=%201", "jobs?order=sideways", "jobs?status=done",
    "jobs?name=", "jobs?name=%00", "jobs?name=" + "x" * 10_000, "jobs?after=", "jobs?after=%00", "jobs?after='--",
    "jobs?after=job-000000000000000000000000", "jobs?unknown=1", "jobs?sort=name",
    "jobs/{id}/events?after=-1", "jobs/{id}/events?after=x", "jobs/{id}/events?after=99999",
    "jobs/{id}/events?after=9999999999999999999999", "jobs/{id}/events?limit=1001", "jobs/{id}/events?stream=yes",
    "jobs/{id}/logs?after=junk", "jobs/{id}/logs?after=1:0=", "jobs/{id}/logs?rank=-1", "jobs/{id}/logs?attempt=x",
    "jobs/{id}/metrics?max_points=3", "jobs/{id}/metrics?max_points=10001", "jobs/{id}/metrics?keys=",
    "jobs/{id}/metrics?keys=%00", "jobs/{id}/metrics?keys=,", "jobs/{id}/metrics?keys=" + ",".join(map(str, range(101))),
    "jobs/{id}/gradients?first_step=5&last_step=4", "jobs/{id}/gradients?max_points=1", "jobs/{id}/gradients?first_step=-1",
    "jobs/{id}/gradients?last_step=99999999999999999999",
    "jobs/{id}/artifacts?step=-1", "jobs/{id}/artifacts?step=1.5", "jobs/{id}/artifacts?step=99999999999",
    "jobs/{id}/artifacts?limit=0", "jobs/{id}/artifacts?limit=1001", "jobs/{id}/artifacts?order=newest",
    "jobs/{id}/artifacts?after=", "jobs/{id}/artifacts?after=../x", "jobs/{id}/artifacts?after=step-3/a.txt",
    "jobs/{id}/artifacts?name=x",
    "jobs/{id}/workers?attempt=0", "jobs/{id}/workers?attempt=1.0", "jobs/{id}/workers?attempt=99999999999999999999",
    "jobs/{id}/workers?state=dead", "jobs/{id}/workers?state=", "jobs/{id}/workers?rank=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, str]]:
    with running_service(tmp_path_factory.mktemp("other")) as running:
        yield running, running.submit()


@pytest.mark.parametrize("query", QUERIES, ids=[query[:50] for query in QUERIES])
def test_bad_parameters_are_named(other: tuple[Service, str], query: str) -> None:
    service, job = other
    answer = service.get("/v1/" + query.replace("{id}", job))
    assert answer.status_code == 400, answer.text
    assert error_of(answer)["param"]


@pytest.mark.parametrize("value", ["junk", "-1", "99999", "1, 2", "²", "0x1", "9" * 30])
@pytest.mark.parametrize("route", ["events", "logs"])
def test_a_bad_last_event_id_never_opens_a_stream(other: tuple[Service, str], route: str, value: str) -> None:
    service, job = other
    headers = {"Accept": "text/event-stream", "Last-Event-ID": value.encode()}
    answer = service.get(f"/v1/jobs/{job}/{route}", headers=headers)
    assert answer.status_code == 400
    error_of(answer)


AUTHORIZATIONS: list[Any] = [
    {}, {"Authorization": ""}, {"Authorization": "Bearer"}, {"Authorization": "Bearer "}, {"Authorization": "Basic eDp5"},
    {"Authorization": "Bearer crk_" + "x" * 43}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer a b"},
    {"Authorization": "Bearer " + "x" * 60_000}, {"Authorization": "Bearer crk_\u0661\u0662".encode()}, {"X-Api-Key": "x"},
    {"Authorization": "Bearer \x00"}, {"Cookie": "key=x"},
]  # fmt: skip


@pytest.mark.parametrize("headers", AUTHORIZATIONS, ids=str)
@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/nothing", "/v1", "/metrics"])
def test_no_way_around_the_key(service: Service, path: str, headers: dict[str, Any]) -> None:
    answer = service.client.get(path, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert error_of(answer)["type"] == "authentication_error"


def test_spellings_of_the_key(service: Service) -> None:
    for scheme in ("Bearer", "bearer", "BEARER", "bEaReR"):
        answer = service.client.get("/v1/jobs", headers={"Authorization": f"{scheme} {service.key}"})
        assert answer.status_code == 200, scheme
    twice = [("Authorization", f"Bearer {service.key}"), ("Authorization", f"Bearer {service.key}")]
    assert service.client.get("/v1/jobs", headers=twice).status_code == 401
    assert service.client.get("/v1/jobs", headers={"Authorization": f"Bearer {service.key[:-1]}"}).status_code == 401
    for name in ("api_key", "token", "access_token", "KEY"):
        assert service.client.get(f"/v1/jobs?{name}={service.key}").status_code == 401
        assert service.get(f"/v1/jobs?{name}={service.key}").status_code == 401


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"}, {"Host": "evil.example:8400"}, {"Host": "127.0.0.1.evil.example"}, {"Host": ""},
        {"Host": "localhost@evil.example:x"}, {"Host": "["}, {"Origin": "https://evil.example"}, {"Origin": "null"},
        {"Origin": "http://localhost.evil.example"}, {"Origin": "http://["}, {"Origin": ""},
    ],
    ids=str,
)  # fmt: skip
def test_other_sites_cannot_use_a_browser_to_get_in(service: Service, method: str, headers: dict[str, str]) -> None:
    answer = service.client.request(method, "/v1/jobs", headers=service.headers | headers)
    assert answer.status_code == 403
    assert error_of(answer)["code"] in ("host_not_allowed", "origin_not_allowed")


def test_own_names_and_probes_get_in(service: Service) -> None:
    for headers in ({"Host": "localhost:1"}, {"Host": "[::1]:8400"}, {"Origin": "http://localhost:3000"}):
        assert service.get("/v1/jobs", headers=headers).status_code == 200
    assert service.client.get("/healthz", headers={"Host": "10.1.2.3:8400"}).status_code == 200
    spoofed = {"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Host": "localhost", "Host": "evil.example"}
    assert service.get("/v1/jobs", headers=spoofed).status_code == 403


@pytest.mark.parametrize("method", ["TRACE", "PROPFIND", "PUT", "DELETE", "PATCH", "HEAD"])
def test_unknown_methods_are_told_the_known_ones(service: Service, method: str) -> None:
    answer = service.client.request(method, "/v1/jobs", headers=service.headers)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, POST"
    override = service.get("/v1/jobs", headers={"X-HTTP-Method-Override": "DELETE"})
    assert override.status_code == 200


@pytest.mark.parametrize(
    "path", ["/nothing", "/v1/nothing", "/v1/jobs/", "//v1/jobs", "/V1/jobs", "/v1/../v2", "/docs/x"]
)
def test_unknown_addresses_are_in_the_envelope(service: Service, path: str) -> None:
    answer = service.client.get(f"http://127.0.0.1:8400{path}", headers=service.headers)
    assert answer.status_code == 404
    assert error_of(answer)["code"] == "unknown_route"


def test_request_ids_cannot_carry_anything(service: Service) -> None:
    assert service.get("/v1/jobs", headers={"X-Request-Id": "trace-1.a"}).headers["x-request-id"] == "trace-1.a"
    for junk in ("x" * 1000, "a b", "<script>", "é".encode()):
        assert service.get("/v1/jobs", headers={"X-Request-Id": junk}).headers["x-request-id"].startswith("req-")
