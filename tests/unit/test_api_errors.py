from __future__ import annotations

import json
from typing import Any

import pytest

from api.errors import STATUS, ApiError, render
from service.errors import Conflict, InvalidRequest, NotFound, ServiceError, Unavailable
from workers.problems import Problem

pytestmark = pytest.mark.unit


def body(error: Exception) -> tuple[int, dict[str, Any], Any]:
    response = render(error, "req-1")
    return response.status_code, json.loads(bytes(response.body))["error"], response.headers


def test_what_is_unknown_says_nothing_but_its_request_id() -> None:
    status, error, _ = body(RuntimeError("password=hunter2 in /srv/secret.py"))
    assert (status, error["type"], error["code"]) == (500, "server_error", "internal_error")
    assert "req-1" in error["message"]
    assert "hunter2" not in str(error)
    assert "secret" not in str(error)


def test_a_subclass_without_a_row_has_the_status_of_its_parent() -> None:
    class Special(NotFound):
        code = "special"

    status, error, _ = body(Special("gone", param="job_id"))
    assert (status, error) == (
        404,
        {"message": "gone", "type": "not_found_error", "param": "job_id", "code": "special"},
    )


def test_conflicts_are_not_retried_and_outages_are() -> None:
    assert body(Conflict("no"))[2]["x-should-retry"] == "false"
    assert body(Unavailable("later"))[2]["retry-after"] == "2"
    assert "x-should-retry" not in body(Unavailable("later"))[2]


def test_many_problems_are_bounded() -> None:
    problems = [Problem(f"field{number}" * 1000, "unknown field", "1") for number in range(5000)]
    status, error, _ = body(InvalidRequest(problems))
    assert status == 422
    assert len(error["problems"]) == 100
    assert len(error["message"]) <= 4000
    assert len(json.dumps(error)) < 50_000


def test_paths_made_of_input_are_escaped() -> None:
    _, error, _ = body(InvalidRequest([Problem("\x1b[31m\r\nX: y", "unknown field")]))
    assert error["param"] == r"\x1b[31m\r\nX: y"
    assert "\x1b" not in error["message"]


def test_every_status_has_a_sensible_family() -> None:
    for kind, status in STATUS.items():
        if kind is InvalidRequest:
            continue
        error = body(kind("x"))[1]
        assert error["type"].startswith("server") == (status >= 500), kind
    assert STATUS[ServiceError] == 500
    assert body(ApiError(415, "x", "y"))[1]["type"] == "invalid_request_error"
