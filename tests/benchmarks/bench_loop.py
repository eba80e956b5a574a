"""Throughput of the simulated loop, with seeded choices written down, against asyncio's own, simloop and simloom.

`value` is the other's CPU time divided by ours, so 1.0 is as quick, and more is quicker; waiting costs no CPU time. The
stock loop sleeps 10,000 times shorter, so that it is never idle and runs many deadlines in one iteration: as good as it
gets for it. Rivals need Python 3.12: they are measured in `.venv-rivals` (`make bench` makes it), stock and ours there
as well, all in one process; without it that part is left out.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.loop_jobs import JOBS, stock
from tests.benchmarks.rivals import REPEATS, ours

ROOT = Path(__file__).parents[2]
RIVALS_PYTHON = ROOT / ".venv-rivals" / "bin" / "python"
TARGETS = {"stock": 0.7, "simloop": 2.5, "simloom": 5.0}
TIME_S_MAX = 900.0


def run() -> Iterator[dict[str, Any]]:
    """Yield one measurement for each kind of work and each other loop."""
    for name, job in JOBS.items():
        pairs = [(stock(job), ours(job)) for _ in range(REPEATS)]  # in turn, so that a busy moment hits both
        theirs, mine = (min(seconds) for seconds in zip(*pairs, strict=True))
        yield _line(name, "stock", theirs / mine, sys.version.split()[0])
    yield from _rivals()


def _rivals() -> Iterator[dict[str, Any]]:
    if not RIVALS_PYTHON.exists():
        print("bench loop: rivals are left out, for they need Python 3.12: make bench PYTHON312=...", file=sys.stderr)
        return
    command = [str(RIVALS_PYTHON), str(Path(__file__).with_name("rivals.py"))]
    found = subprocess.run(command, capture_output=True, text=True, timeout=TIME_S_MAX, check=False, cwd=ROOT)
    if found.returncode:
        raise RuntimeError(f"the rivals could not be measured: {found.stderr.strip()[-500:]}")
    version = subprocess.run([str(RIVALS_PYTHON), "-V"], capture_output=True, text=True, check=True).stdout.split()[1]
    for name, seconds in json.loads(found.stdout).items():
        for other in TARGETS:
            yield _line(name, other, seconds[other] / seconds["ours"], version)


def _line(job: str, other: str, ratio: float, version: str) -> dict[str, Any]:
    return {
        "name": f"loop.{job}.{other}",
        "value": round(ratio, 3),
        "unit": f"x {other} loop throughput",
        "against": f"{other} on Python {version}, our choices drawn and written down; target >= {TARGETS[other]}",
    }


if __name__ == "__main__":
    for line in run():
        print(json.dumps(line))
