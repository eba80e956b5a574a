"""Errors as OpenAI's clients read them."""

import json

import pytest

from orchestra.chat.turns import error_frame
from orchestra.errors import (
    BreakerOpen,
    DeadlineExceeded,
    Forbidden,
    InvalidRequest,
    KeyReused,
    Maintenance,
    OrchestraError,
    ProviderFailed,
    ProviderRefused,
    TurnCancelled,
    Unauthorized,
)
from orchestra.gateway.openai_errors import error_response


class TooMany(OrchestraError):
    kind, status, retryable = "too-many", 429, True


@pytest.mark.parametrize(
    ("error", "status", "kind", "code", "again", "after"),
    [
        (InvalidRequest("x"), 400, "invalid_request_error", "invalid_request", "false", None),
        (Unauthorized("x"), 401, "authentication_error", "unauthorized", "false", None),
        (Forbidden("x"), 403, "permission_error", "forbidden", "false", None),
        (TurnCancelled("x"), 409, "invalid_request_error", "turn_cancelled", "false", None),
        (KeyReused("x"), 422, "invalid_request_error", "key_reused", "false", None),
        (TooMany("x"), 429, "rate_limit_error", "too_many", "true", "1"),
        (OrchestraError("x"), 500, "server_error", "internal", "false", None),
        (ProviderFailed("x"), 502, "api_error", "provider_failed", "true", None),
        (ProviderRefused("x"), 502, "api_error", "provider_refused", "false", None),
        (BreakerOpen("x", retry_after_seconds=4.2), 503, "server_error", "breaker_open", "true", "5"),
        (Maintenance("x"), 503, "server_error", "maintenance", "true", "1"),
        (DeadlineExceeded("x"), 504, "server_error", "deadline_exceeded", "true", None),
    ],
)
def test_each_kind(error: OrchestraError, status: int, kind: str, code: str, again: str, after: str | None) -> None:
    for fault in (error, error_frame(error)):  # the frame is what another instance tells
        response = error_response(fault)
        assert (response.status, response.content_type) == (status, "application/json")
        body = {"error": {"message": "x", "type": kind, "param": None, "code": code}}
        assert json.loads(response.body or b"") == body
        assert response.headers["x-should-retry"] == again
        assert response.headers.get("Retry-After") == after


@pytest.mark.parametrize(("field", "param"), [("$.messages", "messages"), ("$", None), (None, None), ("X-Y", "X-Y")])
def test_a_field_is_a_param(field: str | None, param: str | None) -> None:
    response = error_response(InvalidRequest("x", field=field))
    assert json.loads(response.body or b"")["error"]["param"] == param
