"""Renders the documentation's pictures: ``python -m sim.pictures WHAT SCENARIO.yaml PICTURE.png`` (``make pictures``).

WHAT is ``timeline``, the run second by second; ``metastability``, its goodput with and without guards; ``heat``, how
long its turns took; ``load``, what more and more traffic does; ``pareto``, what a search for thresholds finds;
``comparison``, what a more impatient guard changes; or ``fits``, what is fitted to its calls.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from sim import charts, plots, scenario
from sim.calibrate import calibrate
from sim.compare import unguarded, what_if
from sim.design import axes
from sim.replicate import compare
from sim.scenario import Scenario
from sim.sweep import sweep
from sim.tune import Search, constraint, tune
from sim.twin import recorded
from sim.world import rehearse

DOTS_PER_INCH = 110
NARROW_IN = 8.0
RATE = "workload.open_loop.rate"
RATES = "4/s,6/s,7/s,8/s,9/s,10/s,12/s,14/s"
THRESHOLDS = (
    "guards.unified.breaker.failures_max=2..20",
    "guards.unified.breaker.open_seconds=1.0..30.0",
    "guards.unified.attempt.first_seconds_max=2.0..8.0",
)
IMPATIENT = {"unified": {"attempt": {"first_seconds_max": 3}, "breaker": {"open_seconds": 3}}}
COMPARED = ("availability", "p50", "p95", "p99", "refusal_p95", "recovery_seconds", "cost")
SEEDS, PAIRS, TRIALS = 4, 20, 30


def timeline(story: Scenario) -> Figure:
    """Rehearse `story` and draw it second by second."""
    return plots.timeline(rehearse(story))


def metastability(story: Scenario) -> Figure:
    """Rehearse `story` twice, with its own guards and with none, and draw what that does to its goodput."""
    return plots.goodput({"guarded": rehearse(story), "without guards": rehearse(unguarded(story))})


def heat(story: Scenario) -> Figure:
    """Rehearse `story` and draw how many of its turns took how long."""
    return plots.latency_heat(rehearse(story))


def load(story: Scenario) -> Figure:
    """Live through `story` at several rates and draw what that does."""
    with tempfile.TemporaryDirectory() as folder:
        frame = sweep(story, axes([f"{RATE}={RATES}"], story), Path(folder) / "load.parquet", runs=SEEDS, warm_up_s=10)
    return charts.load_curve(frame, RATE, width=NARROW_IN)


def pareto(story: Scenario) -> Figure:
    """Search for thresholds for `story` and draw the front."""
    must = (constraint("refusal_p95 <= 12s"),)
    found = tune(story, Search(axes(THRESHOLDS, story), ("availability", "p95"), must, runs=SEEDS), TRIALS)
    return charts.pareto(found, "p95", "availability", width=NARROW_IN)


def comparison(story: Scenario) -> Figure:
    """Compare `story` with itself under a more impatient guard, and draw the differences."""
    labels = ("as it is", "the impatient guard")
    found = compare(story, what_if(story, guards=IMPATIENT), PAIRS, labels=labels, measures=COMPARED)
    return charts.differences(found.summary, labels)


def fits(story: Scenario) -> Figure:
    """Rehearse `story`, fit its provider to the calls, and draw how well that fits."""
    return charts.fits(calibrate(recorded(rehearse(story).journal)), width=NARROW_IN)


PICTURES: dict[str, Callable[[Scenario], Figure]] = {
    each.__name__: each for each in (timeline, metastability, heat, load, pareto, comparison, fits)
}


def render(what: str, story: Path, picture: Path) -> None:
    """Draw `what`, one of `PICTURES`, of the scenario in `story` with seed 0, and write it to `picture` as PNG.

    Raises
    ------
    sim.forms.Unreadable
        `story` is no scenario.
    OSError
        `picture` cannot be written.
    """
    figure = PICTURES[what](scenario.load(story))
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=DOTS_PER_INCH, facecolor="white", metadata={"Software": None})


if __name__ == "__main__":
    render(sys.argv[1], *map(Path, sys.argv[2:]))
