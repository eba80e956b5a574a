"""Bounds of `orchestra.limits` that a scenario may set, each by its name, for the time of one run.

Not settings: nobody tunes them. But a bound that is never reached hides the code behind it, and a rehearsal may want
conversations that are trimmed after four messages. The orchestra reads them where it needs them, so nothing of this
costs anything where nobody sets them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from orchestra import limits
from sim.forms import Json, Plain, nearest

BOUNDS: Mapping[str, float] = {
    "SESSION_MESSAGES_MAX": 4,
    "SESSION_TOKENS_MAX": 4_000,
    "SESSION_BYTES_MAX": 40_000,
    "SESSION_TTL_SECONDS": 30,
    "SESSION_IDLE_SECONDS": 5,
    "SESSION_WAITING_MAX": 1,
    "SESSIONS_BEHIND_MAX": 1,
    "PROFILE_WAITING_MAX": 1,
    "ANSWERS_MAX": 1,
    "ANSWERS_CHARS_MAX": 10_000,
    "ANSWER_SECONDS_MAX": 1.0,
    "LEASE_SECONDS": 0.5,
    "LOG_SECONDS": 1.0,
    "LOGS_MAX": 1,
    "LOGS_BYTES_MAX": 100_000,
    "RELAY_WAITING_BYTES_MAX": 300_000,
    "TURNS_PER_CONNECTION_MAX": 1,
    "FRAMES_PER_SECOND_MAX": 5.0,
    "FRAMES_BURST_MAX": 5,
    "INBOX_FRAMES_MAX": 1,
    "OUTBOX_FRAMES_MAX": 4,
    "OUTBOX_BYTES_MAX": 20_000,
    "READY_TURNS_MAX": 1,
    "PING_SECONDS": 1.0,
    "PONG_SECONDS_MAX": 1.0,
    "MAINTENANCE_RETRY_SECONDS": 1.0,
}
"""Bounds of `orchestra.limits` that may be shaken, with the least value that makes sense."""


def problems(chosen: Mapping[str, Plain]) -> Iterator[tuple[str, str]]:
    """Yield (name, message) for what is no bound, or no value of one."""
    for name, value in chosen.items():
        if name not in BOUNDS:
            yield name, f"is no bound: {nearest(name, list(BOUNDS))}"
        elif isinstance(value, bool) or not isinstance(value, int | float) or value < BOUNDS[name]:
            yield name, f"{value} is out of bounds: write a number of {BOUNDS[name]:g} or more"
        elif isinstance(getattr(limits, name), int) and not isinstance(value, int):
            yield name, f"{value} is not whole: write a whole number"


def schema() -> Json:
    """Return the JSON Schema of a mapping of bounds."""
    properties = {
        name: {"type": "integer" if isinstance(getattr(limits, name), int) else "number", "minimum": least}
        for name, least in BOUNDS.items()
    }
    return {"type": "object", "properties": properties, "additionalProperties": False}


@contextmanager
def bounded(chosen: Mapping[str, Plain]) -> Iterator[None]:
    """Let `orchestra.limits` have these values inside the scope."""
    usual = {name: getattr(limits, name) for name in chosen}
    try:
        for name, value in chosen.items():
            setattr(limits, name, value)
        yield
    finally:
        for name, value in usual.items():
            setattr(limits, name, value)
