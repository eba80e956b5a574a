"""Recorded calls are read from what people have, and refused by line where they cannot be."""

import json
import math

import pytest

from sim.records import Call, RecordsBroken, read_calls

CSV = "at,first_token_seconds,seconds,prompt_tokens,completion_tokens,error\n"


def read(tmp_path, text):
    path = tmp_path / "calls"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_calls(path)


def test_csv_in_any_order_of_columns_with_and_without_errors(tmp_path):
    text = CSV + "1.5,0.3,2,100,20,\n2026-01-01T00:00:00+00:00,,,,,rate limited\n"
    one, failed = read(tmp_path, text)
    assert one == Call(1.5, 0.3, 2.0, 100, 20, False)
    assert (failed.at, failed.failed, failed.prompt_tokens) == (1_767_225_600.0, True, 0)
    assert math.isnan(failed.seconds)
    (turned,) = read(tmp_path, "seconds,completion_tokens,prompt_tokens,extra,first_token_seconds\n2,20,100,x,0.3\n")
    assert turned == Call(None, 0.3, 2.0, 100, 20, False)


def test_json_lines_and_of_a_journal_only_its_turns(tmp_path):
    told = {"first_token_seconds": 0.3, "seconds": 2, "prompt_tokens": 100, "completion_tokens": 20}
    lines = [{**told, "at": 7}, {"type": "run_started", "at": 0}, {**told, "type": "turn_finished", "error": "timeout"}]
    assert read(tmp_path, "\n\n".join(map(json.dumps, lines))) == (
        Call(7.0, 0.3, 2.0, 100, 20, False),
        Call(None, 0.3, 2.0, 100, 20, True),
    )


def span(operation, **more):
    told = {
        "gen_ai.operation.name": {"stringValue": operation},
        "gen_ai.usage.input_tokens": {"intValue": "100"},
        "gen_ai.usage.output_tokens": {"intValue": "20"},
        "gen_ai.response.time_to_first_chunk": {"doubleValue": 0.25},
    }
    attributes = [{"key": key, "value": value} for key, value in told.items()]
    return {"startTimeUnixNano": "2000000000", "endTimeUnixNano": "4500000000", "attributes": attributes, **more}


def export(*spans):
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]})


def test_spans_of_models_and_of_agents_only_where_there_are_no_others(tmp_path):
    call = Call(2.0, 0.25, 2.5, 100, 20, False)
    assert read(tmp_path, export(span("invoke_agent"), span("chat"))) == (call,)
    assert read(tmp_path, export(span("invoke_agent")) + "\n" + export(span("invoke_agent"))) == (call, call)
    failed = export(span("chat", status={"code": 2}))
    assert read(tmp_path, failed) == (call._replace(failed=True),)


def test_the_spans_that_the_service_exports_are_calls(tmp_path):
    """Attributes as `orchestra.telemetry.traces` names them."""
    traces = read_text_of("orchestra.telemetry.traces")
    for name in ("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens", "gen_ai.response.time_to_first_chunk"):
        assert f'"{name}"' in traces


def read_text_of(module):
    from importlib import import_module
    from pathlib import Path

    return Path(import_module(module).__file__).read_text()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "the first line lacks first_token_seconds, seconds, prompt_tokens, completion_tokens: name the columns"),
        (CSV, "calls: has no call"),
        (CSV + "1,x,2,3,4,\n", "line 2: first_token_seconds 'x' is no number"),
        (CSV + "1,.1,2,3,4,\n1,.1,-2,3,4,\n", "line 3: seconds -2 is out of bounds"),
        (CSV + "1,nan,2,3,4,\n", "line 2: first_token_seconds nan is out of bounds"),
        (CSV + "1,,2,3,4,\n", "line 2: first_token_seconds is missing: give it, or say what went wrong as `error`"),
        (CSV + "noon,.1,2,3,4,\n", "line 2: at 'noon' is no time"),
        (b"at\n\xff\n", "line 2: is not UTF-8"),
        ('{"seconds": 1}\n', "line 1: first_token_seconds is missing"),
        ("{\n}", "line 1: is no JSON"),
        ('{"resourceSpans": [1]}', "line 1: is no export of spans"),
        ('{"resourceSpans": [{"scopeSpans": [{"spans": [{"attributes": [{"key": "a"}]}]}]}]}', "is no export of spans"),
        (export(span("embeddings")), "has 1 spans, and none of them calls a model"),
        (export(span("chat", endTimeUnixNano="soon")), "line 1: a span has no startTimeUnixNano or endTimeUnixNano"),
        ("{" * 100_000, "line 1: is no JSON"),
    ],
)
def test_what_is_wrong_is_named_with_its_line_and_cure(tmp_path, text, wanted):
    with pytest.raises(RecordsBroken) as refusal:
        read(tmp_path, text)
    assert wanted in str(refusal.value)
