"""What must hold, as pure functions over a journal.

An expectation names one window of the run and one or more bounds on what is measured in it::

    - {before: fault, success_rate: ">= 99%"}                  # the baseline: unhealthy here, the run proves nothing
    - {during: fault, p95: "< 10s", shed_share: "<= 90%"}
    - {during: fault, within: 20s, breaker: unified opens}     # eventually: no later than 20 s into the window
    - {after: fault, within: 60s, success_rate: ">= 99%"}      # from some moment, at most 60 s in, to the window's end
    - {during: fault, within: 10s, level: at least LIMITED}    # so degraded or more, from some moment to its end
    - {always: accounted}

`fault` stands for all faults together, from the first one's start to the last one's end; a fault's kind, such as
`store_down`, for those of that kind. A turn belongs to the window in which it arrived, however late it ended; only
`goodput` and the amplifications count what happens in the window itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Annotated

from msgspec import Struct

from orchestra.events import BreakerChanged
from sim.evidence import LEVELS, WHOLE_RUN, Evidence, Window
from sim.journal import Journal
from sim.measures import MEASURES, Measure
from sim.quantities import COUNT, DURATION, SHARE, Bound, Comparison, show_duration

WINDOWS = ("before", "during", "after", "always")
RECOVERY_STEP_S = 1.0
VERBS = {"opens": "OPEN", "half_opens": "HALF_OPEN", "closes": "CLOSED"}
STATES = {"open": "OPEN", "half_open": "HALF_OPEN", "closed": "CLOSED"}


class Expectation(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One window, and bounds on what is measured in it."""

    before: Annotated[str | None, "`fault` or a fault's kind: the run up to its start; a baseline"] = None
    during: Annotated[str | None, "`fault` or a fault's kind: from its start to its end"] = None
    after: Annotated[str | None, "`fault` or a fault's kind: from its end to the end of arrivals"] = None
    always: Annotated[
        str | None, "`run` for the whole run, or a property: accounted, durable, no_defects, levels_in_order"
    ] = None
    within: Annotated[float | None, DURATION, "it holds from some moment at most this far into the window"] = None
    success_rate: Annotated[Comparison | None, Bound(SHARE), "answered turns among all"] = None
    failure_rate: Annotated[Comparison | None, Bound(SHARE), "failed turns among all, those shed not included"] = None
    shed_share: Annotated[Comparison | None, Bound(SHARE), "turns rejected to protect service or provider"] = None
    p50: Annotated[Comparison | None, Bound(DURATION), "median latency of answered turns"] = None
    p95: Annotated[Comparison | None, Bound(DURATION), "95th percentile of answered turns' latency"] = None
    p99: Annotated[Comparison | None, Bound(DURATION), "99th percentile of answered turns' latency"] = None
    refusal_p95: Annotated[Comparison | None, Bound(DURATION), "how long turns that got no answer kept waiting"] = None
    failures: Annotated[Comparison | None, Bound(COUNT), "number of failed turns"] = None
    goodput: Annotated[
        Comparison | None, Bound(SHARE), "turns whose answer came in the window, by those that arrived in it"
    ] = None
    first_token_p95: Annotated[
        Comparison | None, Bound(DURATION), "95th percentile of the time to an answer's first token"
    ] = None
    retry_amplification: Annotated[
        Comparison | None, Bound(COUNT), "attempts of clients in the window, by the turns that arrived in it"
    ] = None
    provider_amplification: Annotated[
        Comparison | None, Bound(COUNT), "calls of the provider in the window, by the turns that arrived in it"
    ] = None
    reconnect_max: Annotated[
        Comparison | None, Bound(DURATION), "how long clients that lost a WebSocket in the window were without, at most"
    ] = None
    reconnect_amplification: Annotated[
        Comparison | None, Bound(COUNT), "attempts to connect, by the WebSockets that were lost in the window"
    ] = None
    refused_connections: Annotated[
        Comparison | None, Bound(COUNT), "attempts refused of clients that wanted a WebSocket from the window on"
    ] = None
    connections_max: Annotated[
        Comparison | None, Bound(COUNT), "WebSockets at the service at once, dead ones included until it notices"
    ] = None
    breaker: Annotated[str | None, "[name] opens|half_opens|closes, or [name] open|half_open|closed"] = None
    level: Annotated[str | None, "a degradation level, such as NORMAL, `at least LIMITED` or `at most ESSENTIAL`"] = (
        None
    )

    @property
    def window(self) -> tuple[str, str]:
        """The window's kind and what it refers to."""
        return next((kind, value) for kind in WINDOWS if (value := getattr(self, kind)) is not None)

    @property
    def bounds(self) -> dict[str, Comparison]:
        """The bounds on measured numbers, by measure."""
        return {name: bound for name in BOUNDED if (bound := getattr(self, name)) is not None}

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (path, message) for what no single field shows."""
        named = [kind for kind in WINDOWS if getattr(self, kind) is not None]
        if len(named) != 1:
            yield "", f"name one window, not {' and '.join(named) or 'none'}: one of {', '.join(WINDOWS)}"
            return
        proper = self.always is not None and self.always != WHOLE_RUN
        if proper and self.always not in PROPERTIES:
            yield "always", f"{self.always!r} is unknown: write {WHOLE_RUN}, {', '.join(PROPERTIES)}"
        elif proper and (self.bounds or self.breaker or self.level or self.within is not None):
            yield "", f"{self.always} stands alone: write bounds on the whole run as {{always: {WHOLE_RUN}, ...}}"
        elif not proper and not self.bounds and self.breaker is None and self.level is None:
            yield "", f"expects nothing: add a measure, such as success_rate, breaker or level ({', '.join(BOUNDED)})"
        if self.breaker is not None:
            word = self.breaker.split()[-1]
            if len(self.breaker.split()) > 2 or word not in VERBS | STATES:
                wanted = ", ".join((*VERBS, *STATES))
                yield "breaker", f"{self.breaker!r} is unknown: write an optional name and one of {wanted}"
        if self.level is not None and _allowed_levels(self.level) is None:
            wanted = ", ".join(LEVELS)
            yield "level", f"{self.level!r} is unknown: write `at least`, `at most` or nothing, and one of {wanted}"


BOUNDED = tuple(name for name in Expectation.__struct_fields__ if name in MEASURES)
"""The measures that an expectation can bound."""


class Result(Struct, frozen=True):
    """How one bound of one expectation came out.

    Parameters
    ----------
    index : int
        Which expectation of the scenario, from 0.
    text : str
        What was expected, in words.
    measured : str
        What was found, with its unit; a dash where there was nothing to measure.
    held : bool
    baseline : bool
        Whether it speaks of the time before a fault.
    value : float or None
        The measured number: seconds, a share of one or a count.
    """

    index: int
    text: str
    measured: str
    held: bool
    baseline: bool
    value: float | None


def judge(expectations: tuple[Expectation, ...], source: Journal | Evidence) -> tuple[Result, ...]:
    """Return how every bound of every expectation came out, in order."""
    evidence = source if isinstance(source, Evidence) else Evidence(source)
    return tuple(
        result for index, expectation in enumerate(expectations) for result in _results(index, expectation, evidence)
    )


def _results(index: int, expectation: Expectation, evidence: Evidence) -> Iterator[Result]:
    kind, subject = expectation.window
    if kind == "always" and subject in PROPERTIES:
        held, measured = PROPERTIES[subject](evidence)
        yield Result(index, f"always {subject}", measured, held, False, None)
        return
    where = "always" if kind == "always" else f"{kind} {subject}"
    if expectation.within is not None:
        where += f", within {show_duration(expectation.within)}"
    window = evidence.window(kind, subject)
    baseline = kind == "before"
    for name, bound in expectation.bounds.items():
        measure = MEASURES[name]
        text = f"{where}: {measure.label} {bound.operator} {measure.show(bound.limit)}"
        if window is None:
            yield Result(index, text, "the fault never came", False, baseline, None)
            continue
        value, moment = _measured(measure, bound, window, expectation.within, evidence)
        measured = measure.show(value)
        if expectation.within is not None and moment is not None:
            measured += f" from {show_duration(moment)} on"
        yield Result(index, text, measured, bound.holds(value), baseline, None if math.isnan(value) else value)
    for what, wanted, look in (("breaker", expectation.breaker, _breaker), ("level", expectation.level, _level)):
        if wanted is None:
            continue
        text = f"{where}: {what} {wanted}"
        if window is None:
            yield Result(index, text, "the fault never came", False, baseline, None)
            continue
        held, measured, seconds = look(wanted, window, expectation.within, evidence)
        yield Result(index, text, measured, held, baseline, seconds)


def _measured(
    measure: Measure, bound: Comparison, window: Window, within: float | None, evidence: Evidence
) -> tuple[float, float | None]:
    """Return the value over the window; with `within`, over its rest from the first moment that keeps the bound."""
    if within is None:
        return measure.of(evidence, window), None
    moment = 0.0
    while True:
        value = measure.of(evidence, Window(window.start + moment, window.end))
        if bound.holds(value):
            return value, moment
        if moment >= within:
            return value, None
        moment = min(moment + RECOVERY_STEP_S, within)


def _breaker(wanted: str, window: Window, within: float | None, evidence: Evidence) -> tuple[bool, str, float | None]:
    *name, word = wanted.split()
    changes = [change for change in evidence.changes if not name or change.breaker == name[0]]
    if word in VERBS:
        end = window.end if within is None else min(window.end, window.start + within)
        for change in changes:
            if change.after == VERBS[word] and window.start <= change.at < end:
                seconds = change.at - window.start
                return True, f"after {show_duration(seconds)}", seconds
        return False, "never", None
    since = _state_since(STATES[word], changes, window)
    allowed = 0.0 if within is None else within
    if since is None:
        return False, "not at the window's end", None
    return since <= allowed, f"from {show_duration(since)} on", since


def _state_since(state: str, changes: list[BreakerChanged], window: Window) -> float | None:
    """Return how far into the window every breaker came to `state` for the rest of it; None where one did not."""
    current = {change.breaker: "CLOSED" for change in changes}
    since = 0.0
    for change in changes:
        if change.at >= window.end:
            break
        current[change.breaker] = change.after
        if change.at > window.start:
            since = change.at - window.start
    states = list(current.values()) or ["CLOSED"]
    return since if all(each == state for each in states) else None


def _allowed_levels(wanted: str) -> tuple[str, ...] | None:
    """Return the levels that `wanted` speaks of; None where it cannot be understood."""
    *words, name = wanted.split()
    if name not in LEVELS:
        return None
    place = LEVELS.index(name)
    allowed = {"": (name,), "at least": LEVELS[place:], "at most": LEVELS[: place + 1]}
    return allowed.get(" ".join(words))


def _level(wanted: str, window: Window, within: float | None, evidence: Evidence) -> tuple[bool, str, float | None]:
    allowed = _allowed_levels(wanted)
    assert allowed is not None  # the scenario was checked
    met = [(start, end, level) for start, end, level in evidence.level_spans(math.inf) if start < window.end]
    met = [(start, end, level) for start, end, level in met if end > window.start]
    amiss = [(end, level) for _, end, level in met if level not in allowed]
    if not amiss:
        return True, "all the time", 0.0
    last = amiss[-1][0]
    if last >= window.end:
        return False, f"{amiss[-1][1]} at the window's end", None
    since = last - window.start
    return since <= (within or 0.0), f"from {show_duration(since)} on", since


def _accounted(evidence: Evidence) -> tuple[bool, str]:
    """Every arrival ended once; every admitted turn and every provider call ended."""
    total = sum(evidence.finished.values())
    text = " + ".join(f"{count:,} {name}" for name, count in evidence.finished.items())
    open_ends = {
        "arrivals": evidence.open_arrivals,
        "turns": evidence.open_turns,
        "provider calls": evidence.open_calls,
    }
    loose = [f"{len(ends)} {name} open" for name, ends in open_ends.items() if ends]
    if loose or total != evidence.arrivals or not evidence.complete:
        return False, f"{text} of {evidence.arrivals:,}; {', '.join(loose) or 'the run was cut off'}"
    return True, f"{text} = {total:,}"


def _durable(evidence: Evidence) -> tuple[bool, str]:
    """Every turn that a client was told is done stands once in the conversation store."""
    last = evidence.audited
    if last is None:
        return False, "was not audited"
    text = f"{last.acknowledged:,} acknowledged, {last.missing} missing, {last.duplicated} twice"
    return last.missing == last.duplicated == 0, text


def _no_defects(evidence: Evidence) -> tuple[bool, str]:
    """Nothing happened that nobody had foreseen."""
    first = evidence.first_defect
    if first is None:
        return True, "none"
    last_line = first.traceback.strip().rpartition("\n")[2]
    return False, f"{evidence.defects}, the first in {first.where}: {last_line[:100]}"


def _levels_in_order(evidence: Evidence) -> tuple[bool, str]:
    """The degradation level moved in adjacent steps only, each from where the one before had ended."""
    fleet = evidence.fleet
    if fleet.steps:  # of several instances, each must: together they may skip one, as where the worst of them crashes
        for leap in fleet.leaps:
            return False, f"at {show_duration(leap.at)} {leap.instance} from {leap.before} to {leap.after}"
        return True, f"{fleet.steps} adjacent steps"
    level = LEVELS[0]
    for change in evidence.levels:
        if change.before != level or abs(LEVELS.index(change.after) - LEVELS.index(level)) != 1:
            return False, f"at {show_duration(change.at)} from {change.before} to {change.after}, after {level}"
        level = change.after
    steps = len(evidence.levels)
    return True, f"{steps} adjacent steps" if steps else f"{level} all the time"


PROPERTIES: dict[str, Callable[[Evidence], tuple[bool, str]]] = {
    "accounted": _accounted,
    "durable": _durable,
    "no_defects": _no_defects,
    "levels_in_order": _levels_in_order,
}
