"""The numbers that an engineer decides by, each a function of what happened in a window of a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from sim.evidence import Evidence, Sent, Window, within
from sim.quantities import show_count, show_duration, show_factor, show_share


def percentile(values: list[float], q: float) -> float:
    """Return the `q`-quantile (0 to 1) by linear interpolation (Hyndman and Fan's type 7); NaN of nothing."""
    if not values:
        return math.nan
    ordered = sorted(values)
    position = q * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


Measuring = Callable[[Evidence, Window], float]


def _of_turns(measure: Callable[[list[Sent]], float]) -> Measuring:
    return lambda evidence, window: measure(evidence.turns(window))


def _an_arrival(times: Callable[[Evidence], list[float]]) -> Measuring:
    """Count `times` in a window, by the turns that arrived in it."""

    def measure(evidence: Evidence, window: Window) -> float:
        arrivals = len(evidence.turns(window))
        return len(times(evidence)[within(times(evidence), window)]) / arrivals if arrivals else math.nan

    return measure


def _share(outcome: str) -> Measuring:
    return _of_turns(lambda turns: sum(each.outcome == outcome for each in turns) / len(turns) if turns else math.nan)


def _latency(q: float) -> Measuring:
    return _of_turns(lambda turns: percentile([each.seconds for each in turns if each.outcome == "answered"], q))


def _refusal(turns: list[Sent]) -> float:
    waited = [each.seconds for each in turns if each.outcome != "answered"]
    return percentile(waited, 0.95) if waited or not turns else 0.0


class Measure(NamedTuple):
    """A number computed from what happened in a window, and how it is shown."""

    of: Measuring
    show: Callable[[float], str]
    label: str


MEASURES = {
    "success_rate": Measure(_share("answered"), show_share, "success rate"),
    "failure_rate": Measure(_share("failed"), show_share, "failure rate"),
    "shed_share": Measure(_share("shed"), show_share, "shed share"),
    "p50": Measure(_latency(0.50), show_duration, "p50"),
    "p95": Measure(_latency(0.95), show_duration, "p95"),
    "p99": Measure(_latency(0.99), show_duration, "p99"),
    "refusal_p95": Measure(_of_turns(_refusal), show_duration, "p95 of refusals"),
    "failures": Measure(
        _of_turns(lambda turns: sum(each.outcome == "failed" for each in turns)), show_count, "failures"
    ),
    "goodput": Measure(_an_arrival(lambda evidence: evidence.answered), show_share, "goodput"),
    "retry_amplification": Measure(
        _an_arrival(lambda evidence: evidence.attempted), show_factor, "retry amplification"
    ),
}
