"""What a call costs behind a circuit breaker, over a bare await of the same call: ours against five libraries.

All are measured in turn and in CPU time, and the best turn of each counts, so that a busy moment of the machine hits
none alone. The success path is that of a breaker that is CLOSED and counts (ours over its time window); a rejection is
raised, caught and forgotten.
"""

import asyncio
import gc
import json
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

from tests.conformance.breakers import LIBRARIES, CircuitBreaker, OursByCall, OursByPermit, PyBreaker, Subject

TURNS = 15
CALLS = 5_000
CALLS_OF_THE_SLOW = 500
REJECTIONS = 1_000_000
FAILURES = 5
OPEN_SECONDS = 60.0  # no turn lasts as long


async def _work() -> None:
    """The call that is guarded."""


async def _failing() -> None:
    raise ConnectionError


async def _subject(kind: type[Subject], *, tripped: bool) -> Subject:
    subject = await kind(FAILURES, OPEN_SECONDS, asyncio.get_running_loop().time).ready()
    for _ in range(FAILURES if tripped else 0):
        with suppress(ConnectionError, kind.rejection):
            await subject.guard(_failing)()
    assert subject.state == ("OPEN" if tripped else "CLOSED")
    return subject


async def _seconds(guarded: Callable[[], Awaitable[Any]], calls: int, rejection: type[Exception] | None) -> float:
    """Return the CPU seconds of one call, which ends by `rejection` where one is given."""
    gc.collect()
    start = time.process_time()
    for _ in range(calls // 100):
        if rejection is None:
            for _ in range(100):
                await guarded()
        else:
            for _ in range(100):
                try:  # noqa: SIM105 - `suppress` costs half as much as a rejection
                    await guarded()
                except rejection:
                    pass
        await asyncio.sleep(0)  # so that what a library leaves to the loop is done, and paid
    return (time.process_time() - start) / calls


async def _overheads() -> dict[type[Subject] | None, tuple[float, float]]:
    """Return the seconds of success and rejection over a bare await for each kind; for None those of the bare await."""
    best: dict[type[Subject] | None, tuple[float, float]] = {}
    for _ in range(TURNS):
        bare = await _seconds(_work, CALLS, None)
        best[None] = min(best.get(None, (bare, bare)), (bare, bare))
        for kind in (OursByCall, OursByPermit, *LIBRARIES):
            calls = CALLS_OF_THE_SLOW if kind is PyBreaker else CALLS
            closed, tripped = await _subject(kind, tripped=False), await _subject(kind, tripped=True)
            success = await _seconds(closed.guard(_work), calls, None)
            rejection = await _seconds(tripped.guard(_work), calls, kind.rejection)
            before = best.get(kind, (success, rejection))
            best[kind] = (min(before[0], success), min(before[1], rejection))
    bare = best[None][0]
    return {kind: times if kind is None else (times[0] - bare, times[1] - bare) for kind, times in best.items()}


async def _bytes_a_rejection() -> float:
    """Return by how much memory grows with each rejection of ours."""
    subject = await _subject(OursByCall, tripped=True)
    guarded = subject.guard(_work)
    sizes = []
    tracemalloc.start()
    for rejections in (10_000, REJECTIONS):  # the first fills caches and free lists
        for _ in range(rejections):
            with suppress(subject.rejection):
                await guarded()
        gc.collect()
        sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    return (sizes[1] - sizes[0]) / REJECTIONS


def run() -> Iterator[dict[str, Any]]:
    """Yield how many times our overhead the libraries' is, and what a million rejections leave behind."""
    costs = asyncio.run(_overheads())
    bare = costs.pop(None)[0]
    ours, anchor = costs[OursByCall], costs[CircuitBreaker]
    for index, (name, target) in enumerate({"success": 1.5, "rejection": 1.0}.items()):
        yield {
            "name": f"breaker.{name}",
            "value": round(anchor[index] / ours[index], 2),
            "unit": "x our overhead over a bare await",
            "against": f"{_named(CircuitBreaker)} {anchor[index] * 1e6:.2f} us, ours {ours[index] * 1e6:.2f} us, "
            f"a bare await {bare * 1e9:.0f} ns; target >= {target}",
        }
    for kind in (OursByPermit, *LIBRARIES):
        if kind is not CircuitBreaker:
            success, rejection = costs[kind]
            yield {
                "name": f"breaker.{kind.library}.{kind.edge.replace(' ', '_')}",
                "value": round(success / ours[0], 2),
                "unit": "x our overhead over a bare await",
                "against": f"{_named(kind)} success {success * 1e6:.2f} us, rejection {rejection * 1e6:.2f} us "
                f"({rejection / ours[1]:.2f} x ours); for information",
            }
    yield {
        "name": "breaker.rejections_memory",
        "value": round(asyncio.run(_bytes_a_rejection()), 3),
        "unit": "bytes a rejection",
        "against": f"{REJECTIONS:,} rejections of one breaker; target ~0",
    }


def _named(kind: type[Subject]) -> str:
    return f"{kind.library} {kind.version()}".rstrip()


if __name__ == "__main__":
    for line in run():
        print(json.dumps(line))
