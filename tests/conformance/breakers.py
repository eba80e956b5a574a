"""Circuit breakers behind one shape: ours at each of its edges, and those of five libraries.

Each adapter uses its library as its own documentation shows for asynchronous code. None of the libraries lets time be
passed in, so a probe swaps the names by which they ask for it (`Subject.asks_time_by`) for those of a `Clock`.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, tzinfo
from functools import partial
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any, ClassVar, Self

import aiobreaker.circuitbreaker
import aiobreaker.state
import circuitbreaker
import hyx.circuitbreaker.exceptions
import hyx.circuitbreaker.states
import purgatory.domain.model
import pybreaker
from hyx.circuitbreaker import consecutive_breaker
from purgatory import AsyncCircuitBreakerFactory

from orchestra.errors import BreakerOpen
from orchestra.policies import BreakerPolicy
from orchestra.resilience.breaker import Breaker

Work = Callable[[], Awaitable[Any]]
Source = Callable[[], AsyncIterator[Any]]


class Clock:
    """Monotonic and wall time that stand until they are moved."""

    def __init__(self) -> None:
        self.monotonic = 1_000.0
        self.wall = 1_700_000_000.0

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.monotonic += seconds
        self.wall += seconds

    def step_wall(self, seconds: float) -> None:
        """Set the wall clock, as an operator or NTP does; no time passes."""
        self.wall += seconds

    def datetime(self) -> type[datetime]:
        """Return what stands in for the class `datetime.datetime`."""
        clock = self

        class At(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> datetime:
                return datetime.fromtimestamp(clock.wall, tz)

            @classmethod
            def utcnow(cls) -> datetime:
                return datetime.fromtimestamp(clock.wall, UTC).replace(tzinfo=None)

        return At


class Subject:
    """A circuit breaker under test: opens at `failures` in a row for `open_seconds`, and one good probe closes it.

    Parameters
    ----------
    failures : int
    open_seconds : float
    now : callable
        Monotonic seconds, for a breaker that can be given time.
    """

    library: ClassVar[str]
    edge: ClassVar[str]
    rejection: ClassVar[type[Exception]]
    probes_max: ClassVar[int] = 1
    rejections: ClassVar[int] = 20_000

    def __init__(self, failures: int, open_seconds: float, now: Callable[[], float]) -> None:
        raise NotImplementedError

    @classmethod
    def version(cls) -> str:
        """Return the installed version; ours has none of its own."""
        return version(cls.library)

    @classmethod
    def asks_time_by(cls, clock: Clock) -> Iterator[tuple[Any, str, Any]]:
        """Yield each module, the name in it by which the library asks for time, and what that is under `clock`."""
        yield from ()

    @classmethod
    @contextmanager
    def at(cls, clock: Clock) -> Iterator[None]:
        """Make the library live by `clock` for the length of a ``with`` block."""
        before = [(module, name, getattr(module, name)) for module, name, _ in cls.asks_time_by(clock)]
        for module, name, stand_in in cls.asks_time_by(clock):
            setattr(module, name, stand_in)
        try:
            yield
        finally:
            for module, name, original in before:
                setattr(module, name, original)

    async def ready(self) -> Self:
        """Do what the library does with an ``await`` before its first call."""
        return self

    @property
    def state(self) -> str:
        """CLOSED, OPEN or HALF_OPEN, as the library tells at this moment."""
        raise NotImplementedError

    def guard(self, work: Work) -> Work:
        """Return `work` behind the breaker."""
        raise NotImplementedError

    def stream(self, source: Source) -> AsyncIterator[Any] | None:
        """Return an asynchronous iterator behind the breaker; None where the library takes none."""
        return None


class OursByCall(Subject):
    library, edge, rejection, probes_max, rejections = "ours", "call", BreakerOpen, 2, 200_000

    def __init__(self, failures: int, open_seconds: float, now: Callable[[], float]) -> None:
        policy = BreakerPolicy(
            failures_max=failures, open_seconds=open_seconds, probes_max=self.probes_max, successes_min=1
        )
        self.breaker = Breaker("dependency", policy, now, lambda change: None, random=lambda: 0.0)

    @classmethod
    def version(cls) -> str:
        return ""

    @property
    def state(self) -> str:
        return self.breaker.state

    def guard(self, work: Work) -> Work:
        return partial(self.breaker.call, work)

    def stream(self, source: Source) -> AsyncIterator[Any]:
        return self.breaker.stream(source())


class OursByPermit(OursByCall):
    edge = "permit"

    def guard(self, work: Work) -> Work:
        async def guarded() -> Any:
            async with self.breaker.permit():
                return await work()

        return guarded

    async def stream(self, source: Source) -> AsyncIterator[Any]:
        async with self.breaker.permit() as permit:
            async for item in source():
                permit.responded()
                yield item


class PyBreaker(Subject):
    library, edge, rejection = "pybreaker", "call_async", pybreaker.CircuitBreakerError
    states: ClassVar[dict[str, str]] = {"closed": "CLOSED", "open": "OPEN", "half-open": "HALF_OPEN"}

    def __init__(self, failures: int, open_seconds: float, now: Callable[[], float]) -> None:
        self.breaker = pybreaker.CircuitBreaker(fail_max=failures, reset_timeout=open_seconds)

    @classmethod
    def asks_time_by(cls, clock: Clock) -> Iterator[tuple[Any, str, Any]]:
        yield pybreaker, "datetime", clock.datetime()

    @property
    def state(self) -> str:
        return self.states[self.breaker.current_state]

    def guard(self, work: Work) -> Work:
        return partial(self.breaker.call_async, work)

    def stream(self, source: Source) -> AsyncIterator[Any]:
        return self.breaker.call(source)


class AioBreaker(Subject):
    library, edge, rejection = "aiobreaker", "call_async", aiobreaker.CircuitBreakerError

    def __init__(self, failures: int, open_seconds: float, now: Callable[[], float]) -> None:
        self.breaker = aiobreaker.CircuitBreaker(fail_max=failures, timeout_duration=timedelta(seconds=open_seconds))

    @classmethod
    def asks_time_by(cls, clock: Clock) -> Iterator[tuple[Any, str, Any]]:
        yield aiobreaker.state, "datetime", clock.datetime()
        yield aiobreaker.circuitbreaker, "datetime", clock.datetime()

    @property
    def state(self) -> str:
        return self.breaker.current_state.name

    def guard(self, work: Work) -> Work:
        return partial(self.breaker.call_async, work)

    def stream(self, source: Source) -> AsyncIterator[Any]:
        return self.breaker.call(source)


class Scoped(Subject):
    """A breaker that is itself the context of ``async with``."""

    breaker: Any

    def guard(self, work: Work) -> Work:
        async def guarded() -> Any:
            async with self.breaker:
                return await work()

        return guarded

    async def stream(self, source: Source) -> AsyncIterator[Any]:
        async with self.breaker:
            async for item in source():
                yield item


class Purgatory(Scoped):
    library, edge, rejection = "purgatory", "async with", purgatory.domain.model.OpenedState
    states: ClassVar[dict[str, str]] = {"closed": "CLOSED", "opened": "OPEN", "half-opened": "HALF_OPEN"}

    def __init__(self, failures: int, open_seconds: float, now: Callable[[], float]) -> None:
        self._factory = AsyncCircuitBreakerFactory(default_threshold=failures, default_ttl=open_seconds)

    @classmethod
    def asks_time_by(cls, clock: Clock) -> Iterator[tuple[Any, str, Any]]:
        yield purgatory.domain.model, "time", SimpleNamespace(time=lambda: clock.wall)

    async def ready(self) -> Self:
        self.breaker = await self._factory.get_breaker("dependency")
        return self

    @property
    def state(self) -> str:
        return self.states[self.breaker.context.state]


class CircuitBreaker(Subject):
    library, edge, rejection = "circuitbreaker", "decorator", circuitbreaker.CircuitBreakerError
    states: ClassVar[dict[str, str]] = {"closed": "CLOSED", "open": "OPEN", "half_open": "HALF_OPEN"}

    def __init__(self, failures: int, open_seconds: float, now: Callable[[], float]) -> None:
        self.breaker = circuitbreaker.CircuitBreaker(failures, open_seconds, name="dependency")

    @classmethod
    def asks_time_by(cls, clock: Clock) -> Iterator[tuple[Any, str, Any]]:
        yield circuitbreaker, "monotonic", lambda: clock.monotonic
        yield circuitbreaker, "datetime", clock.datetime()

    @property
    def state(self) -> str:
        return self.states[self.breaker.state]

    def guard(self, work: Work) -> Work:
        return self.breaker(work)

    def stream(self, source: Source) -> AsyncIterator[Any]:
        return self.breaker(source)()


class HyxDecorator(Subject):
    library, edge, rejection = "hyx", "decorator", hyx.circuitbreaker.exceptions.BreakerFailing
    states: ClassVar[dict[str, str]] = {"working": "CLOSED", "failing": "OPEN", "recovering": "HALF_OPEN"}

    def __init__(self, failures: int, open_seconds: float, now: Callable[[], float]) -> None:
        self.breaker = consecutive_breaker(
            failure_threshold=failures, recovery_time_secs=open_seconds, recovery_threshold=1
        )

    @classmethod
    def asks_time_by(cls, clock: Clock) -> Iterator[tuple[Any, str, Any]]:
        yield hyx.circuitbreaker.states, "datetime", clock.datetime()

    @property
    def state(self) -> str:
        return self.states[self.breaker.state.name]

    def guard(self, work: Work) -> Work:
        return self.breaker(work)


class HyxScope(Scoped, HyxDecorator):
    edge = "async with"


OURS: tuple[type[Subject], ...] = (OursByCall, OursByPermit)
LIBRARIES: tuple[type[Subject], ...] = (PyBreaker, AioBreaker, Purgatory, CircuitBreaker, HyxDecorator, HyxScope)
