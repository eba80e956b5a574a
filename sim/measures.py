"""The numbers that an engineer decides by, each a function of what happened in a window of a run.

`MEASURES` is the one list of them, each with its unit, what it means and which way is better. Expectations bound some
of them in windows of one run; the lab (`sim.replicate`, `sim.sweep`, `sim.tune`) tells all `COLUMNS` of whole runs, one
column each, as plain floats:

========================================  =======  ================================================================
column                                    unit     meaning
========================================  =======  ================================================================
turns, answered, failed, shed             turns    that arrived, and how they ended for their clients
availability, failure_rate, shed_share    share    of one: answered, failed, shed among all turns
goodput                                   share    answers that came in the window, by the turns that arrived in it
goodput_per_second                        turns/s  answers that came in the window, by its length
p50, p95, p99                             seconds  percentiles of answered turns' latency, retries of clients included
refusal_p95                               seconds  how long turns that got no answer kept their clients waiting
first_token_p50, first_token_p95          seconds  time to the first token of answered turns, as clients see it where
                                                   the door streams, else as the orchestra did
retry_amplification                       times    attempts of clients, by turns
provider_amplification                    times    calls that reached the provider, by turns
recovery_seconds                          seconds  from the last fault's end until the service was well for good (see
                                                   `recovery`); NaN without faults
recovered                                 share    1 where it was; 0 where `recovery_seconds` is only a lower bound
openings                                  times    any breaker opened
breaker_NAME_{closed,half_open,open}_seconds  seconds  a breaker was in that state
level_NAME_seconds                        seconds  a degradation level was in force
prompt_tokens, completion_tokens          tokens   that the provider read and wrote, also for nobody
cost                                      money    of these tokens, at the prices of the scenario's provider; else 0
========================================  =======  ================================================================
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

from orchestra.config import FIELDS
from sim.connectivity import Return
from sim.evidence import ALL_FAULTS, LEVELS, WHOLE_RUN, Evidence, Window, within
from sim.journal import Journal
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


WELL_WINDOW_S = 10.0
WELL_SHARE = 0.9
WELL_STEP_S = 1.0

Measuring = Callable[[Evidence, Window], float]


def _an_arrival(times: Callable[[Evidence], Sequence[float]]) -> Measuring:
    """Count `times` in a window, by the turns that arrived in it."""

    def measure(evidence: Evidence, window: Window) -> float:
        arrivals = evidence.ended(window)
        return len(times(evidence)[within(times(evidence), window)]) / arrivals if arrivals else math.nan

    return measure


def _number(outcome: str) -> Measuring:
    return lambda evidence, window: evidence.arrived.count(outcome, evidence.arrived.within(window))


def _share(outcome: str) -> Measuring:
    number = _number(outcome)

    def measure(evidence: Evidence, window: Window) -> float:
        ended = evidence.ended(window)
        return number(evidence, window) / ended if ended else math.nan

    return measure


def _latency(q: float) -> Measuring:
    return lambda evidence, window: percentile(evidence.arrived.latencies(evidence.arrived.within(window)), q)


def _refusal(evidence: Evidence, window: Window) -> float:
    waited = evidence.arrived.latencies(evidence.arrived.within(window), answered=False)
    return percentile(waited, 0.95) if waited or not evidence.ended(window) else 0.0


def _first_token(q: float) -> Measuring:
    return lambda evidence, window: percentile(evidence.first_tokens(window), q)


def _per_second(evidence: Evidence, window: Window) -> float:
    length = min(window.end, evidence.duration_s) - window.start
    return len(evidence.answered[within(evidence.answered, window)]) / length if length > 0 else math.nan


def _reconnects(measure: Callable[[list[Return]], float]) -> Measuring:
    """Measure how those came back who lost a connection in a window; NaN where nobody did."""

    def of(evidence: Evidence, window: Window) -> float:
        lost = [each for each in evidence.connections.within(*window) if each.again]
        return measure(lost) if lost else math.nan

    return of


def _refused_connections(evidence: Evidence, window: Window) -> float:
    return sum(each.refused for each in evidence.connections.within(*window))


def _spent(what: str) -> Measuring:
    def measure(evidence: Evidence, window: Window) -> float:
        return float(sum(getattr(each, what) for each in evidence.spent if window.start <= each.at < window.end))

    return measure


def _openings(evidence: Evidence, window: Window) -> float:
    return sum(each.after == "OPEN" and window.start <= each.at < window.end for each in evidence.changes)


def _overlap(spans: Iterable[tuple[float, float, str]], state: str, window: Window) -> float:
    return sum(max(0.0, min(end, window.end) - max(start, window.start)) for start, end, name in spans if name == state)


def _in_state(breaker: str, state: str) -> Measuring:
    return lambda evidence, window: _overlap(evidence.breaker_spans(breaker, _end(evidence, window)), state, window)


def _in_level(level: str) -> Measuring:
    return lambda evidence, window: _overlap(evidence.level_spans(_end(evidence, window)), level, window)


def _end(evidence: Evidence, window: Window) -> float:
    """Return where time in a state stops to count: the end of arrivals, though a run goes on for what is under way."""
    return min(window.end, evidence.duration_s)


def recovery(evidence: Evidence, window: Window) -> tuple[float, bool]:
    """Return how long the service took to be well again after the last fault, and whether it ever was.

    Well means: of the turns that arrived in any `WELL_WINDOW_S` from then on, at least `WELL_SHARE` of the share were
    answered that had been before the first fault (all of them, where none came before). A service that was not well by
    the end of arrivals has taken at least until then.

    Parameters
    ----------
    evidence : Evidence
    window : Window
        What comes before it is no part of the baseline.

    Returns
    -------
    seconds : float
        In steps of `WELL_STEP_S`; NaN where there was no fault, or no time after it.
    recovered : bool
    """
    before, after = (evidence.window(kind, ALL_FAULTS) for kind in ("before", "after"))
    if before is None or after is None or after.start + WELL_WINDOW_S > after.end:
        return math.nan, False

    def share(start: float, end: float) -> float:
        answered = _share("answered")(evidence, Window(start, end))
        return 1.0 if math.isnan(answered) else answered

    enough = WELL_SHARE * share(window.start, before.end)
    steps = math.floor((after.end - after.start - WELL_WINDOW_S) / WELL_STEP_S)
    for step in range(steps, -1, -1):
        start = after.start + step * WELL_STEP_S
        if share(start, start + WELL_WINDOW_S) < enough:
            lasted = (step + 1) * WELL_STEP_S
            return (lasted, True) if step < steps else (after.end - after.start, False)
    return 0.0, True


def _recovered(evidence: Evidence, window: Window) -> float:
    seconds, recovered = recovery(evidence, window)
    return math.nan if math.isnan(seconds) else float(recovered)


def show_number(value: float) -> str:
    """Write a number for which no unit is known: about four digits."""
    return "-" if math.isnan(value) else f"{value:,.4g}"


SHOWS: dict[str, Callable[[float], str]] = {
    "share": show_share,
    "seconds": show_duration,
    "times": show_factor,
    "turns": show_count,
    "tokens": show_count,
}


class Measure(NamedTuple):
    """A number computed from what happened in a window.

    Parameters
    ----------
    of : callable
        Takes the evidence and the window; NaN where there was nothing to measure.
    unit : str
        seconds, share (of one), times, turns, turns/s, tokens or money.
    label : str
        For readers.
    better : str
        Which way is better: higher or lower; empty where that depends.
    """

    of: Measuring
    unit: str
    label: str
    better: Literal["higher", "lower", ""] = ""

    @property
    def show(self) -> Callable[[float], str]:
        """Write a value for a reader, with its unit."""
        return SHOWS.get(self.unit, show_number)


BREAKERS = tuple(dict.fromkeys(path.split(".")[1] for path in FIELDS if path.startswith("guards.")))
STATES = ("CLOSED", "HALF_OPEN", "OPEN")

MEASURES = {
    "turns": Measure(lambda evidence, window: evidence.ended(window), "turns", "turns"),
    "answered": Measure(_number("answered"), "turns", "answered", "higher"),
    "failed": Measure(_number("failed"), "turns", "failed", "lower"),
    "shed": Measure(_number("shed"), "turns", "shed", "lower"),
    "availability": Measure(_share("answered"), "share", "availability", "higher"),
    "failure_rate": Measure(_share("failed"), "share", "failure rate", "lower"),
    "shed_share": Measure(_share("shed"), "share", "shed share", "lower"),
    "goodput": Measure(_an_arrival(lambda evidence: evidence.answered), "share", "goodput", "higher"),
    "goodput_per_second": Measure(_per_second, "turns/s", "goodput per second", "higher"),
    "p50": Measure(_latency(0.50), "seconds", "p50", "lower"),
    "p95": Measure(_latency(0.95), "seconds", "p95", "lower"),
    "p99": Measure(_latency(0.99), "seconds", "p99", "lower"),
    "refusal_p95": Measure(_refusal, "seconds", "p95 of refusals", "lower"),
    "first_token_p50": Measure(_first_token(0.50), "seconds", "p50 of the first token", "lower"),
    "first_token_p95": Measure(_first_token(0.95), "seconds", "p95 of the first token", "lower"),
    "retry_amplification": Measure(
        _an_arrival(lambda evidence: evidence.attempted), "times", "retry amplification", "lower"
    ),
    "provider_amplification": Measure(
        _an_arrival(lambda evidence: evidence.called), "times", "calls of the provider a turn", "lower"
    ),
    "recovery_seconds": Measure(lambda *run: recovery(*run)[0], "seconds", "recovery after the last fault", "lower"),
    "recovered": Measure(_recovered, "share", "recovered by the end", "higher"),
    "openings": Measure(_openings, "times", "openings of breakers"),
    **{
        f"breaker_{breaker}_{state.lower()}_seconds": Measure(
            _in_state(breaker, state), "seconds", f"{breaker} {state.lower().replace('_', ' ')}"
        )
        for breaker in BREAKERS
        for state in STATES
    },
    **{f"level_{level.lower()}_seconds": Measure(_in_level(level), "seconds", f"level {level}") for level in LEVELS},
    "prompt_tokens": Measure(_spent("prompt_tokens"), "tokens", "tokens read"),
    "completion_tokens": Measure(_spent("completion_tokens"), "tokens", "tokens written"),
    "cost": Measure(_spent("cost"), "money", "cost", "lower"),
}
COLUMNS = tuple(MEASURES)
MEASURES |= {  # as expectations call them, where a window is not a whole run
    "success_rate": Measure(_share("answered"), "share", "success rate", "higher"),
    "failures": Measure(_number("failed"), "turns", "failures", "lower"),
    "reconnect_max": Measure(
        _reconnects(lambda lost: max(each.seconds for each in lost)), "seconds", "longest without a connection", "lower"
    ),
    "reconnect_amplification": Measure(
        _reconnects(lambda lost: sum(each.attempts for each in lost) / len(lost)), "times", "attempts a reconnection"
    ),
    "refused_connections": Measure(_refused_connections, "turns", "connections refused"),
    "connections_max": Measure(
        lambda evidence, window: evidence.connections.open_max(*window), "turns", "connections at once"
    ),
}


class MeasureUnknown(Exception):
    """A run has no such measure; the message names it and the nearest."""


def known(name: str) -> str:
    """Return `name` if a whole run has a measure of it; raises MeasureUnknown."""
    if name in COLUMNS:
        return name
    close = difflib.get_close_matches(name, COLUMNS, n=1, cutoff=0.5)
    cure = f"did you mean {close[0]}?" if close else "write one such as availability, p95, recovery_seconds or cost"
    raise MeasureUnknown(f"there is no measure {name!r}: {cure}")


def measured(source: Journal | Evidence, warm_up_s: float = 0.0) -> dict[str, float]:
    """Return every measure of a whole run, by the names of `COLUMNS`.

    Parameters
    ----------
    source : Journal or Evidence
        A journal, or what was gathered from it.
    warm_up_s : float
        What happened in the first so many seconds does not count.
    """
    evidence = source if isinstance(source, Evidence) else Evidence(source)
    whole = evidence.window("always", WHOLE_RUN)
    assert whole is not None  # a whole run is never missing
    window = Window(warm_up_s, whole.end)
    return {name: float(MEASURES[name].of(evidence, window)) for name in COLUMNS}
