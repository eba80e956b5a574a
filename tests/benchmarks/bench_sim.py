"""Simulated turns per second at both doors, also as a multiple of one raw `simpy.Environment.timeout`.

A raw timeout is one event scheduled, popped and handed to a waiting process: the least that anything in SimPy costs.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import simpy

from sim.clients import DOORS
from sim.scenario import parse, replaying
from sim.workload import read_trace
from sim.world import rehearse

TRACE = Path(__file__).parents[3] / "shared" / "data" / "azure_llm_2023_conv.csv"
"""The recorded hour, where it is; the README says where to download it."""

RAW_TIMEOUTS = 200_000
REPEATS = 3
SCENARIO = parse(
    """
name: bench
duration: 100s
workload:
  open_loop: {rate: 20/s}
"""
)


def _raw_timeout_s() -> float:
    """Return the CPU seconds of one timeout."""

    def process(env: simpy.Environment) -> Iterator[simpy.Event]:
        for _ in range(RAW_TIMEOUTS):
            yield env.timeout(1)

    env = simpy.Environment()
    env.process(process(env))  # type: ignore[arg-type]
    start = time.process_time()
    env.run()
    return (time.process_time() - start) / RAW_TIMEOUTS


def run() -> Iterator[dict[str, Any]]:
    """Yield turns per second, and the cost of one turn in raw timeouts, for each door."""
    for door in DOORS:
        raw, turn, turns = [], [], 0
        for _ in range(REPEATS):  # in turn, so that a busy moment of the machine hits both
            raw.append(_raw_timeout_s())
            start = time.process_time()
            run = rehearse(SCENARIO, seed=1, door=door)
            turns = run.verdict.accounting.arrivals
            assert run.verdict.accounting.answered >= 0.99 * turns  # a long answer may outlast a client
            turn.append((time.process_time() - start) / turns)
        yield {
            "name": f"sim.turns_per_second.{door}",
            "value": round(1 / min(turn)),
            "unit": "simulated turns/s",
            "against": f"{1 / min(raw):.0f} raw simpy timeouts/s in the same run",
        }
        yield {
            "name": f"sim.turn_cost.{door}",
            "value": round(min(turn) / min(raw)),
            "unit": "raw simpy timeouts",
            "against": f"one simpy.Environment.timeout, {min(raw) * 1e6:.2f} us; {turns} turns a run",
        }
    if TRACE.exists():
        yield _replay()


def _replay() -> dict[str, Any]:
    """Replay a recorded hour through the real orchestrator."""
    run = rehearse(replaying(read_trace(TRACE)))
    sums = run.verdict.accounting
    assert sums.adds_up
    return {
        "name": "sim.trace_replay",
        "value": round(run.wall_seconds, 1),
        "unit": "s",
        "against": f"{run.virtual_seconds:.0f} s that {sums.arrivals} recorded turns took; wanted: below 40 s",
    }


if __name__ == "__main__":
    for line in run():
        print(json.dumps(line))
