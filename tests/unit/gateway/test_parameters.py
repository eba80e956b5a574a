"""What a request says outside its body."""

import pytest
from multidict import CIMultiDict

from orchestra.errors import InvalidRequest
from orchestra.gateway.parameters import (
    Place,
    can_resume,
    idempotency_key,
    refuse_unknown,
    resumed_place,
    timeout_seconds,
    wants_events,
    whole_number,
)


def headers(**values: str) -> "CIMultiDict[str]":
    return CIMultiDict({name.replace("_", "-"): value for name, value in values.items()})


@pytest.mark.parametrize(
    ("given", "seconds"), [("2.5", 2.5), ("0.001", 0.001), ("1", 1.0), ("3600", 3600.0), ("3600.0", 3600.0)]
)
def test_a_timeout_is_read(given: str, seconds: float) -> None:
    assert timeout_seconds(headers(x_request_timeout=given)) == seconds


def test_no_timeout_is_none() -> None:
    assert timeout_seconds(headers()) is None


@pytest.mark.parametrize(
    "given", ["", "0", "0.0", "-1", "+1", "3600.1", "1e3", "nan", "inf", "1 s", "٣", ".5", "5.", "9" * 400, "1,2"]
)
def test_a_bad_timeout_is_refused_by_its_header(given: str) -> None:
    with pytest.raises(InvalidRequest, match=r"send seconds above 0 and up to 3600, such as 2\.5") as caught:
        timeout_seconds(headers(x_request_timeout=given))
    assert caught.value.field == "X-Request-Timeout"
    assert len(caught.value.detail) < 200


def test_two_timeouts_are_none() -> None:
    with pytest.raises(InvalidRequest, match="'1, 2'"):
        timeout_seconds(CIMultiDict([("X-Request-Timeout", "1"), ("x-request-timeout", "2")]))


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("text/event-stream", True),
        ("Text/Event-Stream;charset=utf-8", True),
        ("application/json, text/event-stream", True),
        ("text/event-stream;q=0.5, application/json;q=0.4", True),
        ("text/event-stream, */*;q=0.1", True),
        ("application/json, text/event-stream;q=0", False),
        ("text/event-stream;q=0.5, application/json", False),
        ("text/event-stream;q=0", False),
        ("text/html, *; q=.2, */*; q=.2", False),  # Java's
        ("*/*", False),
        ("text/*", False),
        ("application/json", False),
        ("text/event-streams", False),
        ("", False),
    ],
)
def test_events_are_asked_for_by_name(accept: str, wanted: bool) -> None:
    assert wants_events(headers(accept=accept)) is wanted
    assert not wants_events(headers())


def test_what_cannot_be_read_is_refused_with_what_may_be_sent() -> None:
    with pytest.raises(InvalidRequest, match="send text/event-stream or application/json, or leave it out") as caught:
        wants_events(headers(accept="text/event-stream;q=high"))
    assert caught.value.field == "Accept"


@pytest.mark.parametrize(("given", "number"), [("1", 1), ("100", 100), ("007", 7)])
def test_a_whole_number_is_read(given: str, number: int) -> None:
    assert whole_number({"limit": [given]}, "limit", default=9, least=1, most=100) == number


def test_a_missing_number_is_its_default() -> None:
    assert whole_number({}, "limit", default=9, least=1, most=100) == 9


@pytest.mark.parametrize("given", ["", "0", "101", "-1", "+5", "1.0", "x", "٣", " 1", "9" * 5000])
def test_a_bad_number_is_refused_by_its_name(given: str) -> None:
    with pytest.raises(InvalidRequest, match="send a whole number from 1 to 100, or leave it out") as caught:
        whole_number({"limit": [given]}, "limit", default=9, least=1, most=100)
    assert caught.value.field == "limit"
    assert len(caught.value.detail) < 200


def test_unknown_and_repeated_parameters_are_refused_by_name() -> None:
    refuse_unknown({"after": ["1"]}, ("after", "limit"))
    with pytest.raises(InvalidRequest, match="there is no parameter 'page': use after and limit") as caught:
        refuse_unknown({"page": ["1"]}, ("after", "limit"))
    assert caught.value.field == "page"
    with pytest.raises(InvalidRequest, match="limit is there 2 times: send it once") as caught:
        refuse_unknown({"limit": ["1", "2"]}, ("after", "limit"))
    assert caught.value.field == "limit"
    with pytest.raises(InvalidRequest) as caught:
        refuse_unknown({"p" * 5000: ["1"]}, ("after", "limit"))
    assert len(caught.value.detail) < 200


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ("k", "k"),
        ('"8e03978e-40d5-43e8-bc93-6894a57f9324"', "8e03978e-40d5-43e8-bc93-6894a57f9324"),
        ("a" * 128, "a" * 128),
        ('"' + "a" * 128 + '"', "a" * 128),
    ],
)
def test_a_key_is_read_with_its_quotes_and_without(given: str, key: str) -> None:
    assert idempotency_key(headers(idempotency_key=given), alone=False) == key


def test_a_key_that_stands_alone_is_long_enough_to_be_nobody_elses() -> None:
    assert idempotency_key(headers(idempotency_key="k" * 16), alone=True) == "k" * 16
    assert idempotency_key(headers(idempotency_key="k" * 15), alone=False) == "k" * 15
    for given in ("k" * 15, '"' + "k" * 15 + '"'):
        with pytest.raises(InvalidRequest, match="send at least 16 characters, such as a UUID") as caught:
            idempotency_key(headers(idempotency_key=given), alone=True)
        assert caught.value.field == "Idempotency-Key"


def test_no_key_is_none() -> None:
    assert idempotency_key(headers(), alone=True) is None


@pytest.mark.parametrize("given", ["", '"', '""', "a b", '"a', 'a"', "-a", "a/b", "é", "a" * 129, "'a'", '""a""'])
def test_a_bad_key_is_refused_by_its_header(given: str) -> None:
    with pytest.raises(InvalidRequest, match="send 1 to 128 letters, digits") as caught:
        idempotency_key(headers(idempotency_key=given), alone=False)
    assert caught.value.field == "Idempotency-Key"
    assert len(caught.value.detail) < 250


def test_two_keys_are_none() -> None:
    with pytest.raises(InvalidRequest, match="'a, b'"):
        idempotency_key(CIMultiDict([("Idempotency-Key", "a"), ("idempotency-key", "b")]), alone=False)


@pytest.mark.parametrize(
    ("given", "place"), [("s/t/0", Place("s", "t", 0)), ("s-1/t.2/0012", Place("s-1", "t.2", 12)), ("", None)]
)
def test_a_place_is_read(given: str, place: Place | None) -> None:
    assert resumed_place(headers(last_event_id=given)) == place
    assert place is None or resumed_place(headers(last_event_id=str(place))) == place


def test_no_place_is_none() -> None:
    assert resumed_place(headers()) is None


@pytest.mark.parametrize("given", ["s", "s/t", "s/t/", "s/t/-1", "s/t/x", "/t/1", "s//1", "s/t/1/2", "s/t/1000000001"])
def test_a_bad_place_is_refused_by_its_header(given: str) -> None:
    with pytest.raises(InvalidRequest, match="send the id of the last event that came, or leave it out") as caught:
        resumed_place(headers(last_event_id=given))
    assert caught.value.field == "Last-Event-ID"


@pytest.mark.parametrize(
    ("prefer", "resumes"),
    [
        ("no-resume", False),
        ("respond-async, No-Resume", False),
        ("wait=10;x, no-resume; y", False),
        ("resume", True),
        ("no-resume=x", True),
        ("", True),
    ],
)
def test_a_client_says_that_it_cannot_resume(prefer: str, resumes: bool) -> None:
    assert can_resume(headers(prefer=prefer)) is resumes
    assert can_resume(headers())
