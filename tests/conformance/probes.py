"""What a circuit breaker must withstand: each probe puts one through a short story and says what it saw.

No probe waits: time is a `Clock` that it moves itself, calls end when it says so, and between two steps the loop runs
until nothing more happens in it.
"""

import asyncio
import gc
import logging
import sys
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from tests.conformance.breakers import Clock, Subject

FAILURES = 3
OPEN_SECONDS = 10.0
CALLERS = 100
HOUR = 3600.0
MINUTE = 60.0


class Down(Exception):
    """How the backend fails."""


class Exit(BaseException):
    """An exit that is no `Exception`, as SystemExit or a framework's own signal."""


@dataclass(frozen=True)
class Finding:
    """What a probe saw: whether that is right (None: it does not apply), and what it was, in a few words if any."""

    right: bool | None
    saw: str = ""


class Call:
    """One guarded call under way, whose backend ends when told to."""

    def __init__(self, subject: Subject) -> None:
        self.reached = False
        self.ended = False
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(self._run(subject))

    async def _run(self, subject: Subject) -> None:
        await subject.guard(self._backend)()

    async def _backend(self) -> None:
        self.reached = True
        try:
            await self._end
        finally:
            self.ended = True

    async def end(self, error: BaseException | None = None) -> None:
        """Let the backend succeed, or fail with `error`."""
        if error is None:
            self._end.set_result(None)
        else:
            self._end.set_exception(error)
        await settle()

    async def cancel(self) -> None:
        self.task.cancel()
        await settle()

    def caller_got(self, kind: type[BaseException]) -> bool:
        """Whether the caller has been told by an exception of this kind."""
        if not self.task.done():
            return False
        if self.task.cancelled():
            return kind is asyncio.CancelledError
        return isinstance(self.task.exception(), kind)


async def settle() -> None:
    """Let everything that is ready to run do so; from four steps on, the probes see the same in every breaker."""
    for _ in range(30):
        await asyncio.sleep(0)


@dataclass
class Bench:
    """A breaker under test and its time."""

    subject: Subject
    clock: Clock
    calls: list[Call] = field(default_factory=list)  # held, or one that hangs could be collected, and so end

    @property
    def state(self) -> str:
        return self.subject.state

    async def start(self) -> Call:
        """Start a call, which is under way then, or has been rejected."""
        (call,) = await self.start_many(1)
        return call

    async def start_many(self, number: int) -> list[Call]:
        """Start calls at once."""
        started = [Call(self.subject) for _ in range(number)]
        self.calls += started
        await settle()
        return started

    async def fail(self) -> BaseException | None:
        """Make one call that fails, and return what its caller gets."""
        call = await self.start()
        if call.reached:
            await call.end(Down())
        return call.task.exception()

    async def rejects(self) -> bool:
        """Whether a call is rejected now, without reaching the backend; one that is not, succeeds."""
        call = await self.start()
        if call.reached:
            await call.end()
            return False
        return call.caller_got(self.subject.rejection)

    async def trip(self) -> None:
        """Open the breaker."""
        for _ in range(FAILURES):
            await self.fail()
        assert self.state == "OPEN"

    async def trip_and_wait(self) -> None:
        """Open the breaker and let its open time pass."""
        await self.trip()
        self.clock.advance(OPEN_SECONDS + 1)

    async def probe(self) -> Call:
        """Open the breaker, let its open time pass and start a probe, which is under way then."""
        await self.trip_and_wait()
        return await self.start()


Probe = Callable[[Bench], Awaitable[Finding]]


def _finding(*wrong: str) -> Finding:
    """Return what there is to say of whatever is wrong; texts that are empty say that nothing is."""
    told = "; ".join(each for each in wrong if each)
    return Finding(not told, told)


def _unless(bench: Bench, state: str) -> str:
    """Return the breaker's state unless it is what it should be."""
    return "" if bench.state == state else bench.state


# --- how many get through -------------------------------------------------------------------------------------------


async def herd(bench: Bench) -> Finding:
    await bench.trip_and_wait()
    reached = len(await _crowd(bench))
    return Finding(reached <= bench.subject.probes_max, f"{reached} of {CALLERS}")


async def hung_probe(bench: Bench) -> Finding:
    await bench.trip_and_wait()
    *_, one_more = [await bench.start() for _ in range(bench.subject.probes_max + 1)]
    unlimited = one_more.reached
    bench.clock.advance(MINUTE)
    later = await _crowd(bench)
    if not later:
        return _finding("still rejects")
    if len(later) > bench.subject.probes_max and not unlimited:
        return _finding(f"then {len(later)} of {CALLERS}")
    for call in later:
        await call.end()
    return Finding(bench.state == "CLOSED", "there is no limit" if unlimited else "")


async def _crowd(bench: Bench) -> list[Call]:
    """Start many calls at once, and return those that reach the backend."""
    return [call for call in await bench.start_many(CALLERS) if call.reached]


# --- exits that say nothing about the backend -----------------------------------------------------------------------


async def _cancelled(call: Call) -> str:
    """End a call by cancellation, and say what is wrong with how it ended."""
    await call.cancel()
    if not call.ended:
        await call.end()
        return "the backend is not cancelled"
    return "" if call.caller_got(asyncio.CancelledError) else "the caller is not told"


async def _exited(call: Call) -> str:
    """End a call by an exit of its own, and say what is wrong with how it ended."""
    await call.end(Exit())
    return "" if call.caller_got(Exit) else "the caller hangs" if not call.task.done() else "the caller is not told"


def _neutral_in_closed(end: Callable[[Call], Awaitable[str]]) -> Probe:
    async def probe(bench: Bench) -> Finding:
        for _ in range(FAILURES - 1):
            await bench.fail()
        wrong = await end(await bench.start())
        return await _count_after(bench, wrong)

    return probe


async def _count_after(bench: Bench, wrong: str = "") -> Finding:
    """Tell what one call did to the count of failures, which stood one below the threshold before it."""
    if bench.state == "OPEN":
        counted = "failure"
    else:
        await bench.fail()
        counted = "" if bench.state == "OPEN" else "success"
    return _finding(counted and f"counts as {counted}", wrong)


def _neutral_in_open(end: Callable[[Call], Awaitable[str]]) -> Probe:
    async def probe(bench: Bench) -> Finding:
        call = await bench.start()
        await bench.trip()
        wrong = await end(call)
        return _finding(_unless(bench, "OPEN"), wrong)

    return probe


def _neutral_in_half_open(end: Callable[[Call], Awaitable[str]]) -> Probe:
    async def probe(bench: Bench) -> Finding:
        call = await bench.probe()
        if bench.state != "HALF_OPEN":
            return _finding(f"{bench.state} while it runs", await end(call))
        wrong = await end(call)
        if wrong or bench.state != "HALF_OPEN":
            return _finding(_unless(bench, "HALF_OPEN"), wrong)
        for _ in range(bench.subject.probes_max):  # each slot must have come back
            call = await bench.start()
            if not call.reached:
                return Finding(False, "its slot is lost")
            await end(call)
        return _finding(_unless(bench, "HALF_OPEN"))

    return probe


# --- the wall clock -------------------------------------------------------------------------------------------------


async def wall_back(bench: Bench) -> Finding:
    await bench.trip()
    bench.clock.step_wall(-HOUR)
    bench.clock.advance(OPEN_SECONDS + 1)
    frozen = await bench.rejects()
    return _finding("stays OPEN for an hour" if frozen else "")


async def wall_ahead(bench: Bench) -> Finding:
    await bench.trip()
    bench.clock.step_wall(HOUR)
    return _finding("" if await bench.rejects() else "lets through at once")


# --- outcomes that come late ----------------------------------------------------------------------------------------


async def late_success_in_open(bench: Bench) -> Finding:
    late = await bench.start()
    await bench.trip()
    await late.end()
    return await _still_open(bench)


async def late_success_in_half_open(bench: Bench) -> Finding:
    late = await bench.start()
    await bench.probe()
    if bench.state != "HALF_OPEN":
        return Finding(False, f"{bench.state} while a probe runs")
    await late.end()
    return _finding(_unless(bench, "HALF_OPEN"))


async def late_failure_in_half_open(bench: Bench) -> Finding:
    late = await bench.start()
    probe = await bench.probe()
    if bench.state != "HALF_OPEN":
        return Finding(False, f"{bench.state} while a probe runs")
    await late.end(Down())
    state = bench.state
    await probe.end()
    if state == "HALF_OPEN":
        return _finding(_unless(bench, "CLOSED"))
    return _finding(state if bench.state == state else f"{state}, then {bench.state}")


async def late_failures_in_next_closed(bench: Bench) -> Finding:
    late = [await bench.start() for _ in range(FAILURES)]
    probe = await bench.probe()
    await probe.end()
    assert bench.state == "CLOSED"
    for call in late:
        await call.end(Down())
    return _finding(_unless(bench, "CLOSED"))


async def twin_probes(bench: Bench) -> Finding:
    await bench.trip_and_wait()
    one, other = await bench.start(), await bench.start()
    await one.end(Down())
    await other.end()
    return await _still_open(bench)


async def _still_open(bench: Bench) -> Finding:
    """Look whether the breaker says so and does so."""
    if bench.state != "OPEN":
        return _finding(bench.state)
    return _finding("" if await bench.rejects() else "OPEN, but lets through")


# --- what callers are told ------------------------------------------------------------------------------------------


async def tripping_error(bench: Bench) -> Finding:
    told = [await bench.fail() for _ in range(FAILURES)]
    bench.clock.advance(OPEN_SECONDS + 1)
    told.append(await bench.fail())  # that of a probe
    masked = [type(error).__name__ for error in told if type(error) is not Down]
    return _finding(f"masked by {masked[0]}" if masked else "")


async def fresh_rejections(bench: Bench) -> Finding:
    await bench.trip()
    guarded = bench.subject.guard(_nothing)
    one, *_, other = [await _rejection(bench, guarded) for _ in range(10)]
    return _finding(
        "one and the same object" if one is other else "", "its traceback grows" if _depth(other) > 10 else ""
    )


async def storm(bench: Bench) -> Finding:
    await bench.trip()
    guarded = bench.subject.guard(_nothing)
    blocks = []
    for hundreds in (10, bench.subject.rejections // 100):  # the first fills caches and free lists
        for _ in range(hundreds):
            for _ in range(100):
                with suppress(bench.subject.rejection):
                    await guarded()
            await asyncio.sleep(0)  # so that what a library leaves to the loop is done
        gc.collect()
        blocks.append(sys.getallocatedblocks())
    assert bench.state == "OPEN"
    grows = blocks[1] - blocks[0] > bench.subject.rejections / 100
    return _finding("grows with each" if grows else "")


async def _nothing() -> None:
    """A backend that is there."""


async def _rejection(bench: Bench, guarded: Callable[[], Awaitable[Any]]) -> BaseException:
    try:
        await guarded()
    except bench.subject.rejection as error:
        return error
    raise AssertionError("was not rejected")


def _depth(error: BaseException) -> int:
    depth, frame = 0, error.__traceback__
    while frame is not None:
        depth, frame = depth + 1, frame.tb_next
    return depth


# --- streams --------------------------------------------------------------------------------------------------------


async def stream_closed_in_closed(bench: Bench) -> Finding:
    for _ in range(FAILURES - 1):
        await bench.fail()
    wrong = await _taste(bench)
    return NO_STREAMS if wrong is None else await _count_after(bench, wrong)


async def stream_closed_in_half_open(bench: Bench) -> Finding:
    await bench.trip_and_wait()
    for _ in range(bench.subject.probes_max + 1):  # one slot more than there are, so that each must have come back
        wrong = await _taste(bench)
        if wrong is None:
            return NO_STREAMS
        if wrong or bench.state != "HALF_OPEN":
            return _finding(_unless(bench, "HALF_OPEN"), wrong)
    return Finding(True)


async def stream_fails_midway(bench: Bench) -> Finding:
    async def source() -> AsyncIterator[int]:
        yield 1
        raise Down

    for _ in range(FAILURES):
        stream = bench.subject.stream(source)
        if stream is None:
            return NO_STREAMS
        with suppress(Down):
            async for _item in stream:
                pass
    return _finding("" if bench.state == "OPEN" else "never trips")


NO_STREAMS = Finding(None, "takes no streams")


async def _taste(bench: Bench) -> str | None:
    """Take one item of a stream and close it; say what is wrong with how that ended, None if it takes no streams."""
    closed = False

    async def source() -> AsyncIterator[int]:
        nonlocal closed
        try:
            for item in range(3):
                yield item
        finally:
            closed = True

    stream = bench.subject.stream(source)
    if stream is None:
        return None
    async for _ in stream:
        break
    await stream.aclose()  # type: ignore[attr-defined]
    await settle()
    return "" if closed else "the source stays open"


# --- all of them ----------------------------------------------------------------------------------------------------

PROBES: dict[str, tuple[str, Probe]] = {
    f"{CALLERS} callers wait as OPEN ends": ("no more than the permitted probes reach the backend", herd),
    "hung probe": ("a minute later as many others can probe, and close it", hung_probe),
    "cancelled call, CLOSED": ("counts as nothing, backend cancelled", _neutral_in_closed(_cancelled)),
    "cancelled call, OPEN meanwhile": ("stays OPEN", _neutral_in_open(_cancelled)),
    "cancelled probe, HALF_OPEN": ("stays HALF_OPEN, slot given back", _neutral_in_half_open(_cancelled)),
    "other BaseException, CLOSED": ("counts as nothing, caller gets it", _neutral_in_closed(_exited)),
    "other BaseException, OPEN meanwhile": ("stays OPEN, caller gets it", _neutral_in_open(_exited)),
    "other BaseException, HALF_OPEN": ("stays HALF_OPEN, slot given back", _neutral_in_half_open(_exited)),
    "wall clock 1 h back": ("lets through after its open time", wall_back),
    "wall clock 1 h ahead": ("rejects until its open time is over", wall_ahead),
    "late success in OPEN": ("stays OPEN", late_success_in_open),
    "late success in HALF_OPEN": ("stays HALF_OPEN: the call began before the outage", late_success_in_half_open),
    "late failure in HALF_OPEN": ("stays HALF_OPEN, then CLOSED by its probe", late_failure_in_half_open),
    "late failures in the next CLOSED": ("stays CLOSED: they are of the outage before", late_failures_in_next_closed),
    "twin probes, one fails, then one succeeds": ("OPEN", twin_probes),
    "error that trips it": ("reaches its caller as it is, also that of a probe", tripping_error),
    "rejections": ("a fresh exception for each", fresh_rejections),
    "storm of rejections": ("memory does not grow", storm),
    "consumer closes a stream early, CLOSED": ("counts as nothing, source closed", stream_closed_in_closed),
    "consumer closes a stream early, HALF_OPEN": ("stays HALF_OPEN, slot given back", stream_closed_in_half_open),
    "stream fails midway, each time": ("trips", stream_fails_midway),
}
"""Each probe by its name, with what is right."""


def run(probe: Probe, kind: type[Subject]) -> Finding:
    """Put a fresh breaker of one kind through one probe, on a loop of its own."""

    async def on_fresh_subject() -> Finding:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        subject = await kind(FAILURES, OPEN_SECONDS, lambda: clock.monotonic).ready()
        return await probe(Bench(subject, clock))

    clock = Clock()
    with _quietly(), kind.at(clock):
        return asyncio.run(on_fresh_subject())


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep to ourselves what a library logs, never awaits or raises where nobody can catch it (pybreaker does)."""
    gc.freeze()  # so that collecting looks at what the probe has made only, which is quick
    hook, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None
    disabled = logging.root.manager.disable
    logging.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
            gc.collect()
    finally:
        sys.unraisablehook = hook
        logging.disable(disabled)
        gc.unfreeze()
