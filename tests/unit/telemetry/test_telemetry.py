"""Telemetry as a whole: one hook feeds all three."""

import json
from typing import get_args

import pytest

from orchestra.config import Settings
from orchestra.events import Event
from orchestra.telemetry import telemetry


def test_the_examples_cover_every_kind_of_event(events):
    assert {type(event) for event in events} == set(get_args(Event))


@pytest.mark.parametrize(("log_format", "is_json"), [("auto", True), ("json", True), ("console", False)])
def test_one_hook_feeds_logs_and_metrics(events, clock, capsys, log_format, is_json):
    told = telemetry(Settings(log_format=log_format, log_level="debug"), clock)
    for event in events:
        told.hook(event)
    told.close()
    written = capsys.readouterr().err
    assert b"orchestra_turns_total" in told.metrics.render()
    assert told.traces is None
    if is_json:
        assert len([json.loads(line) for line in written.splitlines()]) == len(events)
    else:
        assert "turn_finished" in written


def test_an_endpoint_makes_traces(clock):
    told = telemetry(Settings(otlp_endpoint="http://127.0.0.1:9"), clock)
    assert told.traces is not None
    told.close()
