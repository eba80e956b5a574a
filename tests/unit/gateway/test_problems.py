"""Errors as clients, and the log, see them."""

import asyncio

import pytest
from sanic.exceptions import RequestCancelled

from orchestra.errors import Maintenance, Overloaded, Unauthorized
from orchestra.gateway.problems import problem_response, translated


@pytest.mark.parametrize("raised", [asyncio.CancelledError(), RequestCancelled()])
def test_a_client_that_went_away_is_no_defect(raised: BaseException) -> None:
    error = translated(raised)
    assert error is not None
    assert (error.status, error.kind) == (499, "cancelled")


def test_a_defect_is_nobodys_plan() -> None:
    assert translated(LookupError("a secret")) is None


@pytest.mark.parametrize(
    ("seconds", "header"), [(None, "1"), (0.0, "1"), (0.2, "1"), (1.0, "1"), (1.2, "2"), (30.0, "30")]
)
def test_a_503_says_in_whole_seconds_when_to_come_back(seconds: float | None, header: str) -> None:
    for kind in (Maintenance, Overloaded):
        response = problem_response(kind("not now", retry_after_seconds=seconds), "c-1")
        assert (response.status, response.headers["Retry-After"]) == (503, header)


def test_a_401_says_how_to_identify() -> None:
    response = problem_response(Unauthorized("who are you?"), "c-1")
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert "Retry-After" not in response.headers
