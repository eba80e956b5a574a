"""Throughput of the simulated loop against the stock one, in CPU time: timers, task switches, timeouts.

Run as a script it prints one JSON object a line; `run` yields the same. `value` is the stock loop's CPU time divided
by ours, so 1.0 is as quick as stock, more is quicker; waiting costs no CPU time. The deadlines of "timers" are spread
over 50 ms, so that the stock loop waits in between, as a service does; those of "crowded_timers" over 10 ms, which is
as good as it gets for stock: it is so late that it runs many of them in one iteration, and need not ask the kernel.
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
TARGETS = {"timers": 0.95, "crowded_timers": 0.75, "switches": 0.75, "timeouts": 0.75}


async def _timers(task: int, spread_s: float = 0.05) -> None:
    for turn in range(ROUNDS):
        await asyncio.sleep((task * 7919 + turn * 104729) % 1000 * spread_s / 1000)


async def _crowded_timers(task: int) -> None:
    await _timers(task, spread_s=0.01)


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
    jobs = {"timers": _timers, "crowded_timers": _crowded_timers, "switches": _switches, "timeouts": _timeouts}
    for name, job in jobs.items():
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
