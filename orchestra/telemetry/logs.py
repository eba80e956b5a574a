"""Logs: one line an event, and the lines of Python's `logging` (Sanic's, say) in the same form, on standard error.

Every line has `timestamp`, `level`, `event` and `correlation_id`. What users and models say is in no event, and so in
no line.
"""

import json
import logging
import sys
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

import msgspec
import structlog
from structlog.typing import EventDict, Processor

from orchestra.events import (
    BreakerChanged,
    CallFinished,
    CallHedged,
    CallRetried,
    ConnectionClosed,
    ConnectionOpened,
    Event,
    FellBack,
    LevelChanged,
    Lifecycle,
    OperatorActed,
    RequestFinished,
    StoreFinished,
    TurnAbandoned,
    TurnFinished,
    TurnResumed,
    TurnStarted,
    UnexpectedError,
)
from orchestra.model import TraceContext

correlation: ContextVar[str] = ContextVar("correlation", default="")
"""The request that the running task works for: whoever takes a request in sets it, so that lines which no event of ours
caused carry it too."""

TRACEBACK_CHARS_MAX = 20_000
Level = Literal["debug", "info", "warning", "error"]

_NUMBERS: dict[Level, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


class Logs:
    """Writes events to `stream`, and takes over the root logger until closed.

    Parameters
    ----------
    level : str
        Events and records below it are dropped.
    as_json : bool
        One JSON object a line; else a form for people, coloured on a terminal.
    now : callable
        Wall time in Unix seconds.
    stream : text file
    """

    def __init__(self, *, level: Level, as_json: bool, now: Callable[[], float], stream: TextIO) -> None:
        shared: list[Processor] = [structlog.processors.add_log_level, _correlate]
        render: list[Processor] = [_render_json if as_json else structlog.dev.ConsoleRenderer(colors=stream.isatty())]
        number = _NUMBERS[level]
        self._least = number
        self._now = now
        self._log = structlog.wrap_logger(
            _Lines(stream),
            processors=[self._stamp, *shared, *render],
            wrapper_class=structlog.make_filtering_bound_logger(number),
            cache_logger_on_first_use=True,
        )
        self._handler = logging.StreamHandler(stream)
        self._handler.setFormatter(
            structlog.stdlib.ProcessorFormatter(
                foreign_pre_chain=[_stamp_record, structlog.stdlib.add_logger_name, *shared],
                processors=[
                    structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                    structlog.processors.format_exc_info,
                    *render,
                ],
            )
        )
        self._root_level = logging.root.level
        self._handler.setLevel(number)  # a library may have set its own logger to tell more
        logging.root.addHandler(self._handler)
        logging.root.setLevel(number)

    def hook(self, event: Event) -> None:
        """Write one line."""
        level = level_of(event)
        if _NUMBERS[level] >= self._least:
            self._log.log(_NUMBERS[level], event.__struct_config__.tag, **_fields(event))

    def close(self) -> None:
        """Give the root logger back."""
        logging.root.removeHandler(self._handler)
        logging.root.setLevel(self._root_level)

    def _stamp(self, _logger: Any, _method: str, line: EventDict) -> EventDict:
        return {"timestamp": _iso(self._now()), **line}


def level_of(event: Event) -> Level:
    """Say how severe an event is: details are `debug`, what an operator may have to act on is `warning` or `error`."""
    level = _LEVELS[type(event)]
    return level if isinstance(level, str) else level(event)


def _of_turn(event: TurnFinished) -> Level:
    return "info" if event.outcome == "answered" or event.error == "cancelled" else "warning"


def _of_request(event: RequestFinished) -> Level:
    return "info" if event.status < 500 else "warning"


def _of_call(event: CallFinished) -> Level:
    return "warning" if event.outcome == "failure" else "debug"


def _of_store(event: StoreFinished) -> Level:
    return "warning" if event.error else "debug"


# By type: to match a struct that is not of a pattern's class costs 0.25 us, and a turn has many events.
_LEVELS: dict[type[Event], Level | Callable[[Any], Level]] = {
    TurnStarted: "debug",
    TurnFinished: _of_turn,
    TurnResumed: "info",
    TurnAbandoned: "info",
    RequestFinished: _of_request,
    CallFinished: _of_call,
    CallRetried: "info",
    CallHedged: "debug",
    FellBack: "info",
    StoreFinished: _of_store,
    BreakerChanged: "warning",
    LevelChanged: "warning",
    OperatorActed: "info",
    ConnectionOpened: "debug",
    ConnectionClosed: "info",
    UnexpectedError: "error",
    Lifecycle: "info",
}


def _fields(event: Event) -> dict[str, Any]:
    """Flatten an event; its monotonic `at` gives way to the line's timestamp."""
    fields: dict[str, Any] = {}
    for name, value in msgspec.structs.asdict(event).items():
        if isinstance(value, TraceContext):
            fields |= {"trace_id": value.trace_id, "span_id": fields.get("span_id") or value.span_id}
        elif isinstance(value, float):
            fields[name] = round(value, 6)
        elif value not in ("", None, ()):
            fields[name] = value
    del fields["at"]
    if isinstance(event, UnexpectedError):
        fields["traceback"] = event.traceback[-TRACEBACK_CHARS_MAX:]
    return fields


def _correlate(_logger: Any, _method: str, line: EventDict) -> EventDict:
    line.setdefault("correlation_id", correlation.get())
    return line


def _stamp_record(_logger: Any, _method: str, line: EventDict) -> EventDict:
    return {"timestamp": _iso(line["_record"].created), **line}


def _iso(unix_seconds: float) -> str:
    return datetime.fromtimestamp(unix_seconds, UTC).isoformat(timespec="milliseconds")


def _render_json(_logger: Any, _method: str, line: EventDict) -> str:
    try:
        return msgspec.json.encode(line, enc_hook=repr).decode()
    except (TypeError, ValueError):  # a foreign record may hold a lone surrogate, which json escapes, or odd keys
        return json.dumps(line, default=repr, skipkeys=True)


class _Lines:
    """Writes lines; one that cannot be written (the reader of a pipe is gone) is lost, and the turn goes on."""

    def __init__(self, stream: TextIO = sys.stderr) -> None:
        self._stream = stream

    def msg(self, line: str) -> None:
        with suppress(OSError, ValueError):
            self._stream.write(line + "\n")
            self._stream.flush()

    debug = info = warning = error = msg
