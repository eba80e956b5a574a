"""Metrics in a Prometheus registry of their own, each label bounded.

Every worker process counts for itself, and `/metrics` shows the worker that happened to answer: scrape a deployment
with several workers one process an address (Kubernetes pods with one worker each), and sum in Prometheus. The client's
multi-process mode was rejected: it moves every count into files and changes the library for the whole process.
"""

from collections import Counter as Tally
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

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

_Rare = LevelChanged | OperatorActed | UnexpectedError | Lifecycle | TurnResumed | TurnAbandoned

M = TypeVar("M", Counter, Gauge, Histogram)

LABEL_VALUES_MAX = 100
"""Values that one label may take; later ones count as ``other``, so that nothing from outside can grow a series."""

BREAKER_STATES = ("CLOSED", "OPEN", "HALF_OPEN")
LEVELS = ("NORMAL", "LIMITED", "ESSENTIAL", "EMERGENCY", "MAINTENANCE")
TURN_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 10, 20, 40, 80)
CONNECTION_SECONDS = (1, 10, 60, 300, 900, 3600, 14_400, 86_400)
STORE_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)


class _Family(Generic[M]):
    """One metric, its children found again by their label values; a value too many of a label becomes ``other``."""

    def __init__(self, metric: M, labels: tuple[str, ...]) -> None:
        self._metric: M = metric
        self._known: list[dict[str, None]] = [{} for _ in labels]
        self._children: dict[tuple[str, ...], M] = {}

    def of(self, *values: str) -> M:
        """Return the child to count on; finding it again is a look-up, since the library's own takes a lock."""
        child = self._children.get(values)
        if child is None:
            bounded = tuple(map(_bounded, self._known, values))
            child = self._children[bounded] = self._metric.labels(*bounded) if bounded else self._metric
        return child


def _bounded(known: dict[str, None], value: str) -> str:
    if value not in known and len(known) >= LABEL_VALUES_MAX:
        return "other"
    known[value] = None
    return value


class Metrics:
    """Counts events; names and units follow Prometheus' "Metric and label naming"."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._running: Tally[str] = Tally()  # turns in flight by correlation id
        self._breakers: dict[str, None] = {}  # those whose state is known
        counter, histogram = self._counter, self._histogram
        self._turns = counter("turns", "Turns ended.", "outcome", "error")
        self._turn_seconds = histogram("turn_seconds", "Admission to durable reply.", TURN_SECONDS, "outcome")
        self._first_token_seconds = histogram("first_token_seconds", "Admission to first token.", TURN_SECONDS).of()
        self._turns_in_flight = self._gauge("turns_in_flight", "Turns admitted and not ended.").of()
        self._turns_degraded = counter("turns_degraded", "Turns answered without a feature.", "feature")
        self._turns_resumed = counter("turns_resumed", "Turns that a client came back to, by where found.", "source")
        self._turns_abandoned = counter("turns_abandoned", "Turns stopped since nobody followed them.").of()
        self._tokens = counter("tokens", "Tokens by direction: prompt or completion.", "direction")
        self._calls = counter("calls", "Guarded calls of engines ended.", "target", "outcome")
        self._call_seconds = histogram("call_seconds", "Guarded calls that were let through.", TURN_SECONDS, "target")
        self._call_retries = counter("call_retries", "Attempts made again after one that failed.", "target")
        self._call_hedges = counter("call_hedges", "Calls started beside a slow one.", "target")
        self._fallbacks = counter("fallbacks", "Answers that a fallback gave instead.", "target", "fallback")
        self._store_operations = counter("store_operations", "Reads and writes of stores.", "target", "error")
        self._store_seconds = histogram("store_seconds", "Reads and writes of stores.", STORE_SECONDS, "target")
        self._breaker_state = self._gauge("breaker_state", "1 for a breaker's state, else 0.", "breaker", "state")
        self._breaker_changes = counter("breaker_changes", "Breakers that entered a state.", "breaker", "state")
        self._level = self._gauge("degradation_level", "1 for the degradation level, else 0.", "level")
        self._level_changes = counter("degradation_level_changes", "Levels that were entered.", "level")
        self._level_is(LEVELS[0])
        self._operator_actions = counter("operator_actions", "What operators ordered.", "target", "action")
        self._http_requests = counter("http_requests", "HTTP requests answered.", "method", "route", "status")
        self._http_request_seconds = histogram("http_request_seconds", "HTTP requests.", TURN_SECONDS, "route")
        self._connections_open = self._gauge("connections_open", "WebSockets that are open.").of()
        self._connections_closed = counter("connections_closed", "WebSockets ended.", "code")
        self._connection_seconds = histogram("connection_seconds", "Lives of WebSockets.", CONNECTION_SECONDS).of()
        self._unexpected_errors = counter("unexpected_errors", "Defects met.", "where")
        self._lifecycle = counter("lifecycle", "Parts of the service that entered a state.", "part", "state")

    def hook(self, event: Event) -> None:
        """Count one event."""
        match event:
            case StoreFinished():
                self._store_operations.of(event.target, event.error).inc()
                self._store_seconds.of(event.target).observe(event.seconds)
            case CallFinished():
                self._call(event)
            case TurnStarted():
                self._running[event.correlation_id] += 1
                self._turns_in_flight.inc()
            case TurnFinished():
                self._turn(event)
            case RequestFinished():
                self._http_requests.of(event.method, event.route, str(event.status)).inc()
                self._http_request_seconds.of(event.route).observe(event.seconds)
            case BreakerChanged():
                self._breaker_is(event.breaker, event.after)
                self._breaker_changes.of(event.breaker, event.after).inc()
            case CallRetried():
                self._call_retries.of(event.target).inc()
            case CallHedged():
                self._call_hedges.of(event.target).inc()
            case FellBack():
                self._fallbacks.of(event.target, event.fallback).inc()
            case ConnectionOpened():
                self._connections_open.inc()
            case ConnectionClosed():
                self._connections_open.dec()
                self._connections_closed.of(str(event.code)).inc()
                self._connection_seconds.observe(event.seconds)
            case _:
                self._rare(event)

    def render(self) -> bytes:
        """Return the page for `/metrics`, in Prometheus' text format."""
        return generate_latest(self.registry)

    def _rare(self, event: _Rare) -> None:
        match event:
            case LevelChanged():
                self._level_is(event.after)
                self._level_changes.of(event.after).inc()
            case OperatorActed():
                self._operator_actions.of(event.target, event.action).inc()
            case UnexpectedError():
                self._unexpected_errors.of(event.where).inc()
            case TurnResumed():
                self._turns_resumed.of(event.source).inc()
            case TurnAbandoned():
                self._turns_abandoned.inc()
            case Lifecycle():
                self._lifecycle.of(event.part, event.state).inc()

    def _turn(self, event: TurnFinished) -> None:
        # One that was shed at the door never started. Where a caller gives a shed and a running turn the same
        # correlation id, the count is one too low until the running one ends, and never below 0.
        running = self._running.pop(event.correlation_id, 0)
        if running:
            self._turns_in_flight.dec()
        if running > 1:
            self._running[event.correlation_id] = running - 1
        self._turns.of(event.outcome, event.error).inc()
        self._turn_seconds.of(event.outcome).observe(event.seconds)
        if event.first_token_seconds is not None:
            self._first_token_seconds.observe(event.first_token_seconds)
        self._tokens.of("prompt").inc(event.prompt_tokens)
        self._tokens.of("completion").inc(event.completion_tokens)
        for feature in event.degraded:
            self._turns_degraded.of(feature).inc()

    def _call(self, event: CallFinished) -> None:
        self._calls.of(event.target, event.outcome).inc()
        if event.outcome != "rejected":
            self._call_seconds.of(event.target).observe(event.seconds)
        if event.target not in self._breakers:
            self._breaker_is(event.target, "CLOSED")  # a breaker is named like its target, and tells only of changes

    def _breaker_is(self, breaker: str, state: str) -> None:
        self._breakers[breaker] = None
        for each in BREAKER_STATES:
            self._breaker_state.of(breaker, each).set(each == state)

    def _level_is(self, level: str) -> None:
        for each in LEVELS:
            self._level.of(each).set(each == level)

    def _counter(self, name: str, meaning: str, *labels: str) -> _Family[Counter]:
        return _Family(Counter(f"orchestra_{name}_total", meaning, labels, registry=self.registry), labels)

    def _gauge(self, name: str, meaning: str, *labels: str) -> _Family[Gauge]:
        return _Family(Gauge(f"orchestra_{name}", meaning, labels, registry=self.registry), labels)

    def _histogram(self, name: str, meaning: str, buckets: tuple[float, ...], *labels: str) -> _Family[Histogram]:
        metric = Histogram(f"orchestra_{name}", meaning, labels, buckets=buckets, registry=self.registry)
        return _Family(metric, labels)
