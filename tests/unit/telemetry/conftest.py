"""One event of every kind, and a clock that stands still."""

import pytest

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

NOW = 1_700_000_000.25
TRACE = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "00f067aa0ba902b7")


class StandingClock:
    def now(self) -> float:
        return NOW


@pytest.fixture
def clock() -> StandingClock:
    return StandingClock()


@pytest.fixture
def trace() -> TraceContext:
    return TRACE


@pytest.fixture
def events() -> list[Event]:
    """The events of one turn in their order, and then one of each other kind."""
    return [
        TurnStarted(10.0, "c-1", None),
        CallFinished(10.25, "c-1", "memory", "failure", "deadline-exceeded", 0.25),
        CallRetried(10.75, "c-1", "unified", 2, 0.25, "provider-failed"),
        CallHedged(11.25, "c-1", "unified"),
        CallFinished(11.5, "c-1", "unified", "success", "", 1.0, attempts=3),
        FellBack(11.5, "c-1", "unified", "cache", "breaker-open"),
        StoreFinished(11.75, "c-1", "conversations", "", 0.25),
        TurnFinished(
            at=12.0,
            correlation_id="c-1",
            session_id="s-1",
            turn_id="t-1",
            outcome="answered",
            error="",
            seconds=2.0,
            first_token_seconds=0.75,
            engine="unified",
            prompt_tokens=30,
            completion_tokens=12,
            degraded=("memory",),
            trace=TRACE,
        ),
        BreakerChanged(13.0, "memory", "CLOSED", "OPEN", "5 consecutive failures"),
        LevelChanged(13.0, "NORMAL", "LIMITED", 72.5, "memory is OPEN: 30 points"),
        OperatorActed(13.5, "memory", "disable", "its probes lie"),
        RequestFinished(14.0, "c-1", "POST", "/chat/v2/chat", 200, 2.01),
        TurnResumed(14.25, "c-3", "s-1", "t-1", "elsewhere"),
        TurnAbandoned(14.5, "c-1", "s-1", "t-1"),
        ConnectionOpened(14.5, "w-1", "browser", "s-1", "c-4"),
        ConnectionClosed(14.75, "w-1", "browser", "s-1", "c-4", 1001, "nothing came for 900 s", 0.25, 3, 4),
        UnexpectedError(15.0, "c-2", "turn", "Traceback:\nValueError: nobody foresaw this"),
        Lifecycle(16.0, "gateway", "up", "port 8000"),
    ]
