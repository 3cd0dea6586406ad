from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.bodies import digest, parse_document
from api.errors import ApiError
from api.responses import encode

pytestmark = pytest.mark.unit

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(deadline=None)
@given(VALUES)
def test_what_is_good_is_read_as_it_is(document: Any) -> None:
    assert parse_document(json.dumps(document).encode(), "application/json") == document


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:\\ud8001eE.+-nulltrueNaN ', max_size=40).map(str.encode))
def test_anything_else_is_a_clear_refusal(body: bytes) -> None:
    for kind in ("application/json", "application/yaml"):
        refusal = None
        try:
            digest(parse_document(body, kind))
        except ApiError as error:
            refusal = error
        assert refusal is None or (refusal.status == 400 and refusal.message.isprintable())


def test_messages_say_where() -> None:
    with pytest.raises(ApiError, match="line 2, column 10"):
        parse_document(b'{"name": "x",\n "task": }', "application/json")
    with pytest.raises(ApiError, match="the key 'name' is given twice"):
        parse_document(b'{"name": "x", "name": "y"}', "application/json")
    with pytest.raises(ApiError, match="line 2, column"):
        parse_document(b"name: x\ntask: [", "application/yaml")


def test_a_digest_is_of_the_meaning() -> None:
    first = parse_document(b'{"a": 1, "b": [true, "\\u00e9"]}', "application/json")
    second = parse_document('{"b":[true,"é"],"a":1}'.encode(), "application/json")
    assert digest(first) == digest(second)
    assert digest(first) != digest({"a": 1.0, "b": [True, "é"]})
    assert digest(first) != digest({"a": "1", "b": [True, "é"]})


def test_numbers_and_times_on_the_wire() -> None:
    east = datetime(2026, 11, 23, 20, 0, 0, 123_456, timezone(timedelta(hours=1)))
    content = {
        "a": math.nan,
        "b": [math.inf, -math.inf, 1.5],
        "t": east,
        "u": datetime(2026, 1, 1, tzinfo=UTC),
        "n": None,
    }
    assert json.loads(encode(content)) == {
        "a": "NaN",
        "b": ["Infinity", "-Infinity", 1.5],
        "t": "2026-11-23T19:00:00.123Z",
        "u": "2026-01-01T00:00:00.000Z",
        "n": None,
    }
    with pytest.raises(TypeError, match="no wire form for object"):
        encode({"x": object()})
