"""What one run of so many simulated turns costs, measured in a process of its own.

``python -m tests.benchmarks.turns 10000 orchestrator`` prints one JSON object. A process of its own because memory is
asked for: the most that a process has had is told for all of its life.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import simpy
from msgspec import Struct

from sim.clients import DoorName
from sim.scenario import Scenario, parse
from sim.streaming import FileJournal
from sim.world import Progress, rehearse
from tests.benchmarks.loop_jobs import ROUNDS, TASKS, cpu_s, spread_s

ROOT = Path(__file__).parents[2]
RATE = 20
SETTLED = 0.5
"""The part of a run after which what it still takes of memory is growth, and no warming up."""
RAW_REPEATS = 3
TIME_S_MAX = 3600.0


class Cost(Struct, frozen=True):
    """What a run cost.

    Parameters
    ----------
    turns : int
    turn_s, raw_s : float
        CPU seconds of one turn, and of one raw `simpy.Environment.timeout` in the same process.
    peak_bytes : int
        The most memory that the process has had; 0 where the system does not tell.
    growth_bytes : float
        How much that grew for each turn of the run's second half.
    """

    turns: int
    turn_s: float
    raw_s: float
    peak_bytes: int
    growth_bytes: float

    @property
    def timeouts(self) -> float:
        """The cost of a turn in raw timeouts."""
        return self.turn_s / self.raw_s


def scenario(turns: int) -> Scenario:
    """Return ordinary traffic of about so many turns."""
    return parse(f"name: bench\nduration: {turns // RATE}s\nworkload: {{open_loop: {{rate: {RATE}/s}}}}\n")


def raw_timeout_s() -> float:
    """Return the CPU seconds of one raw timeout, as the loop is measured: 1000 processes of 100, spread."""

    def process(env: simpy.Environment, task: int) -> Iterator[simpy.Event]:
        for turn in range(ROUNDS):
            yield env.timeout(spread_s(task, turn))

    def timeouts() -> None:
        env = simpy.Environment()
        for task in range(TASKS):
            env.process(process(env, task))  # type: ignore[arg-type]
        env.run()

    return min(cpu_s(timeouts) for _ in range(RAW_REPEATS)) / (TASKS * ROUNDS)


def measure(turns: int, door: DoorName) -> Cost:
    """Live through about so many turns, with a journal in a file."""
    story = scenario(turns)
    settled: list[tuple[int, int]] = []

    def watch(progress: Progress) -> None:
        if not settled and progress.virtual_seconds >= SETTLED * progress.duration_seconds:
            settled.append((progress.arrivals, _peak_bytes()))

    raw_s = raw_timeout_s()
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        run = rehearse(story, seed=1, door=door, watch=watch, journal=FileJournal(Path(folder) / "run.jsonl"))
        spent_s = time.process_time() - start
    sums = run.verdict.accounting
    assert sums.adds_up
    assert sums.answered >= 0.99 * sums.arrivals  # a long answer may outlast a client
    raw_s = min(raw_s, raw_timeout_s())  # before and after, so that a busy moment of the machine hits both
    (since, before) = settled[0]
    growth = (_peak_bytes() - before) / (sums.arrivals - since)
    return Cost(sums.arrivals, spent_s / sums.arrivals, raw_s, _peak_bytes(), growth)


def apart(turns: int, door: DoorName) -> Cost:
    """Return what `measure` finds in a fresh process."""
    command = [sys.executable, "-m", "tests.benchmarks.turns", str(turns), str(door)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_S_MAX, check=False, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{turns} turns could not be measured: {done.stderr.strip()[-500:]}")
    return msgspec.json.decode(done.stdout, type=Cost)


def _peak_bytes() -> int:
    """Return the most memory that this process has had; not by `resource`, which tells its parent's, too."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


if __name__ == "__main__":
    print(msgspec.json.encode(measure(int(sys.argv[1]), sys.argv[2])).decode())  # type: ignore[arg-type]
