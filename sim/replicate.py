"""A scenario under many seeds, and two policies under the same: numbers with intervals, and what they show.

All results are data frames with plain columns. One row a run: `sim.observe` names its columns. One row a measure
(`Replications.summary`): ``unit``, ``mean``, ``low``, ``high``, ``half_width`` and ``runs``. One row a measure
(`Comparison.summary`): ``unit``, ``first`` and ``second`` (means), ``difference`` (second less first), ``low``,
``high``, ``verdict`` (one of `VERDICTS`), ``correlation``, ``variance_ratio`` and ``runs``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from typing import NamedTuple, TypeVar

import pandas as pd

from sim import statistics
from sim.executors import Here
from sim.measures import COLUMNS, MEASURES
from sim.observe import ROW_COLUMNS, Job, Row, observed
from sim.scenario import Scenario
from sim.statistics import CONFIDENCE, Precision

RUNS = 20
COMPARED = (
    "availability",
    "goodput_per_second",
    "p50",
    "p95",
    "p99",
    "first_token_p95",
    "retry_amplification",
    "recovery_seconds",
    "cost",
)
VERDICTS = ("better", "worse", "different", "no difference shown")

K = TypeVar("K", bound=Hashable)

Told = Callable[[int], None]
"""Is told after each run how many are done."""


class Until(NamedTuple):
    """Go on until the mean of `measure` is known this precisely."""

    measure: str
    precision: Precision


class Replications(NamedTuple):
    """A scenario under many seeds: one row a run, and one row a measure."""

    frame: pd.DataFrame
    summary: pd.DataFrame


def replicate(
    scenario: Scenario,
    runs: int = RUNS,
    *,
    until: Until | None = None,
    first_seed: int = 0,
    warm_up_s: float = 0.0,
    confidence: float = CONFIDENCE,
    executor: Executor | None = None,
    told: Told = lambda done: None,
) -> Replications:
    """Run `scenario` under consecutive seeds and estimate every measure.

    Parameters
    ----------
    scenario : Scenario
    runs : int
        How many; with `until`, the most.
    until : Until, optional
        Stop as soon as one measure is known that precisely: looked at first after 10 runs, then in rounds
        (`sim.statistics.until`).
    first_seed : int
    warm_up_s : float
        What happens in the first so many seconds of each run does not count.
    confidence : float
        Of each interval on its own.
    executor : concurrent.futures.Executor, optional
        Where runs are done (`sim.executors`); here, one after the other, if not given.
    told : callable

    Raises
    ------
    sim.observe.WorkersLost
    """
    executor = executor or Here()
    rows: list[Row] = []

    def more(numbers: Iterable[int]) -> list[float]:
        jobs = [Job(scenario, first_seed + number, warm_up_s) for number in numbers]
        fresh = [row for _, row in _counted(observed(((job.seed, job) for job in jobs), executor), told, len(rows))]
        rows.extend(sorted(fresh, key=lambda row: row["seed"]))
        return [row[until.measure] for row in rows[-len(jobs) :]] if until else []

    if until is None:
        more(range(runs))
    else:
        statistics.until(more, until.precision, runs_max=runs, confidence=confidence)
    frame = pd.DataFrame(rows, columns=list(ROW_COLUMNS))
    return Replications(frame, summary(frame, confidence))


def summary(frame: pd.DataFrame, confidence: float = CONFIDENCE) -> pd.DataFrame:
    """Return one row a measure: its mean over the rows of `frame`, with a t interval; NaN is left out.

    No measure is negative and no share above one, so intervals end there; ``half_width`` is that of the whole one.
    """
    estimates = {name: statistics.mean(frame[name].to_numpy(float), confidence) for name in COLUMNS}
    return pd.DataFrame(
        {
            "unit": {name: MEASURES[name].unit for name in COLUMNS},
            "mean": {name: each.value for name, each in estimates.items()},
            "low": {name: max(each.low, 0.0) for name, each in estimates.items()},
            "high": {name: min(each.high, _most(name)) for name, each in estimates.items()},
            "half_width": {name: each.half_width for name, each in estimates.items()},
            "runs": {name: each.observations for name, each in estimates.items()},
        }
    ).rename_axis("measure")


def _most(measure: str) -> float:
    return 1.0 if MEASURES[measure].unit == "share" else math.inf


class Comparison(NamedTuple):
    """Two policies under the same seeds: one row a run with its ``policy``, and one row a measure."""

    frame: pd.DataFrame
    summary: pd.DataFrame


def compare(
    first: Scenario,
    second: Scenario,
    runs: int = RUNS,
    *,
    labels: tuple[str, str] = ("first", "second"),
    measures: Sequence[str] = COMPARED,
    first_seed: int = 0,
    warm_up_s: float = 0.0,
    confidence: float = CONFIDENCE,
    executor: Executor | None = None,
    told: Told = lambda done: None,
) -> Comparison:
    """Run two policies under common random numbers and say, measure by measure, what that shows.

    Parameters
    ----------
    first, second : Scenario
        Usually one and the same, but for some settings (`sim.compare.what_if`, `sim.paths.changed`).
    runs : int
        Seeds, the same for both.
    labels : (str, str)
        For the column ``policy``.
    measures : sequence of str
        To be judged. Their intervals hold *all together* with `confidence` (Bonferroni: each gets its share of the
        error), so asking about more measures makes every interval wider.
    first_seed, warm_up_s, executor, told
        As in `replicate`.
    confidence : float

    Returns
    -------
    Comparison
        A measure that cannot be compared is left out: no pair of runs has it, or it is a cost and nothing has a price.
    """
    jobs = [
        ((label, first_seed + number), Job(scenario, first_seed + number, warm_up_s))
        for number in range(runs)
        for label, scenario in zip(labels, (first, second), strict=True)
    ]
    rows = dict(_counted(observed(jobs, executor or Here()), told))
    frame = pd.DataFrame(
        [{"policy": label, **rows[label, seed]} for label, seed in sorted(rows, key=lambda key: (key[1], key[0]))],
        columns=["policy", *ROW_COLUMNS],
    )
    return Comparison(frame, differences(frame, labels, measures, confidence))


def differences(
    frame: pd.DataFrame, labels: tuple[str, str], measures: Sequence[str] = COMPARED, confidence: float = CONFIDENCE
) -> pd.DataFrame:
    """Return one row a measure: by how much the second of two policies differs from the first, on the same seeds."""
    one, two = (frame[frame["policy"] == label].set_index("seed").sort_index() for label in labels)
    comparable = [name for name in measures if (one[name].notna() & two[name].notna()).any() and _told(frame, name)]
    each_confidence = 1 - (1 - confidence) / max(1, len(comparable))
    rows = {}
    for name in comparable:
        found = statistics.paired(one[name].to_numpy(float), two[name].to_numpy(float), each_confidence)
        rows[name] = {
            "unit": MEASURES[name].unit,
            "first": one[name].mean(),
            "second": two[name].mean(),
            "difference": found.difference.value,
            "low": found.difference.low,
            "high": found.difference.high,
            "verdict": _verdict(name, found.difference.low, found.difference.high),
            "correlation": found.correlation,
            "variance_ratio": found.variance_ratio,
            "runs": found.difference.observations,
        }
    columns = (
        "unit",
        "first",
        "second",
        "difference",
        "low",
        "high",
        "verdict",
        "correlation",
        "variance_ratio",
        "runs",
    )
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(columns)).rename_axis("measure")


def _told(frame: pd.DataFrame, measure: str) -> bool:
    """Tell whether a measure says anything here: without prices, all costs are 0."""
    return MEASURES[measure].unit != "money" or bool(frame[measure].any())


def _verdict(measure: str, low: float, high: float) -> str:
    """Say what an interval for second less first shows."""
    if low <= 0 <= high or math.isnan(low):
        return "no difference shown"
    if not MEASURES[measure].better:
        return "different"
    return "better" if (low > 0) is (MEASURES[measure].better == "higher") else "worse"


def _counted(rows: Iterable[tuple[K, Row]], told: Told, done: int = 0) -> Iterator[tuple[K, Row]]:
    for number, row in enumerate(rows, done + 1):
        told(number)
        yield row
