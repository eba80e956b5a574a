"""Shaking the orchestra: its timeouts, windows and pools take unusual values, by seed, so that rare paths are common.

A bound that is never reached hides the code behind it: a session of 100 messages is trimmed once a month, and one of
four in every conversation. The points are there already, each with its name: every setting with a number
(``guards.unified.breaker.open_seconds``), and bounds of `orchestra.limits` (`sim.bounds`), which the orchestra reads
where it needs them. So they cost nothing where nobody shakes. As in FoundationDB, a point is shaken in one run of
four, and all of them at once never: what hides behind one odd value would else be behind another.

What a scenario expects of latency or breakers need not hold then. What must never break does (`PROPERTIES`).

References
----------
Zhou et al., "FoundationDB: A Distributed Unbundled Transactional Key Value Store", SIGMOD 2021, section 4 (buggify).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from random import Random

from msgspec import structs
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from orchestra import limits
from orchestra.config import FIELDS, value_of
from sim.bounds import BOUNDS
from sim.entropy import Streams
from sim.expectations import PROPERTIES, Expectation
from sim.forms import Plain
from sim.scenario import Scenario, settings_of

SHARE = 0.25
"""Of the points, in one run."""

EXTREME_SHARE = 0.25
"""Of the shaken points, those that take the least value that makes sense."""

FACTOR_LEAST, FACTOR_MOST = 1 / 16, 4.0
SECONDS_LEAST = 0.001
STORE_SECONDS_LEAST = 0.005
"""For an operation of a store, whose median is 1 ms: with 1 or 2 ms many fail for ever, and sessions,
mended as soon as the stores answer, stay behind their conversations (campaign, seed 19: 67 of 722 turns)."""
STEADY_SETTINGS = ("port", "workers", "provider_connections_max", "memory_similarity_min", "shutdown_seconds_max")
"""Numbers that nothing in a world reads, or that are no bound."""


def shaken(scenario: Scenario, seed: int) -> Scenario:
    """Return `scenario` with the orchestra shaken as `seed` has it, and of what it expects only what never may break.

    What is shaken stands in its `settings` and `limits`, so a report shows it, and `sim.scenario.write` keeps it.
    """
    streams = Streams(seed).fork("shaking")
    return structs.replace(
        scenario,
        settings={**scenario.settings, **shaken_settings(scenario.settings, streams)},
        limits={**scenario.limits, **shaken_limits(streams)},
        expectations=tuple(Expectation(always=each) for each in PROPERTIES),
    )


def shaken_settings(chosen: Mapping[str, Plain], streams: Streams) -> dict[str, Plain]:
    """Return those settings, by their paths, that are not now what they are in an orchestra with those `chosen`.

    Each point draws from a stream of its own, so that a new one leaves the others as they are. A value that contradicts
    others, or leaves a setting's bounds, is dropped.
    """
    settings = settings_of(chosen)
    found: dict[str, Plain] = {}
    for path, field in FIELDS.items():
        usual = value_of(settings, path)
        if path in STEADY_SETTINGS or isinstance(usual, bool) or not isinstance(usual, int | float):
            continue
        value = _shaken(usual, _least(path, field, usual), streams.stream(path))
        if value == usual:
            continue
        try:
            settings_of({**chosen, **found, path: value})
        except ValidationError:
            continue
        found[path] = value
    return found


def shaken_limits(streams: Streams) -> dict[str, Plain]:
    """Return those bounds of `orchestra.limits`, by their names, that are not now what they usually are."""
    values = {
        name: (usual := getattr(limits, name), _shaken(usual, least, streams.stream(f"limits.{name}")))
        for name, least in BOUNDS.items()
    }
    return {name: value for name, (usual, value) in values.items() if value != usual}


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
    if path == "store_seconds_max":
        return max(least, STORE_SECONDS_LEAST)
    return max(least, SECONDS_LEAST) if isinstance(usual, float) and "seconds" in path else least
