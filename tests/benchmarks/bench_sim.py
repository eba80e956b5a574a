"""What a simulated turn costs at both doors, in raw SimPy timeouts, and whether it stays so in long runs.

A raw timeout is one event scheduled, popped and handed to a waiting process, the least that anything in SimPy costs:
measured as the loop is, with 1000 processes of 100 timeouts at spread deadlines. One process alone has a queue of one,
which costs half, and is like no world. Every run is in a process of its own, with its journal in a file.

`BENCH_TURNS_MAX=1000000 python -m tests.benchmarks sim` measures on to a million turns (`make nightly` does).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sim.clients import DOORS
from sim.scenario import replaying
from sim.workload import read_trace
from sim.world import rehearse
from tests.benchmarks.turns import Cost, apart

TRACE = Path(__file__).parents[3] / "shared" / "data" / "azure_llm_2023_conv.csv"
"""The recorded hour, where it is; the README says where to download it."""

TURNS = 5_000
REPEATS = 3
TARGETS = {"orchestrator": 120, "service": 250}
TURNS_FEW = 1_000
SIZES = (10_000, 100_000, 1_000_000)
TURNS_MAX = int(os.environ.get("BENCH_TURNS_MAX", "100000"))
FLAT = 0.15
REPLAY_S_MAX = 10


def run() -> Iterator[dict[str, Any]]:
    """Yield what a turn costs at each door, how that and memory grow with the run, and an hour of real traffic."""
    for door in DOORS:
        yield from _turn(str(door), min((apart(TURNS, door) for _ in range(REPEATS)), key=lambda cost: cost.timeouts))
    yield from _long()
    if TRACE.exists():
        yield _replay()


def _turn(door: str, cost: Cost) -> Iterator[dict[str, Any]]:
    raw = f"{cost.raw_s * 1e6:.2f} us of CPU, as 1000 processes x 100 timeouts; {cost.turns} turns a run"
    yield {
        "name": f"sim.turns_per_second.{door}",
        "value": round(1 / cost.turn_s),
        "unit": "simulated turns/s",
        "against": f"{1 / cost.raw_s:.0f} raw simpy timeouts/s in the same process",
    }
    yield {
        "name": f"sim.turn_cost.{door}",
        "value": round(cost.timeouts),
        "unit": "raw simpy timeouts",
        "against": f"one simpy.Environment.timeout, {raw}; target <= {TARGETS[door]}",
    }


def _long() -> Iterator[dict[str, Any]]:
    """Yield how the cost of a turn, and the memory of a run, change with its length."""
    for turns in (size for size in SIZES if size <= TURNS_MAX):
        short = _least(TURNS_FEW, REPEATS)  # anew beside each, so that a busy hour of the machine hits both
        long = _least(turns, REPEATS if turns <= SIZES[0] else 1)
        yield {
            "name": f"sim.turn_cost_growth.{turns}",
            "value": round(long.turn_s / short.turn_s, 3),
            "unit": f"x the cost of a turn in a run of {TURNS_FEW}",
            "against": f"{long.turn_s * 1e6:.0f} us of CPU a turn and {short.turn_s * 1e6:.0f}; target 1 +- {FLAT}",
        }
        if long.peak_bytes:
            yield {
                "name": f"sim.memory.{turns}",
                "value": round(long.peak_bytes / 1e6, 1),
                "unit": "MB at most",
                "against": f"{short.peak_bytes / 1e6:.1f} MB in a run of {TURNS_FEW} turns; "
                f"{long.growth_bytes:.0f} bytes more for each turn of the second half; journal in a file",
            }


def _least(turns: int, repeats: int) -> Cost:
    return min((apart(turns, DOORS[0]) for _ in range(repeats)), key=lambda cost: cost.turn_s)


def _replay() -> dict[str, Any]:
    """Replay a recorded hour through the real orchestrator."""
    run = rehearse(replaying(read_trace(TRACE)))
    sums = run.verdict.accounting
    assert sums.adds_up
    return {
        "name": "sim.trace_replay",
        "value": round(run.wall_seconds, 1),
        "unit": "s",
        "against": f"{run.virtual_seconds:.0f} s that {sums.arrivals} recorded turns took; target < {REPLAY_S_MAX} s",
    }


if __name__ == "__main__":
    for line in run():
        print(json.dumps(line))
