"""Logs: one line an event, whole, in JSON or for people."""

import contextvars
import io
import json
import logging
from collections.abc import Iterator

import msgspec
import pytest

from orchestra.events import RequestFinished, TurnFinished, UnexpectedError
from orchestra.telemetry.logs import TRACEBACK_CHARS_MAX, Logs, correlation


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def logs(stream, clock) -> Iterator[Logs]:
    logs = Logs(level="debug", as_json=True, now=clock.now, stream=stream)
    yield logs
    logs.close()


def lines(stream: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_every_event_is_one_json_line_with_its_correlation_id(logs, stream, events):
    for event in events:
        logs.hook(event)
    written = lines(stream)
    assert [line["event"] for line in written] == [event.__struct_config__.tag for event in events]
    for line, event in zip(written, events, strict=True):
        assert line["timestamp"] == "2023-11-14T22:13:20.250+00:00"
        assert line["level"] in ("debug", "info", "warning", "error")
        assert line["correlation_id"] == getattr(event, "correlation_id", "")
        assert "at" not in line


def test_a_turns_line_says_how_it_went_and_where_its_trace_is(logs, stream, events, trace):
    logs.hook(next(event for event in events if isinstance(event, TurnFinished)))
    (line,) = lines(stream)
    assert (line["level"], line["outcome"], line["engine"], line["seconds"]) == ("info", "answered", "unified", 2.0)
    assert (line["trace_id"], line["span_id"]) == (trace.trace_id, trace.span_id)
    assert line["degraded"] == ["memory"]


def test_what_an_operator_must_act_on_is_a_warning_or_an_error(logs, stream, events):
    turn = next(event for event in events if isinstance(event, TurnFinished))
    logs.hook(msgspec.structs.replace(turn, outcome="failed", error="provider-failed"))
    logs.hook(msgspec.structs.replace(turn, outcome="failed", error="cancelled"))
    logs.hook(RequestFinished(1.0, "c", "GET", "/readyz", 503, 0.1))
    logs.hook(UnexpectedError(1.0, "c", "turn", "x" * 2 * TRACEBACK_CHARS_MAX))
    written = lines(stream)
    assert [line["level"] for line in written] == ["warning", "info", "warning", "error"]
    assert len(written[-1]["traceback"]) == TRACEBACK_CHARS_MAX


def test_what_resilience_did_is_told_in_full(logs, stream, events):
    told = {"call_retried", "call_hedged", "fell_back", "level_changed", "operator_acted"}
    for event in events:
        if event.__struct_config__.tag in told:
            logs.hook(event)
    retried, hedged, fell_back, level, operator = lines(stream)
    assert (retried["level"], retried["target"], retried["attempt"]) == ("info", "unified", 2)
    assert (retried["wait_seconds"], retried["error"]) == (0.25, "provider-failed")
    assert (hedged["level"], hedged["target"]) == ("debug", "unified")
    assert (fell_back["level"], fell_back["fallback"], fell_back["error"]) == ("info", "cache", "breaker-open")
    assert (level["level"], level["before"], level["after"]) == ("warning", "NORMAL", "LIMITED")
    assert (level["health"], level["reason"]) == (72.5, "memory is OPEN: 30 points")
    assert (operator["level"], operator["target"], operator["action"]) == ("info", "memory", "disable")


def test_lines_of_other_libraries_take_the_same_form_and_the_requests_correlation_id(logs, stream):
    def handle() -> None:
        correlation.set("c-9")
        try:
            raise ValueError("odd \ud800 text")
        except ValueError:
            logging.getLogger("sanic.error").exception("request %s failed", 7)

    for each in [each for each in logging.getLogger().handlers if "LogCapture" in type(each).__name__]:
        logging.getLogger().removeHandler(each)  # pytest's report of it, sent between processes, would have to be UTF-8
    contextvars.copy_context().run(handle)
    logging.getLogger("asyncio").warning("slow\ncallback")
    first, second = lines(stream)
    assert (first["event"], first["level"], first["logger"]) == ("request 7 failed", "error", "sanic.error")
    assert first["correlation_id"] == "c-9"
    assert "ValueError" in first["exception"]
    assert first["timestamp"].endswith("+00:00")
    assert (second["event"], second["correlation_id"]) == ("slow\ncallback", "")


def test_lines_below_the_level_are_not_written(stream, clock, events):
    logs = Logs(level="warning", as_json=True, now=clock.now, stream=stream)
    for event in events:
        logs.hook(event)
    chatty = logging.getLogger("chatty.library")
    chatty.setLevel(logging.DEBUG)
    chatty.info("not this")
    logs.close()
    warned = {"call_finished", "breaker_changed", "level_changed", "unexpected_error"}
    assert {line["event"] for line in lines(stream)} == warned


def test_for_people_every_event_is_readable_text(stream, clock, events):
    logs = Logs(level="debug", as_json=False, now=clock.now, stream=stream)
    for event in events:
        logs.hook(event)
    logging.getLogger("sanic.root").info("Goin' Fast")
    logs.close()
    text = stream.getvalue()
    assert "turn_finished" in text
    assert "correlation_id=c-1" in text
    assert "nobody foresaw this" in text
    assert "Goin' Fast" in text
    assert "\x1b" not in text  # no terminal, no colours


def test_a_stream_that_is_gone_costs_the_line_not_the_turn(clock, events):
    stream = io.StringIO()
    logs = Logs(level="debug", as_json=True, now=clock.now, stream=stream)
    stream.close()
    for event in events:
        logs.hook(event)
    logs.close()


def test_closing_gives_the_root_logger_back(clock):
    before = (list(logging.root.handlers), logging.root.level)
    logs = Logs(level="debug", as_json=True, now=clock.now, stream=io.StringIO())
    assert (logging.root.handlers, logging.root.level) != before
    logs.close()
    assert (logging.root.handlers, logging.root.level) == before
