"""Our loop beside stock, simloop and simloom at the same jobs, for an interpreter that has all of them (Python 3.12).

``python tests/benchmarks/rivals.py`` prints one JSON object: CPU seconds by job and loop. All of ours is on: any ready
callback may be next, drawn by seed, and each choice is written down, as simloop's and simloom's are.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from sim.loop import SimEnvironment
from sim.loop import run as run_ours
from tests.benchmarks.loop_jobs import JOBS, Job, cpu_s, stock, together
from tests.benchmarks.seeded import Seeded

REPEATS = 3
SEED = 1


def ours(job: Job) -> float:
    """Return the CPU seconds of `job` on a `SimLoop`, its choices drawn and written down."""
    return cpu_s(lambda: run_ours(together(job)(), env=SimEnvironment(schedule=Seeded(SEED))))  # type: ignore[arg-type]


def simloop(job: Job) -> float:
    """Return the CPU seconds of `job` on simloop, as its `sim_test` runs it once."""
    from simloop import SimLoop  # type: ignore[import-not-found]
    from simloop._run import finish, run_once  # type: ignore[import-not-found]

    def run() -> None:
        loop = SimLoop(SEED)
        failure = run_once(loop, together(job))
        finish(loop)
        if failure is not None:
            raise failure

    return cpu_s(run)


def simloom(job: Job) -> float:
    """Return the CPU seconds of `job` on simloom, without its world."""
    import simloom  # type: ignore[import-not-found]

    return cpu_s(lambda: simloom.run(together(job), seed=SEED, world=False))


LOOPS: dict[str, tuple[Callable[[Job], float], int]] = {
    "stock": (stock, REPEATS),
    "ours": (ours, REPEATS),
    "simloop": (simloop, REPEATS),
    "simloom": (simloom, 1),  # it scans the ready set at each step, and so takes a minute for the three
}


def measure() -> dict[str, dict[str, float]]:
    """Return the least CPU seconds by job and loop; the loops take turns, so that a busy moment hits all."""
    least: dict[str, dict[str, float]] = {}
    for name, job in JOBS.items():
        found = least[name] = {}
        for turn in range(REPEATS):
            for loop, (run, repeats) in LOOPS.items():
                if turn < repeats:
                    found[loop] = min(found.get(loop, float("inf")), run(job))
    return least


if __name__ == "__main__":
    print(json.dumps(measure()))
