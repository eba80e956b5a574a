"""What a client raises for what it is answered."""

import msgspec
import pytest

from orchestra import errors
from orchestra.frames import ErrorFrame
from orchestra.gateway.problems import headers_of, problem_of
from orchestra.sdk.failures import Answer, UnexpectedAnswer, error_of, error_of_frame


@pytest.mark.parametrize("kind", errors.kinds())
def test_every_error_of_the_service_is_raised_again(kind):
    told = errors.of_kind(kind)("what to do", field="$.message", retry_after_seconds=2.5)
    body = msgspec.json.encode(problem_of(told, "c-1"))
    headers = {name.lower(): value for name, value in headers_of(told).items()}
    error = error_of(Answer(told.status, headers, body))
    assert type(error) is type(told)
    assert (error.status, error.detail, error.field) == (told.status, "what to do", "$.message")
    assert (error.retry_after_seconds, error.correlation_id) == (2.5, "c-1")
    assert error.retryable == told.retryable


@pytest.mark.parametrize("kind", errors.kinds())
def test_every_error_frame_is_raised_as_its_error(kind):
    known = errors.of_kind(kind)
    frame = ErrorFrame(
        kind, "t", known.status, "what to do", known.retryable, field="f", retry_after_seconds=1.0, correlation_id="c"
    )
    error = error_of_frame(frame)
    assert type(error) is known
    assert (error.detail, error.field, error.retry_after_seconds, error.correlation_id) == ("what to do", "f", 1.0, "c")


def test_what_went_well_is_no_error():
    assert [error_of(Answer(status, {})) for status in (200, 201, 202, 204)] == [None] * 4


@pytest.mark.parametrize(("status", "retryable"), [(502, True), (503, True), (404, False), (302, False), (500, False)])
def test_an_answer_of_something_else_says_so(status, retryable):
    error = error_of(Answer(status, {"retry-after": "7"}, b"<html>\xff"))
    assert isinstance(error, UnexpectedAnswer)
    assert (error.status, error.retryable, error.retry_after_seconds) == (status, retryable, 7.0)
    assert "<html>" in error.detail


def test_a_problem_of_a_kind_that_is_not_known_is_judged_by_its_status():
    body = b'{"type": "urn:ai-orchestra:problem:request-timeout", "title": "t", "status": 408, "detail": "late"}'
    error = error_of(Answer(408, {}, body))
    assert isinstance(error, UnexpectedAnswer)
    assert (error.status, error.retryable, error.detail) == (408, True, "request-timeout: late")


@pytest.mark.parametrize("text", ["", "soon", "Wed, 21 Oct 2026 07:28:00 GMT", "-1", "1.5"])
def test_a_retry_after_that_is_no_number_of_seconds_is_not_heeded(text):
    assert error_of(Answer(503, {"retry-after": text})).retry_after_seconds is None
