"""Throughput of the simulated loop against the stock one, in CPU time: timers, task switches, timeouts.

Run as a script it prints one JSON object a line; `run` yields the same. `value` is the stock loop's CPU time divided by
ours, so 1.0 is as quick as stock, more is quicker. Waiting costs no CPU time; deadlines are spread over 10 ms, so that the
stock loop is busy all the time and runs many of them in one iteration.
"""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from sim.loop import SimEnvironment

TASKS = 1000
ROUNDS = 100
REPEATS = 3
TARGETS = {"timers": 0.95, "switches": 0.75, "timeouts": 0.75}


async def _timers(task: int) -> None:
    for turn in range(ROUNDS):
        await asyncio.sleep((task * 7919 + turn * 104729) % 1000 * 1e-5)


async def _switches(task: int) -> None:
    for _ in range(ROUNDS):
        await asyncio.sleep(0)


async def _timeouts(task: int) -> None:
    for _ in range(ROUNDS):
        async with asyncio.timeout(30):
            await asyncio.sleep(0)


def _cpu_s(make_loop: Callable[[], asyncio.AbstractEventLoop], job: Callable[[int], Awaitable[None]]) -> float:
    async def main() -> None:
        await asyncio.gather(*(job(task) for task in range(TASKS)))

    gc.collect()
    loop = make_loop()
    start = time.process_time()
    loop.run_until_complete(main())
    spent = time.process_time() - start
    loop.close()
    return spent


def run() -> Iterator[dict[str, Any]]:
    """Yield one measurement per kind of work."""
    for name, job in {"timers": _timers, "switches": _switches, "timeouts": _timeouts}.items():
        stock, ours = [], []
        for _ in range(REPEATS):  # alternate, so that a busy moment of the machine hits both
            stock.append(_cpu_s(asyncio.new_event_loop, job))
            ours.append(_cpu_s(lambda: SimEnvironment().loop, job))
        yield {
            "name": f"loop.{name}",
            "value": round(min(stock) / min(ours), 3),
            "unit": "x stock loop throughput",
            "against": f"asyncio's own loop, target >= {TARGETS[name]}",
        }


if __name__ == "__main__":
    for line in run():
        print(json.dumps(line))
