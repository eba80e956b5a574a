"""Many points of a scenario's space, each under the same seeds, into one Parquet file that can be gone on with.

All points share their seeds (common random numbers), so that differences between them are those of the points. The file
has one row a run, in order of point and seed, and these columns: ``point`` (its number in the design), each varied path
(``world.provider.capacity``: a number in seconds, per second or as a share of one, else the text), and those of
`sim.observe.ROW_COLUMNS`. A run that could not go on, or a point whose values do not fit together, is a row with its
``error``.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import NamedTuple

import msgspec
import pandas as pd

from sim import results
from sim.design import Axis, DesignName, DesignRefused, Point, placed, points
from sim.executors import Here
from sim.forms import Plain
from sim.measures import COLUMNS
from sim.observe import ROW_COLUMNS, Job, Row, observed, told
from sim.paths import PathRefused, plain
from sim.results import Results
from sim.scenario import Scenario

RUNS = 5
RUNS_MAX = 100_000


class Progress(NamedTuple):
    """How far a sweep is: runs done of all, how many of them with an error, and an estimate of what is left.

    `resumed` of the `done` were there before; `seconds_left` is None until something is known.
    """

    done: int
    total: int
    failed: int
    resumed: int
    seconds_left: float | None


Watch = Callable[[Progress], None]


def sweep(
    scenario: Scenario,
    varied: Sequence[Axis],
    out: Path,
    *,
    design: DesignName = "grid",
    count: int | None = None,
    design_seed: int = 0,
    runs: int = RUNS,
    first_seed: int = 0,
    warm_up_s: float = 0.0,
    executor: Executor | None = None,
    watch: Watch = lambda progress: None,
) -> pd.DataFrame:
    """Run every point of a design under the same seeds, and return what `out` has then.

    What `out` has already is not run again, be it from a sweep that was killed, or from one with fewer `runs`.

    Parameters
    ----------
    scenario : Scenario
    varied : sequence of sim.design.Axis
    out : Path
        The Parquet file; `sim.results` says how it outlives a kill.
    design, count, design_seed
        As in `sim.design.points`.
    runs : int
        Seeds a point, from `first_seed` on.
    warm_up_s : float
        What happens in the first so many seconds of each run does not count.
    executor : concurrent.futures.Executor, optional
        Where runs are done (`sim.executors`); here, one after the other, if not given.
    watch : callable
        Is told of the progress after each run.

    Raises
    ------
    sim.design.DesignRefused, sim.paths.PathRefused, sim.results.ResultsRefused
        Before anything is run.
    sim.observe.WorkersLost
        What was done is kept; the same call goes on.
    """
    tried = points(varied, design, count, design_seed)
    if len(tried) * runs > RUNS_MAX:
        raise DesignRefused(
            f"{len(tried) * runs:,} runs are too many: at most {RUNS_MAX:,}; take fewer points or seeds"
        )
    scenes = [placed(scenario, point) for point in tried]
    if all(isinstance(each, PathRefused) for each in scenes):
        raise scenes[0]  # type: ignore[misc]
    plan = {
        "scenario": hashlib.sha256(msgspec.json.encode(scenario)).hexdigest(),
        "points": hashlib.sha256(msgspec.json.encode(tried)).hexdigest(),
        "warm_up_s": warm_up_s,
    }
    values = [{path: plain(scenario, path, text) for path, text in point.items()} for point in tried]
    numbers = [path for path in tried[0] if all(_is_number(each[path]) for each in values)]
    texts = [path for path in tried[0] if path not in numbers]
    kept = Results(out, plan, ("point", "seed", *tried[0], *ROW_COLUMNS[1:]), texts)
    try:
        seeds = range(first_seed, first_seed + runs)
        wanted = [(point, seed) for point in range(len(tried)) for seed in seeds]
        missing = [each for each in wanted if each not in kept.done]
        pace = _Pace(len(wanted), len(wanted) - len(missing), watch)
        for (point, _), row in _rows(scenes, missing, warm_up_s, executor or Here()):
            kept.add({"point": point, **_cells(tried[point], values[point], texts), **row})
            pace.step(bool(row["error"]))
    finally:
        kept.close()
    return results.read(out)


def _rows(
    scenes: Sequence[Scenario | PathRefused],
    missing: Sequence[tuple[int, int]],
    warm_up_s: float,
    executor: Executor,
) -> Iterator[tuple[tuple[int, int], Row]]:
    """Yield the row of every run that is missing, those first that cannot be run at all."""
    jobs = []
    for point, seed in missing:
        scene = scenes[point]
        if isinstance(scene, PathRefused):
            nothing: Row = dict.fromkeys((*COLUMNS, "wall_seconds"), float("nan"))
            yield (point, seed), {"seed": seed, "verdict": "INVALID", "error": told(scene), "digest": "", **nothing}
        else:
            jobs.append(((point, seed), Job(scene, seed, warm_up_s)))
    yield from observed(jobs, executor)


def _cells(point: Point, values: dict[str, Plain], texts: Sequence[str]) -> dict[str, Plain]:
    return {path: text if path in texts else values[path] for path, text in point.items()}


def _is_number(value: Plain) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class _Pace:
    """Counts runs and tells how long the rest will take if it goes on like this."""

    def __init__(self, total: int, resumed: int, watch: Watch) -> None:
        self._total, self._resumed, self._watch = total, resumed, watch
        self._fresh = self._failed = 0
        self._started = time.monotonic()
        watch(Progress(resumed, total, 0, resumed, None))

    def step(self, failed: bool) -> None:
        """Note that one more run is done."""
        self._fresh += 1
        self._failed += failed
        done = self._resumed + self._fresh
        left = (time.monotonic() - self._started) / self._fresh * (self._total - done)
        self._watch(Progress(done, self._total, self._failed, self._resumed, left))
