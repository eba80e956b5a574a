"""What the loops are measured at: 1000 tasks that do something 100 times, in the CPU seconds of doing it.

Only the standard library is needed, so that it can be measured beside rivals in an environment of their own.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable

TASKS = 1000
ROUNDS = 100
REAL_SCALE = 1e-4
"""How much shorter the stock loop sleeps, which has to wait for real: it then is hardly ever idle."""

Job = Callable[[int, float], Awaitable[None]]
"""Takes the number of its task, and what to multiply sleeps by."""


def spread_s(task: int, turn: int) -> float:
    """Return a deadline from 0 to 1 s, so that few fall together."""
    return (task * 7919 + turn * 104729) % 1000 / 1000


async def timers(task: int, scale: float) -> None:
    """Sleep for spread times."""
    for turn in range(ROUNDS):
        await asyncio.sleep(spread_s(task, turn) * scale)


async def switches(task: int, scale: float) -> None:
    """Let others run."""
    for _ in range(ROUNDS):
        await asyncio.sleep(0)


async def timeouts(task: int, scale: float) -> None:
    """Sleep for spread times, each under a timeout that never comes."""
    for turn in range(ROUNDS):
        async with asyncio.timeout(30):
            await asyncio.sleep(spread_s(task, turn) * scale)


JOBS: dict[str, Job] = {"timers": timers, "switches": switches, "timeouts": timeouts}


def together(job: Job, scale: float = 1.0) -> Callable[[], Awaitable[None]]:
    """Return a main function in which all tasks do `job` at once."""

    async def main() -> None:
        await asyncio.gather(*(job(task, scale) for task in range(TASKS)))

    return main


def cpu_s(run: Callable[[], object]) -> float:
    """Return the CPU seconds of `run`, which waits for nothing real, or whose waits cost none."""
    gc.collect()
    start = time.process_time()
    run()
    return time.process_time() - start


def stock(job: Job, scale: float = REAL_SCALE) -> float:
    """Return the CPU seconds of `job` on asyncio's own loop."""
    return cpu_s(lambda: asyncio.run(together(job, scale)()))  # type: ignore[arg-type]
