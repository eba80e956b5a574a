"""The best thresholds under stated constraints: a search over a scenario's space, as a Pareto front.

Each trial is a point of the space, run under the same seeds as every other (common random numbers), so that the search
compares points and not luck. It has several objectives and so no single best: the front has those trials that satisfy
every constraint and of which none is better in one objective without being worse in another.

One row a trial: ``trial`` (its number; `AS_IT_IS` is the scenario without any change), each varied path (its text as a
scenario's file has it; empty for the scenario as it is), the mean of every measure of `sim.measures.COLUMNS` over the
seeds, ``NAME_half_width`` of those that are objectives or constrained (95 % confidence), ``feasible``, ``front`` and
``error``.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec
import numpy as np
import pandas as pd
import yaml

from sim.design import Axis, DesignRefused, Listed, Point, placed
from sim.executors import Here, LabMissing
from sim.measures import COLUMNS, MEASURES, known
from sim.observe import Job, Row, observed, told
from sim.paths import SETTINGS, PathRefused, steps
from sim.quantities import Comparison, comparison, count, duration, share
from sim.scenario import Scenario
from sim.statistics import mean

if TYPE_CHECKING:
    from optuna import Study, Trial

OBJECTIVES = ("availability", "p95", "cost")
SamplerName = Literal["tpe", "nsga2"]
SAMPLERS: tuple[SamplerName, ...] = ("tpe", "nsga2")
TRIALS = 50
TRIALS_MAX = 10_000
RUNS = 5
AS_IT_IS = -1
POPULATION_MAX = 50
READERS: Mapping[str, Callable[[str], float]] = {"share": share, "seconds": duration}


class Constraint(NamedTuple):
    """What the mean of a measure must keep: ``availability >= 99%``."""

    measure: str
    bound: Comparison

    def excess(self, value: float) -> float:
        """Return by how much `value` breaks the bound; 0 or less where it keeps it."""
        beyond = value - self.bound.limit if "<" in self.bound.operator else self.bound.limit - value
        if self.bound.holds(value):
            return min(0.0, beyond)
        return max(beyond, math.ulp(0.0)) if math.isfinite(beyond) else math.inf

    def __str__(self) -> str:
        return f"{self.measure} {self.bound.operator} {MEASURES[self.measure].show(self.bound.limit)}"


def constraint(text: str) -> Constraint:
    """Read a constraint, such as ``availability >= 99%`` or ``p95 < 3s``.

    Raises
    ------
    DesignRefused, sim.measures.MeasureUnknown
    """
    match = re.fullmatch(r"\s*(\w+)\s*([<>].*)", text)
    if match is None:
        raise DesignRefused(f"{text!r} is no constraint: write a measure and a bound, such as 'availability >= 99%'")
    name = known(match[1])
    try:
        return Constraint(name, comparison(match[2], READERS.get(MEASURES[name].unit, count)))
    except ValueError as wrong:
        raise DesignRefused(f"{name}: {wrong}") from None


class Search(NamedTuple):
    """What to search for, and how.

    Parameters
    ----------
    varied : tuple of Axis
    objectives : tuple of str
        Measures of which one way is better.
    constraints : tuple of Constraint
        On means over the seeds.
    runs : int
        Seeds a trial, from `first_seed` on.
    warm_up_s : float
        What happens in the first so many seconds of each run does not count.
    sampler : str
        ``tpe`` (Bergstra et al., NeurIPS 2011; for some hundred trials) or ``nsga2`` (Deb et al., IEEE Transactions on
        Evolutionary Computation 6, 2002; for more).
    seed : int
        Of the sampler's chance.
    """

    varied: tuple[Axis, ...]
    objectives: tuple[str, ...] = OBJECTIVES
    constraints: tuple[Constraint, ...] = ()
    runs: int = RUNS
    first_seed: int = 0
    warm_up_s: float = 0.0
    sampler: SamplerName = "tpe"
    seed: int = 0

    def check(self) -> None:
        """Refuse objectives that are none, or twice the same; raises DesignRefused or MeasureUnknown."""
        if not self.objectives or len(set(self.objectives)) < len(self.objectives):
            raise DesignRefused("name one or more objectives, each once, such as availability,p95,cost")
        for name in self.objectives:
            if not MEASURES[known(name)].better:
                better = [each for each in COLUMNS if MEASURES[each].better]
                raise DesignRefused(f"{name} has no better way, so it is no objective: take one of {', '.join(better)}")

    @property
    def judged(self) -> tuple[str, ...]:
        """The measures that decide, each once."""
        return tuple(dict.fromkeys([*self.objectives, *(each.measure for each in self.constraints)]))


Watch = Callable[[int, int], None]
"""Is told after each trial how many of how many are done."""


def tune(
    scenario: Scenario,
    search: Search,
    trials: int = TRIALS,
    *,
    storage: Path | None = None,
    executor: Executor | None = None,
    watch: Watch = lambda done, total: None,
) -> pd.DataFrame:
    """Search for the best points of a scenario's space.

    Parameters
    ----------
    scenario : Scenario
        Run as it is first, so that the front shows what a change would win.
    search : Search
    trials : int
        How many points to try in all.
    storage : Path, optional
        Keep trials in this file (Optuna's journal) and go on with those that are there. A search that went on has drawn
        other points than one that never stopped; without it, equal arguments give equal results.
    executor : concurrent.futures.Executor, optional
        Where the runs of a trial are done side by side (`sim.executors`); here, if not given.
    watch : callable

    Returns
    -------
    DataFrame

    Raises
    ------
    DesignRefused, sim.measures.MeasureUnknown, LabMissing, sim.observe.WorkersLost
    """
    search.check()
    if not 1 <= trials <= TRIALS_MAX:
        raise DesignRefused(f"{trials} trials are out of bounds: take 1 to {TRIALS_MAX:,}")
    executor = executor or Here()
    study = _study(scenario, search, trials, storage)
    rows = [trial.user_attrs["row"] for trial in study.get_trials(deepcopy=False) if "row" in trial.user_attrs]
    today = {**_tried(scenario, search, executor), "trial": AS_IT_IS}
    watch(len(rows), trials)
    while len(rows) < trials:
        trial = study.ask()
        point = {each.path: _suggested(trial, each) for each in search.varied}
        row = {"trial": trial.number, **point, **_tried(placed(scenario, point), search, executor)}
        _tell(study, trial, row, search)
        rows.append(row)
        watch(len(rows), trials)
    return _judged([today, *rows], search)


def front(frame: pd.DataFrame, objectives: Iterable[str]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return which rows of `frame` no other row dominates: is as good in every objective and better in one.

    Rows that are not ``feasible`` neither count nor belong.
    """
    signs = {name: -1.0 if MEASURES[name].better == "higher" else 1.0 for name in objectives}
    costs = np.column_stack([frame[name].to_numpy(float) * sign for name, sign in signs.items()])
    feasible = frame["feasible"].to_numpy(bool) & np.isfinite(costs).all(axis=1)
    good = np.zeros(len(frame), dtype=bool)
    for index in np.flatnonzero(feasible):
        others = costs[feasible]
        dominated = (others <= costs[index]).all(axis=1) & (others < costs[index]).any(axis=1)
        good[index] = not dominated.any()
    return good


def settings_yaml(point: Point) -> str:
    """Return a point as part of a scenario file: its settings in place, what else it changes as comments."""
    tables: dict[str, Any] = {}
    lines = []
    for path, text in point.items():
        way = steps(path)
        if way[0] != SETTINGS:
            lines.append(f"# {path}: {text}")
            continue
        *above, last = way
        table = tables
        for key in above:
            table = table.setdefault(key, {})
        table[last] = yaml.safe_load(text)
    return "\n".join([*lines, *([yaml.safe_dump(tables, sort_keys=False).rstrip()] if tables else [])])


def settings_toml(point: Point) -> str:
    """Return a point's settings as part of `orchestra.toml`; what is none of the service's settings is left out."""
    tables: dict[str, list[str]] = {}
    for path, text in point.items():
        way = steps(path)
        if way[0] == SETTINGS:
            table, key = ".".join(way[1:-1]), way[-1]
            tables.setdefault(table, []).append(f"{key} = {json.dumps(yaml.safe_load(text))}")
    parts = ["\n".join([*([f"[{table}]"] if table else []), *lines]) for table, lines in sorted(tables.items())]
    return "\n\n".join(parts)


def _study(scenario: Scenario, search: Search, trials: int, storage: Path | None) -> Study:
    try:
        import optuna  # noqa: PLC0415 - an extra
        from optuna.storages import JournalStorage  # noqa: PLC0415
        from optuna.storages.journal import JournalFileBackend  # noqa: PLC0415
    except ImportError:
        raise LabMissing("optuna") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    plan = msgspec.json.encode([scenario, repr(search)])
    try:
        kept = None if storage is None else JournalStorage(JournalFileBackend(str(storage)))
        study = optuna.create_study(
            storage=kept,
            study_name=hashlib.sha256(plan).hexdigest()[:16],
            directions=["maximize" if MEASURES[each].better == "higher" else "minimize" for each in search.objectives],
            load_if_exists=True,
        )
    except (OSError, ValueError) as wrong:
        raise DesignRefused(f"{storage} cannot keep trials ({wrong}): choose another file") from None
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)  # was killed
    seed = search.seed + len(study.trials)
    if search.sampler == "tpe":
        study.sampler = optuna.samplers.TPESampler(seed=seed)
    else:
        population = max(4, min(POPULATION_MAX, trials // 5))
        study.sampler = optuna.samplers.NSGAIISampler(seed=seed, population_size=population)
    return study


def _suggested(trial: Trial, axis: Axis) -> str:
    if isinstance(axis, Listed):
        return str(trial.suggest_categorical(axis.path, axis.texts))
    if axis.whole:
        return axis.written(trial.suggest_int(axis.path, round(axis.low), round(axis.high)))
    return axis.written(trial.suggest_float(axis.path, axis.low, axis.high))


def _tried(scene: Scenario | PathRefused, search: Search, executor: Executor) -> Row:
    """Run a trial's seeds and return the means; the first error, if there was one, speaks for the trial."""
    if isinstance(scene, PathRefused):
        return {"error": told(scene), **dict.fromkeys(COLUMNS, math.nan)}
    seeds = range(search.first_seed, search.first_seed + search.runs)
    found = dict(observed(((seed, Job(scene, seed, search.warm_up_s)) for seed in seeds), executor))
    rows = [found[seed] for seed in seeds]
    error = next((row["error"] for row in rows if row["error"]), "")
    estimates = {name: mean([row[name] for row in rows]) for name in COLUMNS}
    return {
        "error": error,
        **{name: math.nan if error else each.value for name, each in estimates.items()},
        **{f"{name}_half_width": estimates[name].half_width for name in search.judged},
    }


def _tell(study: Study, trial: Trial, row: Row, search: Search) -> None:
    from optuna.trial import TrialState  # noqa: PLC0415 - an extra

    trial.set_user_attr("row", row)
    values = [row[name] for name in search.objectives]
    if row["error"] or any(math.isnan(value) for value in values):
        study.tell(trial, state=TrialState.FAIL)
        return
    for each in search.constraints:
        trial.set_constraint(str(each), each.excess(row[each.measure]))
    study.tell(trial, values)


def _judged(rows: Sequence[Row], search: Search) -> pd.DataFrame:
    paths = [each.path for each in search.varied]
    widths = [f"{name}_half_width" for name in search.judged]
    frame = pd.DataFrame(list(rows), columns=["trial", *paths, *COLUMNS, *widths, "error"])
    frame[paths] = frame[paths].fillna("")
    held = [frame[each.measure].map(each.bound.holds).to_numpy(bool) for each in search.constraints]
    feasible = np.logical_and.reduce([frame["error"].eq("").to_numpy(bool), *held])
    frame["feasible"] = feasible
    frame["front"] = front(frame, search.objectives)
    return frame
