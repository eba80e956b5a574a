"""Recorded calls of a provider, as people have them: a CSV file, JSON lines, a journal, or spans of OpenTelemetry.

One call is when it began, the seconds to its first token and to its end, the tokens it read and wrote, and whether it
failed. In CSV and JSON lines these are `at`, `first_token_seconds`, `seconds`, `prompt_tokens`, `completion_tokens` and
`error`; `at` may be left out. Spans are read by the semantic conventions for generative AI, as the collector's file
exporter writes them (OTLP as JSON, one export a line).
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from sim.text_files import bounded_text

RECORDS_BYTES_MAX = 500_000_000
CALLS_MAX = 2_000_000
NS_PER_S = 1_000_000_000
NEEDED = ("first_token_seconds", "seconds", "prompt_tokens", "completion_tokens")
CHAT_OPERATIONS = ("chat", "text_completion", "generate_content")
AGENT_OPERATION = "invoke_agent"
FIRST_TOKEN_ATTRIBUTES = ("gen_ai.response.time_to_first_chunk", "gen_ai.response.time_to_first_token")


class Call(NamedTuple):
    """One recorded call.

    Parameters
    ----------
    at : float or None
        When it began, in unix seconds (or seconds from any other start); None where that was not recorded.
    first_token_seconds, seconds : float
        From its beginning; NaN where it failed before.
    prompt_tokens, completion_tokens : int
    failed : bool
    """

    at: float | None
    first_token_seconds: float
    seconds: float
    prompt_tokens: int
    completion_tokens: int
    failed: bool


class RecordsBroken(Exception):
    """A file of records cannot be read; the message names the line and the cure."""

    def __init__(self, source: str, message: str, line: int | None = None) -> None:
        super().__init__(f"{source}: line {line}: {message}" if line is not None else f"{source}: {message}")


def read_calls(path: Path) -> tuple[Call, ...]:
    """Read the calls of a file; what it is shows in its first character: ``{`` is JSON, else it is CSV.

    Raises
    ------
    RecordsBroken
        At the first thing that is wrong.
    OSError
        The file cannot be opened.
    """
    source, text = path.name, bounded_text(path, RECORDS_BYTES_MAX, RecordsBroken, "save the file as UTF-8")
    calls = tuple(_of_json(text, source) if text.lstrip().startswith("{") else _of_csv(text, source))
    if not calls:
        raise RecordsBroken(source, "has no call: record some, with " + ", ".join(NEEDED))
    return calls


def _of_csv(text: str, source: str) -> Iterator[Call]:
    rows = csv.DictReader(io.StringIO(text, newline=""), restkey="")
    missing = [name for name in NEEDED if name not in (rows.fieldnames or ())]
    if missing:
        raise RecordsBroken(source, f"the first line lacks {', '.join(missing)}: name the columns there", 1)
    try:
        for row in rows:
            yield _call(row, source, rows.line_num)
            _refuse_too_many(rows.line_num, source)
    except csv.Error as wrong:
        raise RecordsBroken(source, f"is no CSV ({wrong}): write one call a line", rows.line_num) from None


def _of_json(text: str, source: str) -> Iterator[Call]:
    spans: list[tuple[int, dict[str, Any]]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        _refuse_too_many(number, source)
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            raise RecordsBroken(source, "is no JSON: write one object a line, each on one line", number) from None
        if not isinstance(found, dict):
            raise RecordsBroken(source, "is no object: write one call a line, in braces", number)
        if "resourceSpans" in found:
            spans += ((number, span) for span in _spans(found, source, number))
        elif found.get("type", "turn_finished") == "turn_finished":  # of a journal, only the turns are calls
            yield _call(found, source, number)
    yield from _of_spans(spans, source)


def _refuse_too_many(line: int, source: str) -> None:
    if line > CALLS_MAX:
        raise RecordsBroken(source, f"is beyond the {CALLS_MAX:,} lines that are read: cut it into parts", line)


def _call(row: Mapping[str, Any], source: str, line: int) -> Call:
    failed = row.get("error") not in (None, "", False, "0", "false")
    at = _moment(row.get("at"), source, line)
    first, seconds, prompt, completion = (_number(row, name, source, line, failed) for name in NEEDED)
    read, written = (0 if math.isnan(tokens) else round(tokens) for tokens in (prompt, completion))
    return Call(at, first, seconds, read, written, failed)


def _number(row: Mapping[str, Any], name: str, source: str, line: int, failed: bool) -> float:
    """Return a number; NaN where there is none, which only a failed call may lack."""
    given = row.get(name)
    if given in (None, ""):
        if failed:
            return math.nan
        raise RecordsBroken(source, f"{name} is missing: give it, or say what went wrong as `error`", line)
    try:
        value = float(given)
    except (TypeError, ValueError):
        raise RecordsBroken(source, f"{name} {str(given)[:60]!r} is no number", line) from None
    if not 0 <= value < 1e12:
        raise RecordsBroken(source, f"{name} {value:g} is out of bounds: write 0 or more, in its unit", line)
    return value


def _moment(given: Any, source: str, line: int) -> float | None:
    if given in (None, ""):
        return None
    try:
        return float(given)
    except (TypeError, ValueError):
        pass
    try:
        return datetime.fromisoformat(str(given)).timestamp()
    except ValueError:
        cure = "write seconds, or 2026-11-16T18:15:46.68+00:00"
        raise RecordsBroken(source, f"at {str(given)[:60]!r} is no time: {cure}", line) from None


# --- OpenTelemetry


def _spans(export: dict[str, Any], source: str, line: int) -> Iterator[dict[str, Any]]:
    try:
        for resource in export["resourceSpans"]:
            for scope in resource.get("scopeSpans", ()):
                for span in scope.get("spans", ()):
                    yield {**span, "attributes": {each["key"]: _value(each["value"]) for each in span["attributes"]}}
    except (KeyError, TypeError, ValueError, AttributeError):
        cure = "export OTLP as JSON, as the collector's file exporter does"
        raise RecordsBroken(source, f"is no export of spans: {cure}", line) from None


def _value(typed: dict[str, Any]) -> Any:
    """Return what an attribute holds; OTLP writes whole numbers as texts."""
    kind, value = next(iter(typed.items()))
    return int(value) if kind == "intValue" else value


def _of_spans(spans: list[tuple[int, dict[str, Any]]], source: str) -> Iterator[Call]:
    """Yield the calls of models; where no span is one, those of agents, which stand around them."""
    for wanted in (CHAT_OPERATIONS, (AGENT_OPERATION,)):
        chosen = [each for each in spans if each[1]["attributes"].get("gen_ai.operation.name") in wanted]
        if chosen:
            yield from (_of_span(span, source, line) for line, span in chosen)
            return
    if spans:
        cure = "gen_ai.operation.name must say chat, text_completion, generate_content or invoke_agent"
        raise RecordsBroken(source, f"has {len(spans)} spans, and none of them calls a model: {cure}")


def _of_span(span: dict[str, Any], source: str, line: int) -> Call:
    told = span["attributes"]
    try:
        begin, end = (int(span[name]) / NS_PER_S for name in ("startTimeUnixNano", "endTimeUnixNano"))
    except (KeyError, TypeError, ValueError):
        raise RecordsBroken(
            source, "a span has no startTimeUnixNano or endTimeUnixNano: export it whole", line
        ) from None
    first = next((told[name] for name in FIRST_TOKEN_ATTRIBUTES if name in told), None)
    row = {
        "at": begin,
        "first_token_seconds": first,
        "seconds": end - begin,
        "prompt_tokens": told.get("gen_ai.usage.input_tokens"),
        "completion_tokens": told.get("gen_ai.usage.output_tokens"),
        "error": told.get("error.type") or span.get("status", {}).get("code") in (2, "STATUS_CODE_ERROR"),
    }
    return _call(row, source, line)
