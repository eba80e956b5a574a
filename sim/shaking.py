"""Shaking the orchestra: its timeouts, windows and pools take unusual values, by seed, so that rare paths are common.

A bound that is never reached hides the code behind it: a session of 100 messages is trimmed once a month, and one of
four in every conversation. The points are there already, each with its name: every setting with a number
(``guards.unified.breaker.open_seconds``), and the bounds of `orchestra.limits` in `SHAKEN_LIMITS`, which the orchestra
reads where it needs them. So they cost nothing where nobody shakes. As in FoundationDB, a point is shaken in one run of
four, and all of them at once never: what hides behind one odd value would else be behind another.

What a scenario expects of latency or breakers need not hold then. What must never break does (`PROPERTIES`).

References
----------
Zhou et al., "FoundationDB: A Distributed Unbundled Transactional Key Value Store", SIGMOD 2021, section 4 (buggify).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from random import Random
from typing import NamedTuple

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from orchestra import limits
from orchestra.config import FIELDS, Settings, nested, value_of
from sim.entropy import Streams
from sim.forms import Plain

SHARE = 0.25
"""Of the points, in one run."""

EXTREME_SHARE = 0.25
"""Of the shaken points, those that take the least value that makes sense."""

FACTOR_LEAST, FACTOR_MOST = 1 / 16, 4.0
SECONDS_LEAST = 0.001
STEADY_SETTINGS = ("port", "workers", "provider_connections_max", "memory_similarity_min", "shutdown_seconds_max")
"""Numbers that nothing in a world reads, or that are no bound."""

SHAKEN_LIMITS: Mapping[str, float] = {
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


class Shake(NamedTuple):
    """One point that is shaken in a run, by its name: what it usually is, and what it is now."""

    point: str
    usual: float
    value: float


def shaken_settings(settings: Settings, streams: Streams) -> tuple[Settings, tuple[Shake, ...]]:
    """Return settings with some of their numbers shaken, and which.

    Each point draws from a stream of its own, so that a new one leaves the others as they are. A value that contradicts
    others, or leaves a setting's bounds, is dropped.
    """
    found: list[Shake] = []
    chosen: dict[str, Plain] = {}
    for path, field in FIELDS.items():
        usual = value_of(settings, path)
        if path in STEADY_SETTINGS or isinstance(usual, bool) or not isinstance(usual, int | float):
            continue
        shaken = _shaken(usual, _least(path, field, usual), streams.stream(f"shaking.{path}"))
        if shaken == usual:
            continue
        try:
            Settings.model_validate(_overlaid(settings, {**chosen, path: shaken}))
        except ValidationError:
            continue
        chosen[path] = shaken
        found.append(Shake(path, usual, shaken))
    return Settings.model_validate(_overlaid(settings, chosen)), tuple(found)


@contextmanager
def shaken_limits(streams: Streams) -> Iterator[tuple[Shake, ...]]:
    """Shake some bounds of `orchestra.limits` inside the scope, and tell which."""
    usual = {name: getattr(limits, name) for name in SHAKEN_LIMITS}
    found = [
        Shake(f"limits.{name}", usual[name], value)
        for name, least in SHAKEN_LIMITS.items()
        if (value := _shaken(usual[name], least, streams.stream(f"shaking.limits.{name}"))) != usual[name]
    ]
    try:
        for shake in found:
            setattr(limits, shake.point.removeprefix("limits."), shake.value)
        yield tuple(found)
    finally:
        for name, value in usual.items():
            setattr(limits, name, value)


def _shaken(usual: float, least: float, chance: Random) -> float:
    """Return what a point is in this run: three draws, whatever comes of them."""
    lucky, extreme, place = chance.random(), chance.random(), chance.random()
    if lucky >= SHARE:
        return usual
    factor = FACTOR_LEAST * (FACTOR_MOST / FACTOR_LEAST) ** place
    value = least if extreme < EXTREME_SHARE else max(least, usual * factor)
    if not isinstance(usual, int):
        return float(f"{value:.6g}")
    return round(value) if round(value) != usual else usual + 1


def _least(path: str, field: FieldInfo, usual: float) -> float:
    """Return the least value that a setting may have and that leaves time to pass."""
    bounds = [getattr(rule, name) for rule in field.metadata for name in ("ge", "gt") if hasattr(rule, name)]
    least = max([float(bound) for bound in bounds], default=-math.inf)
    return max(least, SECONDS_LEAST) if isinstance(usual, float) and "seconds" in path else least


def _overlaid(settings: Settings, chosen: Mapping[str, Plain]) -> dict[str, object]:
    """Return all settings as tables in tables, with those `chosen` by their paths over them."""
    whole = {path: value for path in FIELDS if (value := value_of(settings, path)) is not None}
    return nested({**whole, **chosen})
