"""Bodies on the wire: what is refused, by which status, at which field, with which cure."""

import pytest

from orchestra.errors import InvalidRequest, OrchestraError, UnsupportedMediaType
from orchestra.gateway.wire import decoded
from orchestra.model import ChatRequest

JSON = "application/json"


def refusal(body: bytes, content_type: str | None = JSON) -> OrchestraError:
    with pytest.raises(OrchestraError) as caught:
        decoded(body, content_type, ChatRequest)
    return caught.value


def test_a_good_body_becomes_a_request() -> None:
    request = decoded(b'{"message": "h\xc3\xa9"}', "Application/JSON; charset=utf-8", ChatRequest)
    assert request == ChatRequest("hé")


@pytest.mark.parametrize("content_type", [None, "", "text/plain", "application/x-www-form-urlencoded"])
def test_another_media_type_is_refused_with_the_right_one_named(content_type: str | None) -> None:
    error = refusal(b'{"message": "hi"}', content_type)
    assert isinstance(error, UnsupportedMediaType)
    assert "Content-Type: application/json" in error.detail


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        (b"", "$", "empty"),
        (b"hello", "$", "not JSON"),
        (b'{"message": "hi"', "$", "not JSON"),
        (b'{"message": "hi"} more', "$", "not JSON"),
        (b"\xff\xfe", "$", "UTF-8"),
        ("\ufeff{}".encode(), "$", "not JSON"),
        ('{"message": "hi"}'.encode("utf-16"), "$", "UTF-8"),
        (b'{"message": NaN}', "$", "NaN"),
        (b'{"message": -Infinity}', "$", "Infinity"),
        (b'{"message": "\xed\xa0\x80"}', "$", "UTF-8"),
        (b'{"message": "\\ud800"}', "$", "lone surrogate"),
        (b'{"message": "\\udc00 and more"}', "$", "lone surrogate"),
        (b"null", "$", "Expected `object`"),
        (b"[]", "$", "Expected `object`"),
        (b"{}", "$", "missing required field `message`"),
        (b'{"message": 1}', "$.message", "Expected `str`"),
        (b'{"message": null}', "$.message", "Expected `str`"),
        (b'{"message": ["a"]}', "$.message", "Expected `str`"),
        (b'{"message": "hi", "session_id": 7}', "$.session_id", "Expected `str | null`"),
        (b'{"message": "hi", "colour": "red"}', "$.colour", "unknown field `colour`"),
        (b'{"message": ' + b"[" * 200_000, "$.message", "Expected `str`"),
        (b'{"more": ' + b'{"a":' * 200_000, "$.more", "unknown field `more`"),
        (b"[" * 500_000, "$", "Expected `object`"),
        (b'{"x - at `$.user_id`": 1}', "$", "unknown field"),
        (b'{"' + b"k" * 500 + b'": 1}', "$", "unknown field"),
    ],
)
def test_a_bad_body_names_field_and_cure(body: bytes, field: str, words: str) -> None:
    error = refusal(body)
    assert isinstance(error, InvalidRequest)
    assert error.field == field
    assert words in error.detail
    assert len(error.detail) < 300
